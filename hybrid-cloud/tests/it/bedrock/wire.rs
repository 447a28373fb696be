//! The scripted server against another reader of the wire, and the backends against another server.

use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions},
    bedrock::{Bedrock, ModelOptions},
    testkit::{
        Ministack, Python,
        bedrock::{Answer, BedrockServer, Fault, Reply},
    },
};
use hybrid_core::{
    InferenceBackend,
    inference::collect_reply,
    task::{Chat, ChatRequest},
};
use serde_json::{Value, json};

use super::rig;

/// Calls the server with AWS's own client for Python, and prints what it read.
const BOTO3: &str = r#"
import json, sys, boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
client = boto3.client("bedrock-runtime", endpoint_url=sys.argv[1], region_name="us-east-1",
    aws_access_key_id="x", aws_secret_access_key="x", config=Config(retries={"total_max_attempts": 1}))
call = {"modelId": "amazon.nova-lite-v1:0", "messages": [{"role": "user", "content": [{"text": "hi"}]}]}
whole = client.converse(**call)
whole.pop("ResponseMetadata")
events = list(client.converse_stream(**call)["stream"])
def failed(work):
    try:
        work()
        return "nothing"
    except (ClientError, EventStreamError) as error:
        return error.response["Error"]["Code"]
errors = [failed(lambda: client.converse(**call)), failed(lambda: list(client.converse_stream(**call)["stream"]))]
invoked = json.loads(client.invoke_model(modelId="amazon.titan-embed-text-v2:0", body="{}")["body"].read())
print(json.dumps({"whole": whole, "events": events, "errors": errors, "invoked": invoked}))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn awss_own_client_for_python_reads_the_scripted_server() {
    let call = json!({"toolUse": {"toolUseId": "t-1", "name": "weigh", "input": {"grams": 5}}});
    let thought = json!({"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}});
    let answer = Answer {
        stop_reason: "tool_use".into(),
        piece: 100,
        ..Answer::new([thought, json!({"text": "Weighing süß"}), call])
    };
    let server = BedrockServer::start().unwrap();
    let exception = Fault::ExceptionAt(answer.frames()[0].len(), "throttlingException".into());
    server.script([
        answer.clone().into(),
        answer.clone().into(),
        Reply::error(429, "ModelNotReadyException", "loading"),
        Reply::from(answer.clone()).with_fault(exception),
        Reply::json(json!({"embedding": [0.5]})),
    ]);
    let url = server.url().to_owned();
    let printed = tokio::task::spawn_blocking(move || Python::servers()?.run(BOTO3, &[&url])).await.unwrap().unwrap();
    let seen: Value = serde_json::from_str(printed.trim()).unwrap();

    assert_eq!(seen["whole"], answer.json());
    let names: Vec<_> = seen["events"].as_array().unwrap().iter().flat_map(|e| e.as_object().unwrap().keys()).collect();
    let expected = "messageStart contentBlockDelta contentBlockDelta contentBlockStop contentBlockDelta contentBlockStop \
                    contentBlockStart contentBlockDelta contentBlockStop messageStop metadata";
    assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        seen["events"][1],
        json!({"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "hm"}}}})
    );
    assert_eq!(
        seen["events"][7],
        json!({"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"toolUse": {"input": "{\"grams\":5}"}}}})
    );
    assert_eq!(seen["events"][10]["metadata"]["usage"], answer.usage);
    assert_eq!(seen["errors"], json!(["ModelNotReadyException", "throttlingException"]));
    assert_eq!(seen["invoked"], json!({"embedding": [0.5]}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_emulator_of_aws_is_understood() {
    let server = tokio::task::spawn_blocking(Ministack::shared).await.unwrap().unwrap();
    let config = AwsConfig::load(AwsOptions::local(server.endpoint(), "test", "test")).await.unwrap();
    let bedrock = Bedrock::new(&config, rig::options()).unwrap();
    let chat = bedrock.chat(ModelOptions::new(rig::NOVA)).unwrap();
    let cx = rig::context();
    let whole = chat.infer(&cx, ChatRequest::user("hi")).await.unwrap();
    assert!(!whole.response.text().is_empty());
    assert!(whole.meta.usage.output_tokens > 0 && whole.meta.cost.is_some(), "{:?}", whole.meta);
    let stream = InferenceBackend::<Chat>::stream(&chat, &cx, ChatRequest::user("hi")).await.unwrap();
    let streamed = collect_reply(stream).await.unwrap();
    assert!(!streamed.response.text().is_empty() && streamed.response.choices[0].stop_reason.is_complete());
}
