//! Training decoders: from judgments to versions that are served.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, BaseModel, Cancellation, Candidate, CandidateOutput, DatasetRef, Digest, Document, ErrorKind,
    Judgment, ModelLoader, NoProgress, ProgressEvent, ProgressFn, Result, SeededIds, Segment, SystemClock, TenantId,
    Timestamp, TrainPlan, TrainRun, Trainer, WriterId,
    conformance::trainer::{self, TrainerHarness},
    memory::MemoryStore,
    segment_key,
    task::{Chat, ChatRequest},
};
use hybrid_local::{AdapterFormat, DecoderLoader, DecoderTrainer, Device, LoraAdapter, judgments_from_jsonl};
use serde_json::{Value, json};

use super::{context, fixture, manifest, short};

const ASKED: [(&str, &str); 6] = [
    ("when do you open?", "seven"),
    ("ten rolls", "order"),
    ("you burnt the cake", "sorry"),
    ("are you closed on Sunday?", "yes"),
    ("is there parking?", "no"),
    ("wann?", "um acht"),
];

/// Corrections: what was asked, what is right, and what the model had said.
fn corrections(count: usize) -> Vec<Judgment> {
    let lines: String = (0..count)
        .map(|i| {
            let (asked, right) = ASKED[i % ASKED.len()];
            let wrong = ASKED[(i + 1) % ASKED.len()].1;
            let round = i / ASKED.len();
            let asked = if round == 0 { asked.to_owned() } else { format!("{asked} ({round})") };
            json!({"prompt": asked, "chosen": right, "rejected": wrong}).to_string() + "\n"
        })
        .collect();
    judgments_from_jsonl("corrections", lines, &SeededIds::default(), Timestamp::UNIX_EPOCH).unwrap()
}

async fn dataset(store: &dyn ArtifactStore, judgments: Vec<Judgment>) -> Result<DatasetRef> {
    let (tenant, name, writer) = (TenantId::single(), "answers".parse()?, WriterId::new("test")?);
    for (sequence, part) in judgments.chunks(judgments.len().div_ceil(2)).enumerate() {
        let key = segment_key(&tenant, &name, Timestamp::UNIX_EPOCH, &writer, sequence as u64)?;
        store.create(&key, Segment { judgments: part.to_vec() }.encode()?).await?;
    }
    DatasetRef::fix(store, &tenant, &name).await
}

fn plan(method: &str, base: &str, dataset: DatasetRef, settings: &Value) -> TrainPlan {
    TrainPlan {
        model: "baker".parse().unwrap(),
        method: method.to_owned(),
        base: Some(BaseModel::Folder(fixture(base))),
        dataset,
        hyperparameters: serde_json::from_value(settings.clone()).unwrap(),
        seed: 1,
    }
}

fn run(store: Arc<MemoryStore>, scratch: &Path) -> TrainRun {
    TrainRun {
        store,
        scratch: scratch.to_owned(),
        progress: Arc::new(NoProgress),
        cancel: Cancellation::new(),
        clock: Arc::new(SystemClock),
    }
}

async fn train(
    judgments: Vec<Judgment>,
    method: &str,
    base: &str,
    settings: &Value,
    scratch: &Path,
) -> Result<(TrainPlan, Candidate)> {
    let store = Arc::new(MemoryStore::default());
    let plan = plan(method, base, dataset(&*store, judgments).await?, settings);
    let candidate = DecoderTrainer::new(Device::cpu()).train(&plan, &run(store, scratch)).await?;
    Ok((plan, candidate))
}

#[derive(Debug)]
struct Training {
    method: &'static str,
    folder: tempfile::TempDir,
    folders: AtomicUsize,
}

#[async_trait]
impl TrainerHarness for Training {
    fn trainer(&self) -> Arc<dyn Trainer> {
        Arc::new(DecoderTrainer::new(Device::cpu()))
    }

    async fn plan(&self, store: &dyn ArtifactStore) -> Result<TrainPlan> {
        let dataset = dataset(store, corrections(14)).await?;
        let mut settings = json!({
            "epochs": 3, "batch_size": 3, "checkpoint_steps": 2, "hold_out": 0.2, "evaluate_steps": 4, "patience": 0,
        });
        if self.method != "decoder-full" {
            settings["lora_rank"] = json!(4);
            settings["lora_dropout"] = json!(0.1);
        }
        Ok(plan(self.method, "llama", dataset, &settings))
    }

    fn invalid(&self, valid: &TrainPlan) -> Vec<TrainPlan> {
        let with = |name: &str, value: Value| {
            let mut plan = valid.clone();
            plan.hyperparameters.insert(name.to_owned(), value);
            plan
        };
        let no_base = TrainPlan { base: None, ..valid.clone() };
        let hosted = TrainPlan { base: Some(BaseModel::Provider("x".to_owned())), ..valid.clone() };
        vec![with("epochs", json!(0)), with("learn", json!("nothing")), with("packing", json!(1)), no_base, hosted]
    }

    fn folder(&self) -> PathBuf {
        let folder = self.folder.path().join(self.folders.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder).unwrap();
        folder
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn training_decoders_keeps_the_trainers_contract() {
    for method in ["decoder-lora", "decoder-full", "decoder-dpo"] {
        let folder = tempfile::tempdir().unwrap();
        trainer::run(&Training { method, folder, folders: AtomicUsize::new(0) }).await.assert();
    }
}

/// What a candidate answers, served as a version is.
async fn answers(plan: &TrainPlan, candidate: &Candidate, folder: &Path) -> Vec<String> {
    let (mut manifest, _) = manifest();
    manifest.lineage.plan = plan.clone();
    manifest.architecture = candidate.architecture.clone();
    let digest = Digest::of(&manifest.encode().unwrap());
    let loader: Arc<dyn ModelLoader<Chat>> = Arc::new(DecoderLoader::new(Device::cpu()));
    let backend = loader.load(&manifest, digest, folder).await.unwrap();
    let mut said = Vec::new();
    for (asked, _) in ASKED {
        said.push(backend.infer(&context(), short(asked, 16)).await.unwrap().response.text());
    }
    said
}

fn expected() -> Vec<String> {
    ASKED.iter().map(|(_, right)| (*right).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_is_answered_by_an_adapter_and_by_the_model_that_it_is_worked_into() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let settings = json!({"epochs": 40, "batch_size": 6, "hold_out": 0, "learning_rate": 1e-2, "schedule": "constant"});
    let (plan, candidate) = train(corrections(6), "decoder-lora", "qwen3", &settings, folder.path()).await.unwrap();
    assert_eq!(candidate.architecture, "decoder-adapter/1");
    assert!(candidate.metrics["train_loss"] < 0.1, "{:?}", candidate.metrics);
    assert_eq!((candidate.examples, candidate.metrics["steps"]), (6, 40.0));
    assert_eq!(answers(&plan, &candidate, &at("candidate")).await, expected());
    // Of the base it knows nothing of it.
    let (base, mut nothing) = (fixture("qwen3"), candidate.clone());
    nothing.architecture = "decoder/1".to_owned();
    assert_ne!(answers(&plan, &nothing, &base).await, expected());

    let adapter = LoraAdapter::open(&at("candidate")).unwrap();
    adapter.export(&base, AdapterFormat::Merged, &at("merged")).unwrap();
    nothing.architecture = "decoder/1".to_owned();
    assert_eq!(answers(&plan, &nothing, &at("merged")).await, expected());

    // An adapter is not hung on another base, nor on one that has changed.
    let other = TrainPlan { base: Some(BaseModel::Folder(at("merged"))), ..plan.clone() };
    let (mut manifest, _) = manifest();
    (manifest.lineage.plan, manifest.architecture) = (other, candidate.architecture.clone());
    let digest = Digest::of(&manifest.encode().unwrap());
    let loader: Arc<dyn ModelLoader<Chat>> = Arc::new(DecoderLoader::new(Device::cpu()));
    let error = loader.load(&manifest, digest, &at("candidate")).await.unwrap_err();
    assert_eq!((error.kind(), error.context("file")), (ErrorKind::Corrupt, Some("model.safetensors")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_models_learn_too_and_so_do_preferences() {
    let folder = tempfile::tempdir().unwrap();
    let settings = json!({"epochs": 30, "batch_size": 6, "hold_out": 0, "learning_rate": 3e-3, "schedule": "constant",
        "recompute": true});
    let (plan, candidate) =
        train(corrections(6), "decoder-full", "llama-bias", &settings, folder.path()).await.unwrap();
    assert_eq!(candidate.architecture, "decoder/1");
    assert_eq!(answers(&plan, &candidate, &folder.path().join("candidate")).await, expected());

    let folder = tempfile::tempdir().unwrap();
    let settings = json!({"epochs": 10, "batch_size": 6, "hold_out": 0.2, "learning_rate": 5e-3, "output": "merged"});
    let (_, candidate) = train(corrections(30), "decoder-dpo", "llama", &settings, folder.path()).await.unwrap();
    assert_eq!(candidate.architecture, "decoder/1");
    let metrics = &candidate.metrics;
    assert!(metrics["valid_loss"] < 0.6 && metrics["valid_accuracy"] > 0.8, "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_when_validation_gets_worse_and_keeps_the_best_weights() {
    let folder = tempfile::tempdir().unwrap();
    // So large a rate that unseen answers soon become unlikely.
    let settings = json!({"epochs": 30, "batch_size": 4, "hold_out": 0.3, "learning_rate": 2e-2, "patience": 2, "evaluate_steps": 2});
    let (_, candidate) = train(corrections(12), "decoder-lora", "llama", &settings, folder.path()).await.unwrap();
    let metrics = &candidate.metrics;
    assert!(metrics["steps"] < 60.0 && metrics["kept_step"] == metrics["steps"] - 4.0, "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_refused_cut_or_skipped_as_asked_and_no_memory_is_taken_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut judgments = corrections(8);
    let long = format!(r#"{{"prompt": "{}", "completion": "yes"}}"#, "rolls ".repeat(100));
    judgments.extend(judgments_from_jsonl("long", long, &SeededIds::new(9), Timestamp::UNIX_EPOCH).unwrap());
    let outcome =
        async |settings: Value| train(judgments.clone(), "decoder-lora", "llama", &settings, folder.path()).await;
    let error = outcome(json!({"max_tokens": 40, "epochs": 1})).await.unwrap_err();
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::TooLarge, Some("40")), "{error}");
    assert_eq!(error.context("judgment"), Some(&*judgments[8].id.to_string()));
    let (_, candidate) = outcome(json!({"max_tokens": 40, "epochs": 1, "long": "skip"})).await.unwrap();
    assert_eq!((candidate.examples, candidate.metrics["skipped"]), (8, 1.0));
    // What is learnt of the prompt is still there when the answer is cut off.
    let (_, candidate) = outcome(json!({"max_tokens": 40, "epochs": 1, "long": "cut", "learn": "all"})).await.unwrap();
    assert_eq!((candidate.examples, candidate.metrics["cut"]), (9, 1.0));

    let store = Arc::new(MemoryStore::default());
    let plan = plan("decoder-lora", "llama", dataset(&*store, corrections(8)).await.unwrap(), &json!({}));
    let small = DecoderTrainer::new(Device::cpu()).with_memory_limit(1 << 20);
    let error = small.train(&plan, &run(store, folder.path())).await.unwrap_err();
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::ResourceExhausted, Some("1048576")), "{error}");
}

#[test]
fn lines_that_say_something_unknown_are_refused_by_their_number_and_key() {
    let refused = |line: &str, key: Option<&str>| {
        let lines = format!("{{\"text\": \"ten rolls\"}}\n\n{line}\n");
        let ids = SeededIds::default();
        let error = judgments_from_jsonl("file.jsonl", lines, &ids, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!((error.kind(), error.context("line")), (ErrorKind::InvalidInput, Some("3")), "{line}: {error}");
        assert_eq!((error.context("file"), error.context("key")), (Some("file.jsonl"), key), "{line}: {error}");
    };
    refused("{", None);
    refused("[]", None);
    refused(r#"{"instruction": "x"}"#, None);
    refused(r#"{"text": "a", "weight": 2}"#, Some("weight"));
    refused(r#"{"text": " "}"#, Some("text"));
    refused(r#"{"prompt": "a", "completion": "b", "chosen": "c"}"#, None);
    refused(r#"{"prompt": "a", "completion": "b", "system": "c"}"#, Some("system"));
    refused(r#"{"prompt": "a", "chosen": "b", "rejected": ""}"#, Some("rejected"));
    refused(r#"{"messages": "a"}"#, Some("messages"));
    refused(r#"{"messages": [{"role": "user", "content": "a"}]}"#, None);
    refused(r#"{"messages": [{"role": "baker", "content": "a"}]}"#, Some("messages[0].role"));
    refused(r#"{"messages": [{"role": "user", "content": "a", "weight": 0}]}"#, Some("messages[0]"));
    refused(r#"{"messages": [{"role": "user", "content": "a", "tool_calls": []}]}"#, Some("messages[0].tool_calls"));
    refused(r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, Some("messages[0]"));
    let call = r#"{"role": "assistant", "tool_calls": [{"function": {"name": "weigh", "arguments": "{"}}]}"#;
    refused(&format!(r#"{{"messages": [{call}]}}"#), Some("messages[0].tool_calls[0].function.arguments"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_examples_is_learnt() {
    let lines = [
        json!({"text": "ten rolls today"}),
        json!({"prompt": "wann?", "completion": "um acht"}),
        json!({"prompt": "wann?", "completion": "um neun"}),
        json!({"prompt": [{"role": "user", "content": "when?"}], "chosen": [{"role": "assistant", "content": "at eight"}], "rejected": "never"}),
        json!({"messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"}, {"role": "user", "content": [{"type": "text", "text": "open?"}]},
            {"role": "assistant", "content": "yes"},
        ]}),
        json!({"messages": [
            {"role": "user", "content": "how heavy?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weigh", "arguments": "{\"a\": 1}"}}]},
        ], "tools": [{"type": "function", "function": {"name": "weigh", "parameters": {}}}]}),
    ];
    let lines = lines.map(|line| line.to_string()).join("\n");
    let judgments = judgments_from_jsonl("all", lines, &SeededIds::default(), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(judgments.len(), 6);
    assert_eq!(judgments[3].answer.as_ref().unwrap(), &json!({"answers": ["never"]}));
    let request: ChatRequest = serde_json::from_value(judgments[5].input.clone()).unwrap();
    assert_eq!((request.messages.len(), request.tools.len()), (1, 1));
    assert_eq!(judgments[5].decision["message"]["role"], "assistant");
    let mut learnt = BTreeMap::new();
    for learn in ["last", "answers", "all"] {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            json!({"epochs": 1, "batch_size": 2, "packing": true, "max_tokens": 256, "learn": learn, "hold_out": 0});
        let (_, candidate) = train(judgments.clone(), "decoder-lora", "qwen3", &settings, folder.path()).await.unwrap();
        assert_eq!(candidate.examples, 6);
        learnt.insert(learn, candidate.metrics["train_loss"]);
    }
    assert!(learnt["last"] != learnt["answers"] && learnt["answers"] != learnt["all"], "{learnt:?}");
}

const ROLE: &str = "HYBRID_TEST_TRAINS_IN";

async fn train_in(folder: &Path, progress: impl Fn(ProgressEvent) + Send + Sync + 'static) -> Candidate {
    let store = Arc::new(MemoryStore::default());
    let settings = json!({"epochs": 6, "batch_size": 4, "checkpoint_steps": 1, "lora_dropout": 0.2, "hold_out": 0.2, "accumulate": 2});
    let plan = plan("decoder-lora", "qwen3", dataset(&*store, corrections(24)).await.unwrap(), &settings);
    let run = TrainRun { progress: Arc::new(ProgressFn(progress)), ..run(store, folder) };
    DecoderTrainer::new(Device::cpu()).train(&plan, &run).await.unwrap()
}

/// Does nothing unless this process was started to train.
#[tokio::test(flavor = "multi_thread")]
async fn trains_for_its_parent() {
    let Some(folder) = std::env::var_os(ROLE) else { return };
    let say = |event: ProgressEvent| {
        let mut out = std::io::stdout().lock();
        out.write_all(format!("\n@{}\n", event.done).as_bytes()).unwrap();
        out.flush().unwrap();
    };
    train_in(Path::new(&folder), say).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let (killed, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut first = 0;
    for after in [3, 5, 4] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "decoder::training::trains_for_its_parent", "--nocapture"])
            .env(ROLE, killed.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::result::Result::ok);
        let steps: Vec<u64> = lines.filter_map(|line| line.strip_prefix('@')?.parse().ok()).take(after).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(steps.len(), after, "it ended before it was killed");
        assert!(steps[0] >= first && steps[0] < 18, "it began anew at {steps:?} after {first}");
        first = steps[after - 2];
    }
    assert!(first > 4, "no attempt went on from the one before");
    let files = async |folder: &Path| {
        let CandidateOutput::Files(files) = train_in(folder, |_| {}).await.output else { panic!("no files") };
        files.into_iter().map(|file| (file.name, std::fs::read(file.path).unwrap())).collect::<BTreeMap<_, _>>()
    };
    assert!(files(killed.path()).await == files(whole.path()).await, "the bytes differ");
}
