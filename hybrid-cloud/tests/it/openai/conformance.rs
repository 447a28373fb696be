//! The port's own suite, for each task.

use std::sync::Arc;

use async_trait::async_trait;
use hybrid_cloud::{
    openai::OpenAiCompatible,
    testkit::openai::{Answer, OpenAiServer},
};
use hybrid_core::{
    Currency, InferenceBackend, Money, Price, Result,
    conformance::inference::{self, InferenceHarness},
    task::{Chat, ChatRequest, Embed, EmbedRequest, Sampling, TimestampGranularity, Transcribe, TranscribeRequest},
};
use serde_json::json;

use super::rig::{chat_answer, config};

#[derive(Debug)]
struct Scripted {
    server: OpenAiServer,
    backend: Arc<OpenAiCompatible>,
}

impl Scripted {
    async fn new() -> Self {
        let server = OpenAiServer::start().await.unwrap();
        let usd = |decimal| Money::new(Currency::USD, decimal).unwrap();
        let price = Price {
            input: usd("3"),
            output: usd("15"),
            cache_read: None,
            cache_write: None,
            audio_second: Some(usd("0.0001")),
            image: None,
        };
        let backend = Arc::new(OpenAiCompatible::new(config(server.base_url()).with_price(price)).unwrap());
        Self { server, backend }
    }
}

macro_rules! harness {
    ($task:ident, $request:ident, [$($requests:expr),*]) => {
        #[async_trait]
        impl InferenceHarness<$task> for Scripted {
            async fn backend(&self) -> Result<Arc<dyn InferenceBackend<$task>>> {
                Ok(self.backend.clone())
            }

            fn requests(&self) -> Vec<$request> {
                vec![$($requests),*]
            }

            fn invalid(&self) -> $request {
                $request::default()
            }

            fn reached(&self) -> Option<u64> {
                Some(self.server.requests().len() as u64)
            }
        }
    };
}

harness!(
    Chat,
    ChatRequest,
    [
        ChatRequest::user("What is in a sourdough starter?").with_system("Be brief."),
        ChatRequest { sampling: Sampling { max_tokens: Some(7), ..Sampling::default() }, ..ChatRequest::user("hi") }
    ]
);
harness!(Embed, EmbedRequest, [EmbedRequest::one("loaf"), EmbedRequest::documents(["loaf", "roll"])]);
harness!(
    Transcribe,
    TranscribeRequest,
    [
        TranscribeRequest::new(vec![1, 2], "audio/wav"),
        TranscribeRequest {
            timestamps: [TimestampGranularity::Segment].into(),
            ..TranscribeRequest::new(vec![1, 2], "audio/wav")
        }
    ]
);

#[tokio::test]
async fn chat_keeps_the_contract() {
    let harness = Scripted::new().await;
    harness.server.answer_with(|request| {
        let words = request.json()["messages"].as_array().unwrap().len().to_string();
        chat_answer(request, &["Flour", " and ", &words])
    });
    inference::run::<Chat>(&harness).await.assert();
}

#[tokio::test]
async fn embed_keeps_the_contract() {
    let harness = Scripted::new().await;
    harness.server.answer_with(|request| {
        let inputs = request.json()["input"].as_array().unwrap().len();
        let data: Vec<_> = (0..inputs).map(|i| json!({"index": i, "embedding": [0.5, i]})).collect();
        Answer::json(200, &json!({"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}}))
    });
    inference::run::<Embed>(&harness).await.assert();
}

#[tokio::test]
async fn transcribe_keeps_the_contract() {
    let harness = Scripted::new().await;
    harness.server.answer_with(|request| {
        let verbose = String::from_utf8_lossy(&request.body).contains("verbose_json");
        let short = json!({"text": "Two loaves.", "usage": {"type": "duration", "seconds": 2}});
        let segment = json!({"id": 0, "start": 0.0, "end": 1.5, "text": "Two loaves."});
        let long = json!({"text": "Two loaves.", "language": "english", "duration": 1.5, "segments": [segment]});
        Answer::json(200, if verbose { &long } else { &short })
    });
    inference::run::<Transcribe>(&harness).await.assert();
}
