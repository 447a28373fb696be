//! The provider's adapters beside its bare SDKs and its command line, on servers of the test kit.

pub mod cli;
pub mod function;
pub mod s3;
pub mod sqs;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet};

use crate::must;

/// Runs callers at once, told apart by their numbers; the time until the last is done.
fn at_once<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    callers: usize,
    caller: impl Fn(usize) -> F,
) -> Duration {
    runtime.block_on(async {
        let started = Instant::now();
        let mut running: JoinSet<_> = (0..callers).map(caller).collect();
        while let Some(done) = running.join_next().await {
            must(done);
        }
        started.elapsed()
    })
}
