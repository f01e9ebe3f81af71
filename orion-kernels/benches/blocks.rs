//! Encoding and decoding, per type, of 2^18 numbers in rows of 1536.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use orion_core::TensorType;
use orion_kernels::{dequantize, quantize};

const COLUMNS: usize = 1536;
const ELEMENTS: usize = COLUMNS * 171;

/// Sums of four uniform numbers: weights are roughly normal.
fn weights() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..ELEMENTS).map(|_| 0.05 * (uniform() + uniform() + uniform() + uniform())).collect()
}

fn codecs(criterion: &mut Criterion) {
    let x = weights();
    let imatrix: Vec<f32> = (0..COLUMNS).map(|i| 1.0 + (i % 7) as f32).collect();
    for (name, imatrix) in [("quantize", None), ("quantize_imatrix", Some(&imatrix[..]))] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(ELEMENTS as u64)).sample_size(10);
        for &ty in TensorType::ALL {
            let mut out = Vec::new();
            group.bench_function(BenchmarkId::new(ty.name(), ELEMENTS), |bencher| {
                bencher.iter(|| {
                    out.clear();
                    quantize(ty, black_box(&x), COLUMNS, imatrix, &mut out)
                        .expect("finite rows of whole blocks");
                });
            });
        }
    }
    let mut group = criterion.benchmark_group("dequantize");
    group.throughput(Throughput::Elements(ELEMENTS as u64)).sample_size(20);
    let mut y = vec![0.0; ELEMENTS];
    for &ty in TensorType::ALL {
        let mut bytes = Vec::new();
        quantize(ty, &x, COLUMNS, None, &mut bytes).expect("finite rows of whole blocks");
        group.bench_function(BenchmarkId::new(ty.name(), ELEMENTS), |bencher| {
            bencher.iter(|| dequantize(ty, black_box(&bytes), &mut y).expect("the lengths fit"));
        });
    }
}

criterion_group!(benches, codecs);
criterion_main!(benches);
