//! What a GGUF file of a folder will be, down to the byte, before a number is read.

use std::{collections::BTreeSet, ops::Range, path::Path, time::UNIX_EPOCH};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::f16;
use hybrid_core::{Digest, Error, Hasher, Result};

use super::{
    Fallback, Mix, OPERATION,
    gguf::{self, Listed, aligned, bytes_of},
    metadata::{self, Metadata},
    mix::format_name,
};
use crate::{
    decoder::{
        config::DecoderConfig,
        files::{Fused, ModelFiles, Place, Safetensors, heads_of, theirs},
        tensors::{Role, TensorSpec, tensors},
    },
    device::tensor_error,
    files::io_error,
};

/// How many numbers are widened and put into blocks at a time: 8 MiB of them.
const CHUNK_NUMBERS: usize = 2 << 20;

/// The plan of a file.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) header: Vec<u8>,
    pub(super) tensors: Vec<Planned>,
    pub(super) fallbacks: Vec<Fallback>,
    pub(super) left_out: Vec<String>,
    pub(super) notes: Vec<String>,
    source: Safetensors,
}

/// A tensor of the file.
#[derive(Debug)]
pub(super) struct Planned {
    /// Its name in the file.
    pub(super) name: String,
    values: Values,
    shape: Vec<usize>,
    pub(super) format: GgmlDType,
    /// Where it begins and how long it is, without padding, in bytes of the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Rows of a head, where the file has a head's rows in pairs.
    paired: Option<usize>,
    /// What is added to each number, and what it is then multiplied by.
    offset_by: f32,
    factor: f32,
}

#[derive(Debug)]
enum Values {
    /// A tensor of the folder.
    Stored(String),
    Known(Vec<f32>),
}

impl Layout {
    /// Plans the file of the model in `folder`.
    ///
    /// # Errors
    /// Those of reading the folder; `Unsupported` that names what a GGUF file has no words for.
    pub(super) fn plan(folder: &Path, name: &str, mix: Mix) -> Result<(Self, ModelFiles)> {
        let files = ModelFiles::open(folder)?;
        let source = Safetensors::open(folder, None)?;
        let config = &files.config;
        let Metadata { entries, vectors, query_factor, notes } = metadata::metadata(&files, name, mix)?;
        let pairs = metadata::architecture(config.family) == "llama";

        let (mut planned, mut fallbacks, mut used) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (name, values) in vectors {
            planned.push(Planned::new(name, vec![values.len()], GgmlDType::F32, Values::Known(values)));
        }
        for spec in stored(config) {
            let name = theirs(&spec.name, config.post_norms).ok_or_else(|| {
                Error::unsupported(OPERATION, "the tensor has no name in GGUF files").with("tensor", &spec.name)
            })?;
            let columns = spec.shape.last().copied().unwrap_or_default();
            let wanted = mix.wanted(&spec, config.layers());
            let format = Mix::fitting(wanted, columns);
            if format != wanted {
                let [wanted, used] = [wanted, format].map(|format| format_name(format).to_owned());
                fallbacks.push(Fallback { tensor: name.clone(), columns, wanted, used });
            }
            used.extend(source.name_of(&spec.name));
            let mut tensor = Planned::new(&name, spec.shape.clone(), format, Values::Stored(spec.name.clone()));
            let heads = heads_of(&spec.name, config.heads, config.key_value_heads).filter(|_| pairs);
            tensor.paired = heads.map(|heads| spec.shape[0] / heads.max(1));
            if spec.role == Role::Norm {
                tensor.offset_by = config.norm_offset;
            }
            // What a head's norm gives is what counts, where there is one.
            let queries = if config.head_norms { "self_attn.q_norm." } else { "self_attn.q_proj." };
            if spec.name.contains(queries) {
                tensor.factor = query_factor;
            }
            planned.push(tensor);
        }
        let left_out = source.names().filter(|name| !used.contains(*name)).map(str::to_owned).collect();

        let mut at = 0;
        let mut listed = Vec::with_capacity(planned.len());
        for tensor in &planned {
            listed.push(Listed { name: &tensor.name, shape: &tensor.shape, format: tensor.format, offset: at });
            at += aligned(tensor.bytes);
        }
        let header = gguf::header(&entries, &listed);
        let mut at = header.len() as u64;
        for tensor in &mut planned {
            tensor.offset = at;
            at += aligned(tensor.bytes);
        }
        Ok((Self { header, tensors: planned, fallbacks, left_out, notes, source }, files))
    }

    /// The file's size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.last().map_or(self.header.len() as u64, Planned::end)
    }

    /// What tells this plan, over these files, from every other.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn digest(&self) -> Result<Digest> {
        let mut hasher = Hasher::new();
        hasher.update(&self.header);
        for (path, size) in self.source.files() {
            let changed =
                path.metadata().and_then(|meta| meta.modified()).map_err(|error| io_error(OPERATION, path, error))?;
            let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            hasher.update(format!("\0{}\0{size}\0{changed}", path.display()).as_bytes());
        }
        Ok(hasher.finish())
    }

    /// Into which rows a tensor is cut for its work.
    pub(super) fn chunks(&self, tensor: &Planned) -> Vec<Range<usize>> {
        let rows = tensor.rows();
        let unit = tensor.paired.unwrap_or(1).max(1);
        let step = (CHUNK_NUMBERS / tensor.columns().max(1) / unit).max(1) * unit;
        (0..rows).step_by(step).map(|from| from..rows.min(from + step)).collect()
    }

    /// The file's bytes of some rows of a tensor.
    ///
    /// # Errors
    /// Those of the folder's files; `Unsupported` for a number that half precision cannot hold.
    pub(super) fn chunk(&self, tensor: &Planned, rows: Range<usize>) -> Result<Vec<u8>> {
        let count = rows.len();
        let mut values = match &tensor.values {
            Values::Known(values) => values.get(rows).map(<[f32]>::to_vec).unwrap_or_default(),
            Values::Stored(name) => self.source.rows(name, &tensor.shape, rows)?,
        };
        if (tensor.offset_by, tensor.factor) != (0.0, 1.0) {
            values.iter_mut().for_each(|value| *value = (*value + tensor.offset_by) * tensor.factor);
        }
        if let Some(head) = tensor.paired {
            values = pairs(&values, head, tensor.columns());
        }
        blocks(values, count, tensor).map_err(|error: Error| error.with("tensor", &tensor.name))
    }
}

impl Planned {
    fn new(name: &str, shape: Vec<usize>, format: GgmlDType, values: Values) -> Self {
        let elements: u64 = shape.iter().map(|size| *size as u64).product();
        let bytes = bytes_of(format, elements);
        Self {
            name: name.to_owned(),
            values,
            shape,
            format,
            offset: 0,
            bytes,
            paired: None,
            offset_by: 0.0,
            factor: 1.0,
        }
    }

    /// Where the next tensor begins.
    pub(super) fn end(&self) -> u64 {
        self.offset + aligned(self.bytes)
    }

    fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Numbers of a row; a tensor of one dimension has rows of one number.
    fn columns(&self) -> usize {
        self.shape[1..].iter().product()
    }
}

/// The tensors of a model's files: matrices that some families' files have in one are one.
pub(super) fn stored(config: &DecoderConfig) -> Vec<TensorSpec> {
    let fused = Fused::of(config);
    let whole = |mut spec: TensorSpec| {
        let Some(Place { name, first, all, .. }) = fused.and_then(|fused| fused.place(&spec.name)) else {
            return Some(spec);
        };
        (spec.name, spec.shape[0]) = (name, all);
        if spec.role == Role::Query {
            spec.role = Role::Heads;
        }
        (first == 0).then_some(spec)
    };
    tensors(config).into_iter().filter_map(whole).collect()
}

fn blocks(values: Vec<f32>, rows: usize, tensor: &Planned) -> Result<Vec<u8>> {
    match tensor.format {
        GgmlDType::F32 => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        GgmlDType::F16 => {
            let halves: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
            if halves.iter().any(|value| !value.is_finite()) {
                return Err(Error::unsupported(
                    OPERATION,
                    "a number is too large for half precision; choose blocks such as q8_0",
                ));
            }
            Ok(halves.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        format => {
            let fail = tensor_error(OPERATION);
            let tensor = Tensor::from_vec(values, (rows, tensor.columns()), &Device::Cpu).map_err(fail)?;
            let blocks = QTensor::quantize(&tensor, format).map_err(fail)?;
            blocks.data().map(std::borrow::Cow::into_owned).map_err(fail)
        }
    }
}

/// Puts the rows of heads, of which the first half is paired with the second, into the order where neighbours are a pair.
fn pairs(values: &[f32], head: usize, columns: usize) -> Vec<f32> {
    let mut ordered = Vec::with_capacity(values.len());
    for rows in values.chunks_exact(head * columns) {
        for row in 0..head {
            let from = row / 2 + (row % 2) * (head / 2);
            ordered.extend_from_slice(&rows[from * columns..][..columns]);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_head_become_pairs() {
        // Two heads of four rows of two numbers.
        let halved: Vec<f32> = (0..16).map(|value| value as f32).collect();
        let rows: Vec<f32> = pairs(&halved, 4, 2).chunks(2).map(|row| row[0] / 2.0).collect();
        assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
