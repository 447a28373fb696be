//! Embedding with tiny models that have random weights, beside what the reference implementation makes of them, and with a real one.

mod refusals;

use std::{fs, path::Path, sync::Arc};

use async_trait::async_trait;
use hybrid_core::{
    CallContext, ErrorKind, InferenceBackend, Reply, RequestId, Result, SeededIds, ServedModel, TenantId,
    conformance::inference::{self, InferenceHarness},
    task::{Embed, EmbedInput, EmbedKind, EmbedRequest, Truncate},
};
use hybrid_local::{Device, EmbedderLoader};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::peers::{self, Peers};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

pub(crate) fn context() -> CallContext {
    CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()))
}

/// A folder with a fixture, a list of steps, and whatever else.
pub(crate) fn folder(
    root: &Path,
    model: &str,
    pooling: &str,
    normalize: bool,
    more: &[(&str, Value)],
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(root.join(model)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let step = |kind: &str, path: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let mut steps = vec![step("Transformer", ""), step("Pooling", "1_Pooling")];
    steps.extend(normalize.then(|| step("Normalize", "2_Normalize")));
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let way = json!({format!("pooling_mode_{pooling}"): true});
    let files = [("modules.json", Value::from(steps)), ("1_Pooling/config.json", way)];
    for (name, value) in files.iter().chain(more) {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

fn bert(more: &[(&str, Value)]) -> tempfile::TempDir {
    folder(Path::new(FIXTURES), "bert/bert", "mean_tokens", true, more)
}

pub(crate) fn loader() -> EmbedderLoader {
    EmbedderLoader::new(Device::cpu())
}

pub(crate) async fn open(folder: &Path) -> Arc<dyn InferenceBackend<Embed>> {
    loader().open(folder, ServedModel::named("tiny")).await.unwrap()
}

async fn ask(backend: &dyn InferenceBackend<Embed>, request: EmbedRequest) -> Reply<Embed> {
    backend.infer(&context(), request).await.unwrap()
}

async fn vector(backend: &dyn InferenceBackend<Embed>, input: impl Into<EmbedInput>) -> Vec<f32> {
    ask(backend, EmbedRequest::one(input)).await.response.embeddings.remove(0)
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|value| value * value).sum::<f32>().sqrt()
}

#[track_caller]
fn assert_near(ours: &[f32], theirs: &[f32], what: &str) {
    let worst = peers::worst(ours, theirs);
    assert!(worst < 1e-4, "{what}: {worst}");
}

#[derive(Deserialize)]
struct Case {
    model: String,
    pooling: String,
    normalize: bool,
    texts: Vec<String>,
    embeddings: Vec<Vec<f32>>,
}

async fn check_parity(root: &Path, expected: &Path, peer: &str) {
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
    assert_eq!(cases.len(), 9);
    for Case { model, pooling, normalize, texts, embeddings } in cases {
        let folder = folder(root, &model, &pooling, normalize, &[]);
        let backend = open(folder.path()).await;
        let reply = ask(&*backend, EmbedRequest::many(texts.clone())).await;
        let off = peers::worst(reply.response.embeddings.iter().flatten(), embeddings.iter().flatten());
        peers::row(&format!("embedder {model}, {pooling}: vectors of texts together"), peer, off, 1e-4);
        for (ours, text) in reply.response.embeddings.iter().zip(&texts) {
            assert_near(&vector(&*backend, text.as_str()).await, ours, "alone and beside others");
        }
    }
}

#[tokio::test]
async fn vectors_are_those_of_the_reference_implementation() {
    check_parity(Path::new(FIXTURES), &Path::new(FIXTURES).join("embedder/expected.json"), "transformers, kept").await;
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[tokio::test]
async fn vectors_of_models_that_the_reference_implementation_writes_now_are_the_same() {
    let Some(peers) = Peers::find() else { return };
    let root = tempfile::tempdir().unwrap();
    let expected = root.path().join("expected.json");
    peers.run("make_bert.py", [root.path().join("bert"), "78".into()]);
    peers.run("make_decoder.py", [root.path().join("decoder"), "78".into()]);
    peers.run("make_embedder.py", [root.path(), &expected]);
    check_parity(root.path(), &expected, "transformers").await;
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[tokio::test]
async fn a_real_model_gives_what_sentence_transformers_gives() {
    let Some(peers) = Peers::find() else { return };
    let mut texts: Vec<String> =
        ["ten rolls, please", "Do you have rye bread on Sundays?", "zwölf Brötchen 🥐", "x"].map(str::to_owned).into();
    texts.extend((1..60).map(|i| format!("order {i}: {}", "a loaf of bread and ".repeat(i % 23))));
    let folder = peers.minilm();
    let theirs = peers.ask("sentence_vectors.py", &json!({"model": folder, "texts": texts}));
    let theirs: Vec<Vec<f32>> = serde_json::from_value(theirs).unwrap();
    let backend = open(&folder).await;
    let ours = ask(&*backend, EmbedRequest::many(texts.clone())).await.response.embeddings;
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() / length(a) / length(b);
    let worst = ours.iter().zip(&theirs).map(|(ours, theirs)| cosine(ours, theirs)).fold(1.0, f32::min);
    let off = peers::worst(ours.iter().flatten(), theirs.iter().flatten());
    let what = format!("all-MiniLM-L6-v2: vectors of {} texts; cosine at least {worst:.7}", texts.len());
    peers::row(&what, "sentence-transformers", off, 1e-4);
    assert!(worst > 0.9999, "{worst}");
}

#[tokio::test]
async fn a_kind_has_its_prompt_and_a_model_without_reads_the_text_as_it_is() {
    let prompts = json!({"prompts": {"query": "wann? ", "other": "never "}, "default_prompt_name": "other"});
    let folder = bert(&[("config_sentence_transformers.json", prompts)]);
    let backend = open(folder.path()).await;
    let plain = open(bert(&[]).path()).await;
    let of = async |kind: Option<EmbedKind>| {
        let request = EmbedRequest { kind, ..EmbedRequest::one("ten rolls") };
        ask(&*backend, request).await.response.embeddings.remove(0)
    };
    assert_eq!(of(Some(EmbedKind::Query)).await, vector(&*plain, "wann? ten rolls").await);
    assert_eq!(of(Some(EmbedKind::Document)).await, vector(&*plain, "ten rolls").await);
    assert_eq!(of(None).await, vector(&*plain, "never ten rolls").await);
    let set = loader().with_prompt(EmbedKind::Query, "never ").with_prompt(EmbedKind::Document, "today ");
    let set = set.open(folder.path(), ServedModel::named("tiny")).await.unwrap();
    let documents = ask(&*set, EmbedRequest::documents(["ten rolls"])).await.response.embeddings;
    assert_eq!(documents[0], vector(&*plain, "today ten rolls").await);
    let query = ask(&*set, EmbedRequest::query("ten rolls")).await.response.embeddings;
    assert_eq!(query[0], vector(&*plain, "never ten rolls").await);
}

#[tokio::test]
async fn vectors_are_shortened_and_made_of_length_one_as_asked_for() {
    let folder = bert(&[]);
    let backend = open(folder.path()).await;
    let ask = async |dimensions, normalize| {
        let request = EmbedRequest { dimensions, normalize, ..EmbedRequest::one("ten rolls") };
        ask(&*backend, request).await.response.embeddings.remove(0)
    };
    let (whole, raw) = (ask(None, None).await, ask(None, Some(false)).await);
    assert!((length(&whole) - 1.0).abs() < 1e-5 && (length(&raw) - 1.0).abs() > 0.1, "{}", length(&raw));
    assert_near(&raw.iter().map(|value| value / length(&raw)).collect::<Vec<_>>(), &whole, "the same direction");
    assert_eq!(ask(Some(8), Some(false)).await, raw[..8]);
    let short = ask(Some(8), None).await;
    assert!(short.len() == 8 && (length(&short) - 1.0).abs() < 1e-5);
    let plain = open(Path::new(FIXTURES).join("bert/bert").as_path()).await;
    assert_near(&vector(&*plain, "ten rolls").await, &raw, "without a list of steps it is the mean as it is");
}

#[tokio::test]
async fn an_input_too_long_is_refused_or_cut_as_asked_and_the_reply_says_so() {
    let folder = bert(&[("sentence_bert_config.json", json!({"max_seq_length": 10}))]);
    let backend = open(folder.path()).await;
    assert_eq!(backend.profile().limits.input_tokens, Some(10));
    let long = "rolls cake again please never the loaf i you sunday at";
    let error = backend.infer(&context(), EmbedRequest::many(["wann?", long])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    let tokens: usize = error.context("tokens").unwrap().parse().unwrap();
    assert!(tokens > 10 && error.context("limit") == Some("10") && error.context("input") == Some("1"), "{error}");
    let cut = async |truncate| {
        let request = EmbedRequest { truncate, ..EmbedRequest::many([long, "wann?"]) };
        let Reply { mut response, meta } = ask(&*backend, request).await;
        assert_eq!((meta.notes.len(), &*meta.notes[0].code), (1, "truncated"));
        assert!(meta.notes[0].detail.contains(&format!("inputs[0] has {tokens} tokens")), "{:?}", meta.notes);
        response.embeddings.remove(0)
    };
    let (first, last) = (cut(Truncate::End).await, cut(Truncate::Start).await);
    let whole = open(bert(&[]).path()).await;
    let uncut = vector(&*whole, long).await;
    assert!(first != last && first != uncut && last != uncut);
    // What is left is what the model reads of the tokens alone.
    let ids = |range: std::ops::Range<usize>| -> EmbedInput {
        let texts = long.split(' ').collect::<Vec<_>>();
        texts[range].join(" ").into()
    };
    assert_eq!(tokens, 13, "one token for each word, and the marks");
    assert_eq!(vector(&*whole, ids(0..8)).await, first);
    assert_eq!(vector(&*whole, ids(3..11)).await, last);
}

#[tokio::test]
async fn tokens_are_read_like_their_text_with_the_marks_around_them() {
    let backend = open(bert(&[]).path()).await;
    let tokenizer: Value =
        serde_json::from_slice(&fs::read(Path::new(FIXTURES).join("bert/bert/tokenizer.json")).unwrap()).unwrap();
    let id = |token: &str| tokenizer["model"]["vocab"][token].as_u64().map(|id| id as u32);
    let (cake, wann) = (id("cake").unwrap(), id("wann").unwrap());
    assert_eq!(vector(&*backend, EmbedInput::Tokens(vec![cake, wann])).await, vector(&*backend, "cake wann").await);
    let beyond = EmbedRequest::one(EmbedInput::Tokens(vec![cake, 100_000]));
    let error = backend.infer(&context(), beyond).await.unwrap_err();
    assert_eq!((error.kind(), error.context("id")), (ErrorKind::InvalidInput, Some("100000")), "{error}");
}

#[tokio::test]
async fn many_texts_come_back_in_their_order_whatever_their_length() {
    for (model, pooling) in
        [("bert/xlm-roberta", "mean_tokens"), ("bert/modernbert", "cls_token"), ("decoder/qwen3", "lasttoken")]
    {
        let folder = folder(Path::new(FIXTURES), model, pooling, true, &[]);
        let backend = open(folder.path()).await;
        let texts: Vec<String> = (0..300).map(|i| "rolls and cake ".repeat(1 + i * 7 % 5) + &i.to_string()).collect();
        let Reply { response, meta } = ask(&*backend, EmbedRequest::many(texts.clone())).await;
        assert!(response.embeddings.len() == 300 && meta.usage.input_tokens > 2_048);
        for i in [0, 1, 4, 150, 299] {
            assert_near(&vector(&*backend, texts[i].as_str()).await, &response.embeddings[i], &format!("{model} {i}"));
        }
    }
}

#[derive(Debug)]
struct Serving(Arc<dyn InferenceBackend<Embed>>);

#[async_trait]
impl InferenceHarness<Embed> for Serving {
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        Ok(Arc::clone(&self.0))
    }

    fn requests(&self) -> Vec<EmbedRequest> {
        let shaped = EmbedRequest {
            dimensions: Some(4),
            truncate: Truncate::End,
            ..EmbedRequest::query("rye bread ".repeat(200))
        };
        vec![EmbedRequest::documents(["rye bread", "rolls"]), EmbedRequest::one(EmbedInput::Tokens(vec![7, 9])), shaped]
    }

    fn invalid(&self) -> EmbedRequest {
        EmbedRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serving_keeps_the_inference_contract() {
    for model in ["bert/bert", "bert/modernbert", "decoder/qwen3"] {
        let folder = folder(Path::new(FIXTURES), model, "mean_tokens", true, &[]);
        inference::run(&Serving(open(folder.path()).await)).await.assert();
    }
}
