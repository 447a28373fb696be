//! Our messages with AWS's own clients for Python, and theirs with us.

use std::time::Duration;

use hybrid_cloud::{
    sqs::{QueueSetup, SqsQueueOptions},
    testkit::{Ministack, Python},
};
use hybrid_core::{JobQueue, JobQueueExt, NewMessage};
use serde_json::{Value, json};

use super::{aws, name, open, take};

/// What every script begins with; the arguments are the endpoint and the queue's URL.
const CLIENT: &str = r#"
import json, sys, boto3
endpoint, url = sys.argv[1:3]
login = dict(endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
sqs = boto3.client("sqs", **login)
"#;

fn run(python: &Python, script: &str, url: &str) -> Value {
    let endpoint = Ministack::shared().unwrap().endpoint();
    let printed = python.run(&format!("{CLIENT}\n{script}"), &[endpoint, url]).unwrap();
    serde_json::from_str(&printed).unwrap()
}

const BODY: &str = "tab\t croissant 🥐\n{\"a\": [1, 2]}";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn boto3_reads_our_messages_and_acks_them() {
    let queue = open(&aws().await, QueueSetup::new(name("")), SqsQueueOptions::default()).await;
    let message =
        NewMessage { group: Some("tenant-a".to_owned()), trace: Some(TRACE.to_owned()), ..NewMessage::new(BODY) };
    let id = queue.send_one(message).await.unwrap();
    let script = r#"
message, = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=2, MessageSystemAttributeNames=["All"], MessageAttributeNames=["All"])["Messages"]
sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
attributes = {name: (value["DataType"], value["StringValue"]) for name, value in message["MessageAttributes"].items()}
print(json.dumps([message["MessageId"], message["Body"], message["Attributes"]["MessageGroupId"], attributes]))
"#;
    let found = run(&Python::servers().unwrap(), script, queue.url());
    assert_eq!(found, json!([id.0, BODY, "tenant-a", { "traceparent": ["String", TRACE] }]));
    assert_eq!(queue.depth().await.unwrap(), hybrid_core::Depth::default());
}

#[tokio::test]
async fn we_read_what_boto3_sends_and_leave_its_attributes_alone() {
    let setup = QueueSetup { max_deliveries: 1, ..QueueSetup::new(name("")) };
    let queue = open(&aws().await, setup, super::options()).await;
    let script = r#"
body, trace = "\t🥐 é", "00-aa-bb-01"
attributes = {"traceparent": {"DataType": "String", "StringValue": trace},
              "blob": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"}}
sent = sqs.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=attributes, MessageGroupId="bakery",
                        MessageSystemAttributes={"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-5759e988-bd862e3fe1be46a994272793"}})
print(json.dumps(sent["MessageId"]))
"#;
    let python = Python::servers().unwrap();
    let id = run(&python, script, queue.url());
    let delivery = take(&queue, 2, 30).await.pop().unwrap();
    assert_eq!((json!(delivery.id.0), &*delivery.body), (id, "\t🥐 é"));
    assert_eq!((delivery.group.as_deref(), delivery.trace.as_deref()), (Some("bakery"), Some("00-aa-bb-01")));

    // It dies, is sent back by us, and is whole when boto3 sees it again.
    queue.nack_one(&delivery.receipt, Duration::ZERO).await.unwrap();
    assert!(take(&queue, 0, 30).await.is_empty());
    let letters = queue.dead_letters().unwrap();
    assert_eq!(hybrid_core::DeadLetters::redrive(&letters, &[delivery.id]).await.unwrap(), 1);
    let script = r#"
message, = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=2, MessageSystemAttributeNames=["All"], MessageAttributeNames=["All"])["Messages"]
blob = message["MessageAttributes"]["blob"]
print(json.dumps([message["Body"], message["Attributes"]["MessageGroupId"], blob["DataType"], list(blob["BinaryValue"])]))
"#;
    assert_eq!(run(&python, script, queue.url()), json!(["\t🥐 é", "bakery", "Binary.png", [0, 255]]));
}
