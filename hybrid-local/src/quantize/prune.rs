use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{Cancellation, Error, ErrorKind, Progress, ProgressEvent, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Device,
    decoder::{
        config::DecoderConfig,
        files::{ModelFiles, Raw, Safetensors},
        reading::Reading,
        tensors::tensors,
    },
    files::{self, io_error},
};

const OPERATION: &str = "prune model";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The fewest tokens that say anything about a layer.
const MIN_TOKENS: usize = 32;

/// Takes layers out of a model: those that change least of what passes through them.
///
/// How much a layer matters is how far its output turns from its input: one minus their cosine, averaged over the tokens of a text (the "block
/// influence" of Men and others, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024). What a model
/// loses by it shows in a [`Comparison`](super::Comparison) with the whole one, and most of it comes back by training what is left.
///
/// ```no_run
/// # async fn prune() -> hybrid_core::Result<()> {
/// use std::sync::Arc;
/// use hybrid_core::{Cancellation, NoProgress};
/// use hybrid_local::{Device, quantize::LayerPruner};
///
/// let pruner = LayerPruner::new(Device::cpu());
/// let text = "what such a model reads all day";
/// let influences = pruner.measure("models/bakery".as_ref(), text, Arc::new(NoProgress), Cancellation::new()).await?;
/// pruner.remove("models/bakery".as_ref(), "models/bakery-small".as_ref(), influences.least(4)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LayerPruner {
    device: Device,
    context: usize,
    memory_limit: Option<u64>,
}

/// How much each layer of a model changes of what passes through it, from 0 for nothing, by the layers' numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Influences(pub Vec<f64>);

impl Influences {
    /// The `count` layers that change least; of equal ones the later.
    pub fn least(&self, count: usize) -> BTreeSet<usize> {
        let mut layers: Vec<usize> = (0..self.0.len()).collect();
        layers.sort_by(|one, other| self.0[*one].total_cmp(&self.0[*other]).then(other.cmp(one)));
        layers.into_iter().take(count).collect()
    }
}

impl LayerPruner {
    /// Measures on `device`, with windows of 512 tokens.
    pub fn new(device: Device) -> Self {
        Self { device, context: 512, memory_limit: None }
    }

    /// The same, with windows of `tokens` tokens, as far as the model has so many positions.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = tokens;
        self
    }

    /// The same, for models that take at most `bytes` of memory.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Measures the layers of `model`, a folder or a GGUF file, on a text. Progress counts tokens, in the stage `measure layers`.
    ///
    /// Needs a tokio runtime: the work runs on its blocking threads.
    ///
    /// # Errors
    /// Those of loading the model; [`InvalidInput`](ErrorKind::InvalidInput) for a text of fewer than 32 tokens; [`Cancelled`](ErrorKind::Cancelled).
    pub async fn measure(
        &self,
        model: &Path,
        text: &str,
        progress: Arc<dyn Progress>,
        cancel: Cancellation,
    ) -> Result<Influences> {
        let (this, model, text) = (self.clone(), model.to_owned(), text.to_owned());
        let work = tokio::task::spawn_blocking(move || this.influences(&model, &text, &*progress, &cancel));
        work.await.map_err(|error| Error::internal(OPERATION, "the work ended early").with_source(error))?
    }

    pub(super) fn influences(
        &self,
        model: &Path,
        text: &str,
        progress: &dyn Progress,
        cancel: &Cancellation,
    ) -> Result<Influences> {
        let reading = Reading::open(model, &self.device, self.memory_limit, self.context)?;
        let tokens = reading.encode(text)?;
        if tokens.len() < MIN_TOKENS {
            return Err(Error::invalid(OPERATION, "the text is too short to say anything about a layer")
                .with("tokens", tokens.len())
                .with("needed", MIN_TOKENS));
        }
        let window = self.context.min(reading.config().context).max(2);
        let mut sums = vec![0.0; reading.config().layers()];
        let (mut done, total) = (0, tokens.len() as u64);
        for window in tokens.chunks(window) {
            if cancel.is_cancelled() {
                return Err(Error::cancelled(OPERATION, "the measurement was cancelled"));
            }
            for (sum, turned) in sums.iter_mut().zip(reading.influences(window)?) {
                *sum += turned * window.len() as f64;
            }
            done += window.len() as u64;
            progress.report(ProgressEvent::new("measure layers", done, total, "tokens"));
        }
        Ok(Influences(sums.into_iter().map(|sum| sum / total as f64).collect()))
    }

    /// Makes the folder `target` of the model in `folder` without `layers`. The numbers of all others stay as they are, bit for bit.
    ///
    /// The folder appears when it is whole and was read back. Needs a tokio runtime: the work runs on its blocking threads.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for layers that the model has not, or for all of them; [`AlreadyExists`](ErrorKind::AlreadyExists) if something
    /// has the target's name; those of reading and writing.
    pub async fn remove(&self, folder: &Path, target: &Path, layers: BTreeSet<usize>) -> Result<()> {
        let (folder, target) = (folder.to_owned(), target.to_owned());
        let work = tokio::task::spawn_blocking(move || without(&folder, &target, &layers));
        work.await.map_err(|error| Error::internal(OPERATION, "the work ended early").with_source(error))?
    }
}

pub(super) fn without(folder: &Path, target: &Path, layers: &BTreeSet<usize>) -> Result<()> {
    let config = ModelFiles::open(folder)?.config;
    if layers.is_empty() || layers.iter().any(|layer| *layer >= config.layers()) || layers.len() == config.layers() {
        return Err(Error::invalid(OPERATION, "some of the model's layers are to be removed, but not all")
            .with("layers", format_args!("{layers:?}"))
            .with("of", config.layers()));
    }
    if target.exists() {
        return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, "something has the target's name; choose another")
            .with("path", target.display()));
    }
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let fail = |error| io_error(OPERATION, &part, error);
    if part.exists() {
        // What an earlier run has left; it is made anew.
        fs::remove_dir_all(&part).map_err(fail)?;
    }
    fs::create_dir_all(&part).map_err(fail)?;
    for entry in fs::read_dir(folder).map_err(|error| io_error(OPERATION, folder, error))? {
        let path = entry.map_err(|error| io_error(OPERATION, folder, error))?.path();
        let name = path.file_name().unwrap_or_default();
        let weights = path.extension().is_some_and(|ending| ending == "safetensors") || name == INDEX;
        if path.is_file() && !weights && name != CONFIG {
            fs::copy(&path, part.join(name)).map_err(|error| io_error(OPERATION, &path, error))?;
        }
    }
    files::write(&part.join(CONFIG), &changed(folder, &config, layers)?)?;
    write_tensors(folder, &part.join(WEIGHTS), &config, layers)?;
    let made = ModelFiles::open(&part)?;
    if let Some(missing) = tensors(&made.config).iter().find(|spec| made.weights.bytes(&spec.name) == 0) {
        return Err(Error::internal(OPERATION, "a tensor is missing in the folder").with("tensor", &missing.name));
    }
    fs::rename(&part, target).map_err(|error| io_error(OPERATION, target, error))?;
    files::sync_folder(target)
}

/// The `config.json` of the model without some layers.
fn changed(folder: &Path, config: &DecoderConfig, layers: &BTreeSet<usize>) -> Result<Vec<u8>> {
    let path = folder.join(CONFIG);
    let mut all: Value = serde_json::from_slice(&files::read(&path, MAX_CONFIG_BYTES)?)
        .map_err(|error| Error::corrupt(OPERATION, "not JSON").with("path", path.display()).with_source(error))?;
    // Of a model that sees pictures too, the part that reads text.
    let text = if all["text_config"].is_object() { &mut all["text_config"] } else { &mut all };
    text["num_hidden_layers"] = json!(config.layers() - layers.len());
    if config.windows.iter().any(Option::is_some) {
        // Which layers have windows is else told by their numbers, and these change.
        let kept = config.windows.iter().enumerate().filter(|(layer, _)| !layers.contains(layer));
        let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        text["layer_types"] = kept.map(|(_, window)| kind(window)).collect();
    } else if let Some(kinds) = text["layer_types"].as_array_mut() {
        kinds.truncate(config.layers() - layers.len());
    }
    serde_json::to_vec_pretty(&all)
        .map_err(|error| Error::internal(OPERATION, "the configuration cannot be written").with_source(error))
}

fn write_tensors(folder: &Path, target: &Path, config: &DecoderConfig, layers: &BTreeSet<usize>) -> Result<()> {
    let source = Safetensors::open(folder, None)?;
    let (mut listed, mut parts, mut at) = (Vec::new(), Vec::new(), 0);
    for name in source.names() {
        let Some((name, raw)) = kept(name, config, layers).zip(source.raw(name)) else { continue };
        let info =
            TensorInfo { dtype: raw.dtype, shape: raw.shape.clone(), data_offsets: (at, at + raw.bytes as usize) };
        at += raw.bytes as usize;
        listed.push((name, info));
        parts.push(raw);
    }
    let unwritable = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(OPERATION, "the list of tensors cannot be written").with_source(error)
    };
    let notes = Some([("format".to_owned(), "pt".to_owned())].into());
    let metadata = Metadata::new(notes, listed).map_err(|error| unwritable(error.into()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| unwritable(error.into()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let fail = |error| io_error(OPERATION, target, error);
    let mut file = BufWriter::new(File::create(target).map_err(fail)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(fail)?;
    for Raw { path, offset, bytes, .. } in parts {
        let read = File::open(path).and_then(|mut file| file.seek(SeekFrom::Start(offset)).map(|_| file));
        let mut read = read.map_err(|error| io_error(OPERATION, path, error))?.take(bytes);
        if io::copy(&mut read, &mut file).map_err(fail)? != bytes {
            return Err(Error::corrupt(OPERATION, "the file has become shorter").with("path", path.display()));
        }
    }
    let file = file.into_inner().map_err(|error| fail(error.into_error()))?;
    file.sync_all().map_err(fail)
}

/// The name that a tensor has when layers are gone; `None` if it goes with one.
fn kept(name: &str, config: &DecoderConfig, layers: &BTreeSet<usize>) -> Option<String> {
    // Only the decoder's own layers: models that see pictures have others too.
    let prefixes = ["model.layers.", "language_model.model.layers.", "model.language_model.layers.", "layers."];
    let layer = |prefix: &'static str| {
        let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((prefix, number.parse::<usize>().ok()?, rest))
    };
    match prefixes.into_iter().find_map(layer).filter(|(_, number, _)| *number < config.layers()) {
        None => Some(name.to_owned()),
        Some((_, number, _)) if layers.contains(&number) => None,
        Some((prefix, number, rest)) => Some(format!("{prefix}{}.{rest}", number - layers.range(..number).count())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_influential_are_those_with_the_smallest_figures() {
        let influences = Influences(vec![0.5, 0.1, 0.3, 0.1, f64::NAN]);
        assert_eq!(influences.least(1), [3].into());
        assert_eq!(influences.least(3), [1, 2, 3].into());
        assert_eq!(influences.least(9).len(), 5);
    }
}
