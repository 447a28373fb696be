//! Tensors on the host and in Safetensors files.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use hybrid_core::{Error, Result};
use safetensors::{Dtype, SafeTensors, View};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Array>;

/// A tensor's values in row-major order, with its shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Values,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    U32(Vec<u32>),
}

impl Array {
    pub(crate) fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self { shape: shape.into(), values: Values::F32(values) }
    }

    pub(crate) fn u32(shape: impl Into<Vec<usize>>, values: Vec<u32>) -> Self {
        Self { shape: shape.into(), values: Values::U32(values) }
    }

    /// Its floats.
    ///
    /// # Errors
    /// `Corrupt` if it has whole numbers.
    pub(crate) fn floats(&self) -> Result<&[f32]> {
        match &self.values {
            Values::F32(values) => Ok(values),
            Values::U32(_) => Err(Error::corrupt("read tensors", "the tensor has whole numbers instead of floats")),
        }
    }

    /// A matrix of floats with its rows as columns; `None` of anything else.
    pub(crate) fn transposed(&self) -> Option<Self> {
        let (&[rows, columns], Values::F32(values)) = (self.shape.as_slice(), &self.values) else { return None };
        let turned = (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect();
        Some(Self::f32([columns, rows], turned))
    }
}

/// The bytes of a Safetensors file, the same for the same tensors; `note` goes to the header as `name: text`.
pub(crate) fn encode(tensors: &Tensors, note: Option<(&str, String)>) -> Result<Vec<u8>> {
    let note = note.map(|(name, text)| [(name.to_owned(), text)].into());
    safetensors::serialize(tensors.iter(), note)
        .map_err(|error| Error::internal("write tensors", "the tensors cannot be written").with_source(error))
}

/// Reads the tensors of a Safetensors file, and the header's notes. Half precision is widened; tensors of other whole numbers are left out.
///
/// # Errors
/// `Corrupt` that names the file, and the tensor where one is at fault.
pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<(Tensors, BTreeMap<String, String>)> {
    let corrupt = |error| {
        Error::corrupt("read tensors", "not a safetensors file").with("path", path.display()).with_source(error)
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(corrupt)?;
    let file = SafeTensors::deserialize(bytes).map_err(corrupt)?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => {
                Values::F32(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            Dtype::BF16 => Values::F32(
                data.chunks_exact(2)
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                    .collect(),
            ),
            Dtype::F16 => Values::F32(data.chunks_exact(2).map(|b| widen(u16::from_le_bytes([b[0], b[1]]))).collect()),
            Dtype::U32 => {
                Values::U32(data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            _ => continue,
        };
        if let Values::F32(values) = &values
            && values.iter().any(|value| !value.is_finite())
        {
            return Err(Error::corrupt("read tensors", "a tensor holds what is not a finite number")
                .with("path", path.display())
                .with("tensor", name));
        }
        tensors.insert(name.to_owned(), Array { shape: view.shape().to_vec(), values });
    }
    let notes = header.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok((tensors, notes))
}

/// Takes the tensor `name` of exactly `shape`.
///
/// # Errors
/// `Corrupt` that names the tensor with the shape found and expected.
pub(crate) fn take_f32(tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    match take(tensors, name, shape)? {
        Values::F32(values) => Ok(values),
        Values::U32(_) => {
            Err(Error::corrupt("read tensors", "the tensor has whole numbers instead of floats").with("tensor", name))
        }
    }
}

/// As [`take_f32`] for whole numbers.
pub(crate) fn take_u32(tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
    match take(tensors, name, shape)? {
        Values::U32(values) => Ok(values),
        Values::F32(_) => {
            Err(Error::corrupt("read tensors", "the tensor has floats instead of whole numbers").with("tensor", name))
        }
    }
}

fn take(tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<Values> {
    let array = tensors
        .remove(name)
        .ok_or_else(|| Error::corrupt("read tensors", "the tensor is missing").with("tensor", name))?;
    if array.shape != shape {
        return Err(Error::corrupt("read tensors", "the tensor has another shape than the configuration says")
            .with("tensor", name)
            .with("found", format_args!("{:?}", array.shape))
            .with("expected", format_args!("{shape:?}")));
    }
    Ok(array.values)
}

/// IEEE 754 half precision as single.
fn widen(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, u32::from(bits >> 10) & 31, u32::from(bits) & 1023);
    let magnitude = match exponent {
        0 => return f32::from_bits(sign | (fraction as f32 * 2f32.powi(-24)).to_bits()),
        31 => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

impl View for &Array {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::F32(_) => Dtype::F32,
            Values::U32(_) => Dtype::U32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.values {
            Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::U32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Tensors {
        [
            ("a".to_owned(), Array::f32([2, 2], vec![1.0, -2.5, 0.0, f32::MIN_POSITIVE])),
            ("b".to_owned(), Array::u32([3], vec![0, 7, u32::MAX])),
        ]
        .into()
    }

    #[test]
    fn tensors_come_back_as_they_were_and_are_written_the_same_each_time() {
        let bytes = encode(&some(), Some(("note", "text".to_owned()))).unwrap();
        assert_eq!(bytes, encode(&some(), Some(("note", "text".to_owned()))).unwrap());
        let (tensors, notes) = decode(&bytes, Path::new("x")).unwrap();
        assert_eq!((tensors, notes["note"].as_str()), (some(), "text"));
    }

    #[test]
    fn a_file_cut_at_any_byte_is_corrupt() {
        let bytes = encode(&some(), None).unwrap();
        for end in 0..bytes.len() {
            assert_eq!(
                decode(&bytes[..end], Path::new("x")).unwrap_err().kind(),
                hybrid_core::ErrorKind::Corrupt,
                "{end}"
            );
        }
    }

    #[test]
    fn a_tensor_of_another_shape_or_kind_or_with_no_number_is_corrupt() {
        assert!(take_f32(&mut some(), "a", &[4]).is_err());
        assert!(take_f32(&mut some(), "c", &[4]).is_err());
        assert!(take_f32(&mut some(), "b", &[3]).is_err());
        assert!(take_u32(&mut some(), "a", &[2, 2]).is_err());
        let nan = [("a".to_owned(), Array::f32([1], vec![f32::NAN]))].into();
        let error = decode(&encode(&nan, None).unwrap(), Path::new("x")).unwrap_err();
        assert_eq!(error.context("tensor"), Some("a"));
    }

    #[test]
    fn a_matrix_is_turned_by_its_rows_and_columns() {
        let matrix = Array::f32([2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let turned = matrix.transposed().unwrap();
        assert_eq!(turned, Array::f32([3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        assert_eq!(turned.transposed().unwrap(), matrix);
        assert!(
            Array::u32([1, 1], vec![1]).transposed().is_none() && Array::f32([2], vec![1.0; 2]).transposed().is_none()
        );
    }

    #[test]
    fn half_precision_is_widened_exactly() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x3555, 0.333_251_95), (0x0001, 5.960_464_5e-8), (0x8000, -0.0f32)]
        {
            assert_eq!(widen(bits).to_bits(), value.to_bits(), "{bits:x}");
        }
        assert!(widen(0x7e00).is_nan() && widen(0x7c00).is_infinite());
    }
}
