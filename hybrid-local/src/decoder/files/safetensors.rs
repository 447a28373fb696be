//! Tensors of a Hugging Face folder: one Safetensors file, or several with an index.
//!
//! Headers are read at once, tensors one by one when they are asked for, so that no file is in memory as a whole.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use hybrid_core::{Error, FileName, Result};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde::Deserialize;

use super::{
    Plain, Stored, Weights, check_shape,
    fused::{Fused, Place},
    read_range,
};
use crate::{
    device::tensor_error,
    files::{io_error, read},
};

const OPERATION: &str = "read tensors";
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// As in the format's own reader.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The tensors of a folder.
#[derive(Debug)]
pub(crate) struct Safetensors {
    shards: Vec<Shard>,
    /// The shard of each tensor.
    places: BTreeMap<String, usize>,
    fused: Option<Fused>,
}

/// A tensor's bytes in a file.
#[derive(Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) path: &'a Path,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a Vec<usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    header: Metadata,
    /// Where the header ends, in bytes.
    start: u64,
    size: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, FileName>,
}

impl Safetensors {
    /// Reads the headers of the files in `folder`, in which some matrices may be parts of others.
    ///
    /// # Errors
    /// `NotFound` that says what is there instead; `Corrupt` that names the file.
    pub(crate) fn open(folder: &Path, fused: Option<Fused>) -> Result<Self> {
        let index = folder.join(INDEX);
        if folder.join(WHOLE).is_file() {
            let shard = Shard::open(folder.join(WHOLE))?;
            let places = shard.header.tensors().into_keys().map(|name| (name, 0)).collect();
            return Ok(Self { shards: vec![shard], places, fused });
        }
        if !index.is_file() {
            return Err(missing(folder));
        }
        let corrupt = |error| {
            Error::corrupt(OPERATION, "not an index of tensors").with("path", index.display()).with_source(error)
        };
        let Index { weight_map } = serde_json::from_slice(&read(&index, MAX_INDEX_BYTES)?).map_err(corrupt)?;
        let (mut shards, mut numbers, mut places) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (name, file) in weight_map {
            let number = match numbers.get(&file) {
                Some(number) => *number,
                None => {
                    shards.push(Shard::open(folder.join(file.as_str()))?);
                    numbers.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            places.insert(name, number);
        }
        Ok(Self { shards, places, fused })
    }

    /// The names of all tensors, in order, as the files have them.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The files, with their sizes in bytes.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.shards.iter().map(|shard| (shard.path.as_path(), shard.size))
    }

    /// Where the bytes of a tensor are, by the name that the files give it.
    pub(crate) fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let shard = &self.shards[*self.places.get(name)?];
        let info = shard.header.info(name)?;
        let (from, to) = info.data_offsets;
        let (offset, bytes) = (shard.start + from as u64, (to - from) as u64);
        Some(Raw { path: &shard.path, offset, bytes, dtype: info.dtype, shape: &info.shape })
    }

    /// The files' name of a tensor, if they have it.
    pub(crate) fn name_of(&self, name: &str) -> Option<String> {
        self.find(name).map(|(_, name)| name)
    }

    /// Checks that the files have the tensor, as it is or as rows of a larger one.
    ///
    /// # Errors
    /// `Corrupt` that names the tensor with the shape found and expected.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (place, whole) = self.whole(name, shape);
        let (shard, found) = self.find(&place.name).ok_or_else(|| missing_tensor(&place.name))?;
        shard.info(&found, &whole).map(drop).map_err(|error| error.with("path", shard.path.display()))
    }

    /// Some rows of a whole matrix of exactly `shape`, widened to single precision; a row of a tensor of one dimension is one number.
    ///
    /// # Errors
    /// `Corrupt` that names the tensor if there is none of that shape, or if it holds what is not a finite number.
    pub(crate) fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>> {
        let (shard, found) = self.find(name).ok_or_else(|| missing_tensor(name))?;
        shard.read(&found, shape, rows).map_err(|error| error.with("path", shard.path.display()))
    }

    /// The file that has the tensor, and the file's name of it: models that see pictures too have their text's part under a name of its own,
    /// and models without an output layer have no `model.` before the names.
    fn find(&self, name: &str) -> Option<(&Shard, String)> {
        let bare = name.strip_prefix("model.").unwrap_or(name);
        let names = [
            name.to_owned(),
            format!("language_model.{name}"),
            format!("model.language_model.{bare}"),
            bare.to_owned(),
        ];
        names.into_iter().find_map(|name| Some((&self.shards[*self.places.get(&name)?], name)))
    }

    /// Where the rows of `name` are in a larger matrix.
    fn place(&self, name: &str) -> Option<Place> {
        self.fused?.place(name)
    }

    /// What the files say of the tensor, or of the larger one that its rows are in.
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        let place = self.place(name);
        let (shard, name) = self.find(place.as_ref().map_or(name, |place| &place.name))?;
        shard.header.info(&name)
    }

    /// Where the rows of a tensor of this shape are in the files, and the shape of what they are in.
    fn whole(&self, name: &str, shape: &[usize]) -> (Place, Vec<usize>) {
        let itself = || Place { name: name.to_owned(), first: 0, rows: shape[0], all: shape[0] };
        let place = self.place(name).unwrap_or_else(itself);
        let whole = [&[place.all], &shape[1..]].concat();
        (place, whole)
    }
}

impl Weights for Safetensors {
    fn bytes(&self, name: &str) -> u64 {
        let bytes = self.info(name).map_or(0, |info| 4 * info.shape.iter().product::<usize>() as u64);
        self.place(name).map_or(bytes, |Place { rows, all, .. }| bytes / all as u64 * rows as u64)
    }

    fn is_bf16_matrix(&self, name: &str) -> bool {
        self.info(name).is_some_and(|info| info.dtype == Dtype::BF16 && info.shape.len() == 2)
    }

    fn take(&self, name: &str, shape: &[usize], device: &Device) -> Result<Stored> {
        let (Place { name, first, rows, .. }, whole) = self.whole(name, shape);
        let values = self.rows(&name, &whole, first..first + rows)?;
        Tensor::from_vec(values, shape, device).map(Stored::Dense).map_err(tensor_error(OPERATION))
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let corrupt = |message: &'static str| Error::corrupt(OPERATION, message).with("path", path.display());
        let size = crate::files::size(&path)?;
        let mut file = File::open(&path).map_err(|error| io_error(OPERATION, &path, error))?;
        let mut length = [0u8; 8];
        if file.read_exact(&mut length).is_err() {
            return Err(corrupt("the file is too short for a header"));
        }
        let (length, room) = (u64::from_le_bytes(length), size.saturating_sub(8).min(MAX_HEADER_BYTES));
        if length > room {
            return Err(corrupt("the header is longer than the file or the limit").with("length", length));
        }
        let mut header = vec![0u8; length as usize];
        file.read_exact(&mut header).map_err(|error| io_error(OPERATION, &path, error))?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| corrupt("the header is no list of tensors").with_source(error))?;
        let start = 8 + length;
        for (name, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            let elements = info.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
            let bytes = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize())).map(|bits| bits / 8);
            if from > to || to as u64 > size - start || bytes != Some(to - from) {
                return Err(corrupt("a tensor's place does not fit its shape or the file").with("tensor", name));
            }
        }
        Ok(Self { path, header, start, size })
    }

    /// What the header says of a tensor of exactly `shape`.
    fn info(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.header.info(name).ok_or_else(|| {
            Error::corrupt(OPERATION, "the index names a tensor that the file lacks").with("tensor", name)
        })?;
        check_shape(name, &info.shape, shape).map(|()| info)
    }

    /// The values of some rows of a tensor, widened to single precision.
    fn read(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>> {
        let info = self.info(name, shape)?;
        let (from, to) = info.data_offsets;
        let row = (to - from) / shape[0].max(1);
        let bytes = read_range(&self.path, self.start + (from + rows.start * row) as u64, rows.len() * row, self.size)?;
        let kind = match info.dtype {
            Dtype::F32 => Plain::F32,
            Dtype::BF16 => Plain::Bf16,
            Dtype::F16 => Plain::F16,
            other => {
                return Err(Error::unsupported(OPERATION, "the tensor's numbers are of a kind that is not known")
                    .with("tensor", name)
                    .with("found", format_args!("{other:?}"))
                    .with("known", "F32, BF16, F16"));
            }
        };
        let values = kind.widen(&bytes);
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::corrupt(OPERATION, "a tensor holds what is not a finite number").with("tensor", name));
        }
        Ok(values)
    }
}

fn missing_tensor(name: &str) -> Error {
    Error::corrupt(OPERATION, "the tensor is missing").with("tensor", name)
}

fn missing(folder: &Path) -> Error {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists());
    let message = if pickled {
        "the weights are pickled, which is not read; save the model as safetensors"
    } else {
        "the weights are missing; the folder has to hold model.safetensors, or its index and parts"
    };
    Error::not_found(OPERATION, message).with("folder", folder.display())
}
