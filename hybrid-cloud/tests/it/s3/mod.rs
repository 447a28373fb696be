//! What the adapter for S3 promises, on real servers.

mod conformance;
mod faults;
mod interop;
mod presign;
mod refusals;
mod staging;

use std::time::Duration;

use bytes::Bytes;
use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions, Retry},
    s3::{Listing, S3Location, S3Options, S3Store},
    testkit::{Ministack, Seaweed, create_bucket},
};
use hybrid_core::{IdSource, Key, SystemIds};

/// The two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Seaweed,
    Ministack,
}

pub(crate) const BOTH: [Server; 2] = [Server::Seaweed, Server::Ministack];

impl Server {
    pub(crate) fn endpoint(self) -> &'static str {
        match self {
            Self::Seaweed => Seaweed::shared().unwrap().endpoint(),
            Self::Ministack => Ministack::shared().unwrap().endpoint(),
        }
    }

    /// For the server or a proxy before it, with short waits between attempts.
    pub(crate) fn options(self, endpoint: &str) -> AwsOptions {
        let options = match self {
            Self::Seaweed => Seaweed::options(endpoint),
            Self::Ministack => Ministack::options(endpoint),
        };
        AwsOptions { retry: Retry { attempts: 6, max_backoff: Duration::from_millis(20), adaptive: false }, ..options }
    }

    pub(crate) async fn config(self) -> AwsConfig {
        AwsConfig::load(self.options(self.endpoint())).await.unwrap()
    }

    /// What the server needs to be told.
    pub(crate) fn s3_options(self) -> S3Options {
        let listing = if self == Self::Seaweed { Listing::Sorted } else { Listing::ByteOrder };
        S3Options { listing, ..S3Options::default() }
    }

    /// A bucket that is this test's own.
    pub(crate) async fn bucket(self) -> String {
        let name = format!("t-{}", SystemIds::default().next_uuid());
        create_bucket(&self.config().await, &name).await.unwrap();
        name
    }

    pub(crate) async fn store(self, bucket: &str) -> S3Store {
        S3Store::new(&self.config().await, S3Location::new(bucket, "").unwrap(), self.s3_options()).unwrap()
    }

    /// The store seen through a proxy.
    pub(crate) async fn store_at(self, endpoint: &str, bucket: &str, options: S3Options) -> S3Store {
        let config = AwsConfig::load(self.options(endpoint)).await.unwrap();
        S3Store::new(&config, S3Location::new(bucket, "").unwrap(), options).unwrap()
    }

    /// The SDK's own client.
    pub(crate) async fn client(self) -> aws_sdk_s3::Client {
        aws_sdk_s3::Client::from_conf(
            aws_sdk_s3::config::Builder::from(self.config().await.sdk()).force_path_style(true).build(),
        )
    }
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// Bytes without structure, the same for the same seed (xorshift64*, Vigna 2016).
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
