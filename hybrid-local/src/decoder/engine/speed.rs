//! What batching gives: run by hand, with `HYBRID_DECODER_MODEL` set to a model's folder or GGUF file.
//!
//! ```text
//! HYBRID_DECODER_MODEL=… cargo test -p hybrid-local --lib -- --ignored --nocapture eight_streams
//! ```

use std::{path::Path, sync::Arc, time::Instant};

use futures_util::{StreamExt, future::join_all};
use hybrid_core::{
    CallContext, Event, InferenceBackend, RequestId, SeededIds, ServedModel, TenantId, Usage,
    task::{Chat, ChatRequest, ResponseFormat, Sampling},
};

use crate::{DecoderLoader, Device};

const STREAMS: u64 = 8;
const TOKENS: u32 = 32;

/// What one answer took.
struct Taken {
    usage: Usage,
    first: f64,
    /// The longest time between two pieces.
    longest: f64,
}

fn request(number: u64) -> ChatRequest {
    // About 64 tokens, of which few are alike at the beginning.
    let text: Vec<String> = (0..16).map(|i| format!("{} loaves", number * 100 + i)).collect();
    let sampling = Sampling { max_tokens: Some(TOKENS), seed: Some(number), ..Sampling::default() };
    ChatRequest { sampling, ..ChatRequest::user(text.join(", ")) }
}

async fn ask(backend: &dyn InferenceBackend<Chat>, request: ChatRequest) -> Taken {
    let context = CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()));
    let begun = Instant::now();
    let mut events = backend.stream(&context, request).await.unwrap();
    let (mut first, mut longest, mut last) = (None, 0.0f64, begun);
    while let Some(event) = events.next().await {
        if let Event::Done(meta) = event.unwrap() {
            return Taken { usage: meta.usage, first: first.unwrap_or_default(), longest };
        }
        let now = Instant::now();
        match first {
            None => first = Some(now.duration_since(begun).as_secs_f64()),
            Some(_) => longest = longest.max(now.duration_since(last).as_secs_f64()),
        }
        last = now;
    }
    panic!("the answer has no end");
}

fn report(what: &str, begun: Instant, taken: &[Taken]) -> f64 {
    let seconds = begun.elapsed().as_secs_f64();
    let written: u64 = taken.iter().map(|taken| taken.usage.output_tokens).sum();
    let read: u64 = taken.iter().map(|taken| taken.usage.input_tokens).sum();
    let most = |of: fn(&Taken) -> f64| taken.iter().map(of).fold(0.0, f64::max);
    let rate = written as f64 / seconds;
    println!(
        "{what}: {written} tokens written, {read} read in {seconds:.2} s: {rate:.1} tok/s; first piece {:.2} s, longest pause {:.2} s at most",
        most(|taken| taken.first),
        most(|taken| taken.longest),
    );
    rate
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures a model that the caller names"]
async fn eight_streams_together_and_one_after_another() {
    let path = std::env::var_os("HYBRID_DECODER_MODEL").expect("HYBRID_DECODER_MODEL is not set");
    let loader = DecoderLoader::new(Device::cpu()).with_context(1_024).with_streams(4);
    let backend = loader.open(Path::new(&path), ServedModel::named("measured")).await.unwrap();
    ask(&*backend, request(90)).await;

    let (begun, mut taken) = (Instant::now(), Vec::new());
    for number in 0..STREAMS {
        taken.push(ask(&*backend, request(number)).await);
    }
    let alone = report("one after another", begun, &taken);
    let begun = Instant::now();
    let taken = join_all((10..10 + STREAMS).map(|number| ask(&*backend, request(number)))).await;
    let together = report("together", begun, &taken);
    println!("together / one after another: {:.2}", together / alone);

    // A long prompt comes while the others write.
    let begun = Instant::now();
    let long = ChatRequest::user((0..80).map(|i| format!("{i} rolls")).collect::<Vec<_>>().join(", "));
    let long = ChatRequest { sampling: Sampling { max_tokens: Some(4), ..Sampling::default() }, ..long };
    let mut all: Vec<ChatRequest> = (20..23).map(request).collect();
    all.push(long);
    let taken = join_all(all.into_iter().map(|request| ask(&*backend, request))).await;
    report("three and a long prompt", begun, &taken);

    // Two turns of a conversation.
    let mut turn = request(30);
    for what in ["first turn", "second turn"] {
        let begun = Instant::now();
        let taken = ask(&*backend, turn.clone()).await;
        println!("{what}: {} tokens read, {} spared", taken.usage.input_tokens, taken.usage.cache_read_tokens);
        report(what, begun, &[taken]);
        turn = turn.with_message(hybrid_core::task::Message::user("And ten rolls."));
    }

    let schema = serde_json::json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
    let formed =
        |number| ChatRequest { response_format: ResponseFormat::json_schema("a", schema.clone()), ..request(number) };
    let begun = Instant::now();
    backend
        .infer(&CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default())), formed(39))
        .await
        .unwrap();
    println!("the first answer with a form, tokenizer read: {:.2} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let backend: Arc<dyn InferenceBackend<Chat>> = backend;
    let taken = join_all((40..40 + STREAMS).map(|number| ask(&*backend, formed(number)))).await;
    report("together, with a form", begun, &taken);
}
