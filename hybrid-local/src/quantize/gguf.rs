//! The header of a GGUF file, version 3: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use candle_core::quantized::{GgmlDType, gguf_file::Value};

/// What each tensor's bytes begin at a multiple of.
pub(super) const ALIGNMENT: u64 = 32;

/// A tensor as the header lists it.
#[derive(Debug)]
pub(super) struct Listed<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [usize],
    pub(super) format: GgmlDType,
    /// Where it begins behind the header, in bytes.
    pub(super) offset: u64,
}

/// The header with its padding: the tensors' bytes begin where it ends.
pub(super) fn header(metadata: &[(String, Value)], tensors: &[Listed<'_>]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        out.extend(kind(value).to_le_bytes());
        put(&mut out, value);
    }
    for Listed { name, shape, format, offset } in tensors {
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        for size in shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        out.extend(format_number(*format).to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(aligned(out.len() as u64) as usize, 0);
    out
}

/// The next multiple of the alignment.
pub(super) fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// The bytes of `elements` numbers in a format, in whole blocks.
pub(crate) fn bytes_of(format: GgmlDType, elements: u64) -> u64 {
    elements / format.block_size() as u64 * format.type_size() as u64
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => out.push(*value),
        Value::I8(value) => out.extend(value.to_le_bytes()),
        Value::U16(value) => out.extend(value.to_le_bytes()),
        Value::I16(value) => out.extend(value.to_le_bytes()),
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::I32(value) => out.extend(value.to_le_bytes()),
        Value::U64(value) => out.extend(value.to_le_bytes()),
        Value::I64(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::F64(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::String(text) => put_text(out, text),
        // The values of a list have one kind; an empty one has any.
        Value::Array(values) => {
            out.extend(values.first().map_or(8, kind).to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| put(out, value));
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn kind(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn format_number(format: GgmlDType) -> u32 {
    match format {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q8_1 => 9,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::Q8K => 15,
        GgmlDType::BF16 => 30,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use candle_core::quantized::gguf_file::Content;

    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let text = |text: &str| Value::String(text.to_owned());
        let metadata: Vec<(String, Value)> = [
            ("a", Value::U32(7)),
            ("b", text("bröt")),
            ("c", Value::Array(vec![text("x"), text("")])),
            ("d", Value::Bool(true)),
            ("e", Value::F32(0.5)),
            ("f", Value::Array(Vec::new())),
            ("g", Value::Array(vec![Value::I32(-3)])),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let listed = [
            Listed { name: "one", shape: &[3, 256], format: GgmlDType::Q4K, offset: 0 },
            Listed { name: "two", shape: &[5], format: GgmlDType::F32, offset: 448 },
        ];
        let bytes = header(&metadata, &listed);
        assert!(bytes.len().is_multiple_of(32));
        let content = Content::read(&mut Cursor::new(&bytes)).unwrap();
        assert_eq!(content.tensor_data_offset, bytes.len() as u64);
        for (key, value) in &metadata {
            assert_eq!(format!("{:?}", content.metadata[key]), format!("{value:?}"));
        }
        for one in &listed {
            let info = &content.tensor_infos[one.name];
            assert_eq!((info.shape.dims(), info.ggml_dtype, info.offset), (one.shape, one.format, one.offset));
        }
        assert_eq!((bytes_of(GgmlDType::Q4K, 3 * 256), bytes_of(GgmlDType::F32, 5)), (432, 20));
    }
}
