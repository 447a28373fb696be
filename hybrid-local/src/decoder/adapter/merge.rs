//! Models whose weights are changed: a folder in Hugging Face layout beside the one that it was made of.
//!
//! Files of weights keep their headers: each is copied, and changed tensors are written over the old in the precision that they had. So no
//! more than one tensor is in memory.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use hybrid_core::{Error, Result};
use safetensors::{Dtype, tensor::Metadata};

use super::{Matrices, Pair};
use crate::{
    decoder::{
        config::DecoderConfig,
        files::{Fused, Safetensors, Weights, check_folder},
    },
    device::tensor_error,
    files::{copy, io_error},
    tensors::Tensors,
};

const OPERATION: &str = "write model";
/// What lies beside the weights of a model, as far as there is such a file.
pub(in crate::decoder) const BESIDE: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "model.safetensors.index.json",
];

/// Checks that [`merge`] and [`replace`] can write the model at `base` anew, so that nobody works for nothing.
///
/// # Errors
/// `Unsupported` if it is no folder of Safetensors.
pub(in crate::decoder) fn check_rewritable(base: &Path) -> Result<()> {
    check_folder(OPERATION, base)
}

/// Writes the model in `base` with the adapter worked into its weights to the empty folder `to`; gives the paths of the files.
///
/// # Errors
/// `Unsupported` if the base is no folder of Safetensors, or has layers of the adapter under other names.
pub(in crate::decoder) fn merge(
    matrices: &Matrices,
    config: &DecoderConfig,
    base: &Path,
    to: &Path,
) -> Result<Vec<PathBuf>> {
    matrices.check(config)?;
    let parts = parts_of(config, matrices.pairs.iter().map(|(place, pair)| (format!("model.{place}.weight"), pair)));
    let inner = |parts: &[(usize, &Pair)]| parts.first().map(|(_, pair)| pair.a.shape[1]).unwrap_or_default();
    let shapes = parts.iter().map(|(name, (rows, parts))| {
        let rows = rows.unwrap_or_else(|| parts.iter().map(|(_, pair)| pair.b.shape[0]).sum());
        (name.clone(), vec![rows, inner(parts)])
    });
    rewrite(base, to, &shapes.collect(), |name, mut values| {
        for (first, Pair { a, b }) in &parts[name].1 {
            let product = || {
                let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
                let product = tensor(b.floats().unwrap_or_default(), &b.shape)?
                    .matmul(&tensor(a.floats().unwrap_or_default(), &a.shape)?)?;
                (product * matrices.config.scale())?.flatten_all()?.to_vec1::<f32>()
            };
            let product = product().map_err(tensor_error(OPERATION))?;
            values.iter_mut().skip(first * a.shape[1]).zip(product).for_each(|(value, change)| *value += change);
        }
        Ok(values)
    })
}

/// Writes the model in `base` with other values of the tensors named to the empty folder `to`; gives the paths of the files.
///
/// # Errors
/// As of [`merge`].
pub(in crate::decoder) fn replace(
    base: &Path,
    config: &DecoderConfig,
    to: &Path,
    values: Tensors,
) -> Result<Vec<PathBuf>> {
    let parts = parts_of(config, values.iter().map(|(name, array)| (name.clone(), array)));
    let shapes = parts.iter().map(|(name, (rows, parts))| {
        let mut shape = parts.first().map(|(_, array)| array.shape.clone()).unwrap_or_default();
        if let Some((first, rows)) = shape.first_mut().zip(*rows) {
            *first = rows;
        }
        (name.clone(), shape)
    });
    rewrite(base, to, &shapes.collect(), |name, mut values| {
        for (first, array) in &parts[name].1 {
            let row: usize = array.shape[1..].iter().product();
            let new = array.floats()?;
            match values.get_mut(first * row..first * row + new.len()) {
                Some(place) => place.copy_from_slice(new),
                None => {
                    let message = "a tensor has another size than it had";
                    return Err(Error::internal(OPERATION, message).with("tensor", name));
                }
            }
        }
        Ok(values)
    })
}

/// For each tensor of the files its rows, where it is a larger matrix that several layers lie in, and what goes into it with the first row of
/// each.
type Parts<'a, T> = BTreeMap<String, (Option<usize>, Vec<(usize, &'a T)>)>;

/// Puts what is named as layers by themselves together as a model's files have it.
fn parts_of<'a, T>(config: &DecoderConfig, named: impl Iterator<Item = (String, &'a T)>) -> Parts<'a, T> {
    let fused = Fused::of(config);
    let mut parts = Parts::new();
    for (name, part) in named {
        match fused.and_then(|fused| fused.place(&name)) {
            Some(place) => parts.entry(place.name).or_insert((Some(place.all), Vec::new())).1.push((place.first, part)),
            None => {
                parts.insert(name, (None, vec![(0, part)]));
            }
        }
    }
    parts
}

/// One file of weights that is written anew.
struct Shard {
    path: PathBuf,
    header: Metadata,
    start: u64,
}

fn rewrite(
    base: &Path,
    to: &Path,
    shapes: &BTreeMap<String, Vec<usize>>,
    change: impl Fn(&str, Vec<f32>) -> Result<Vec<f32>>,
) -> Result<Vec<PathBuf>> {
    check_rewritable(base)?;
    let read = Safetensors::open(base, None)?;
    // By the files' own names, which are others where a model sees pictures too.
    let mut names = BTreeMap::new();
    for name in shapes.keys() {
        let found = read.name_of(name).ok_or_else(|| {
            let message = "the base's files have no tensor of this name, so its layer cannot be changed";
            Error::unsupported(OPERATION, message).with("tensor", name).with("base", base.display())
        })?;
        names.insert(found, name);
    }
    let mut paths = Vec::new();
    for name in BESIDE.into_iter().filter(|name| base.join(name).is_file()) {
        paths.push(copy(&base.join(name), to)?);
    }
    let mut changed = BTreeMap::new();
    for (path, _) in read.files() {
        let copied = to.join(path.file_name().unwrap_or_default());
        fs::copy(path, &copied).map_err(|error| io_error(OPERATION, &copied, error))?;
        let shard = Shard::open(copied.clone())?;
        for (found, name) in names.iter().filter(|(found, _)| shard.header.info(found).is_some()) {
            changed.insert(name, shard.change(found, |values| change(name, values))?);
        }
        File::open(&copied).and_then(|file| file.sync_all()).map_err(|error| io_error(OPERATION, &copied, error))?;
        paths.push(copied);
    }
    // What was written is what a loader reads.
    let read = Safetensors::open(to, None)?;
    for (name, shape) in shapes {
        let found = read.take(name, shape, &Device::Cpu)?.dense(&Device::Cpu)?;
        let found = found.flatten_all().and_then(|found| found.to_vec1::<f32>()).map_err(tensor_error(OPERATION))?;
        if changed.get(&name) != Some(&checksum(&found)) {
            return Err(Error::internal(OPERATION, "what was written reads otherwise than it was").with("tensor", name));
        }
    }
    Ok(paths)
}

/// A digest of numbers, for comparison within one run.
fn checksum(values: &[f32]) -> hybrid_core::Digest {
    let mut hasher = hybrid_core::Hasher::new();
    for block in values.chunks(1 << 14) {
        hasher.update(&block.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    }
    hasher.finish()
}

impl Shard {
    /// Opens a file whose header has been checked.
    fn open(path: PathBuf) -> Result<Self> {
        let fail = |error| io_error(OPERATION, &path, error);
        let mut file = File::open(&path).map_err(fail)?;
        let mut length = [0u8; 8];
        file.read_exact(&mut length).map_err(fail)?;
        let length = u64::from_le_bytes(length);
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header).map_err(fail)?;
        let header = serde_json::from_slice(&header).map_err(|error| {
            Error::corrupt(OPERATION, "the header is no list of tensors")
                .with("path", path.display())
                .with_source(error)
        })?;
        Ok(Self { path, header, start: 8 + length })
    }

    /// Writes other values over a tensor's; gives a digest of them as they read now.
    fn change(&self, name: &str, change: impl FnOnce(Vec<f32>) -> Result<Vec<f32>>) -> Result<hybrid_core::Digest> {
        let fail = |error| io_error(OPERATION, &self.path, error);
        let Some(info) = self.header.info(name) else {
            return Err(Error::internal(OPERATION, "the tensor is not in the header").with("tensor", name));
        };
        let (from, to) = info.data_offsets;
        let mut file = OpenOptions::new().read(true).write(true).open(&self.path).map_err(fail)?;
        let place = SeekFrom::Start(self.start + from as u64);
        let mut bytes = vec![0u8; to - from];
        file.seek(place).and_then(|_| file.read_exact(&mut bytes)).map_err(fail)?;
        let values = change(widen(info.dtype, &bytes).map_err(|error| error.with("tensor", name))?)?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::internal(OPERATION, "the tensor would hold what is not a finite number")
                .with("tensor", name)
                .with("value", value));
        }
        let bytes = narrow(info.dtype, &values);
        file.seek(place).and_then(|_| file.write_all(&bytes)).map_err(fail)?;
        let written = widen(info.dtype, &bytes)?;
        if written.iter().any(|value| !value.is_finite()) {
            return Err(Error::unsupported(
                OPERATION,
                "a changed weight is too large for the base's precision; save the base in single precision",
            )
            .with("tensor", name));
        }
        Ok(checksum(&written))
    }
}

fn widen(kind: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    match kind {
        Dtype::F32 => Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::F16 => Ok(bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()),
        Dtype::BF16 => Ok(bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()),
        other => Err(Error::unsupported(OPERATION, "the tensor's numbers are of a kind that is not known")
            .with("found", format_args!("{other:?}"))
            .with("known", "F32, BF16, F16")),
    }
}

fn narrow(kind: Dtype, values: &[f32]) -> Vec<u8> {
    match kind {
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}
