//! Chat with tiny decoders that have random weights: what they say has no meaning, what they promise has.

mod adapters;
mod refusals;
mod training;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{
    CallContext, DatasetRef, Digest, Document, ErrorKind, Event, InferenceBackend, Lineage, Manifest, ModelLoader,
    Reply, RequestId, Result, SeededIds, ServedModel, TenantId, Timestamp, TrainPlan,
    conformance::inference::{self, InferenceHarness},
    inference::collect_reply,
    task::{Chat, ChatDelta, ChatRequest, FunctionTool, Message, Sampling, StopReason},
};
use hybrid_local::{DecoderLoader, Device};
use serde_json::json;

pub(crate) use adapters::write_adapter;

const FAMILIES: [&str; 8] = ["llama", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decoder")).join(name)
}

pub(crate) fn context() -> CallContext {
    CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()))
}

pub(crate) async fn open(name: &str) -> Arc<dyn InferenceBackend<Chat>> {
    DecoderLoader::new(Device::cpu()).open(&fixture(name), ServedModel::named(name)).await.unwrap()
}

/// A request for `tokens` tokens.
pub(crate) fn short(text: &str, tokens: u32) -> ChatRequest {
    let sampling = Sampling { max_tokens: Some(tokens), ..Sampling::default() };
    ChatRequest { sampling, ..ChatRequest::user(text) }
}

pub(crate) async fn ask(backend: &dyn InferenceBackend<Chat>, request: ChatRequest) -> Reply<Chat> {
    backend.infer(&context(), request).await.unwrap()
}

#[derive(Debug)]
pub(crate) struct Serving(pub(crate) Arc<dyn InferenceBackend<Chat>>);

#[async_trait]
impl InferenceHarness<Chat> for Serving {
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        Ok(Arc::clone(&self.0))
    }

    fn requests(&self) -> Vec<ChatRequest> {
        let mut drawn = short("ten rolls", 12);
        (drawn.sampling.temperature, drawn.sampling.seed) = (Some(1.2), Some(7));
        drawn.sampling.n = Some(2);
        let weigh = FunctionTool::new("weigh", json!({"type": "object", "properties": {}}));
        let talk = short("please", 8).with_system("Be kind.").with_tool(weigh);
        vec![short("when do you open?", 12), drawn, talk]
    }

    fn invalid(&self) -> ChatRequest {
        ChatRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn decoders_keep_the_inference_contract() {
    for (name, streams) in [("llama", 1), ("qwen3", 3)] {
        let loader = DecoderLoader::new(Device::cpu()).with_streams(streams);
        let backend = loader.open(&fixture(name), ServedModel::named(name)).await.unwrap();
        inference::run(&Serving(backend)).await.assert();
    }
}

#[tokio::test]
async fn answers_say_how_long_they_are_and_why_they_ended() {
    for name in FAMILIES {
        let backend = open(name).await;
        let Reply { response, meta } = ask(&*backend, short("ten rolls", 9)).await;
        assert_eq!(response.choices[0].stop_reason, StopReason::MaxTokens, "{name}");
        assert_eq!((meta.usage.output_tokens, meta.notes.len()), (9, 0));
        let prompt = meta.usage.input_tokens;
        assert!((10..60).contains(&prompt), "{:?}", meta.usage);
        // Without a limit the answer ends by itself, or where the 256 positions of these models end.
        let Reply { response, meta } = ask(&*backend, ChatRequest::user("ten rolls")).await;
        // The prompt was read before; only a very short one is not worth keeping.
        assert_eq!(meta.usage.cache_read_tokens > 9, prompt > 16, "{name}: {:?}", meta.usage);
        let full = meta.usage.total_input_tokens() + meta.usage.output_tokens == 256;
        let expected = if full { StopReason::ContextWindowExceeded } else { StopReason::EndTurn };
        assert_eq!(response.choices[0].stop_reason, expected, "{name}");
    }
}

#[tokio::test]
async fn an_answer_comes_in_pieces_that_join_to_it_and_stops_before_a_text() {
    let backend = open("qwen2").await;
    let whole = ask(&*backend, short("ten rolls", 30)).await.response;
    let events = backend.stream(&context(), short("ten rolls", 30)).await.unwrap();
    let events: Vec<Event<Chat>> = events.try_collect().await.unwrap();
    let piece = |event: &Event<Chat>| match event {
        Event::Delta(delta) => delta.as_text().map(str::to_owned),
        Event::Done(_) => None,
    };
    let pieces: Vec<String> = events.iter().filter_map(piece).collect();
    let text = whole.text();
    assert!(pieces.len() > 5, "{pieces:?}");
    assert_eq!(pieces.concat(), text);
    // A text across the borders of pieces, so that it has to be held back.
    let chars: Vec<char> = text.chars().collect();
    let at = chars.len() / 2;
    let stop: String = chars[at..at + 6].iter().collect();
    let mut request = short("ten rolls", 30);
    request.sampling.stop = vec!["never said".to_owned(), stop.clone()];
    let choice = ask(&*backend, request).await.response.choices.remove(0);
    assert_eq!((choice.stop_reason, choice.stop_sequence.as_deref()), (StopReason::StopSequence, Some(&*stop)));
    assert_eq!(choice.message.text(), text[..text.find(&stop).unwrap()]);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_answer_and_several_answers_differ() {
    let backend = open("mistral").await;
    let drawn = async |seed: Option<u64>, n| {
        let mut request = short("ten rolls", 12);
        request.sampling = Sampling { temperature: Some(1.5), seed, n: Some(n), ..request.sampling };
        let reply = ask(&*backend, request).await;
        assert_eq!(reply.meta.usage.output_tokens, 12 * u64::from(n));
        reply.response.choices.into_iter().map(|choice| choice.message.text()).collect::<Vec<_>>()
    };
    let three = drawn(Some(5), 3).await;
    assert_eq!(three, drawn(Some(5), 3).await);
    assert_eq!(three[..1], drawn(Some(5), 1).await[..]);
    assert!(three[0] != three[1] && three[1] != three[2], "{three:?}");
    assert_ne!(three[..1], drawn(Some(6), 1).await[..]);
    // Without a seed the call's id is one.
    assert_eq!(drawn(None, 1).await, drawn(None, 1).await);
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_tokens_drawn() {
    let backend = open("llama").await;
    let mut request = short("ten rolls", 7);
    request.sampling.logprobs = Some(3);
    let choice = ask(&*backend, request).await.response.choices.remove(0);
    let tokens = choice.logprobs.unwrap().content;
    assert_eq!(tokens.len(), 7);
    for token in &tokens {
        assert_eq!(token.top.len(), 3);
        assert!(token.top.is_sorted_by(|one, other| one.logprob >= other.logprob), "{token:?}");
        assert_eq!((&token.token, token.logprob), (&token.top[0].token, token.top[0].logprob), "greedy");
        assert!(token.logprob <= 0.0 && token.logprob.is_finite());
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_or_wants_frees_its_memory() {
    let backend = open("llama-bias").await;
    // Memory for one: each answer waits for the one before it to end, and would take its whole context.
    for _ in 0..4 {
        let mut events = backend.stream(&context(), ChatRequest::user("ten rolls")).await.unwrap();
        let first = events.next().await.unwrap().unwrap();
        assert!(matches!(first, Event::Delta(ChatDelta::Start { choice: 0, .. })));
        drop(events);
    }
    let cx = context();
    let events = backend.stream(&cx, ChatRequest::user("ten rolls")).await.unwrap();
    cx.cancel.cancel();
    let ended = collect_reply(events).await;
    assert!(ended.is_ok() || ended.unwrap_err().kind() == ErrorKind::Cancelled);

    ask(&*backend, short("ten rolls", 2)).await;
}

#[tokio::test]
async fn a_slow_reader_keeps_nobody_waiting_and_loses_nothing() {
    let backend = DecoderLoader::new(Device::cpu()).with_streams(2);
    let backend = backend.open(&fixture("qwen2"), ServedModel::named("qwen2")).await.unwrap();
    let mut slow = backend.stream(&context(), short("ten rolls", 40)).await.unwrap();
    let first = slow.next().await.unwrap().unwrap();
    let expected = ask(&*backend, short("ten rolls", 40)).await.response;
    for text in ["one loaf", "two loaves", "three loaves"] {
        ask(&*backend, short(text, 40)).await;
    }
    let rest = stream::iter([Ok(first)]).chain(slow).boxed();
    assert_eq!(collect_reply(rest).await.unwrap().response, expected);
}

#[tokio::test]
async fn a_backend_that_is_dropped_ends_the_answers_that_it_has_begun() {
    let backend = open("qwen2").await;
    let expected = ask(&*backend, short("ten rolls", 40)).await.response;
    let (one, other) = (context(), context());
    let begun = backend.stream(&one, short("ten rolls", 40)).await.unwrap();
    let queued = backend.stream(&other, short("ten rolls", 40)).await.unwrap();
    drop(backend);
    assert_eq!(collect_reply(begun).await.unwrap().response, expected);
    assert_eq!(collect_reply(queued).await.unwrap().response, expected);
}

#[tokio::test]
async fn what_has_no_influence_is_noted_and_thoughts_can_be_left_out() {
    let backend = open("qwen3").await;
    let mut request = short("ten rolls", 4);
    request.user = Some("u1".to_owned());
    let noted = ask(&*backend, request.clone()).await;
    assert_eq!(noted.meta.notes.iter().map(|note| note.code.as_str()).collect::<Vec<_>>(), ["ignored"]);
    request.reasoning.budget_tokens = Some(0);
    let unthinking = ask(&*backend, request).await;
    assert!(
        unthinking.meta.usage.total_input_tokens() > noted.meta.usage.total_input_tokens(),
        "the template closes the thoughts"
    );
}

/// The manifest of a version that says that it is a decoder.
pub(crate) fn manifest() -> (Manifest, Digest) {
    let digest = Digest::of(b"no dataset");
    let plan = TrainPlan {
        model: "baker".parse().unwrap(),
        method: "test".to_owned(),
        base: None,
        dataset: DatasetRef { name: "none".parse().unwrap(), segments: vec![] },
        hyperparameters: Default::default(),
        seed: 1,
    };
    let manifest = Manifest {
        model: plan.model.clone(),
        version: 3,
        task: "chat".to_owned(),
        architecture: "decoder/1".to_owned(),
        created: Timestamp::UNIX_EPOCH,
        files: vec![],
        requirements: Default::default(),
        lineage: Lineage { plan, dataset: digest, examples: 0, trainer: "test".to_owned(), device: "cpu".to_owned() },
        verdict: None,
        metadata: Default::default(),
    };
    let digest = Digest::of(&manifest.encode().unwrap());
    (manifest, digest)
}

#[tokio::test]
async fn a_version_is_loaded_by_its_manifest() {
    let (manifest, digest) = manifest();
    let loader: Arc<dyn ModelLoader<Chat>> = Arc::new(DecoderLoader::new(Device::cpu()).with_context(100));
    let backend = loader.load(&manifest, digest, &fixture("qwen3")).await.unwrap();
    let profile = backend.profile();
    let served = ServedModel { name: "baker".to_owned(), version: Some(3), manifest: Some(digest) };
    assert_eq!((&profile.model, profile.limits.input_tokens), (&served, Some(100)));
    assert_eq!(ask(&*backend, short("ten rolls", 2)).await.meta.model, served);
    let request = ChatRequest::new([Message::user("ten rolls")]);
    assert!(ask(&*backend, request).await.meta.usage.total_input_tokens() < 100);
}
