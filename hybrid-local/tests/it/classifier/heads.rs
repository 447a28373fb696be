//! What `decoder-head-full` and `decoder-head-lora` learn, how they answer, and what they refuse. The bases are tiny decoders with random weights.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hybrid_core::{
    ArtifactStore, BaseModel, Cancellation, DatasetRef, Digest, ErrorKind, LocalVersion, NoProgress, Result, TrainPlan,
    Trainer, VersionRef, VersionSource,
    conformance::{
        inference,
        trainer::{self, TrainerHarness},
    },
    task::ClassifyRequest,
};
use hybrid_local::{
    DecoderTrainer, Device, ModelResolver, TextClassifierTrainer,
    quantize::{Mix, Quantizer},
};
use serde_json::{Value, json};

use super::{
    Folders, Site, ask, assert_same_scores, by_label, contents, context, contracts::Serving, dataset, judgments,
    messages, plan,
};
use crate::peers::{self, Peers};

const METHODS: [&str; 2] = ["decoder-head-full", "decoder-head-lora"];

fn fixture(family: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decoder")).join(family)
}

fn head_plan(method: &str, base: PathBuf, dataset: DatasetRef, settings: Value) -> TrainPlan {
    TrainPlan { base: Some(BaseModel::Folder(base)), ..plan(method, dataset, settings) }
}

/// Settings with which a tiny decoder learns in a second.
fn quick() -> Value {
    json!({"epochs": 12, "batch_size": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "label_smoothing": 0})
}

#[tokio::test(flavor = "multi_thread")]
async fn both_methods_learn_and_answer_as_a_version_without_their_base() {
    for (method, family) in METHODS.into_iter().flat_map(|method| ["qwen3", "phi3"].map(|name| (method, name))) {
        let site = Site::with(judgments(&messages(60))).await;
        let base = site.folder.path().join("base");
        fs::create_dir(&base).unwrap();
        for entry in fs::read_dir(fixture(family)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, base.join(path.file_name().unwrap())).unwrap();
        }
        let plan = head_plan(method, base.clone(), site.dataset.clone(), quick());
        let candidate = site.train(&plan).await.unwrap();
        fs::remove_dir_all(&base).unwrap();
        assert_eq!((&*candidate.task, &*candidate.architecture), ("classify", "decoder-text-classifier/1"));
        // All weights in single precision once, where they lie in half.
        let halves = fs::metadata(site.files().join("model.safetensors")).unwrap().len();
        let needed = candidate.requirements.memory_bytes;
        assert!(method == "decoder-head-lora" || needed < 3 * halves, "{family}: {needed} of {halves}");
        let metric = |name: &str| candidate.metrics[name];
        assert!(metric("valid_accuracy") > 0.8, "{method} {family}: {:?}", candidate.metrics);
        assert!(metric("train_loss") < 0.6 * 3f64.ln(), "{method} {family}: {:?}", candidate.metrics);
        assert!(metric("truncated") == 0.0 && metric("temperature") > 0.0 && metric("ece").is_finite());
        let names: Vec<_> = contents(&candidate).into_iter().map(|(name, _)| name).collect();
        for name in ["classifier.json", "head.safetensors", "config.json", "tokenizer.json", "model.safetensors"] {
            assert!(names.iter().any(|other| other == name), "{names:?}");
        }
        assert_eq!(names.iter().any(|name| name == "adapter_model.safetensors"), method == "decoder-head-lora");
        let backend = site.load(&plan, &candidate).await.unwrap();
        let results = ask(&*backend, &["please reserve a rye loaf", "when do you open on Sunday?"]).await;
        let labels: Vec<_> = results.iter().map(|result| result.label.as_str()).collect();
        assert_eq!(labels, ["order", "hours"], "{method} {family}");
        // Texts of all lengths beside each other are answered as by themselves.
        let texts = ["?", "ten rolls", &"brot ".repeat(60), "漢字 today"];
        let together = ask(&*backend, &texts).await;
        for (text, batch) in texts.iter().zip(&together) {
            assert_same_scores(&ask(&*backend, &[text]).await[0], batch, 1e-5);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_of_a_version_moves_once_and_may_be_quantized() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("tiny.gguf");
    Quantizer::new(Mix::Q8_0).run(&fixture("llama"), &file, Arc::new(NoProgress), Cancellation::new()).await.unwrap();
    for base in [fixture("llama"), file.clone()] {
        let mut bodies = Vec::new();
        for seed in [1, 2] {
            let site = Site::with(judgments(&messages(30))).await;
            let mut plan = head_plan("decoder-head-lora", base.clone(), site.dataset.clone(), quick());
            plan.seed = seed;
            let candidate = site.train(&plan).await.unwrap();
            let weights = |(name, _): &(String, Vec<u8>)| name == "model.safetensors" || name.ends_with(".gguf");
            bodies.push(contents(&candidate).into_iter().find(weights).unwrap());
            let backend = site.load(&plan, &candidate).await.unwrap();
            assert_eq!(ask(&*backend, &["when do you open today?"]).await[0].label, "hours");
        }
        assert_eq!(bodies[0], bodies[1]);
    }
    let site = Site::with(judgments(&messages(12))).await;
    let plan = head_plan("decoder-head-full", file, site.dataset.clone(), quick());
    assert_eq!(site.train(&plan).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn bases_that_cannot_be_written_anew_are_refused_before_anything_is_learnt() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("tiny.gguf");
    // Its numbers are plain, so that they could be trained.
    Quantizer::new(Mix::F16).run(&fixture("llama"), &file, Arc::new(NoProgress), Cancellation::new()).await.unwrap();
    let settings = [
        ("decoder-head-full", json!({"epochs": 1, "checkpoint_steps": 1})),
        ("decoder-full", json!({"epochs": 1, "checkpoint_steps": 1})),
        ("decoder-lora", json!({"epochs": 1, "checkpoint_steps": 1, "output": "merged"})),
    ];
    for base in [file, scratch.path().to_owned()] {
        for (method, settings) in &settings {
            let site = Site::with(judgments(&messages(12))).await;
            let plan = head_plan(method, base.clone(), site.dataset.clone(), settings.clone());
            let error = trainer_of(method, ModelResolver::local()).train(&plan, &site.run()).await.unwrap_err();
            assert_eq!((error.kind(), error.context("method")), (ErrorKind::Unsupported, Some(*method)), "{error}");
            assert_eq!(fs::read_dir(site.folder.path()).unwrap().count(), 0, "{method} has begun");
        }
    }
}

fn trainer_of(method: &str, models: ModelResolver) -> Arc<dyn Trainer> {
    match method.starts_with("decoder-head") {
        true => Arc::new(TextClassifierTrainer::new(Device::cpu()).with_models(models)),
        false => Arc::new(DecoderTrainer::new(Device::cpu()).with_models(models)),
    }
}

/// A registry that is cancelled while it brings a version, and never brings it.
#[derive(Debug)]
struct Stuck(Cancellation);

#[async_trait]
impl VersionSource for Stuck {
    async fn bring(&self, _which: &VersionRef) -> Result<LocalVersion> {
        self.0.cancel();
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_its_base_ends_when_it_is_cancelled() {
    let site = Site::with(judgments(&messages(12))).await;
    for method in ["decoder-head-lora", "bert-lora", "decoder-lora"] {
        let run = site.run();
        let models = ModelResolver::local().with_versions(Arc::new(Stuck(run.cancel.clone())));
        let trainer: Arc<dyn Trainer> = match method {
            "decoder-lora" => trainer_of(method, models),
            _ => trainer_of("decoder-head", models),
        };
        let mut plan = plan(method, site.dataset.clone(), json!({}));
        plan.base = Some(BaseModel::Version(Digest::of(b"base")));
        let ended = tokio::time::timeout(Duration::from_secs(60), trainer.train(&plan, &run)).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_is_said_with_both_lengths() {
    let mut texts = messages(24);
    texts[3].0 = "the cake ".repeat(20);
    let site = Site::with(judgments(&texts)).await;
    let settings = json!({"epochs": 1, "max_tokens": 24});
    let plan = head_plan("decoder-head-lora", fixture("qwen2"), site.dataset.clone(), settings);
    let candidate = site.train(&plan).await.unwrap();
    assert!((1.0..24.0).contains(&candidate.metrics["truncated"]), "{:?}", candidate.metrics);
    let backend = site.load(&plan, &candidate).await.unwrap();
    assert_eq!(backend.profile().limits.input_tokens, Some(24));
    let long = "the cake ".repeat(20);
    let reply = backend.infer(&context(), ClassifyRequest::many(["?", &long])).await.unwrap();
    assert_eq!(reply.meta.notes.len(), 1, "{:?}", reply.meta.notes);
    assert!(reply.meta.notes[0].detail.contains("inputs[1]") && reply.meta.notes[0].detail.contains("first 24"));
    let other = format!("{long}never again");
    let answers = ask(&*backend, &[&long, &other]).await;
    assert_same_scores(&answers[0], &answers[1], 1e-6);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_damaged_or_lie_are_refused_by_the_file() {
    let site = Site::with(judgments(&messages(12))).await;
    let plan = head_plan("decoder-head-lora", fixture("llama"), site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    site.load(&plan, &candidate).await.unwrap();
    let refused = async |name: &str, bytes: Option<Vec<u8>>| {
        let path = site.files().join(name);
        let whole = fs::read(&path).unwrap();
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = site.load(&plan, &candidate).await.unwrap_err();
        fs::write(&path, whole).unwrap();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound), "{name}: {error:?}");
        error
    };
    for name in [
        "classifier.json",
        "head.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    ] {
        let whole = fs::read(site.files().join(name)).unwrap();
        for end in [0, 10, whole.len() / 2, whole.len() - 2] {
            refused(name, Some(whole[..end].to_vec())).await;
        }
        refused(name, None).await;
    }
    // A head of numbers that are none, and labels that it has no rows for.
    let mut head = fs::read(site.files().join("head.safetensors")).unwrap();
    let end = head.len();
    head[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(refused("head.safetensors", Some(head)).await.to_string().contains("finite"));
    let config = fs::read_to_string(site.files().join("classifier.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["labels"].as_array_mut().unwrap().push(json!("zzz"));
    assert_eq!(
        refused("classifier.json", Some(config.to_string().into())).await.context("tensor"),
        Some("score.weight")
    );
    site.load(&plan, &candidate).await.unwrap();
}

#[derive(Debug)]
struct Training {
    method: &'static str,
    folders: Folders,
}

#[async_trait]
impl TrainerHarness for Training {
    fn trainer(&self) -> Arc<dyn Trainer> {
        Arc::new(TextClassifierTrainer::new(Device::cpu()))
    }

    async fn plan(&self, store: &dyn ArtifactStore) -> Result<TrainPlan> {
        let dataset = dataset(store, judgments(&messages(24))).await?;
        let mut settings = json!({"epochs": 3, "batch_size": 6, "folds": 2, "checkpoint_steps": 3});
        if self.method == "decoder-head-lora" {
            settings["lora_dropout"] = json!(0.1);
        }
        Ok(head_plan(self.method, fixture("llama"), dataset, settings))
    }

    fn invalid(&self, valid: &TrainPlan) -> Vec<TrainPlan> {
        let with = |name: &str, value: Value| {
            let mut plan = valid.clone();
            plan.hyperparameters.insert(name.to_owned(), value);
            plan
        };
        vec![with("epochs", json!(0)), with("pooling", json!("mean")), TrainPlan { base: None, ..valid.clone() }]
    }

    fn folder(&self) -> PathBuf {
        self.folders.next()
    }
}

/// Also that a run that was cut off ends with the same bytes.
#[tokio::test(flavor = "multi_thread")]
async fn training_heads_keeps_the_trainers_contract() {
    for method in METHODS {
        trainer::run(&Training { method, folders: Folders::new() }).await.assert();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serving_heads_keeps_the_inference_contract() {
    let site = Site::with(judgments(&messages(12))).await;
    let plan = head_plan("decoder-head-lora", fixture("gemma3"), site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    inference::run(&Serving(site.load(&plan, &candidate).await.unwrap())).await.assert();
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[tokio::test(flavor = "multi_thread")]
async fn the_reference_implementation_answers_as_a_version_does() {
    let Some(peers) = Peers::find() else { return };
    let texts = ["please reserve a rye loaf", "when do you open on Sunday?", "leider war das Brötchen alt"];
    for (method, family) in
        [("decoder-head-full", "qwen2"), ("decoder-head-lora", "mistral"), ("decoder-head-lora", "gemma2")]
    {
        let site = Site::with(judgments(&messages(24))).await;
        let plan = head_plan(method, fixture(family), site.dataset.clone(), json!({"epochs": 3}));
        let candidate = site.train(&plan).await.unwrap();
        let backend = site.load(&plan, &candidate).await.unwrap();
        let ours = ask(&*backend, &texts).await;
        let written = peers.run("head_logits.py", [site.files().as_os_str(), json!(texts).to_string().as_ref()]);
        let logits: Vec<Vec<f64>> = serde_json::from_slice(&written).unwrap();
        let temperature = candidate.metrics["temperature"];
        let (mut scores, mut shares) = (Vec::new(), Vec::new());
        for (ours, logits) in ours.iter().zip(logits) {
            let powers: Vec<f64> = logits.iter().map(|logit| (logit / temperature).exp()).collect();
            let sum: f64 = powers.iter().sum();
            shares.extend(powers.iter().map(|power| (power / sum) as f32));
            scores.extend(by_label(ours).iter().map(|(_, score)| *score));
        }
        let what = format!("classifier {family}, {method}: scores of a version");
        peers::row(&what, "transformers + PEFT", peers::worst(&scores, &shares), 1e-3);
    }
}
