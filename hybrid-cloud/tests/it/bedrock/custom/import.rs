//! A folder becomes a model that Bedrock serves.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use futures_util::TryStreamExt;
use hybrid_cloud::{
    bedrock::{
        ModelOptions,
        custom::{ImportRun, ImportedModel},
    },
    testkit::bedrock::{Course, Reply},
};
use hybrid_core::{
    Cancellation, Digest, Error, ErrorKind, InferenceBackend, ModelName, ProgressEvent, ProgressFn, Staging,
    task::ChatRequest,
};
use serde_json::{Value, json};

use super::{super::rig, Bench, Fault, ROLE, key};

const JOBS: &str = "/model-import-jobs";

/// A version of the smallest model of a supported architecture: all but the numbers are there.
pub(super) fn version(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    write("config.json", json!({"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 32_768}));
    write("tokenizer.json", json!({"version": "1.0"}));
    write("tokenizer_config.json", json!({"tokenizer_class": "Qwen2Tokenizer"}));
    weights(&folder.join("model.safetensors"), &[("model.embed_tokens.weight", "BF16", 64)]);
}

/// A Safetensors file of tensors with these types and sizes in bytes.
pub(super) fn weights(path: &Path, tensors: &[(&str, &str, u64)]) {
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, dtype, bytes) in tensors {
        header.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": [bytes / 2], "data_offsets": [end, end + bytes]}),
        );
        end += bytes;
    }
    let header = Value::from(header).to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    // Nothing is written, so that a file of many gigabytes takes no room.
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

impl Bench {
    fn version(&self) -> PathBuf {
        let folder = self.scratch.path().join("version");
        version(&folder);
        folder
    }

    fn import_run(&self) -> ImportRun {
        ImportRun { clock: Arc::new(self.clock.clone()), ..ImportRun::default() }
    }

    async fn imported(&self, folder: &Path, run: &ImportRun) -> Result<ImportedModel, Error> {
        self.import().import(&ModelName::new("bakery").unwrap(), Digest::of(b"v1"), folder, run).await
    }

    async fn staged(&self) -> Vec<String> {
        let files: Vec<_> = self.staging.list(&key("bedrock/import")).try_collect().await.unwrap();
        files.iter().map(|file| file.name.as_str().rsplit('/').next().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_version_is_staged_whole_imported_and_served() {
    let bench = Arc::new(Bench::open().await);
    bench.control.set_course(Course { looks: u32::MAX, ..Course::default() });
    let folder = bench.version();
    for other in ["README.md", "model.gguf", "pytorch_model.bin", "adapter_config.json"] {
        std::fs::write(folder.join(other), "none of the model's").unwrap();
    }
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let progress =
        Arc::new(ProgressFn(move |event: ProgressEvent| seen.lock().unwrap().push((event.stage, event.done))));
    let importing = tokio::spawn({
        let (bench, run) = (Arc::clone(&bench), ImportRun { progress, ..bench.import_run() });
        async move { bench.imported(&folder, &run).await }
    });
    while bench.control.made() == 0 {
        assert!(!importing.is_finished(), "{:?}", importing.await);
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.staged().await, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    bench.control.set_course(Course::default());
    let model = importing.await.unwrap().unwrap();
    assert_eq!((model.architecture.as_deref(), model.converse, model.units_per_copy), (Some("qwen2"), false, Some(1)));
    assert!(bench.staged().await.is_empty(), "Bedrock has it now");

    let order = bench.asked(JOBS);
    assert_eq!(order["jobName"], order["importedModelName"]);
    assert_eq!(order["roleArn"], ROLE);
    let source = order["modelDataSource"]["s3DataSource"]["s3Uri"].as_str().unwrap();
    assert!(
        source.starts_with("s3://") && source.contains("/bedrock/import/bakery-") && source.ends_with('/'),
        "{source}"
    );
    let events = events.lock().unwrap().clone();
    assert_eq!(events.last(), Some(&("import".to_owned(), 1)));
    assert!(events.iter().filter(|(stage, _)| stage == "stage").is_sorted_by_key(|(_, done)| *done), "{events:?}");

    let answer = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "Rye."}, "finish_reason": "stop"}]});
    bench.server.script([Reply::json(answer)]);
    let bedrock = rig::connect(&bench.server, rig::options());
    let chat = bedrock.imported_chat(ModelOptions::new(&model.arn)).unwrap();
    let reply = chat.infer(&rig::context(), ChatRequest::user("What bread?")).await.unwrap();
    assert_eq!(reply.response.text(), "Rye.");
}

#[tokio::test]
async fn a_version_that_is_imported_is_found_and_nothing_is_staged_again() {
    let bench = Bench::open().await;
    let folder = bench.version();
    let first = bench.imported(&folder, &bench.import_run()).await.unwrap();
    assert_eq!(bench.staging.take_puts().len(), 4);
    assert_eq!(bench.imported(&folder, &bench.import_run()).await.unwrap(), first);
    assert_eq!((bench.staging.take_puts().len(), bench.control.made()), (0, 1));
}

#[tokio::test]
async fn an_order_whose_answer_is_lost_is_one_order() {
    let bench = Bench::open().await;
    let mut lost = false;
    bench.faults(move |request| {
        (request.method == "POST" && !std::mem::replace(&mut lost, true)).then_some(Fault::LoseAnswer)
    });
    bench.imported(&bench.version(), &bench.import_run()).await.unwrap();
    assert_eq!((bench.count("POST", JOBS), bench.control.made()), (2, 1));
}

#[tokio::test]
async fn an_import_that_fails_says_why_and_is_tried_anew_when_asked() {
    let bench = Bench::open().await;
    let folder = bench.version();
    let why = "The role cannot read the bucket.".to_owned();
    bench.control.set_course(Course { failure: Some(why), ..Course::default() });
    let error = bench.imported(&folder, &bench.import_run()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("The role cannot read the bucket"), "{error}");
    assert_eq!(error.context("model"), Some("bakery"), "{error}");
    assert_eq!(bench.staged().await.len(), 4, "what is staged stays for the next attempt");
    bench.staging.take_puts();

    // The first job has failed for good, so its course no longer matters; the second one goes well.
    let control = bench.control.clone();
    bench.faults(move |request| {
        let failure = request.path.ends_with("-1").then(|| "as before".to_owned());
        control.set_course(Course { failure, ..Course::default() });
        None
    });
    bench.imported(&folder, &bench.import_run()).await.unwrap();
    assert_eq!(bench.control.made(), 2);
    assert_eq!(
        bench.staging.take_puts(),
        ["config.json", "tokenizer.json", "tokenizer_config.json"],
        "weights are not put twice"
    );
}

#[tokio::test]
async fn a_cancelled_import_goes_on_at_bedrock_and_is_found() {
    let bench = Bench::open().await;
    let folder = bench.version();
    bench.control.set_course(Course { looks: u32::MAX, ..Course::default() });
    let cancel = Cancellation::new();
    let raise = cancel.clone();
    let raise_at_import = move |event: ProgressEvent| {
        if event.stage == "import" {
            raise.cancel();
        }
    };
    let run = ImportRun { progress: Arc::new(ProgressFn(raise_at_import)), cancel, ..bench.import_run() };
    let error = bench.imported(&folder, &run).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    bench.control.set_course(Course::default());
    bench.imported(&folder, &bench.import_run()).await.unwrap();
    assert_eq!(bench.count("POST", JOBS), 1);
}

#[tokio::test]
async fn a_version_whose_model_was_deleted_is_imported_anew() {
    let bench = Bench::open().await;
    let folder = bench.version();
    let first = bench.imported(&folder, &bench.import_run()).await.unwrap();
    bench.control.delete_imported_models();
    let second = bench.imported(&folder, &bench.import_run()).await.unwrap();
    assert_ne!(second.arn, first.arn);
    assert_eq!(bench.imported(&folder, &bench.import_run()).await.unwrap(), second);
    assert_eq!(bench.control.made(), 2, "and it is found again");
}

#[tokio::test]
async fn a_model_that_is_not_seen_yet_is_waited_for_and_not_imported_twice() {
    let bench = Bench::open().await;
    let mut left = 3;
    bench.faults(move |request| {
        let unseen = request.path.starts_with("/imported-models/") && left > 0;
        left -= u32::from(unseen);
        unseen.then(|| Fault::before(Reply::error(404, "ResourceNotFoundException", "not yet")))
    });
    bench.imported(&bench.version(), &bench.import_run()).await.unwrap();
    assert_eq!(bench.control.made(), 1);
}
