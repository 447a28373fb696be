//! The text classifier through its port, and what the port itself costs.

use std::{hint::black_box, sync::Arc};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hybrid_benches::{
    classifier, context,
    linear::{self, LinearClassifier},
    must, runtime, scratch,
    swap::TEXT,
};
use hybrid_core::{
    InferenceBackend, ServedModel,
    task::{Classify, ClassifyRequest},
};

fn classify(c: &mut Criterion) {
    let (runtime, folder, cx) = (runtime(), scratch(), context());
    let backend = runtime.block_on(classifier::train(folder.path()));
    let messages = classifier::messages();
    let mut group = c.benchmark_group("classify");
    for size in [1, 32] {
        group.throughput(Throughput::Elements(size as u64));
        let mut batches = messages.chunks_exact(size).cycle();
        group.bench_function(format!("text classifier, messages in a request: {size}"), |b| {
            let request = || ClassifyRequest::many(batches.next().unwrap_or_default());
            let infer = |request| black_box(must(runtime.block_on(backend.infer(&cx, request))));
            b.iter_batched(request, infer, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn port(c: &mut Criterion) {
    let (runtime, cx) = (runtime(), context());
    let weights = linear::weights(1);
    let backend: Arc<dyn InferenceBackend<Classify>> =
        Arc::new(LinearClassifier::new(weights.clone(), ServedModel::named("linear")));
    let request = ClassifyRequest::one(TEXT);
    let mut group = c.benchmark_group("port");
    // The port takes a request of its own, so its copy counts on the port's side.
    group.bench_function("through the port", |b| {
        b.iter(|| black_box(must(runtime.block_on(backend.infer(&cx, request.clone())))));
    });
    group.bench_function("the plain function", |b| {
        b.iter(|| black_box(must(runtime.block_on(async { linear::classify(&weights, &request.inputs) }))));
    });
    group.finish();
}

criterion_group!(benches, classify, port);
criterion_main!(benches);
