//! The quickstart with bucket and queue on servers that speak AWS's protocols: one line differs, nothing else.

use std::process::Command;

use hybrid_cloud::{
    dynamodb::{DynamoRecordOptions, DynamoRecordStore},
    sqs::QueueSetup,
    testkit::{Ministack, MissingField, Python, S3VectorsServer, Seaweed},
};
use hybrid_examples::locations::Locations;

use crate::{app, surface::keeps_documents_and_records};

/// A bucket and a queue of one's own, as `--artifacts` and `--queue` take them.
async fn places(name: &str) -> [String; 2] {
    let (s3, sqs) = (Seaweed::shared().unwrap(), Ministack::shared().unwrap());
    let make = "import boto3, sys\n\
                boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', aws_access_key_id=sys.argv[2], \
                aws_secret_access_key=sys.argv[3]).create_bucket(Bucket=sys.argv[4])";
    let python = Python::servers().unwrap();
    python.run(make, &[s3.endpoint(), Seaweed::ACCESS_KEY, Seaweed::SECRET_KEY, name]).unwrap();
    let config = sqs.config(sqs.endpoint()).await.unwrap();
    let urls = QueueSetup { max_deliveries: 20, ..QueueSetup::new(name) }.create(&config).await.unwrap();
    let queue = urls.queue.split_once("://").unwrap().1;
    let more = "region=us-east-1&endpoint=";
    [
        // SeaweedFS lists folder by folder.
        format!("s3://{name}/a/site?path-style=true&listing=sorted&{more}{}", s3.endpoint()),
        format!("sqs://{queue}?{more}{}", sqs.endpoint()),
    ]
}

/// The quickstart's command with the credentials of both servers.
fn quickstart(site: &std::path::Path, places: &[String; 2]) -> Command {
    let mut command = app::quickstart(site);
    command.args(["--artifacts", &places[0], "--queue", &places[1]]);
    command.env("AWS_ACCESS_KEY_ID", Seaweed::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", Seaweed::SECRET_KEY);
    command
}

#[tokio::test]
async fn the_loop_closes_over_s3_and_sqs_as_it_does_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let places = places("quickstart").await;
    let first = app::summary(&quickstart(folder.path(), &places).output().unwrap());
    let verdicts: Vec<_> = first.versions.iter().map(|row| (row.version, row.verdict.as_str())).collect();
    assert_eq!(verdicts, [(1, "promote"), (2, "promote"), (3, "refuse")]);
    assert_eq!((first.serving, first.requests.failed), (Some(2), 0));
    assert!(first.requests.served > 100, "{:?}", first.requests);
    assert!(!folder.path().join("artifacts").exists() && !folder.path().join("queue.db").exists());

    // Another machine, which has no folder but the keys, goes on where the first one was.
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(other.path().join("keys")).unwrap();
    for entry in std::fs::read_dir(folder.path().join("keys")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, other.path().join("keys").join(path.file_name().unwrap())).unwrap();
    }
    let second = app::summary(&quickstart(other.path(), &places).output().unwrap());
    let verdicts: Vec<_> = second.versions.iter().map(|row| (row.version, row.verdict.as_str())).collect();
    assert_eq!(verdicts, [(4, "hold"), (5, "hold"), (6, "refuse")], "{second:?}");
    assert_eq!((second.serving, second.requests.failed), (Some(2), 0));
}

#[tokio::test]
async fn a_place_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = async |artifacts: &str| {
        let locations = Locations { artifacts: Some(artifacts.parse().unwrap()), ..Locations::folder(folder.path()) };
        locations.open_store().await.unwrap_err().to_string()
    };
    assert!(refused("s3://bucket?regoin=x").await.contains("regoin"));
    assert!(refused("gopher://bucket").await.contains("gopher://bucket"));
    let locations = Locations { queue: Some("s3://x".parse().unwrap()), ..Locations::folder(folder.path()) };
    assert!(locations.open_queue().await.unwrap_err().to_string().contains("sqs://"));
}

#[tokio::test]
async fn documents_and_records_are_kept_in_a_vector_bucket_and_a_table_as_in_a_folder() {
    let (tables, vectors) = (Ministack::shared().unwrap(), S3VectorsServer::start(MissingField::IsUnknown).unwrap());
    let config = tables.config(tables.endpoint()).await.unwrap();
    DynamoRecordStore::new(&config, DynamoRecordOptions::table("records")).unwrap().create_table().await.unwrap();
    make_vector_bucket(&vectors, "documents");
    let documents = format!("s3vectors://documents/texts?region=us-east-1&endpoint={}", vectors.endpoint());
    let records = format!("dynamodb://records?region=us-east-1&endpoint={}", tables.endpoint());
    let credentials = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    keeps_documents_and_records(&["--documents-in", &documents, "--records-in", &records], &credentials).await;
}

pub(crate) fn make_vector_bucket(server: &S3VectorsServer, name: &str) {
    let make = "import boto3, sys\n\
                boto3.client('s3vectors', endpoint_url=sys.argv[1], region_name='us-east-1', aws_access_key_id='test', \
                aws_secret_access_key='test').create_vector_bucket(vectorBucketName=sys.argv[2])";
    Python::servers().unwrap().run(make, &[server.endpoint(), name]).unwrap();
}
