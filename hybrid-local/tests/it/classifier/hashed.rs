//! What `hashed-text` learns and how it answers.

use hybrid_core::{
    CallContext, DataPolicy, ErrorKind,
    task::{Classify, ClassifyRequest},
};
use hybrid_local::{Device, TextClassifierLoader};
use serde_json::json;

use super::{Site, ask, assert_same_scores, contents, context, judgments, manifest, messages, plan};

#[tokio::test]
async fn a_model_learns_sees_through_typos_and_says_how_sure_it_is() {
    let site = Site::with(judgments(&messages(120))).await;
    let plan = plan("hashed-text", site.dataset.clone(), json!({}));
    let candidate = site.train(&plan).await.unwrap();
    assert_eq!((candidate.task.as_str(), candidate.architecture.as_str()), ("classify", "hashed-text-classifier/1"));
    assert_eq!((candidate.examples, candidate.device.as_str()), (120, "cpu"));
    let metric = |name: &str| candidate.metrics[name];
    assert!(metric("valid_accuracy") > 0.95, "{:?}", candidate.metrics);
    assert!(metric("ece") < metric("ece_uncalibrated").max(0.05), "{:?}", candidate.metrics);
    assert!(metric("temperature") > 0.0 && metric("valid_loss") < 3f64.ln() && metric("steps") > 0.0);

    let backend = site.load(&plan, &candidate).await.unwrap();
    let texts =
        ["wen do you opn on sundday", "plase resrve tventy rols", "ich möchte Brötchen", "leider war alles verbrannt"];
    let results = ask(&*backend, &texts).await;
    let labels: Vec<_> = results.iter().map(|result| result.label.as_str()).collect();
    assert_eq!(labels, ["hours", "order", "order", "complaint"]);
    for result in &results {
        assert!((result.scores.iter().map(|score| score.score).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    // Of a text without a known n-gram it knows nothing and says so.
    let unknown = ask(&*backend, &["漢字"]).await;
    assert!(unknown[0].confidence < 0.6, "{unknown:?}");
}

#[tokio::test]
async fn a_batch_is_answered_as_its_texts_alone_whatever_their_number() {
    let site = Site::with(judgments(&messages(60))).await;
    let plan = plan("hashed-text", site.dataset.clone(), json!({"epochs": 5}));
    let candidate = site.train(&plan).await.unwrap();
    let backend = site.load(&plan, &candidate).await.unwrap();
    // Lengths from a word to the limit, more texts than one portion has.
    let long = "brot ".repeat(13_000);
    let mut texts: Vec<String> = messages(70).into_iter().map(|(text, _)| text).collect();
    texts.extend([long, "漢".to_owned(), "?".to_owned()]);
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let together = ask(&*backend, &texts).await;
    assert_eq!(together.len(), texts.len());
    for (text, batch) in texts.iter().zip(&together) {
        assert_same_scores(&ask(&*backend, &[text]).await[0], batch, 1e-6);
    }
}

#[tokio::test]
async fn the_same_plan_gives_the_same_bytes_and_another_seed_others() {
    let settings = json!({"epochs": 3, "ngram_dropout": 0.2});
    let (mut files, mut answers) = (Vec::new(), Vec::new());
    for seed in [1, 1, 2] {
        let site = Site::with(judgments(&messages(45))).await;
        let mut plan = plan("hashed-text", site.dataset.clone(), settings.clone());
        plan.seed = seed;
        let candidate = site.train(&plan).await.unwrap();
        let backend = site.load(&plan, &candidate).await.unwrap();
        answers.push(ask(&*backend, &["please reserve a cake"]).await);
        files.push(contents(&candidate));
    }
    assert_eq!((&files[0], &answers[0]), (&files[1], &answers[1]));
    assert_ne!(files[0], files[2]);
}

#[tokio::test]
async fn as_little_as_two_judgments_can_be_learnt_from() {
    for folds in [1, 5] {
        let site = Site::with(judgments(&messages(2))).await;
        let plan = plan("hashed-text", site.dataset.clone(), json!({"epochs": 2, "folds": folds}));
        let candidate = site.train(&plan).await.unwrap();
        assert!(candidate.metrics.values().all(|value| value.is_finite()), "{:?}", candidate.metrics);
        site.load(&plan, &candidate).await.unwrap();
    }
}

#[tokio::test]
async fn a_backend_names_its_version_and_refuses_what_it_should() {
    let site = Site::with(judgments(&messages(30))).await;
    let plan = plan("hashed-text", site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    let backend = site.load(&plan, &candidate).await.unwrap();
    let model = backend.profile().model.clone();
    assert_eq!(
        (model.name.as_str(), model.version, model.manifest),
        ("messages", Some(1), Some(manifest(&plan, &candidate).1))
    );

    let kind = async |cx: CallContext, request| backend.infer(&cx, request).await.map(drop).unwrap_err();
    let long = kind(context(), ClassifyRequest::many(["a".to_owned(), "x".repeat(65_537)])).await;
    assert_eq!(
        (long.kind(), long.context("limit"), long.context("input")),
        (ErrorKind::TooLarge, Some("65536"), Some("1"))
    );
    let many = kind(context(), ClassifyRequest::many(vec!["a"; 1_025])).await;
    assert_eq!((many.kind(), many.context("limit")), (ErrorKind::TooLarge, Some("1024")));
    assert_eq!(kind(context(), ClassifyRequest::one(" ")).await.kind(), ErrorKind::InvalidInput);
    // The device is where data may always go.
    backend.infer(&context().with_policy(DataPolicy::Device), ClassifyRequest::one("a")).await.unwrap();

    let top = ClassifyRequest { top_k: Some(2), ..ClassifyRequest::one("a cake") };
    assert_eq!(backend.infer(&context(), top).await.unwrap().response.results[0].scores.len(), 2);
}

#[tokio::test]
async fn a_model_over_the_memory_limit_is_refused_before_it_is_read() {
    let site = Site::with(judgments(&messages(30))).await;
    let plan = plan("hashed-text", site.dataset.clone(), json!({"epochs": 1}));
    let candidate = site.train(&plan).await.unwrap();
    // Refused even though the weights are gone: they were not looked at.
    std::fs::remove_file(site.files().join("model.safetensors")).unwrap();
    let (manifest, digest) = manifest(&plan, &candidate);
    let loader = TextClassifierLoader::new(Device::cpu()).with_memory_limit(1_000);
    let error =
        hybrid_core::ModelLoader::<Classify>::load(&loader, &manifest, digest, &site.files()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
}
