use std::sync::Arc;

use async_trait::async_trait;
use hybrid_cloud::{
    bedrock::{BedrockOptions, ModelOptions, PriceRow, PriceTable},
    testkit::bedrock::{Answer, BedrockServer, Reply, Request},
};
use hybrid_core::{
    InferenceBackend, Result,
    conformance::inference::{self, InferenceHarness},
    task::{Chat, ChatRequest, FunctionTool},
};
use serde_json::json;

use super::rig;

#[derive(Debug)]
struct Harness {
    server: BedrockServer,
    backend: Arc<dyn InferenceBackend<Chat>>,
}

impl Harness {
    fn new(model: &str) -> Self {
        let server = BedrockServer::start().unwrap();
        server.otherwise(answer);
        let prices =
            PriceTable { dated: String::new(), rows: vec![PriceRow::new("amazon.nova-lite", "1", "2").unwrap()] };
        let bedrock = rig::connect(&server, BedrockOptions { prices, ..rig::options() });
        let backend = Arc::new(bedrock.chat(ModelOptions::new(model)).unwrap());
        Self { server, backend }
    }
}

/// The same request has the same answer, and another request another one.
fn answer(request: &Request) -> Reply {
    let last = request.body["messages"].as_array().and_then(|messages| messages.last()).unwrap();
    let text = last["content"][0]["text"].as_str().unwrap_or_default();
    if request.body.get("toolConfig").is_some() {
        return Answer::tool_use("t-1", "weigh", json!({"what": text, "grams": 500.5})).into();
    }
    let usage =
        json!({"inputTokens": text.len(), "outputTokens": 3, "totalTokens": text.len() + 3, "cacheReadInputTokens": 2});
    Answer { usage, ..Answer::text(&format!("You said: {text}")) }.into()
}

#[async_trait]
impl InferenceHarness<Chat> for Harness {
    async fn backend(&self) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        Ok(Arc::clone(&self.backend))
    }

    fn requests(&self) -> Vec<ChatRequest> {
        let tool = FunctionTool::new("weigh", json!({"type": "object"}));
        vec![
            ChatRequest::user("What is in a sourdough starter?").with_system("be brief"),
            ChatRequest::user("Und auf Deutsch, süß?"),
            ChatRequest::user("flour").with_tool(tool),
        ]
    }

    fn invalid(&self) -> ChatRequest {
        ChatRequest::default()
    }

    fn reached(&self) -> Option<u64> {
        Some(self.server.calls() as u64)
    }
}

#[tokio::test]
async fn a_model_in_one_region_keeps_the_contract() {
    inference::run(&Harness::new(rig::NOVA)).await.assert();
}

#[tokio::test]
async fn a_model_behind_a_cross_region_profile_keeps_the_contract() {
    inference::run(&Harness::new("us.amazon.nova-lite-v1:0")).await.assert();
}
