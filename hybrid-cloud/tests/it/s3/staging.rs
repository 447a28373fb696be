//! Whole files, in one put and in parts.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use hybrid_cloud::{
    s3::{S3Options, S3Staging},
    testkit::{Fault, FaultProxy},
};
use hybrid_core::{
    ErrorKind, FileName, Result, Staging,
    conformance::staging::{self, StagingHarness},
};

use super::{BOTH, Server, key, noise};

const MIB: usize = 1 << 20;

fn name(name: &str) -> FileName {
    FileName::new(name).unwrap()
}

#[derive(Debug)]
struct Harness {
    server: Server,
    scratch: tempfile::TempDir,
}

#[async_trait]
impl StagingHarness for Harness {
    async fn staging(&self) -> Result<Arc<dyn Staging>> {
        let bucket = self.server.bucket().await;
        Ok(Arc::new(self.server.store(&bucket).await.staging()))
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.scratch).unwrap().keep()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_kept_on_seaweedfs() {
    staging::run(&Harness { server: Server::Seaweed, scratch: tempfile::tempdir().unwrap() }).await.assert();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_kept_on_ministack() {
    staging::run(&Harness { server: Server::Ministack, scratch: tempfile::tempdir().unwrap() }).await.assert();
}

async fn fetch(server: Server, bucket: &str, key: &str) -> Vec<u8> {
    let answer = server.client().await.get_object().bucket(bucket).key(key).send().await.unwrap();
    answer.body.collect().await.unwrap().to_vec()
}

async fn names(staging: &S3Staging) -> Vec<(String, u64)> {
    let files: Vec<_> = staging.list(&key("exports/m")).try_collect().await.unwrap();
    files.into_iter().map(|file| (file.name.as_str().to_owned(), file.size)).collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_small_and_large_lie_there_whole_under_their_names() {
    let scratch = tempfile::tempdir().unwrap();
    let (small, large) = (noise(5, 1), noise(40 * MIB + 3, 2));
    let (small_path, large_path) = (write(scratch.path(), "s", &small), write(scratch.path(), "l", &large));
    let empty_path = write(scratch.path(), "e", b"");
    for server in BOTH {
        let bucket = server.bucket().await;
        let staging = server.store(&bucket).await.staging();
        let folder = key("exports/m");
        assert_eq!(staging.location(&folder), format!("s3://{bucket}/exports/m/"));
        staging.put_file(&folder, &name("config.json"), &large_path).await.unwrap();
        // Takes the place of what is there.
        staging.put_file(&folder, &name("config.json"), &small_path).await.unwrap();
        staging.put_file(&folder, &name("sub/Model-00001-of-00002.safetensors"), &large_path).await.unwrap();
        staging.put_file(&folder, &name("empty"), &empty_path).await.unwrap();
        // Another folder, whose name only begins the same.
        staging.put_file(&key("exports/m2"), &name("config.json"), &small_path).await.unwrap();
        let large_name = "sub/Model-00001-of-00002.safetensors".to_owned();
        let expected = [("config.json".to_owned(), 5), ("empty".to_owned(), 0), (large_name, large.len() as u64)];
        assert_eq!(names(&staging).await, expected, "{server:?}");
        assert_eq!(fetch(server, &bucket, "exports/m/config.json").await, small);
        assert!(fetch(server, &bucket, "exports/m/sub/Model-00001-of-00002.safetensors").await == large, "{server:?}");
        staging.delete(&folder, &name("config.json")).await.unwrap();
        staging.delete(&folder, &name("config.json")).await.unwrap();
        assert_eq!(names(&staging).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_survives_lost_answers_and_one_that_fails_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let large = noise(36 * MIB, 3);
    let path = write(scratch.path(), "large", &large);
    for server in BOTH {
        let bucket = server.bucket().await;
        let proxy = FaultProxy::start(server.endpoint()).unwrap();
        let staging = server.store_at(proxy.endpoint(), &bucket, S3Options::default()).await.staging();
        let folder = key("exports/m");
        // Each kind of request once: a part that breaks off, and a completion whose answer is lost.
        let mut part = false;
        let mut completion = false;
        proxy.script(move |request| {
            if request.target.contains("partNumber=2") && !std::mem::replace(&mut part, true) {
                return Some(Fault::CutRequest { after: 1_000_000 });
            }
            let completes = request.method == "POST" && request.target.contains("uploadId=");
            (completes && !std::mem::replace(&mut completion, true)).then_some(Fault::DropAnswer)
        });
        staging.put_file(&folder, &name("model"), &path).await.unwrap();
        assert_eq!(proxy.faults(), 2, "{server:?}");
        assert!(fetch(server, &bucket, "exports/m/model").await == large, "{server:?}");

        // A part that is refused for good: the file that was there stays, and no part of the new one is billed.
        proxy.script(|request| {
            let fault = Fault::Answer { status: 403, body: "<Error><Code>AccessDenied</Code></Error>".to_owned() };
            request.target.contains("partNumber=3").then_some(fault)
        });
        let other = write(scratch.path(), "other", &noise(36 * MIB, 4));
        let error = staging.put_file(&folder, &name("model"), &other).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert_eq!(error.context("path"), other.to_str(), "{error}");
        assert!(fetch(server, &bucket, "exports/m/model").await == large, "{server:?}");
        let client = server.client().await;
        let started = Instant::now();
        loop {
            let left = client.list_multipart_uploads().bucket(&bucket).send().await.unwrap();
            if left.uploads().is_empty() {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{server:?}: {:?}", left.uploads());
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let staging = Server::Ministack.store("bucket").await.staging();
    let missing = scratch.path().join("missing");
    let error = staging.put_file(&key("m"), &name("a"), &missing).await.unwrap_err();
    assert_eq!((error.kind(), error.context("path")), (ErrorKind::NotFound, missing.to_str()), "{error}");
    let error = staging.put_file(&key("m"), &name("a"), scratch.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}
