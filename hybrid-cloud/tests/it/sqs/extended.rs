//! Bodies in the bucket, with AWS's own extended client library for Python.

use std::sync::Arc;

use hybrid_cloud::{
    s3::{S3Options, S3Store},
    sqs::{ClaimCheck, QueueSetup, SqsQueueOptions},
    testkit::{Moto, Python, create_bucket},
};
use hybrid_core::{ArtifactStoreExt, JobQueueExt, Key, NewMessage};
use serde_json::{Value, json};

use super::{name, open, take};

/// What every script begins with.
const CLIENT: &str = r#"
import json, os, sys
endpoint, url, bucket = sys.argv[1:4]
# The library makes an S3 client of its own, which only the environment reaches.
os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_DEFAULT_REGION="us-east-1", AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
import boto3, sqs_extended_client
sqs = boto3.client("sqs")
sqs.large_payload_support = bucket
"#;

/// Runs a script with the endpoint, the queue's URL and the bucket.
fn run(python: &Python, server: &Moto, script: &str, [url, bucket]: [&str; 2]) -> Value {
    let printed = python.run(&format!("{CLIENT}\n{script}"), &[server.endpoint(), url, bucket]).unwrap();
    serde_json::from_str(&printed).unwrap()
}

#[tokio::test]
async fn the_extended_client_reads_our_payloads_and_we_read_its() {
    // Not ministack: the library takes a receipt handle to end after its last hyphen, and ministack's have some, unlike AWS's and moto's.
    let server = Moto::start().unwrap();
    let (aws, bucket) = (server.config(server.endpoint()).await.unwrap(), name("-bucket"));
    create_bucket(&aws, &bucket).await.unwrap();
    let python = Python::environment(include_str!("extended.txt")).unwrap();
    let store =
        Arc::new(S3Store::new(&aws, format!("s3://{bucket}/prod").parse().unwrap(), S3Options::default()).unwrap());
    let check = ClaimCheck::new(store.clone(), &bucket, Key::new("payloads").unwrap());
    let check = ClaimCheck { root: "prod/".to_owned(), threshold: 1000, ..check };
    let options = SqsQueueOptions { claim_check: Some(check), ..super::options() };
    let setup = QueueSetup { max_deliveries: 1, ..QueueSetup::new(name("")) };
    let queue = open(&aws, setup, options).await;
    let at = [queue.url(), &bucket];

    // Ours, read and deleted by the library, which keeps the payload as it does unless told otherwise.
    let body = "croissant 🥐 ".repeat(1000);
    queue.send_one(NewMessage { trace: Some("00-aa-bb-01".to_owned()), ..NewMessage::new(&*body) }).await.unwrap();
    let script = r#"
message, = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=2, MessageAttributeNames=["All"])["Messages"]
sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
print(json.dumps([message["Body"], list(message["MessageAttributes"])]))
"#;
    assert_eq!(run(&python, &server, script, at), json!([body, ["traceparent"]]));
    assert_eq!(store.list_all("payloads/").await.unwrap().len(), 1);
    assert!(take(&queue, 0, 30).await.is_empty());

    // Its own, in either of its forms, under a key that the sender chooses.
    for legacy in ["False", "True"] {
        let script = format!(
            r#"
sqs.use_legacy_attribute = {legacy}
attributes = {{"S3Key": {{"DataType": "String", "StringValue": "prod/payloads/legacy-{legacy}".lower()}}}}
sqs.send_message(QueueUrl=url, MessageBody="brötchen " * 40000, MessageAttributes=attributes)
print("null")
"#
        );
        run(&python, &server, &script, at);
        let delivery = take(&queue, 2, 30).await.pop().unwrap();
        assert_eq!(delivery.body, "brötchen ".repeat(40000), "{legacy}");

        // Dead, listed with its text, sent back by us, and whole for the library again.
        queue.nack_one(&delivery.receipt, std::time::Duration::ZERO).await.unwrap();
        assert!(take(&queue, 0, 30).await.is_empty());
        let letters = queue.dead_letters().unwrap();
        let listed = hybrid_core::DeadLetters::list(&letters, 10, None).await.unwrap();
        assert_eq!(listed[0].body, delivery.body, "{legacy}");
        assert_eq!(hybrid_core::DeadLetters::redrive(&letters, &[delivery.id]).await.unwrap(), 1);
        let script = r#"
message, = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=2, MessageAttributeNames=["All"])["Messages"]
sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
print(json.dumps(message["Body"] == "brötchen " * 40000))
"#;
        assert_eq!(run(&python, &server, script, at), json!(true), "{legacy}");
    }
}
