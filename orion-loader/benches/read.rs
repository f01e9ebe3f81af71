//! Reading the weights of SmolLM2 from the page cache: opening alone, tensor by tensor, and in pieces of 1 MiB.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orion_loader::open;

fn benches(criterion: &mut Criterion) {
    let path = orion_testkit::models::smollm2();
    let mut group = criterion.benchmark_group("loader");
    group.sample_size(10);
    group.bench_function("open/smollm2", |bench| bench.iter(|| open(black_box(&path)).expect("it opens")));
    let source = open(&path).expect("it opens");
    let count = source.header().tensors.len();
    group.throughput(Throughput::Bytes(source.header().tensors.iter().map(|tensor| tensor.bytes).sum()));
    group.bench_function("tensors/smollm2", |bench| {
        bench.iter(|| (0..count).map(|index| source.tensor(index).expect("its bytes").len()).sum::<usize>());
    });
    group.bench_function("pieces/smollm2", |bench| {
        bench.iter(|| {
            let mut bytes = 0;
            for index in 0..count {
                let each = &mut |piece: &[u8]| {
                    bytes += black_box(piece).len();
                    Ok(())
                };
                source.read(index, 1 << 20, each).expect("its bytes");
            }
            bytes
        });
    });
}

criterion_group!(loader, benches);
criterion_main!(loader);
