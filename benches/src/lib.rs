//! What the benchmarks and the programs `ratios`, `decoder`, `embedder` and `cloud` share: the loads, the peers and bounds that they are compared with, and small statistics.
//!
//! A benchmark that cannot do its work has nothing to say, so everything here panics with the error's text where a library would return it.

#[cfg(feature = "cloud")]
pub mod cloud;
#[cfg(feature = "cloud")]
pub mod load;

pub mod classifier;
pub mod decoder;
pub mod embedder;
pub mod guard;
pub mod http;
pub mod linear;
pub mod peers;
pub mod queue;
pub mod registry;
pub mod report;
pub mod side;
pub mod start;
pub mod statistics;
pub mod store;
pub mod swap;
pub mod table;
pub mod training;

use std::{
    fmt::Display,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use hybrid_core::{CallContext, RequestId, SystemIds, TenantId};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The value, or the end of the benchmark with the error's text.
pub fn must<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A runtime of two threads, as the peers have.
pub fn runtime() -> Runtime {
    must(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build())
}

/// An empty folder on the disk that holds the workspace, or below `HYBRID_BENCH_FOLDER`; a system's own temporary folder may be memory.
pub fn scratch() -> TempDir {
    let folder = std::env::var("HYBRID_BENCH_FOLDER")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench-scratch").to_owned());
    must(fs::create_dir_all(&folder));
    must(tempfile::tempdir_in(Path::new(&folder)))
}

/// How long `work` takes, with what it gives.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let value = work();
    (started.elapsed(), value)
}

/// The context of a call with a deadline, as a storefront gives it.
pub fn context() -> CallContext {
    CallContext::new(TenantId::single(), RequestId::next(&SystemIds::default())).with_timeout(Duration::from_secs(3600))
}

/// Bytes without structure, the same for the same seed (xorshift64*, Vigna 2016).
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
