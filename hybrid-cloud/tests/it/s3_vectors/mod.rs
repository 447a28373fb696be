//! Embeddings on S3 Vectors: the contract on the kit's own server, what moto serves, and botocore's view of both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions, Retry},
    s3_vectors::{S3VectorIndex, S3VectorOptions},
    testkit::{Fault, FaultProxy, MissingField, Moto, Python, S3VectorsServer},
};
use hybrid_core::{
    ErrorKind, Result, TenantId, VectorIndex, VectorKey, VectorQuery, VectorRecord, VectorSchema,
    conformance::{
        Outcome,
        vectors::{self, VectorHarness},
    },
    vector::{FieldKind, Filter, Metric},
};
use serde_json::{Value, json};

async fn config(endpoint: &str) -> AwsConfig {
    let retry = Retry { max_backoff: Duration::from_millis(20), ..Retry::default() };
    AwsConfig::load(AwsOptions { retry, ..AwsOptions::local(endpoint, "test", "test") }).await.unwrap()
}

fn options(prefix: &str, schema: VectorSchema) -> S3VectorOptions {
    S3VectorOptions { bucket: "vectors-of-tests".to_owned(), prefix: prefix.to_owned(), schema }
}

async fn make_bucket(config: &AwsConfig) {
    let client = aws_sdk_s3vectors::Client::new(config.sdk());
    client.create_vector_bucket().vector_bucket_name("vectors-of-tests").send().await.unwrap();
}

fn schema() -> VectorSchema {
    let schema = VectorSchema::new(4, Metric::Cosine).unwrap();
    schema.with_field("language", FieldKind::Text).unwrap().with_field("text", FieldKind::Stored).unwrap()
}

fn bakery() -> TenantId {
    TenantId::new("bakery").unwrap()
}

fn record(key: &str, vector: [f32; 4]) -> VectorRecord {
    VectorRecord::new(key, vector).unwrap().with("language", "de").with("text", format!("passage {key}"))
}

/// Indexes in one bucket, told apart by their prefix.
#[derive(Debug)]
struct Indexes {
    config: AwsConfig,
    made: AtomicUsize,
}

#[async_trait]
impl VectorHarness for Indexes {
    async fn index(&self, schema: VectorSchema) -> Result<Arc<dyn VectorIndex>> {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(S3VectorIndex::new(&self.config, options(&format!("case-{number}"), schema))?))
    }

    async fn restart(&self, index: Arc<dyn VectorIndex>) -> Result<Option<Arc<dyn VectorIndex>>> {
        let (number, schema) = (self.made.load(Ordering::SeqCst) - 1, index.profile().schema.clone());
        drop(index);
        Ok(Some(Arc::new(S3VectorIndex::new(&self.config, options(&format!("case-{number}"), schema))?)))
    }
}

#[tokio::test]
async fn the_adapter_keeps_the_contract_whatever_a_missing_field_is_taken_for() {
    for missing in [MissingField::DiffersFromAll, MissingField::IsUnknown] {
        let server = S3VectorsServer::start(missing).unwrap();
        let config = config(server.endpoint()).await;
        make_bucket(&config).await;
        let report = vectors::run(&Indexes { config, made: AtomicUsize::new(0) }).await;
        report.assert();
        let skipped: Vec<_> = report
            .cases()
            .iter()
            .filter(|case| matches!(case.outcome, Outcome::Skipped(_)))
            .map(|case| case.name)
            .collect();
        assert_eq!(skipped, ["ties_come_in_order_of_keys", "close_calls_are_told_apart"]);
    }
}

#[tokio::test]
async fn calls_stay_within_the_limits_of_the_service() {
    let server = S3VectorsServer::start(MissingField::IsUnknown).unwrap();
    let config = config(server.endpoint()).await;
    make_bucket(&config).await;
    let index = S3VectorIndex::new(&config, options("limits", schema())).unwrap();
    let records: Vec<_> = (0..1_100).map(|i| record(&format!("{i:04}"), [1.0, i as f32, 0.5, 0.0])).collect();
    let keys: Vec<_> = records.iter().map(|record| record.key.clone()).collect();
    index.upsert(&bakery(), records).await.unwrap();
    assert_eq!(index.get(&bakery(), &keys[..250]).await.unwrap().len(), 250);
    index.delete(&bakery(), &keys[..700]).await.unwrap();
    assert_eq!(index.count(&bakery()).await.unwrap(), 400);
    let sizes = |operation: &str, field: &str| {
        let calls = server.calls().into_iter().filter(|(name, _)| name == operation);
        calls.map(|(_, body)| body[field].as_array().unwrap().len()).collect::<Vec<_>>()
    };
    assert_eq!(sizes("PutVectors", "vectors"), [500, 500, 100]);
    assert_eq!(sizes("GetVectors", "keys"), [100, 100, 50]);
    assert_eq!(sizes("DeleteVectors", "keys"), [500, 200]);

    // What the service would refuse is refused here, and names the limit.
    let calls = server.calls().len();
    let error = index.query(&bakery(), VectorQuery::new([1.0; 4], 101)).await.unwrap_err();
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::InvalidInput, Some("100")));
    assert_eq!(server.calls().len(), calls);
}

#[tokio::test]
async fn a_throttled_call_is_repeated_and_one_that_stays_throttled_says_so() {
    let server = S3VectorsServer::start(MissingField::IsUnknown).unwrap();
    let config = config(server.endpoint()).await;
    make_bucket(&config).await;
    let index = S3VectorIndex::new(&config, options("throttled", schema())).unwrap();
    index.upsert(&bakery(), vec![record("a", [1.0; 4])]).await.unwrap();
    server.throttle(3);
    index.upsert(&bakery(), vec![record("b", [1.0; 4])]).await.unwrap();
    server.throttle(100);
    let error = index.query(&bakery(), VectorQuery::new([1.0; 4], 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited, "{error}");
    assert!(error.is_temporary() && error.to_string().contains("vectors-of-tests"), "{error}");
    server.throttle(0);
    assert_eq!(index.query(&bakery(), VectorQuery::new([1.0; 4], 5)).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_lost_answer_costs_a_repetition_and_nothing_else() {
    let server = S3VectorsServer::start(MissingField::IsUnknown).unwrap();
    make_bucket(&config(server.endpoint()).await).await;
    let proxy = FaultProxy::start(server.endpoint()).unwrap();
    let index = S3VectorIndex::new(&config(proxy.endpoint()).await, options("lost", schema())).unwrap();
    // Of `GetIndex`, of `CreateIndex`, of `PutVectors`: each acts and is not heard.
    for (i, key) in ["a", "b", "c"].into_iter().enumerate() {
        if i == 0 {
            let mut left = 6;
            proxy.script(move |request| {
                left -= 1;
                (left >= 0 && request.number % 2 == 0).then_some(Fault::DropAnswer)
            });
        }
        index.upsert(&bakery(), vec![record(key, [1.0; 4])]).await.unwrap();
    }
    assert_eq!(index.count(&bakery()).await.unwrap(), 3);
}

#[tokio::test]
async fn what_others_do_to_an_index_is_noticed() {
    let server = S3VectorsServer::start(MissingField::IsUnknown).unwrap();
    let config = config(server.endpoint()).await;
    let index = |schema| S3VectorIndex::new(&config, options("shared", schema)).unwrap();
    let ours = index(schema());
    // No bucket yet.
    let error = ours.upsert(&bakery(), vec![record("a", [1.0; 4])]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("vectors-of-tests"), "{error}");

    make_bucket(&config).await;
    ours.upsert(&bakery(), vec![record("a", [1.0; 4])]).await.unwrap();
    // Another process drops the tenant; this one still believes that the index is there.
    index(schema()).drop_tenant(&bakery()).await.unwrap();
    assert!(ours.query(&bakery(), VectorQuery::new([1.0; 4], 5)).await.unwrap().is_empty());
    ours.upsert(&bakery(), vec![record("b", [1.0; 4])]).await.unwrap();
    index(schema()).drop_tenant(&bakery()).await.unwrap();
    ours.upsert(&bakery(), vec![record("c", [1.0; 4])]).await.unwrap();
    assert_eq!(ours.count(&bakery()).await.unwrap(), 1);

    for other in [
        VectorSchema::new(5, Metric::Cosine).unwrap(),
        VectorSchema::new(4, Metric::Euclidean).unwrap(),
        VectorSchema::new(4, Metric::Cosine).unwrap().with_field("language", FieldKind::Text).unwrap(),
    ] {
        let vector = vec![1.0; other.dimension()];
        let error = index(other).query(&bakery(), VectorQuery::new(vector, 1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("shared.bakery.t"), "{error}");
    }
}

/// Reads and writes what the adapter has written and reads, as AWS's own client for Python does.
const BOTO3: &str = r#"
import boto3, botocore, json, sys
from botocore.config import Config
endpoint, queries = sys.argv[1], sys.argv[2] == "queries"
client = boto3.client("s3vectors", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test",
                      aws_secret_access_key="test", config=Config(retries={"max_attempts": 1}))
at = {"vectorBucketName": "vectors-of-tests", "indexName": "boto.bakery.t"}
index = client.get_index(**at)["index"]
said = {"dimension": index["dimension"], "metric": index["distanceMetric"],
        "stored": index.get("metadataConfiguration", {}).get("nonFilterableMetadataKeys", [])}
got = client.get_vectors(**at, keys=["from-rust", "missing"], returnData=True, returnMetadata=True)["vectors"]
said["got"] = got
client.put_vectors(**at, vectors=[{"key": "from-python", "data": {"float32": [0.0, 1.0, 0.0, 0.0]},
                                   "metadata": {"language": "fr", "text": "écrit par Python"}}])
said["listed"] = sorted(v["key"] for page in client.get_paginator("list_vectors").paginate(**at, maxResults=1)
                        for v in page["vectors"])
if queries:
    said["found"] = client.query_vectors(**at, topK=2, queryVector={"float32": [1.0, 0.0, 0.0, 0.0]}, returnDistance=True,
                                         returnMetadata=True, filter={"language": {"$ne": "fr"}})["vectors"]
    try:
        client.query_vectors(**at, topK=101, queryVector={"float32": [1.0, 0.0, 0.0, 0.0]})
    except client.exceptions.ValidationException as error:
        said["refused"] = error.response["Error"]["Message"]
try:
    client.get_index(vectorBucketName="vectors-of-tests", indexName="no-such-index")
except client.exceptions.NotFoundException:
    said["missing"] = True
print(json.dumps(said))
"#;

/// What boto3 says of an index with one record of ours, and what we read of its own.
async fn beside_boto3(endpoint: &str, queries: &str, schema: VectorSchema) -> Value {
    let config = config(endpoint).await;
    make_bucket(&config).await;
    let stored: Vec<_> = schema.stored_fields().map(str::to_owned).collect();
    let index = S3VectorIndex::new(&config, options("boto", schema)).unwrap();
    let ours = record("from-rust", [1.0, -0.5, 0.25, 0.0]);
    index.upsert(&bakery(), vec![ours.clone()]).await.unwrap();
    let (endpoint, queries) = (endpoint.to_owned(), queries.to_owned());

    let script = move || Python::servers().unwrap().run(BOTO3, &[endpoint.as_str(), queries.as_str()]).unwrap();
    let said = tokio::task::spawn_blocking(script);
    let said: Value = serde_json::from_str(&said.await.unwrap()).unwrap();
    assert_eq!((&said["dimension"], &said["metric"], &said["stored"]), (&json!(4), &json!("cosine"), &json!(stored)));
    assert_eq!(
        said["got"],
        json!([{
            "key": "from-rust",
            "data": { "float32": [1.0, -0.5, 0.25, 0.0] },
            "metadata": { "language": "de", "text": "passage from-rust" },
        }])
    );
    assert_eq!(said["listed"], json!(["from-python", "from-rust"]));
    assert_eq!(said["missing"], true);
    let keys = ["from-python", "from-rust"].map(|key| VectorKey::new(key).unwrap());
    let read = index.get(&bakery(), &keys).await.unwrap();
    assert_eq!(read[0].as_ref().unwrap().metadata["text"], "écrit par Python");
    assert_eq!(read[1].as_ref(), Some(&ours));
    said
}

#[tokio::test]
async fn botocore_and_the_adapter_read_each_other_on_the_kits_server() {
    let server = S3VectorsServer::start(MissingField::IsUnknown).unwrap();
    let said = beside_boto3(server.endpoint(), "queries", schema()).await;
    assert_eq!(said["found"].as_array().unwrap().len(), 1);
    assert_eq!(said["found"][0]["key"], "from-rust");
    assert!(said["refused"].as_str().unwrap().contains("topK"), "{said}");
    let index = S3VectorIndex::new(&config(server.endpoint()).await, options("boto", schema())).unwrap();
    let query = VectorQuery::new([0.0, 1.0, 0.0, 0.0], 2).filtered(Filter::equals("language", "fr"));
    let found = index.query(&bakery(), query).await.unwrap();
    assert_eq!((found.len(), found[0].key.as_str(), found[0].distance), (1, "from-python", 0.0));
}

#[tokio::test]
async fn botocore_and_the_adapter_read_each_other_on_moto() {
    // moto serves everything but queries, and does not remember which keys are not to filter by.
    let server = Moto::start().unwrap();
    let fields = [("language", FieldKind::Text), ("text", FieldKind::Text)];
    let schema = || {
        let empty = VectorSchema::new(4, Metric::Cosine).unwrap();
        fields.iter().fold(empty, |schema, (name, kind)| schema.with_field(*name, *kind).unwrap())
    };
    beside_boto3(server.endpoint(), "no queries", schema()).await;
    let index = S3VectorIndex::new(&config(server.endpoint()).await, options("boto", schema())).unwrap();
    index.delete(&bakery(), &[VectorKey::new("from-python").unwrap()]).await.unwrap();
    let keys: Vec<_> = index.list(&bakery()).try_collect().await.unwrap();
    assert_eq!(keys, [VectorKey::new("from-rust").unwrap()]);
    index.drop_tenant(&bakery()).await.unwrap();
    assert_eq!(index.count(&bakery()).await.unwrap(), 0);
}
