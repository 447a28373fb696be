//! What is refused: plans, datasets, files.

use std::sync::Arc;

use hybrid_core::{BaseModel, ErrorKind, JudgmentId, ModelLoader, Result, SeededIds, Trainer, task::Classify};
use hybrid_local::{Device, TextClassifierLoader, TextClassifierTrainer};
use serde_json::{Value, json};

use super::{Site, judgment, judgments, manifest, messages, plan};

#[tokio::test]
async fn plans_that_cannot_succeed_are_refused_by_the_name_of_what_is_wrong() {
    let site = Site::with(judgments(&messages(6))).await;
    let trainer = TextClassifierTrainer::new(Device::cpu());
    let refused =
        |method: &str, settings: Value| trainer.check(&plan(method, site.dataset.clone(), settings)).unwrap_err();
    for (settings, name) in [
        (json!({"epochs": 0}), "epochs"),
        (json!({"epochs": "many"}), "epochs"),
        (json!({"learning_rate": -1}), "learning_rate"),
        (json!({"label_smoothing": 0.9}), "label_smoothing"),
        (json!({"char_min": 6}), "char_min"),
        (json!({"buckets": 100_000}), "buckets"),
        (json!({"epoch": 3}), "epoch"),
    ] {
        let error = refused("hashed-text", settings);
        assert_eq!((error.kind(), error.context("name")), (ErrorKind::InvalidInput, Some(name)), "{error}");
    }
    assert_eq!(refused("boosted-trees", json!({})).context("method"), Some("boosted-trees"));
    let mut based = plan("hashed-text", site.dataset.clone(), json!({}));
    based.base = Some(BaseModel::Hub("org/name".to_owned()));
    assert_eq!(trainer.check(&based).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn datasets_that_teach_nothing_are_refused() {
    let ids = SeededIds::new(9);
    let odd = judgment(JudgmentId::next(&ids), json!({"text": "a"}), json!({"tag": "order"}));
    let one_label: Vec<_> = messages(30).into_iter().filter(|(_, label)| *label == "order").collect();
    let odd_id = odd.id.to_string();
    for (judgments, named) in [
        (vec![], None),
        (judgments(&one_label), None),
        ([judgments(&messages(6)), vec![odd]].concat(), Some(odd_id.as_str())),
    ] {
        let site = Site::with(judgments).await;
        let error = site.train(&plan("hashed-text", site.dataset.clone(), json!({}))).await.unwrap_err();
        assert_eq!((error.kind(), error.context("judgment")), (ErrorKind::InvalidInput, named), "{error}");
        assert_eq!(error.context("dataset"), Some("messages"));
        assert_eq!(std::fs::read_dir(site.folder.path()).unwrap().count(), 0, "files were written");
    }
}

#[tokio::test]
async fn a_rate_far_too_high_ends_in_an_error_or_in_finite_numbers() {
    let site = Site::with(judgments(&messages(60))).await;
    match site.train(&plan("hashed-text", site.dataset.clone(), json!({"learning_rate": 1000}))).await {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.context("step").is_some());
        }
        // A rate this high may yet converge on easy data.
        Ok(_) => {
            let bytes = std::fs::read(site.files().join("model.safetensors")).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let floats = tensors.iter().filter(|(_, view)| view.dtype() == safetensors::Dtype::F32);
            let mut values = floats
                .flat_map(|(_, view)| view.data().chunks_exact(4))
                .map(|raw| f32::from_le_bytes(raw.try_into().unwrap()));
            assert!(values.next().is_some_and(f32::is_finite) && values.all(f32::is_finite));
        }
    }
}

#[tokio::test]
async fn damaged_files_are_corrupt_and_named() {
    let site = Site::with(judgments(&messages(30))).await;
    let plan = plan("hashed-text", site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    let (manifest, digest) = manifest(&plan, &candidate);
    let loader: Arc<dyn ModelLoader<Classify>> = Arc::new(TextClassifierLoader::new(Device::cpu()));
    let (config, weights) = (site.files().join("config.json"), site.files().join("model.safetensors"));
    let (good_config, good_weights) = (std::fs::read(&config).unwrap(), std::fs::read(&weights).unwrap());
    let load = async || -> Result<()> { loader.load(&manifest, digest, &site.files()).await.map(drop) };
    load().await.unwrap();

    let parsed: Value = serde_json::from_slice(&good_config).unwrap();
    let change = |change: &dyn Fn(&mut Value)| {
        let mut value = parsed.clone();
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    };
    let configs = [
        b"{".to_vec(),
        change(&|value| value["labels"] = json!(["a"])),
        change(&|value| value["labels"] = json!(["a", "a", "b"])),
        change(&|value| value["labels"] = json!(["a", "b", "c", "d"])),
        change(&|value| value["temperature"] = json!(0.0)),
        change(&|value| value["rows"] = json!(3)),
        change(&|value| value["dimension"] = json!(1_000_000_000)),
        change(&|value| value["features"]["buckets"] = json!(3)),
        change(&|value| value["format"] = json!("hybrid.other/1")),
    ];
    for bytes in configs {
        std::fs::write(&config, &bytes).unwrap();
        let error = load().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}: {}", String::from_utf8_lossy(&bytes));
        assert!(error.context("path").is_some(), "{error}");
    }
    std::fs::write(&config, change(&|value| value["format"] = json!("hybrid.hashed-text-classifier/2"))).unwrap();
    assert_eq!(load().await.unwrap_err().kind(), ErrorKind::Unsupported);
    std::fs::write(&config, &good_config).unwrap();

    let mut not_finite = good_weights.clone();
    let end = not_finite.len();
    not_finite[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    for bytes in [vec![], good_weights[..end / 2].to_vec(), [&good_weights[..], &[0]].concat(), not_finite] {
        std::fs::write(&weights, &bytes).unwrap();
        assert_eq!(load().await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    std::fs::remove_file(&weights).unwrap();
    assert_eq!(load().await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn versions_that_it_does_not_know_are_unsupported() {
    let site = Site::with(judgments(&messages(6))).await;
    let plan = plan("hashed-text", site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    let (known, digest) = manifest(&plan, &candidate);
    let loader: Arc<dyn ModelLoader<Classify>> = Arc::new(TextClassifierLoader::new(Device::cpu()));
    for (task, architecture) in
        [("chat", "hashed-text-classifier/1"), ("classify", "hashed-text-classifier/2"), ("classify", "llama/1")]
    {
        let mut other = known.clone();
        (other.task, other.architecture) = (task.to_owned(), architecture.to_owned());
        assert_eq!(loader.load(&other, digest, &site.files()).await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
