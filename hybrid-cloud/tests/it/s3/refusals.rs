//! What cannot succeed, and what the error says.

use bytes::Bytes;
use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions, StaticCredentials},
    s3::{S3Location, S3Options, S3Store},
    testkit::FaultProxy,
};
use hybrid_core::{ArtifactStore, ArtifactStoreExt, ErrorKind, MAX_OBJECT_BYTES, ReadOptions};

use super::{BOTH, Server, key};

#[tokio::test]
async fn a_wrong_secret_is_refused_by_name() {
    let server = Server::Seaweed;
    let bucket = server.bucket().await;
    let credentials = StaticCredentials {
        access_key: hybrid_cloud::testkit::Seaweed::ACCESS_KEY.to_owned(),
        secret_key: "wrong".to_owned(),
        session_token: None,
    };
    let options = AwsOptions { credentials: Some(credentials), ..server.options(server.endpoint()) };
    let config = AwsConfig::load(options).await.unwrap();
    let store = S3Store::new(&config, S3Location::new(&bucket, "").unwrap(), S3Options::default()).unwrap();
    for error in [
        store.create(&key("k"), "x".into()).await.unwrap_err(),
        store.get(&key("k")).await.unwrap_err(),
        store.head(&key("k")).await.unwrap_err(),
        store.list_all("").await.unwrap_err(),
        store.delete(&key("k")).await.unwrap_err(),
        store.check().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert_eq!(error.context("bucket"), Some(bucket.as_str()), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_not_an_object_that_is_not_there() {
    for server in BOTH {
        let store = server.store("no-such-bucket-anywhere").await;
        let mut errors = vec![
            store.get(&key("k")).await.unwrap_err(),
            store.list_all("").await.unwrap_err(),
            store.check().await.unwrap_err(),
        ];
        // SeaweedFS makes the bucket for an administrator who writes to it.
        if server == Server::Ministack {
            errors.push(store.create(&key("k"), "x".into()).await.unwrap_err());
        }
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{server:?}: {error:?}");
            assert!(error.to_string().contains("no-such-bucket-anywhere"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_object_over_the_limit_is_refused_before_a_byte_is_sent() {
    let server = Server::Ministack;
    let bucket = server.bucket().await;
    let proxy = FaultProxy::start(server.endpoint()).unwrap();
    let store = server.store_at(proxy.endpoint(), &bucket, S3Options::default()).await;
    let most = Bytes::from(vec![7; MAX_OBJECT_BYTES]);
    let error = store.create(&key("over"), vec![7; MAX_OBJECT_BYTES + 1].into()).await.unwrap_err();
    assert_eq!((error.kind(), proxy.requests()), (ErrorKind::TooLarge, 0), "{error}");
    store.create(&key("most"), most.clone()).await.unwrap();
    assert_eq!(store.get(&key("most")).await.unwrap(), most);
}

#[tokio::test]
async fn what_others_put_there_is_read_in_parts_or_refused() {
    let server = Server::Seaweed;
    let bucket = server.bucket().await;
    let store = server.store(&bucket).await;
    let put = server.client().await.put_object().bucket(&bucket).key("huge").body(vec![9; MAX_OBJECT_BYTES + 5].into());
    put.send().await.unwrap();
    let error = store.get(&key("huge")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let end = MAX_OBJECT_BYTES as u64 + 5;
    assert_eq!(store.read(&key("huge"), ReadOptions::range(end - 3..end)).await.unwrap(), vec![9; 3]);
    let error = store.read(&key("huge"), ReadOptions::range(0..end)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn options_that_make_no_sense_are_refused() {
    let config = Server::Ministack.config().await;
    for options in [S3Options { parallel: 0, ..S3Options::default() }, S3Options { slowest: 0, ..S3Options::default() }]
    {
        let error = S3Store::new(&config, S3Location::new("b", "").unwrap(), options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}
