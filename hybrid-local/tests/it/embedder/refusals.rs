//! What an embedder refuses, by name.

use std::{fs, path::Path};

use hybrid_core::{
    ErrorKind, ServedModel,
    task::{EmbedInput, EmbedRequest, ImagePart},
};
use serde_json::{Map, json};

use super::{FIXTURES, bert, context, folder, loader, open};

async fn refused(path: &Path, kind: ErrorKind, named: &str) {
    let error = loader().open(path, ServedModel::named("tiny")).await.unwrap_err();
    assert!(error.kind() == kind && error.to_string().contains(named), "{named}: {error}");
}

#[tokio::test]
async fn files_that_are_missing_cut_or_lie_are_told() {
    refused(Path::new("/nonesuch"), ErrorKind::NotFound, "config.json").await;
    for model in ["bert/bert", "bert/modernbert", "decoder/qwen3"] {
        let make = || folder(Path::new(FIXTURES), model, "mean_tokens", true, &[]);
        for name in ["tokenizer.json", "model.safetensors"] {
            let folder = make();
            fs::remove_file(folder.path().join(name)).unwrap();
            refused(folder.path(), ErrorKind::NotFound, "missing").await;
        }
        let folder = make();
        for name in ["tokenizer.json", "model.safetensors", "config.json"] {
            let path = folder.path().join(name);
            let whole = fs::read(&path).unwrap();
            for end in [0, 7, 100, whole.len() / 2, whole.len() - 2] {
                fs::write(&path, &whole[..end]).unwrap();
                refused(folder.path(), ErrorKind::Corrupt, "").await;
            }
            fs::write(&path, &whole).unwrap();
        }
        let path = folder.path().join("model.safetensors");
        let mut lying = fs::read(&path).unwrap();
        lying[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        fs::write(&path, lying).unwrap();
        refused(folder.path(), ErrorKind::Corrupt, "model.safetensors").await;
    }
}

#[tokio::test]
async fn shapes_that_differ_and_families_that_are_unknown_are_named() {
    let change = |key: &str, value: serde_json::Value| {
        let folder = bert(&[]);
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        folder
    };
    refused(change("model_type", json!("t5")).path(), ErrorKind::Unsupported, "t5").await;
    refused(change("model_type", json!(null)).path(), ErrorKind::Corrupt, "model_type").await;
    refused(change("intermediate_size", json!(48)).path(), ErrorKind::Corrupt, "[48, 32]").await;
    refused(change("num_hidden_layers", json!(3)).path(), ErrorKind::Corrupt, "missing").await;
    refused(change("vocab_size", json!(20)).path(), ErrorKind::Corrupt, "vocabulary").await;
    let folder = bert(&[("modules.json", json!([{"path": "", "type": "a.CLIPModel"}]))]);
    refused(folder.path(), ErrorKind::Unsupported, "CLIPModel").await;
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_before_its_weights_are_read() {
    for model in ["bert/bert", "bert/modernbert", "decoder/qwen3"] {
        let folder = folder(Path::new(FIXTURES), model, "mean_tokens", true, &[]);
        let limited = loader().with_memory_limit(50_000);
        let error = limited.open(folder.path(), ServedModel::named("tiny")).await.unwrap_err();
        assert_eq!((error.kind(), error.context("limit")), (ErrorKind::ResourceExhausted, Some("50000")), "{error}");
    }
}

#[tokio::test]
async fn what_a_model_cannot_do_is_refused_by_the_fields_name() {
    let backend = open(bert(&[]).path()).await;
    let ask = async |request: EmbedRequest| backend.infer(&context(), request).await.unwrap_err();
    let image = EmbedInput::Image(ImagePart::new("image/png", vec![1]));
    let error = ask(EmbedRequest::many([EmbedInput::from("a"), image])).await;
    assert_eq!((error.kind(), error.context("field")), (ErrorKind::Unsupported, Some("inputs[1]")), "{error}");
    let extra: Map<String, serde_json::Value> = [("user".to_owned(), json!("a"))].into_iter().collect();
    let error = ask(EmbedRequest { extra, ..EmbedRequest::one("a") }).await;
    assert_eq!((error.kind(), error.context("field")), (ErrorKind::Unsupported, Some("extra")), "{error}");
    let error = ask(EmbedRequest { dimensions: Some(33), ..EmbedRequest::one("a") }).await;
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::InvalidInput, Some("32")), "{error}");
    let error = ask(EmbedRequest::many(vec!["a"; 2_049])).await;
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::TooLarge, Some("2048")), "{error}");
    let error = ask(EmbedRequest::one("a".repeat((1 << 20) + 1))).await;
    assert_eq!((error.kind(), error.context("input")), (ErrorKind::TooLarge, Some("0")), "{error}");
}
