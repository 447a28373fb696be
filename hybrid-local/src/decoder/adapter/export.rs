//! One adapter for every place that serves it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hybrid_core::Result;

use super::{Matrices, gguf, merge};
use crate::{decoder::files::ModelFiles, files::io_error};

/// How an adapter is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterFormat {
    /// `adapter_config.json` and `adapter_model.safetensors`, as PEFT and with it transformers, vLLM and TGI read it.
    Peft,
    /// `adapter_config.json` and `adapters.safetensors`, as mlx-lm reads it.
    Mlx,
    /// `adapter.gguf`, as llama.cpp reads it with `--lora`.
    Gguf,
    /// The whole model in Hugging Face layout with the adapter worked into its weights, as Bedrock imports it.
    Merged,
}

/// Low-rank matrices beside a decoder's weights, in memory.
///
/// ```no_run
/// # fn export() -> hybrid_core::Result<()> {
/// use hybrid_local::{AdapterFormat, LoraAdapter};
///
/// let adapter = LoraAdapter::open("candidate".as_ref())?;
/// for (format, folder) in [(AdapterFormat::Mlx, "mlx"), (AdapterFormat::Gguf, "gguf"), (AdapterFormat::Merged, "merged")] {
///     adapter.export("models/qwen3-0.6b".as_ref(), format, folder.as_ref())?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter(Matrices);

impl LoraAdapter {
    /// Reads the adapter in `folder`, as PEFT or mlx-lm leaves it.
    ///
    /// # Errors
    /// [`NotFound`](hybrid_core::ErrorKind::NotFound) that names the file, [`Corrupt`](hybrid_core::ErrorKind::Corrupt) for matrices without each other or of another rank,
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) for an adapter that is more than its matrices: DoRA, biases, a vocabulary of its own.
    pub fn open(folder: &Path) -> Result<Self> {
        Matrices::open(folder).map(Self)
    }

    /// The rank of its matrices.
    pub fn rank(&self) -> usize {
        self.0.config.rank
    }

    /// What the product of two matrices is multiplied by.
    pub fn scale(&self) -> f64 {
        self.0.config.scale()
    }

    /// Writes it for the model at `base`, a folder or a GGUF file, into `folder`, which is made; gives the paths of the files.
    ///
    /// # Behavior
    /// What was written is read back and compared, number for number, before this returns. Numbers of a merged model have the precision that
    /// the base's have.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names the layer if the adapter was made for another model;
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) if the format does not know such a base: a merged model is made of a folder alone.
    pub fn export(&self, base: &Path, format: AdapterFormat, folder: &Path) -> Result<Vec<PathBuf>> {
        let config = ModelFiles::open(base)?.config;
        self.0.check(&config)?;
        fs::create_dir_all(folder).map_err(|error| io_error("write adapter", folder, error))?;
        match format {
            AdapterFormat::Peft => self.0.write_peft(folder, Some(&base.display().to_string())),
            AdapterFormat::Mlx => self.0.write_mlx(folder, config.layers()),
            AdapterFormat::Gguf => {
                let path = folder.join("adapter.gguf");
                gguf::write(&self.0, &config, &path).map(|()| vec![path])
            }
            AdapterFormat::Merged => merge(&self.0, &config, base, folder),
        }
    }
}
