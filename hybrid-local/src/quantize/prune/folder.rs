//! The folder that is left when parts of a model are gone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use hybrid_core::{Error, ErrorKind, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::{OPERATION, width::Removal};
use crate::{
    decoder::{
        config::DecoderConfig,
        files::{Fused, ModelFiles, Raw, Safetensors, check_folder},
        tensors::tensors,
    },
    files::{self, io_error},
};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// What is left of a tensor.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// The name that it has then.
    name: String,
    /// The rows, or the numbers of a vector, that stay, if not all.
    rows: Option<Vec<usize>>,
    /// The columns that stay, if not all.
    columns: Option<Vec<usize>>,
}

/// Makes the folder `target` of the model in `folder` without some layers.
pub(in crate::quantize) fn without_layers(folder: &Path, target: &Path, layers: &BTreeSet<usize>) -> Result<()> {
    let config = open(folder)?;
    if layers.is_empty() || layers.iter().any(|layer| *layer >= config.layers()) || layers.len() == config.layers() {
        return Err(Error::invalid(OPERATION, "some of the model's layers are to be removed, but not all")
            .with("layers", format_args!("{layers:?}"))
            .with("of", config.layers()));
    }
    let rest = |text: &mut Value| {
        text["num_hidden_layers"] = json!(config.layers() - layers.len());
        if config.windows.iter().any(Option::is_some) {
            // Which layers have windows is else told by their numbers, and these change.
            let kept = config.windows.iter().enumerate().filter(|(layer, _)| !layers.contains(layer));
            let kind = |window: &Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
            text["layer_types"] = kept.map(|(_, window)| kind(window)).collect();
        } else if let Some(kinds) = text["layer_types"].as_array_mut() {
            kinds.truncate(config.layers() - layers.len());
        }
    };
    let left = |name: &str| {
        let name = match layer_of(name, &config) {
            None => name.to_owned(),
            Some((_, number, _)) if layers.contains(&number) => return None,
            Some((prefix, number, rest)) => format!("{prefix}{}.{rest}", number - layers.range(..number).count()),
        };
        Some(Left { name, rows: None, columns: None })
    };
    write(folder, target, rest, left)
}

/// Makes the folder `target` of the model in `folder` with narrower layers.
pub(in crate::quantize) fn without_width(folder: &Path, target: &Path, removal: &Removal) -> Result<()> {
    let config = open(folder)?;
    let [groups, channels] = removal.check(&config)?;
    let group = config.heads / config.key_value_heads;
    let rest = |text: &mut Value| {
        // Else it would be told by how often the heads go into a state.
        text["head_dim"] = json!(config.head_size);
        text["num_attention_heads"] = json!(config.heads - groups * group);
        text["num_key_value_heads"] = json!(config.key_value_heads - groups);
        text["intermediate_size"] = json!(config.intermediate - channels);
    };
    let left = |name: &str| {
        let (mut rows, mut columns) = (None, None);
        if let Some((_, layer, rest)) = layer_of(name, &config) {
            let stay = |all: usize, gone: &BTreeSet<usize>| (0..all).filter(|unit| !gone.contains(unit)).collect();
            let heads: Vec<usize> = stay(config.key_value_heads, &removal.groups[layer]);
            let keys = spread(&heads, config.head_size);
            let queries = spread(&heads, group * config.head_size);
            let wide: Vec<usize> = stay(config.intermediate, &removal.channels[layer]);
            let behind = |first: usize, units: &[usize]| units.iter().map(|unit| first + unit).collect::<Vec<_>>();
            let [of_queries, of_keys] = [config.query_size(), config.key_value_size()];
            match rest.rsplit_once('.').unwrap_or_default() {
                ("self_attn.q_proj", _) => rows = Some(queries),
                ("self_attn.k_proj" | "self_attn.v_proj", _) => rows = Some(keys),
                ("self_attn.qkv_proj", _) => {
                    let values = behind(of_queries + of_keys, &keys);
                    rows = Some([queries, behind(of_queries, &keys), values].concat());
                }
                ("self_attn.o_proj", "weight") => columns = Some(queries),
                ("mlp.gate_proj" | "mlp.up_proj", _) => rows = Some(wide),
                ("mlp.gate_up_proj", _) => rows = Some([wide.clone(), behind(config.intermediate, &wide)].concat()),
                ("mlp.down_proj", "weight") => columns = Some(wide),
                _ => {}
            }
        }
        Some(Left { name: name.to_owned(), rows, columns })
    };
    write(folder, target, rest, left)
}

/// The configuration of the model in `folder`, whose tensors are as it says.
fn open(folder: &Path) -> Result<DecoderConfig> {
    let config = ModelFiles::open(folder)?.config;
    check_folder(OPERATION, folder)?;
    let source = Safetensors::open(folder, Fused::of(&config))?;
    tensors(&config).iter().try_for_each(|spec| source.check(&spec.name, &spec.shape))?;
    Ok(config)
}

/// The rows of units that have `size` each.
fn spread(units: &[usize], size: usize) -> Vec<usize> {
    units.iter().flat_map(|unit| unit * size..(unit + 1) * size).collect()
}

/// Writes what is left. The folder appears when it is whole and was read back.
fn write(
    folder: &Path,
    target: &Path,
    change: impl FnOnce(&mut Value),
    left: impl Fn(&str) -> Option<Left>,
) -> Result<()> {
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
            files::copy(&path, &part)?;
        }
    }
    files::write(&part.join(CONFIG), &changed(folder, change)?)?;
    write_tensors(folder, &part.join(WEIGHTS), left)?;
    files::sync_folder(&part.join(WEIGHTS))?;
    let made = ModelFiles::open(&part)?;
    if let Some(wrong) = tensors(&made.config).iter().find(|spec| made.weights.bytes(&spec.name) != 4 * spec.elements())
    {
        return Err(Error::internal(OPERATION, "a tensor is missing in the folder or has another size than it says")
            .with("tensor", &wrong.name));
    }
    fs::rename(&part, target).map_err(|error| io_error(OPERATION, target, error))?;
    files::sync_folder(target)
}

/// The `config.json` of the model that is left.
fn changed(folder: &Path, change: impl FnOnce(&mut Value)) -> Result<Vec<u8>> {
    let path = folder.join(CONFIG);
    let mut all: Value = serde_json::from_slice(&files::read(&path, MAX_CONFIG_BYTES)?)
        .map_err(|error| Error::corrupt(OPERATION, "not JSON").with("path", path.display()).with_source(error))?;
    // Of a model that sees pictures too, the part that reads text.
    change(if all["text_config"].is_object() { &mut all["text_config"] } else { &mut all });
    serde_json::to_vec_pretty(&all)
        .map_err(|error| Error::internal(OPERATION, "the configuration cannot be written").with_source(error))
}

fn write_tensors(folder: &Path, target: &Path, left: impl Fn(&str) -> Option<Left>) -> Result<()> {
    let source = Safetensors::open(folder, None)?;
    let (mut listed, mut parts, mut at) = (Vec::new(), Vec::new(), 0);
    for name in source.names() {
        let Some((left, raw)) = left(name).zip(source.raw(name)) else { continue };
        let mut shape = raw.shape.clone();
        let size = raw.bytes as usize / shape.iter().product::<usize>().max(1);
        for (length, stay) in shape.iter_mut().zip([&left.rows, &left.columns]) {
            let Some(stay) = stay else { continue };
            // Those that the model reads have been looked at; there may be others.
            if stay.iter().any(|unit| unit >= length) {
                return Err(Error::corrupt(OPERATION, "the tensor is smaller than the configuration says")
                    .with("tensor", name)
                    .with("found", format_args!("{:?}", raw.shape)));
            }
            *length = stay.len();
        }
        let bytes = size * shape.iter().product::<usize>();
        let info = TensorInfo { dtype: raw.dtype, shape, data_offsets: (at, at + bytes) };
        at += bytes;
        listed.push((left.name.clone(), info));
        parts.push((left, raw));
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
    for (left, raw) in parts {
        let Raw { path, offset, bytes, .. } = raw;
        let read = File::open(path).and_then(|mut file| file.seek(SeekFrom::Start(offset)).map(|_| file));
        let mut read = read.map_err(|error| io_error(OPERATION, path, error))?.take(bytes);
        let shorter = || Error::corrupt(OPERATION, "the file has become shorter").with("path", path.display());
        if left.rows.is_none() && left.columns.is_none() {
            if io::copy(&mut read, &mut file).map_err(fail)? != bytes {
                return Err(shorter());
            }
            continue;
        }
        let mut whole = Vec::new();
        if read.read_to_end(&mut whole).map_err(|error| io_error(OPERATION, path, error))? as u64 != bytes {
            return Err(shorter());
        }
        file.write_all(&chosen(&whole, raw.shape, &left)).map_err(fail)?;
    }
    let file = file.into_inner().map_err(|error| fail(error.into_error()))?;
    file.sync_all().map_err(fail)
}

/// The bytes of the rows and columns that stay of a vector or matrix.
fn chosen(whole: &[u8], shape: &[usize], left: &Left) -> Vec<u8> {
    let (rows, columns) = (shape[0].max(1), shape.get(1).copied().unwrap_or(1).max(1));
    let row_bytes = whole.len() / rows;
    let size = row_bytes / columns;
    let row = |row: usize| {
        let bytes = &whole[row * row_bytes..(row + 1) * row_bytes];
        match &left.columns {
            None => bytes.to_vec(),
            Some(columns) => {
                columns.iter().flat_map(|column| &bytes[column * size..(column + 1) * size]).copied().collect()
            }
        }
    };
    match &left.rows {
        None => (0..rows).flat_map(row).collect(),
        Some(stay) => stay.iter().copied().flat_map(row).collect(),
    }
}

/// What a tensor's name has before the number of its layer, the number, and what is behind it; of the decoder's own layers alone, as models that
/// see pictures have others too.
fn layer_of<'a>(name: &'a str, config: &DecoderConfig) -> Option<(&'static str, usize, &'a str)> {
    let prefixes = ["model.layers.", "language_model.model.layers.", "model.language_model.layers.", "layers."];
    let layer = |prefix: &'static str| {
        let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((prefix, number.parse::<usize>().ok()?, rest))
    };
    prefixes.into_iter().find_map(layer).filter(|(_, number, _)| *number < config.layers())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_rows_and_columns_are_chosen_in_their_order() {
        let whole: Vec<u8> = (0..24).collect();
        let left = |rows, columns| Left { name: String::new(), rows, columns };
        // Three rows of four numbers of two bytes.
        assert_eq!(chosen(&whole, &[3, 4], &left(Some(vec![2]), None)), (16..24).collect::<Vec<u8>>());
        assert_eq!(chosen(&whole, &[3, 4], &left(Some(vec![0, 2]), Some(vec![1]))), [2, 3, 18, 19]);
        assert_eq!(chosen(&whole, &[12], &left(Some(vec![1, 11]), None)), [2, 3, 22, 23]);
    }
}
