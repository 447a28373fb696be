//! Publishing and fetching a version of 128 MiB in a folder, beside the machine's own hash and copy.

use std::{fs, sync::Arc, time::Duration};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use hybrid_benches::{
    must,
    registry::{Site, TENSOR_BYTES, bound, write_model},
    runtime, scratch, timed,
};
use hybrid_local::FolderStore;

fn registry(c: &mut Criterion) {
    let (runtime, inputs) = (runtime(), scratch());
    let file = write_model(&inputs.path().join("model"), TENSOR_BYTES, 0);
    let size = must(fs::metadata(&file.path)).len();
    let mut group = c.benchmark_group("registry");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(size));

    group.bench_function("bound: SHA-256 and a durable copy", |b| {
        b.iter_custom(|times| {
            let to = scratch();
            (0..times).map(|i| bound(&file.path, &to.path().join(i.to_string()))).sum::<Duration>()
        });
    });
    let site = || {
        let folder = scratch();
        let store = Arc::new(must(FolderStore::open(folder.path().join("store"))));
        (Site::new(store, folder.path()), folder)
    };
    group.bench_function("publish", |b| {
        let publish = |_| {
            let (site, _folder) = site();
            timed(|| runtime.block_on(site.publish(1, file.clone(), None))).0
        };
        b.iter_custom(|times| (0..times).map(publish).sum());
    });
    group.bench_function("fetch", |b| {
        let (site, _folder) = site();
        let published = runtime.block_on(site.publish(1, file.clone(), None));
        let fetch = |_| {
            let (elapsed, _) = timed(|| runtime.block_on(site.fetch(published.manifest)));
            must(fs::remove_dir_all(site.cache()));
            elapsed
        };
        b.iter_custom(|times| (0..times).map(fetch).sum());
    });
    group.finish();
}

criterion_group!(benches, registry);
criterion_main!(benches);
