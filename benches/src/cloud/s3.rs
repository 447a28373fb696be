//! Objects in a bucket: our adapter, and the bare SDK with the same requests and checksums to the same server.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode},
};
use bytes::Bytes;
use hybrid_cloud::{
    aws::AwsConfig,
    s3::{S3Location, S3Options, S3Store},
    testkit::{Seaweed, create_bucket},
};
use hybrid_core::{ArtifactStore, ArtifactStoreExt, Key};
use tokio::runtime::Runtime;

use super::at_once;
use crate::{must, noise};

/// The bucket's name.
pub(super) const BUCKET: &str = "bench";

/// What is moved at once.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The size of each object, for people.
    pub name: &'static str,
    /// Bytes of each object.
    pub size: usize,
    /// Objects in all.
    pub objects: usize,
    /// Callers at once, each of which moves one object after the other.
    pub callers: usize,
    /// How often each object is read in a turn, so that a turn of reads takes a second too.
    pub reads: usize,
}

/// The loads that are measured: small objects, and large ones.
pub const LOADS: [Load; 2] = [
    Load { name: "4 KiB", size: 4 << 10, objects: 2_400, callers: 16, reads: 4 },
    Load { name: "8 MiB", size: 8 << 20, objects: 16, callers: 4, reads: 8 },
];
/// Objects of a listing: three pages.
pub const LISTED: usize = 3_000;
/// Listings of one turn, one after the other.
pub const LISTINGS: usize = 20;

/// A server with a bucket.
#[derive(Debug)]
pub struct Site {
    server: Seaweed,
    aws: AwsConfig,
    next: AtomicU64,
}

/// Who moves objects.
#[derive(Clone, Debug)]
pub enum Side {
    /// The adapter.
    Ours(S3Store),
    /// The SDK.
    Bare(Client),
}

impl Site {
    /// Starts the server.
    pub fn start(runtime: &Runtime) -> Self {
        let server = must(Seaweed::start());
        let aws = must(runtime.block_on(server.config(server.endpoint())));
        must(runtime.block_on(create_bucket(&aws, BUCKET)));
        Self { server, aws, next: AtomicU64::new(0) }
    }

    /// The server.
    pub fn server(&self) -> &Seaweed {
        &self.server
    }

    /// Our adapter, below `prefix`.
    pub fn store(&self, prefix: &str) -> S3Store {
        must(S3Store::new(&self.aws, must(S3Location::new(BUCKET, prefix)), S3Options::default()))
    }

    /// Where an object named `name` lies, as the command line takes it.
    pub fn url(&self, name: &str) -> String {
        format!("s3://{BUCKET}/{name}")
    }

    /// Our side and the other.
    pub fn sides(&self) -> (Side, Side) {
        let bare = aws_sdk_s3::config::Builder::from(self.aws.sdk()).force_path_style(true).build();
        (Side::Ours(self.store("")), Side::Bare(Client::from_conf(bare)))
    }

    /// Puts objects under names that nobody has used. Answers with how long it took and what their names begin with.
    pub fn put(&self, runtime: &Runtime, side: &Side, load: Load) -> (Duration, String) {
        let prefix = format!("put/{:06}", self.next.fetch_add(1, Ordering::Relaxed));
        let bytes = Bytes::from(noise(load.size, 1));
        let took = each(runtime, side, load, 1, &prefix, move |side, name| {
            let bytes = bytes.clone();
            async move { side.put(&name, bytes).await }
        });
        (took, prefix)
    }

    /// Reads what was put under names that begin with `prefix`.
    pub fn get(&self, runtime: &Runtime, side: &Side, load: Load, prefix: &str) -> Duration {
        each(runtime, side, load, load.reads, prefix, move |side, name| async move {
            assert_eq!(black_box(side.get(&name).await).len(), load.size);
        })
    }

    /// Lists what was put under names that begin with `prefix`.
    pub fn list(&self, runtime: &Runtime, side: &Side, prefix: &str) -> Duration {
        at_once(runtime, 1, |_| {
            let (side, prefix) = (side.clone(), format!("{prefix}/"));
            async move {
                for _ in 0..LISTINGS {
                    assert_eq!(black_box(side.list(&prefix).await).len(), LISTED);
                }
            }
        })
    }
}

fn each<F: Future<Output = ()> + Send>(
    runtime: &Runtime,
    side: &Side,
    load: Load,
    times: usize,
    prefix: &str,
    work: impl Fn(Side, String) -> F + Clone + Send + 'static,
) -> Duration {
    at_once(runtime, load.callers, |caller| {
        let (side, prefix, work) = (side.clone(), prefix.to_owned(), work.clone());
        async move {
            let numbers = (caller..load.objects).step_by(load.callers);
            for number in (0..times).flat_map(|_| numbers.clone()) {
                work(side.clone(), format!("{prefix}/{number:06}")).await;
            }
        }
    })
}

impl Side {
    async fn put(&self, name: &str, bytes: Bytes) {
        match self {
            Self::Ours(store) => must(store.create(&must(Key::new(name)), bytes).await),
            Self::Bare(client) => {
                let put = client.put_object().bucket(BUCKET).key(name).if_none_match("*");
                let put = put.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).body(ByteStream::from(bytes));
                must(put.send().await);
            }
        }
    }

    async fn get(&self, name: &str) -> Bytes {
        match self {
            Self::Ours(store) => must(store.get(&must(Key::new(name))).await),
            Self::Bare(client) => {
                let get = client.get_object().bucket(BUCKET).key(name).checksum_mode(ChecksumMode::Enabled);
                must(must(get.send().await).body.collect().await).into_bytes()
            }
        }
    }

    /// Names and sizes.
    async fn list(&self, prefix: &str) -> Vec<(String, u64)> {
        match self {
            Self::Ours(store) => {
                let listed = must(store.list_all(prefix).await).into_iter();
                listed.map(|meta| (meta.key.to_string(), meta.size)).collect()
            }
            Self::Bare(client) => {
                let mut pages = client.list_objects_v2().bucket(BUCKET).prefix(prefix).into_paginator().send();
                let mut listed = Vec::new();
                while let Some(page) = pages.next().await {
                    let objects = must(page).contents.unwrap_or_default().into_iter();
                    let named = |object: aws_sdk_s3::types::Object| {
                        (object.key.unwrap_or_default(), object.size.unwrap_or_default().unsigned_abs())
                    };
                    listed.extend(objects.map(named));
                }
                listed
            }
        }
    }
}
