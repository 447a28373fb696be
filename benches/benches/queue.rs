//! Sending, receiving and acknowledging messages.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hybrid_benches::{
    queue::{Load, carry, open},
    runtime, scratch,
};

const MESSAGES: u64 = 500;

fn queue(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("queue");
    group.sample_size(10).throughput(Throughput::Elements(MESSAGES));
    for (callers, per_send) in [(1, 1), (1, 10), (16, 1)] {
        let (folder, load) = (scratch(), Load { messages: MESSAGES, callers, per_send });
        let queue = open(folder.path());
        group.bench_function(BenchmarkId::new("send, receive, ack", load), |b| {
            b.iter_custom(|times| (0..times).map(|_| carry(&runtime, &queue, load)).sum::<Duration>());
        });
    }
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
