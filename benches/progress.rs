//! What `inc` costs: on the thread that started the bar, on another one, and in chunks.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lrts_client::JobContext;

const STEPS: u64 = 1_000_000;

fn increments(criterion: &mut Criterion) {
    let job = JobContext::detached();
    let mut group = criterion.benchmark_group("progress");
    group.throughput(Throughput::Elements(STEPS));
    group.bench_function("loop without a bar", |bencher| {
        bencher.iter(|| (0..STEPS).fold(0u64, |sum, step| black_box(sum ^ step)));
    });
    group.bench_function("inc, own thread", |bencher| {
        let bar = job.progress("own").total(STEPS).start();
        bencher.iter(|| {
            (0..STEPS).fold(0u64, |sum, step| {
                bar.inc(1);
                black_box(sum ^ step)
            })
        });
    });
    group.bench_function("inc, other thread", |bencher| {
        let bar = job.progress("other").total(STEPS).start();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bencher.iter(|| {
                    (0..STEPS).fold(0u64, |sum, step| {
                        bar.inc(1);
                        black_box(sum ^ step)
                    })
                });
            });
        });
    });
    group.bench_function("chunks of 1,024", |bencher| {
        let bar = job.progress("chunks").total(STEPS).start();
        bencher.iter(|| {
            bar.chunks(0..STEPS, 1_024)
                .fold(0u64, |sum, chunk| chunk.fold(sum, |sum, step| black_box(sum ^ step)))
        });
    });
    group.finish();
}

criterion_group!(benches, increments);
criterion_main!(benches);
