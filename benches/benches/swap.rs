//! A swap of the version in service, and the slowest request beside it.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use hybrid_benches::{
    runtime, scratch,
    swap::{LiveSite, measure},
    timed,
};

fn swap(c: &mut Criterion) {
    let (runtime, folder) = (runtime(), scratch());
    let mut live = runtime.block_on(LiveSite::new(folder.path()));
    let mut group = c.benchmark_group("swap");
    group.sample_size(10);
    group.bench_function("refresh: look, verify, load, warm up, swap", |b| {
        b.iter_custom(|times| {
            let swap = |_| {
                runtime.block_on(live.release());
                timed(|| runtime.block_on(live.swap())).0
            };
            (0..times).map(swap).sum::<Duration>()
        });
    });
    // Each of criterion's iterations is one swap with its quiet span.
    group.bench_function("slowest request, no swap beside it", |b| {
        b.iter_custom(|times| measure(&runtime, &mut live, times as usize).slowest_quiet * times as u32);
    });
    group.bench_function("slowest request beside a swap", |b| {
        b.iter_custom(|times| measure(&runtime, &mut live, times as usize).slowest_beside * times as u32);
    });
    group.finish();
}

criterion_group!(benches, swap);
criterion_main!(benches);
