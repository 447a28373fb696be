//! Files that are damaged, cut or made to do harm are told by name and never believed.

use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, gguf_file::Value};
use hybrid_core::Error;

use super::{gguf::Source, *};

/// Reads a model whole.
fn load(path: &Path) -> Result<(), Error> {
    let files = ModelFiles::open(path)?;
    Network::read(files.config, &*files.weights, Device::cpu().tensors()).map(drop)
}

#[track_caller]
fn refused(path: &Path, kind: ErrorKind, named: &str) {
    let error = load(path).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(named), "{named}: {error}");
}

fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

#[test]
fn a_gguf_file_cut_anywhere_or_with_a_byte_changed_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    Source::fixture("qwen3").write(&path, GgmlDType::Q8_0, |_| {});
    load(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    for end in (0..whole.len()).step_by(whole.len() / 60).chain([4, 7, 8, 16, 23, 24, whole.len() - 33]) {
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(load(&path).unwrap_err().kind(), ErrorKind::Corrupt, "{end}");
    }
    // The keys come first, the list of tensors somewhere behind; what is said there may be read or refused, but no more.
    let header = (0..400).chain((400..whole.len() / 2).step_by(331));
    for at in header {
        let mut changed = whole.clone();
        changed[at] ^= 0xff;
        fs::write(&path, &changed).unwrap();
        let _ = load(&path);
    }
}

#[test]
fn what_a_gguf_file_must_not_say_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let source = Source::fixture("qwen3");
    let check = |key: &str, value: Option<Value>, kind: ErrorKind, named: &str| {
        source.write(&path, GgmlDType::F32, |metadata: &mut BTreeMap<String, Value>| {
            metadata.remove(key);
            metadata.extend(value.clone().map(|value| (key.to_owned(), value)));
        });
        refused(&path, kind, named);
    };
    use ErrorKind::{Corrupt, Unsupported};
    let text = |text: &str| Some(Value::String(text.to_owned()));
    check("general.alignment", Some(Value::U32(0)), Corrupt, "header");
    check("general.architecture", text("gemma3n"), Unsupported, "gemma3n");
    check("split.count", Some(Value::U16(2)), Unsupported, "split.count: 2");
    check("general.architecture", None, Corrupt, "general.architecture");
    check("qwen3.block_count", Some(Value::U32(3)), Corrupt, "blk.2.attn_norm.weight");
    check("qwen3.block_count", Some(Value::U32(u32::MAX)), Corrupt, "layers");
    check("qwen3.embedding_length", Some(Value::U32(32)), Corrupt, "[314, 32]");
    check("qwen3.embedding_length", text("64"), Corrupt, "embedding_length");
    check("qwen3.attention.head_count", Some(Value::U32(0)), Corrupt, "heads");
    check("qwen3.expert_count", Some(Value::U32(8)), Unsupported, "expert_count");
    check("qwen3.rope.scaling.type", text("longrope"), Unsupported, "longrope");
    check("qwen3.rope.dimension_count", Some(Value::U32(16)), Unsupported, "rope.dimension_count");
    check("tokenizer.ggml.model", text("t5"), Unsupported, "t5");
    check("tokenizer.ggml.pre", text("tekken"), Unsupported, "tekken");
    check("tokenizer.ggml.tokens", None, Corrupt, "tokenizer.ggml.tokens");
    check("tokenizer.ggml.token_type", Some(Value::Array(vec![Value::I32(1)])), Corrupt, "token_type");
    check("tokenizer.ggml.merges", Some(Value::Array(vec![Value::String("x".into())])), Corrupt, "merges");
}

#[test]
fn a_safetensors_file_that_is_cut_or_lies_is_told() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    load(folder.path()).unwrap();
    let whole = fs::read(&path).unwrap();
    for end in (0..whole.len()).step_by(whole.len() / 40) {
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(load(folder.path()).unwrap_err().kind(), ErrorKind::Corrupt, "{end}");
    }
    for length in [u64::MAX, 1 << 40, whole.len() as u64, 0] {
        let lying = [&length.to_le_bytes()[..], &whole[8..]].concat();
        fs::write(&path, lying).unwrap();
        refused(folder.path(), ErrorKind::Corrupt, "model.safetensors");
    }
    let header = |header: &str| {
        fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        refused(folder.path(), ErrorKind::Corrupt, "model.safetensors");
    };
    header(r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#);
    header(r#"{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}"#);
    header(r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}"#);
    let mut infinite = whole;
    // The last half-precision number.
    let last = infinite.len() - 2;
    infinite[last..].copy_from_slice(&[0, 0x7c]);
    fs::write(&path, infinite).unwrap();
    refused(folder.path(), ErrorKind::Corrupt, "finite");
}

#[test]
fn weights_in_parts_are_read_and_an_index_that_leaves_the_folder_is_refused() {
    let folder = copy("llama");
    let at = |name: &str| folder.path().join(name);
    let names: Vec<String> = Source::fixture("llama").tensors.into_keys().collect();
    let index = |file: &str| {
        let places: BTreeMap<&String, &str> = names.iter().map(|name| (name, file)).collect();
        fs::write(at("model.safetensors.index.json"), serde_json::json!({"weight_map": places}).to_string()).unwrap();
    };
    fs::rename(at("model.safetensors"), at("model-00001-of-00001.safetensors")).unwrap();
    refused(folder.path(), ErrorKind::NotFound, "weights are missing");
    index("model-00001-of-00001.safetensors");
    load(folder.path()).unwrap();
    index("../model.safetensors");
    refused(folder.path(), ErrorKind::Corrupt, "index");
    index("model-00002-of-00002.safetensors");
    refused(folder.path(), ErrorKind::Corrupt, "model-00002-of-00002.safetensors");
    fs::remove_file(at("model.safetensors.index.json")).unwrap();
    fs::write(at("pytorch_model.bin"), "pickle").unwrap();
    refused(folder.path(), ErrorKind::NotFound, "pickled");
}

#[test]
fn what_is_missing_in_a_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), ErrorKind::NotFound, "config.json");
    for name in ["a.gguf", "b.GGUF"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    refused(folder.path(), ErrorKind::Unsupported, "several GGUF files");
    let folder = copy("mistral");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    refused(folder.path(), ErrorKind::NotFound, "tokenizer.json");
    let folder = copy("mistral");
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    fs::write(
        folder.path().join("config.json"),
        config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
    )
    .unwrap();
    refused(folder.path(), ErrorKind::Corrupt, "model.layers.2");
}
