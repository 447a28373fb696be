//! What `bert-full` and `bert-lora` learn, how they answer, and what they refuse. The base is a tiny encoder with random weights.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use hybrid_core::{
    BaseModel, CallContext, Candidate, DatasetRef, Error, ErrorKind, InferenceBackend, ModelLoader, Reply, Result,
    TrainPlan, Trainer,
    task::{Classify, ClassifyRequest},
};
use hybrid_local::{Device, HubCache, ModelResolver, TextClassifierLoader, TextClassifierTrainer};
use serde_json::{Value, json};

use super::{Site, ask, assert_same_scores, contents, context, judgments, manifest, messages, plan};

pub(super) const METHODS: [&str; 2] = ["bert-full", "bert-lora"];
const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

fn fixture(family: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bert")).join(family)
}

/// A plan with `family`'s encoder as its base.
pub(crate) fn bert_plan(method: &str, family: &str, dataset: DatasetRef, settings: Value) -> TrainPlan {
    TrainPlan { base: Some(BaseModel::Folder(fixture(family))), ..plan(method, dataset, settings) }
}

/// Settings with which a tiny encoder learns in a second.
fn quick() -> Value {
    json!({"epochs": 20, "batch_size": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "dropout": 0, "label_smoothing": 0})
}

/// A base of its own in a folder that can be changed.
fn copy_of(family: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in FILES {
        fs::copy(fixture(family).join(name), to.join(name)).unwrap();
    }
}

#[tokio::test]
async fn both_methods_learn_on_every_family() {
    for (method, family) in METHODS
        .into_iter()
        .flat_map(|method| ["bert", "roberta", "xlm-roberta", "distilbert"].map(|name| (method, name)))
    {
        let site = Site::with(judgments(&messages(60))).await;
        let plan = bert_plan(method, family, site.dataset.clone(), quick());
        let candidate = site.train(&plan).await.unwrap();
        assert_eq!(candidate.architecture, "bert-text-classifier/1");
        let metric = |name: &str| candidate.metrics[name];
        // A third of the texts have each label, so guessing loses the logarithm of three.
        assert!(metric("valid_accuracy") > 0.8, "{method} {family}: {:?}", candidate.metrics);
        assert!(metric("train_loss") < 0.6 * 3f64.ln(), "{method} {family}: {:?}", candidate.metrics);
        assert!(metric("truncated") == 0.0 && metric("temperature") > 0.0 && metric("ece").is_finite());
        let backend = site.load(&plan, &candidate).await.unwrap();
        let results = ask(&*backend, &["please reserve a rye loaf", "when do you open on Sunday?"]).await;
        let labels: Vec<_> = results.iter().map(|result| result.label.as_str()).collect();
        assert_eq!(labels, ["order", "hours"], "{method} {family}");
    }
}

#[tokio::test]
async fn a_version_needs_its_own_files_alone_and_an_encoder_moves_once() {
    for method in METHODS {
        let mut encoders = Vec::new();
        for seed in [1, 2] {
            let site = Site::with(judgments(&messages(24))).await;
            let base = site.folder.path().join("base");
            copy_of("bert", &base);
            let mut plan = plan(method, site.dataset.clone(), json!({"epochs": 2}));
            (plan.base, plan.seed) = (Some(BaseModel::Folder(base.clone())), seed);
            let candidate = site.train(&plan).await.unwrap();
            fs::remove_dir_all(&base).unwrap();
            let backend = site.load(&plan, &candidate).await.unwrap();
            assert_eq!(ask(&*backend, &["ten rolls"]).await.len(), 1);
            let files = contents(&candidate);
            let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
            let expected = [&FILES[..], if method == "bert-lora" { &["adapter.safetensors"] } else { &[] }].concat();
            assert_eq!(names, expected);
            encoders.push(files[2].1.clone());
        }
        assert_eq!(encoders[0] == encoders[1], method == "bert-lora", "{method}");
    }
}

#[tokio::test]
async fn the_same_plan_gives_the_same_bytes_and_another_seed_others() {
    for method in METHODS {
        let mut files = Vec::new();
        for seed in [1, 1, 2] {
            let site = Site::with(judgments(&messages(24))).await;
            let mut plan = bert_plan(method, "bert", site.dataset.clone(), json!({"epochs": 2}));
            plan.seed = seed;
            files.push(contents(&site.train(&plan).await.unwrap()));
        }
        assert_eq!(files[0], files[1]);
        assert_ne!(files[0], files[2]);
    }
}

#[tokio::test]
async fn a_batch_is_answered_as_its_texts_alone_whatever_their_lengths() {
    let site = Site::with(judgments(&messages(24))).await;
    for (method, pooling) in [("bert-full", "mean"), ("bert-lora", "cls")] {
        let plan = bert_plan(method, "roberta", site.dataset.clone(), json!({"epochs": 2, "pooling": pooling}));
        let candidate = site.train(&plan).await.unwrap();
        let backend = site.load(&plan, &candidate).await.unwrap();
        let mut texts: Vec<String> = messages(70).into_iter().map(|(text, _)| text).collect();
        texts.extend(["?".to_owned(), "brot ".repeat(200), "漢字".to_owned()]);
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let together = ask(&*backend, &texts).await;
        for (text, batch) in texts.iter().zip(&together) {
            assert_same_scores(&ask(&*backend, &[text]).await[0], batch, 1e-5);
        }
    }
}

#[tokio::test]
async fn what_is_cut_is_said_with_both_lengths_in_training_and_in_service() {
    let mut texts = messages(24);
    texts[3].0 = "the cake ".repeat(20);
    let site = Site::with(judgments(&texts)).await;
    let plan = bert_plan("bert-full", "bert", site.dataset.clone(), json!({"epochs": 1, "max_tokens": 10}));
    let candidate = site.train(&plan).await.unwrap();
    let cut = candidate.metrics["truncated"];
    assert!((1.0..24.0).contains(&cut), "{cut}");
    let backend = site.load(&plan, &candidate).await.unwrap();
    assert_eq!(backend.profile().limits.input_tokens, Some(10));
    // 40 words and the two marks around them.
    let long = "the cake ".repeat(20);
    let reply: Reply<Classify> = backend.infer(&context(), ClassifyRequest::many(["ten rolls", &long])).await.unwrap();
    assert_eq!(reply.meta.notes.len(), 1, "{:?}", reply.meta.notes);
    assert_eq!(reply.meta.notes[0].code, "truncated");
    for part in ["inputs[1]", "42 tokens", "first 10"] {
        assert!(reply.meta.notes[0].detail.contains(part), "{:?}", reply.meta.notes);
    }
    assert_eq!(reply.meta.usage.input_tokens, 4 + 10);
    // What was read decides, nothing after it.
    let other = format!("{}never again", "the cake ".repeat(20));
    let answers = ask(&*backend, &[&long, &other]).await;
    assert_same_scores(&answers[0], &answers[1], 1e-6);
}

/// A hub's cache with one model, as the hub's tools leave it.
fn hub_cache(folder: &Path, commit: &str) -> PathBuf {
    let repository = folder.join("hub/models--bakery--tiny-bert");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots").join(commit));
    for folder in [&blobs, &snapshot, &repository.join("refs/refs/pr")] {
        fs::create_dir_all(folder).unwrap();
    }
    for name in FILES {
        fs::copy(fixture("bert").join(name), blobs.join(format!("etag-{name}"))).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(Path::new("../../blobs").join(format!("etag-{name}")), snapshot.join(name)).unwrap();
        #[cfg(not(unix))]
        fs::copy(fixture("bert").join(name), snapshot.join(name)).unwrap();
    }
    fs::write(repository.join("refs/main"), commit).unwrap();
    fs::write(repository.join("refs/refs/pr/1"), commit).unwrap();
    repository
}

#[tokio::test]
async fn a_base_is_found_in_the_hubs_cache_and_one_that_is_not_is_named_with_the_command_that_fetches_it() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let cache = tempfile::tempdir().unwrap();
    let repository = hub_cache(cache.path(), commit);
    let site = Site::with(judgments(&messages(12))).await;
    let trainer = TextClassifierTrainer::new(Device::cpu())
        .with_models(ModelResolver::local().with_cache(HubCache::at(cache.path().join("hub"))));
    let train = async |name: &str| -> Result<Candidate> {
        let mut plan = plan("bert-lora", site.dataset.clone(), json!({"epochs": 1}));
        plan.base = Some(BaseModel::Hub(name.to_owned()));
        trainer.train(&plan, &site.run()).await
    };
    let from_folder = {
        let site = Site::with(judgments(&messages(12))).await;
        let plan = bert_plan("bert-lora", "bert", site.dataset.clone(), json!({"epochs": 1}));
        contents(&site.train(&plan).await.unwrap())
    };
    for name in
        ["bakery/tiny-bert".to_owned(), "bakery/tiny-bert@refs/pr/1".to_owned(), format!("bakery/tiny-bert@{commit}")]
    {
        assert_eq!(contents(&train(&name).await.unwrap()), from_folder, "{name}");
    }
    let absent = |error: Error, missing: &str| {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.context("missing").unwrap().ends_with(missing), "{error}");
        assert!(error.context("command").unwrap().starts_with("hf download "), "{error}");
    };
    absent(train("bakery/other").await.unwrap_err(), "models--bakery--other/refs/main");
    absent(train("bakery/tiny-bert@v2").await.unwrap_err(), "refs/v2");
    fs::remove_file(repository.join("snapshots").join(commit).join("tokenizer.json")).unwrap();
    absent(train("bakery/tiny-bert").await.unwrap_err(), "tokenizer.json");
    fs::write(repository.join("refs/main"), "../../etc").unwrap();
    assert_eq!(train("bakery/tiny-bert").await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn bases_that_cannot_be_used_are_refused_by_the_name_of_what_is_wrong() {
    let site = Site::with(judgments(&messages(12))).await;
    let base = site.folder.path().join("base");
    let train = async || -> Error {
        let mut plan = plan("bert-full", site.dataset.clone(), json!({"epochs": 1}));
        plan.base = Some(BaseModel::Folder(base.clone()));
        site.train(&plan).await.unwrap_err()
    };
    assert_eq!(train().await.kind(), ErrorKind::NotFound);
    for name in FILES {
        copy_of("bert", &base);
        fs::remove_file(base.join(name)).unwrap();
        let error = train().await;
        assert_eq!((error.kind(), error.context("file")), (ErrorKind::NotFound, Some(name)), "{error}");
    }
    fs::remove_file(base.join("model.safetensors")).unwrap_or_default();
    fs::write(base.join("pytorch_model.bin"), "pickle").unwrap();
    assert!(train().await.message().contains("safetensors"));

    // Each damage with the kind of its error and a name that it has to have.
    let config = |key: &'static str, value: Value| {
        move |base: &Path| {
            let path = base.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config[key] = value;
            fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
        }
    };
    let bytes = |name: &'static str, change: fn(&mut Vec<u8>)| {
        move |base: &Path| {
            let mut bytes = fs::read(base.join(name)).unwrap();
            change(&mut bytes);
            fs::write(base.join(name), bytes).unwrap();
        }
    };
    type Damage = Box<dyn FnOnce(&Path)>;
    let damages: Vec<(Damage, ErrorKind, &str)> = vec![
        (Box::new(config("model_type", json!("t5"))), ErrorKind::Unsupported, "t5"),
        (Box::new(config("hidden_act", json!("relu"))), ErrorKind::Unsupported, "hidden_act"),
        (Box::new(config("hidden_size", json!(64))), ErrorKind::Corrupt, "embeddings.word_embeddings.weight"),
        (Box::new(config("intermediate_size", json!(64))), ErrorKind::Corrupt, "intermediate.dense.weight"),
        (Box::new(config("num_hidden_layers", json!(3))), ErrorKind::Corrupt, "encoder.layer.2"),
        (Box::new(config("vocab_size", json!(20))), ErrorKind::Corrupt, "vocabulary: 20"),
        (
            Box::new(bytes("model.safetensors", |bytes| bytes.truncate(bytes.len() / 2))),
            ErrorKind::Corrupt,
            "model.safetensors",
        ),
        (Box::new(bytes("model.safetensors", |bytes| bytes[12] ^= 0x20)), ErrorKind::Corrupt, "model.safetensors"),
        // The last half-precision number becomes infinite.
        (
            Box::new(bytes("model.safetensors", |bytes| *bytes.last_mut().unwrap() = 0x7c)),
            ErrorKind::Corrupt,
            "model.safetensors",
        ),
        (Box::new(bytes("tokenizer.json", |bytes| bytes[0] = b'[')), ErrorKind::Corrupt, "tokenizer.json"),
        (Box::new(bytes("config.json", |bytes| bytes[0] = 0xff)), ErrorKind::Corrupt, "config.json"),
    ];
    for (damage, kind, named) in damages {
        copy_of("bert", &base);
        damage(&base);
        let error = train().await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

#[tokio::test]
async fn plans_that_cannot_succeed_are_refused() {
    let site = Site::with(judgments(&messages(12))).await;
    let trainer = TextClassifierTrainer::new(Device::cpu());
    for (settings, name) in [
        (json!({"learning_rate": 0}), "learning_rate"),
        (json!({"pooling": "max"}), "pooling"),
        (json!({"lora_targets": ["query", "query"]}), "lora_targets"),
        (json!({"lora_targets": ["up"]}), "lora_targets"),
        (json!({"lora_rank": 0}), "lora_rank"),
        (json!({"max_tokens": 4}), "max_tokens"),
        (json!({"char_min": 2}), "char_min"),
    ] {
        let error = trainer.check(&bert_plan("bert-lora", "bert", site.dataset.clone(), settings)).unwrap_err();
        assert_eq!((error.kind(), error.context("name")), (ErrorKind::InvalidInput, Some(name)), "{error}");
    }
    // What `bert-full` has no use for it does not know.
    let lora = bert_plan("bert-full", "bert", site.dataset.clone(), json!({"lora_rank": 4}));
    assert_eq!(trainer.check(&lora).unwrap_err().context("name"), Some("lora_rank"));
    let mut plan = bert_plan("bert-full", "bert", site.dataset.clone(), json!({}));
    for base in [None, Some(BaseModel::Provider("x".to_owned())), Some(BaseModel::Hub("../x".to_owned()))] {
        plan.base = base;
        assert_eq!(trainer.check(&plan).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let long = bert_plan("bert-full", "bert", site.dataset.clone(), json!({"max_tokens": 49}));
    let error = site.train(&long).await.unwrap_err();
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::InvalidInput, Some("48")), "{error}");
}

#[tokio::test]
async fn damaged_versions_are_corrupt() {
    let site = Site::with(judgments(&messages(12))).await;
    let plan = bert_plan("bert-lora", "bert", site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    let (manifest, digest) = manifest(&plan, &candidate);
    let loader: Arc<dyn ModelLoader<Classify>> = Arc::new(TextClassifierLoader::new(Device::cpu()));
    let load = async || -> Result<()> { loader.load(&manifest, digest, &site.files()).await.map(drop) };
    load().await.unwrap();
    for (name, good) in contents(&candidate) {
        let path = site.files().join(&name);
        let mut flipped = good.clone();
        flipped[9] ^= 0x20;
        for bytes in [vec![], good[..good.len() / 2].to_vec(), flipped] {
            fs::write(&path, bytes).unwrap();
            let error = load().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(load().await.unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
        fs::write(&path, &good).unwrap();
    }
    let path = site.files().join("config.json");
    let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut changes: Vec<fn(&mut Value)> = vec![
        |config| config["labels"] = json!(["a", "b"]),
        |config| config["max_tokens"] = json!(49),
        |config| config["encoder"]["hidden"] = json!(64),
        |config| config["encoder"]["heads"] = json!(5),
        |config| config["encoder"]["hidden"] = json!(1u64 << 60),
        |config| config["lora"]["rank"] = json!(4),
        |config| config["lora"]["targets"] = json!(["query"]),
        |config| config["lora"]["targets"] = json!(["up"]),
        |config| config["lora"] = json!(null),
    ];
    changes.push(|config| config["temperature"] = json!(0));
    for (i, change) in changes.into_iter().enumerate() {
        let mut changed = config.clone();
        change(&mut changed);
        fs::write(&path, serde_json::to_vec(&changed).unwrap()).unwrap();
        let error = load().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "change {i}: {error}");
    }
    load_limited(&site, &manifest, digest, &config).await;
}

/// A version over the memory limit is refused before its tensors are read.
async fn load_limited(site: &Site, manifest: &hybrid_core::Manifest, digest: hybrid_core::Digest, config: &Value) {
    fs::write(site.files().join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
    fs::remove_file(site.files().join("model.safetensors")).unwrap();
    let loader = TextClassifierLoader::new(Device::cpu()).with_memory_limit(1_000);
    let loaded: Result<Arc<dyn InferenceBackend<Classify>>> = loader.load(manifest, digest, &site.files()).await;
    assert_eq!(loaded.unwrap_err().kind(), ErrorKind::ResourceExhausted);
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_any_more_is_given_up() {
    let site = Site::with(judgments(&messages(12))).await;
    let plan = bert_plan("bert-full", "bert", site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    let backend = site.load(&plan, &candidate).await.unwrap();
    let cx: CallContext = context();
    cx.cancel.cancel();
    let error = backend.infer(&cx, ClassifyRequest::one("ten rolls")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}
