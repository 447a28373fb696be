//! Creating and reading objects of a folder store, beside the bare system calls.

use std::{fs, hint::black_box, sync::Arc};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hybrid_benches::{
    must, noise, runtime, scratch,
    store::{BareFolder, SIZES, key},
};
use hybrid_core::{ArtifactStore, ArtifactStoreExt};
use hybrid_local::FolderStore;

fn store(c: &mut Criterion) {
    let (runtime, folder, bare_folder) = (runtime(), scratch(), scratch());
    let store: Arc<dyn ArtifactStore> = Arc::new(must(FolderStore::open(folder.path())));
    let bare = BareFolder::new(bare_folder.path());
    let mut next = 0;
    for (size_name, size) in SIZES {
        let mut group = c.benchmark_group(format!("store/{size_name}"));
        group.sample_size(20).throughput(Throughput::Bytes(size as u64));
        let bytes = Bytes::from(noise(size, 1));
        let mut create = || {
            next += 1;
            must(runtime.block_on(store.create(&key(next), bytes.clone())));
            next
        };
        let (created, path) = (key(create()), bare.create(&bytes));
        group.bench_function("create", |b| b.iter(&mut create));
        group.bench_function("create, bare system calls", |b| b.iter(|| bare.create(&bytes)));
        group.bench_function("read", |b| b.iter(|| black_box(must(runtime.block_on(store.get(&created))))));
        group.bench_function("read, bare system calls", |b| b.iter(|| black_box(must(fs::read(&path)))));
        group.finish();
    }
}

criterion_group!(benches, store);
criterion_main!(benches);
