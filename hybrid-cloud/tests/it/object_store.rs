//! The adapter for the `object_store` crate: the contract on its memory store and on a real server, and the crate's known trap.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{future::join_all, stream::BoxStream};
use hybrid_cloud::{
    object_store::ObjectStoreAdapter,
    testkit::{Fault, FaultProxy, Ministack, Seaweed},
};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, ErrorKind, Key, Result,
    conformance::{
        Outcome,
        artifacts::{self, ArtifactHarness},
    },
};
use object_store::{
    Attribute, AttributeValue, Attributes, BackoffConfig, CopyOptions, GetOptions, GetResult, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RetryConfig, aws::AmazonS3Builder, memory::InMemory, path::Path,
};

use crate::s3::{BOTH, Server, key, noise};

#[derive(Debug)]
struct Under {
    adapter: ObjectStoreAdapter,
    store: Arc<dyn ObjectStore>,
    prefix: &'static str,
}

#[async_trait]
impl ArtifactHarness for Under {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        Arc::new(self.adapter.clone())
    }

    async fn corrupt(&self, key: &Key) -> bool {
        let path = Path::from(format!("{}{key}", self.prefix));
        let mut bytes = self.store.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        bytes[0] ^= 1;
        self.store.put(&path, bytes.into()).await.unwrap();
        true
    }
}

async fn check(store: Arc<dyn ObjectStore>, prefix: &'static str) {
    let adapter = ObjectStoreAdapter::new(Arc::clone(&store), prefix).unwrap();
    check_adapter(adapter, store, prefix).await;
}

async fn check_adapter(adapter: ObjectStoreAdapter, store: Arc<dyn ObjectStore>, prefix: &'static str) {
    let report = artifacts::run(&Under { adapter, store, prefix }).await;
    report.assert();
    let skipped: Vec<_> = report.cases().iter().filter(|case| case.outcome != Outcome::Passed).collect();
    assert!(skipped.is_empty(), "{skipped:?}");
}

/// The crate's client for a bucket on SeaweedFS, or on a proxy before it.
fn client(endpoint: &str, bucket: &str) -> Arc<dyn ObjectStore> {
    client_as(endpoint, bucket, Seaweed::ACCESS_KEY, Seaweed::SECRET_KEY)
}

fn client_as(endpoint: &str, bucket: &str, access_key: &str, secret_key: &str) -> Arc<dyn ObjectStore> {
    let wait = Duration::from_millis(1);
    let backoff = BackoffConfig { init_backoff: wait, max_backoff: wait, base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(60) };
    let builder = AmazonS3Builder::new().with_bucket_name(bucket).with_region("us-east-1").with_endpoint(endpoint);
    let builder = builder.with_access_key_id(access_key).with_secret_access_key(secret_key);
    Arc::new(builder.with_allow_http(true).with_retry(retry).build().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_behind_the_adapter_keeps_the_contract_of_a_store() {
    check(Arc::new(InMemory::new()), "").await;
    check(Arc::new(InMemory::new()), "Some/Prefix/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweedfs_behind_the_adapter_keeps_the_contract_of_a_store() {
    let bucket = Server::Seaweed.bucket().await;
    let store = client(Server::Seaweed.endpoint(), &bucket);
    // It lists folder by folder.
    let adapter = ObjectStoreAdapter::new(Arc::clone(&store), "prod/").unwrap().sorting();
    check_adapter(adapter, store, "prod/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ministack_behind_the_adapter_keeps_the_contract_of_a_store() {
    let bucket = Server::Ministack.bucket().await;
    let endpoint = Server::Ministack.endpoint();
    check(client_as(endpoint, &bucket, Ministack::ACCESS_KEY, Ministack::SECRET_KEY), "prod/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crates_trap_is_no_trap_here() {
    let bucket = Server::Seaweed.bucket().await;
    let proxy = FaultProxy::start(Server::Seaweed.endpoint()).unwrap();
    let store = client(proxy.endpoint(), &bucket);
    let adapter = ObjectStoreAdapter::new(Arc::clone(&store), "").unwrap();
    let error = |status| Fault::ReplaceAnswer { status, body: "<Error><Code>InternalError</Code></Error>".to_owned() };

    // The crate alone: it repeats the put that landed, and takes its own object for another's.
    proxy.once("PUT", error(500));
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let trapped = store.put_opts(&Path::from("trap"), PutPayload::from_static(b"x"), options).await;
    assert!(matches!(trapped, Err(object_store::Error::AlreadyExists { .. })), "the trap is gone: {trapped:?}");

    let conflict =
        Fault::Answer { status: 409, body: "<Error><Code>ConditionalRequestConflict</Code></Error>".to_owned() };
    for (i, fault) in [error(500), error(412), Fault::DropAnswer, conflict].into_iter().enumerate() {
        let key = key(&format!("landed/{i}"));
        proxy.once("PUT", fault.clone());
        adapter.create(&key, "x".into()).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(adapter.get(&key).await.unwrap(), "x");
        proxy.once("PUT", fault.clone());
        let lost = adapter.create(&key, "x".into()).await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::AlreadyExists, "{fault:?}: {lost}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racers_with_the_same_bytes_one_wins_though_answers_are_lost() {
    let bucket = Server::Seaweed.bucket().await;
    let proxy = FaultProxy::start(Server::Seaweed.endpoint()).unwrap();
    let adapter = ObjectStoreAdapter::new(client(proxy.endpoint(), &bucket), "").unwrap();
    for round in 0..4 {
        proxy.share(0.2, round, Fault::ReplaceAnswer { status: 500, body: String::new() });
        let key = key(&format!("race/{round}"));
        let outcomes = join_all((0..16).map(|_| adapter.create(&key, "the same for all".into()))).await;
        proxy.pass();
        let winners = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(winners, 1, "round {round}: {outcomes:?}");
        assert_eq!(adapter.get(&key).await.unwrap(), "the same for all");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_client_writes_the_other_reads() {
    for server in BOTH {
        let bucket = server.bucket().await;
        let sdk = server.store(&bucket).await;
        let url = format!("s3://{bucket}");
        let adapter = ObjectStoreAdapter::from_aws(&url, &server.config().await).unwrap();
        let bytes = noise(300_000, 5);
        sdk.create(&key("a/sdk"), bytes.clone()).await.unwrap();
        adapter.create(&key("a/crate"), bytes.clone()).await.unwrap();
        assert_eq!(adapter.get(&key("a/sdk")).await.unwrap(), bytes);
        assert_eq!(sdk.get(&key("a/crate")).await.unwrap(), bytes);
        for (one, other) in [
            (adapter.create(&key("a/sdk"), bytes.clone()).await, "a"),
            (sdk.create(&key("a/crate"), bytes.clone()).await, "b"),
        ] {
            assert_eq!(one.unwrap_err().kind(), ErrorKind::AlreadyExists, "{server:?} {other}");
        }
        assert_eq!(adapter.list_all("").await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn failures_keep_their_kinds() {
    let bucket = Server::Seaweed.bucket().await;
    let endpoint = Server::Seaweed.endpoint();
    let builder = AmazonS3Builder::new().with_bucket_name(&bucket).with_region("us-east-1").with_endpoint(endpoint);
    let builder = builder.with_access_key_id(Seaweed::ACCESS_KEY).with_secret_access_key("wrong").with_allow_http(true);
    let adapter = ObjectStoreAdapter::new(Arc::new(builder.build().unwrap()), "").unwrap();
    let kind = |result: Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(adapter.create(&key("k"), "x".into()).await), ErrorKind::PermissionDenied);
    assert_eq!(kind(adapter.get(&key("k")).await.map(drop)), ErrorKind::PermissionDenied);
    let proxy = FaultProxy::start(endpoint).unwrap();
    proxy.cut();
    let adapter = ObjectStoreAdapter::new(client(proxy.endpoint(), &bucket), "").unwrap();
    let error = adapter.get(&key("k")).await.unwrap_err();
    assert!(error.is_temporary() && error.context("key") == Some("k"), "{error:?}");
}

/// A memory store that keeps no metadata and may list backwards, as others do.
#[derive(Debug, Default)]
struct Plain {
    inner: InMemory,
    backwards: AtomicBool,
}

impl std::fmt::Display for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("plain")
    }
}

#[async_trait]
impl ObjectStore for Plain {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        if !options.attributes.is_empty() {
            return Err(object_store::Error::NotImplemented {
                operation: "attributes".into(),
                implementer: "plain".into(),
            });
        }
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        use futures_util::{StreamExt, stream};
        let listed = self.inner.list(prefix);
        if !self.backwards.load(Ordering::SeqCst) {
            return listed;
        }
        stream::once(listed.collect::<Vec<_>>()).flat_map(|all| stream::iter(all.into_iter().rev())).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_store_without_metadata_is_taken_at_its_word() {
    let store: Arc<dyn ObjectStore> = Arc::new(Plain::default());
    check(store, "").await;
}

#[tokio::test]
async fn a_listing_out_of_order_is_refused_and_not_cut_short() {
    let store = Arc::new(Plain::default());
    let adapter = ObjectStoreAdapter::new(Arc::clone(&store) as _, "").unwrap();
    for name in ["a", "b", "c"] {
        adapter.create(&key(name), "x".into()).await.unwrap();
    }
    assert_eq!(adapter.list_all("").await.unwrap().len(), 3);
    store.backwards.store(true, Ordering::SeqCst);
    assert_eq!(adapter.list_all("").await.unwrap_err().kind(), ErrorKind::Unsupported);
    let listed = adapter.sorting().list_all("").await.unwrap();
    assert_eq!(listed.iter().map(|meta| meta.key.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[tokio::test]
async fn another_creators_nonce_is_not_ours() {
    let store = Arc::new(InMemory::new());
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::Metadata("hybridnonce".into()), AttributeValue::from("someone-elses"));
    let options = PutOptions { attributes, ..PutOptions::default() };
    store.put_opts(&Path::from("k"), PutPayload::from_static(b"x"), options).await.unwrap();
    let adapter = ObjectStoreAdapter::new(store, "").unwrap();
    assert_eq!(adapter.create(&key("k"), "x".into()).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
}
