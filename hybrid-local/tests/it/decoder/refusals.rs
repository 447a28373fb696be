//! What a decoder refuses, and how it says so.

use std::{fs, path::Path, sync::Arc};

use hybrid_core::{
    Error, ErrorKind, ModelLoader, ServedModel,
    task::{Chat, ChatRequest, Message, ResponseFormat},
};
use hybrid_local::{DecoderLoader, Device};

use super::{context, fixture, manifest, open, short};

fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

async fn refused(loader: &DecoderLoader, path: &Path) -> Error {
    loader.open(path, ServedModel::named("baker")).await.unwrap_err()
}

#[tokio::test]
async fn a_conversation_that_fills_the_context_is_refused_with_both_lengths() {
    let loader = DecoderLoader::new(Device::cpu()).with_context(64);
    let backend = loader.open(&fixture("llama"), ServedModel::named("baker")).await.unwrap();
    let error = backend.infer(&context(), ChatRequest::user("ten rolls ".repeat(40))).await.unwrap_err();
    assert_eq!((error.kind(), error.context("context")), (ErrorKind::TooLarge, Some("64")), "{error}");
    assert!(error.context("tokens").unwrap().parse::<usize>().unwrap() > 64, "{error}");
}

#[tokio::test]
async fn requests_that_the_model_cannot_answer_are_refused_by_the_name_of_the_field() {
    let backend = open("llama").await;
    for (request, field) in [
        (
            {
                let schema = serde_json::json!({"not": {"type": "object"}});
                let response_format = ResponseFormat::json_schema("x", schema);
                ChatRequest { response_format, ..short("hi", 2) }
            },
            "response_format.schema",
        ),
        (short("hi", 2).with_message(Message::assistant("so")), "messages"),
        (
            {
                let mut request = short("hi", 2);
                request.sampling.n = Some(1_000);
                request
            },
            "sampling.n",
        ),
    ] {
        let error = backend.infer(&context(), request).await.unwrap_err();
        assert_eq!((error.kind(), error.context("field")), (ErrorKind::Unsupported, Some(field)), "{error}");
    }
}

#[tokio::test]
async fn folders_that_are_no_chat_model_are_refused() {
    let loader = DecoderLoader::new(Device::cpu());
    let folder = copy("qwen2");
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let error = refused(&loader, folder.path()).await;
    assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("no chat template"), "{error}");
    fs::write(folder.path().join("chat_template.jinja"), "{% for").unwrap();
    assert_eq!(refused(&loader, folder.path()).await.kind(), ErrorKind::Unsupported);
    fs::write(folder.path().join("chat_template.jinja"), [0xff]).unwrap();
    assert_eq!(refused(&loader, folder.path()).await.kind(), ErrorKind::Corrupt);
    assert_eq!(refused(&loader, &folder.path().join("nonesuch")).await.kind(), ErrorKind::NotFound);

    let folder = copy("qwen2");
    let path = folder.path().join("tokenizer_config.json");
    fs::write(&path, "[]").unwrap();
    let error = refused(&loader, folder.path()).await;
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("tokenizer_config.json"), "{error}");
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_before_its_weights_are_read() {
    let folder = copy("qwen3");
    // The header stays, the numbers behind it go: whoever read them would tell.
    let loader = DecoderLoader::new(Device::cpu()).with_memory_limit(500_000);
    let error = refused(&loader, folder.path()).await;
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::ResourceExhausted, Some("500000")), "{error}");
    let needed: u64 = error.context("needed").unwrap().parse().unwrap();
    let enough = loader.clone().with_memory_limit(needed);
    enough.open(folder.path(), ServedModel::named("baker")).await.unwrap();
    // Each stream has memory for a context set aside.
    let more = refused(&enough.with_streams(2), folder.path()).await;
    assert_eq!(more.context("needed").unwrap().parse::<u64>().unwrap(), needed + 256 * 2 * 2 * 2 * 32 * 4);
}

#[tokio::test]
async fn versions_of_another_task_or_architecture_are_refused() {
    let loader: Arc<dyn ModelLoader<Chat>> = Arc::new(DecoderLoader::new(Device::cpu()));
    let (mut manifest, digest) = manifest();
    manifest.architecture = "decoder/2".to_owned();
    let error = loader.load(&manifest, digest, &fixture("qwen3")).await.unwrap_err();
    assert_eq!((error.kind(), error.context("architecture")), (ErrorKind::Unsupported, Some("decoder/2")));
    manifest.task = "classify".to_owned();
    let error = loader.load(&manifest, digest, &fixture("qwen3")).await.unwrap_err();
    assert_eq!((error.kind(), error.context("task")), (ErrorKind::Unsupported, Some("classify")));
}
