//! The port's contract, on both servers.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_cloud::s3::{Checksum, S3Location, S3Options, S3Store};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, ErrorKind, Key, ListOptions,
    conformance::{
        Outcome,
        artifacts::{self, ArtifactHarness},
    },
};

use super::{BOTH, Server, key};

#[derive(Debug)]
struct InBucket {
    store: S3Store,
    client: aws_sdk_s3::Client,
}

#[async_trait]
impl ArtifactHarness for InBucket {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        Arc::new(self.store.clone())
    }

    async fn corrupt(&self, key: &Key) -> bool {
        let mut bytes = self.store.get(key).await.unwrap().to_vec();
        bytes[0] ^= 1;
        // By a put without a condition, as no adapter makes one.
        let location = self.store.location();
        let put = self.client.put_object().bucket(location.bucket()).key(format!("{}{key}", location.prefix()));
        put.body(bytes.into()).send().await.unwrap();
        true
    }
}

async fn check(server: Server, prefix: &str, checksum: Checksum) {
    let location = S3Location::new(server.bucket().await, prefix).unwrap();
    let store = S3Store::new(&server.config().await, location, S3Options { checksum, ..server.s3_options() }).unwrap();
    store.check().await.unwrap();
    let report = artifacts::run(&InBucket { store, client: server.client().await }).await;
    report.assert();
    let skipped: Vec<_> = report.cases().iter().filter(|case| case.outcome != Outcome::Passed).collect();
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweedfs_behind_the_adapter_keeps_the_contract_of_a_store() {
    check(Server::Seaweed, "", Checksum::Crc64Nvme).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ministack_behind_the_adapter_keeps_the_contract_of_a_store() {
    check(Server::Ministack, "Some/Prefix", Checksum::Sha256).await;
}

#[tokio::test]
async fn a_server_that_lists_in_another_order_is_noticed() {
    let server = Server::Seaweed;
    let bucket = server.bucket().await;
    let trusting = server.store_at(server.endpoint(), &bucket, S3Options::default()).await;
    for name in ["a/b", "a-b"] {
        trusting.create(&key(name), "x".into()).await.unwrap();
    }
    let error = trusting.list_all("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let listed = server.store(&bucket).await.list_all("").await.unwrap();
    assert_eq!(listed.iter().map(|meta| meta.key.as_str()).collect::<Vec<_>>(), ["a-b", "a/b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_of_several_pages_misses_and_repeats_nothing() {
    let server = Server::Seaweed;
    let bucket = server.bucket().await;
    // These names are in the same order either way, so the pages come as they are asked for.
    let store = server.store_at(server.endpoint(), &bucket, S3Options::default()).await;
    let names: Vec<String> = (0..2_050).map(|number| format!("many/{number:05}")).collect();
    let created = stream::iter(&names).map(Ok).try_for_each_concurrent(32, |name| {
        let store = &store;
        async move { store.create(&key(name), "x".into()).await }
    });
    created.await.unwrap();
    let listed = |after: Option<&str>| {
        let options = ListOptions { start_after: after.map(key) };
        store.list("many/", options).map_ok(|meta| meta.key.to_string()).try_collect::<Vec<_>>()
    };
    assert_eq!(listed(None).await.unwrap(), names);
    assert_eq!(listed(Some("many/00999")).await.unwrap(), names[1_000..]);
    assert_eq!(listed(Some("many/01000.5")).await.unwrap(), names[1_001..]);
    assert_eq!(listed(Some("many/02049")).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn stores_below_different_prefixes_do_not_see_each_other() {
    for server in BOTH {
        let (bucket, config) = (server.bucket().await, server.config().await);
        let at = |prefix: &str| {
            S3Store::new(&config, S3Location::new(&bucket, prefix).unwrap(), server.s3_options()).unwrap()
        };
        let (one, other, whole) = (at("one"), at("one-more"), at(""));
        one.create(&key("k"), "one".into()).await.unwrap();
        other.create(&key("k"), "other".into()).await.unwrap();
        // A name that is no key is somebody else's.
        let client = server.client().await;
        client
            .put_object()
            .bucket(&bucket)
            .key("one/Not A Key")
            .body("x".to_owned().into_bytes().into())
            .send()
            .await
            .unwrap();
        assert_eq!(one.get(&key("k")).await.unwrap(), "one");
        assert_eq!(other.get(&key("k")).await.unwrap(), "other");
        for store in [&one, &other] {
            let all = store.list_all("").await.unwrap();
            assert_eq!(all.iter().map(|meta| meta.key.as_str()).collect::<Vec<_>>(), ["k"], "{server:?}");
        }
        let all = whole.list_all("one").await.unwrap();
        assert_eq!(all.iter().map(|meta| meta.key.as_str()).collect::<Vec<_>>(), ["one-more/k", "one/k"], "{server:?}");
    }
}
