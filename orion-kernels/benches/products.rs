//! Products of packed weights by type, shape and number of rows; attention is part of the `decoder` bench.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use orion_core::TensorType;
use orion_kernels::{ComputePool, Isa, LinearScratch, PackedMatrix, linear};

/// Any bits are quants; scales get small exponents.
fn random(bytes: usize) -> Vec<u8> {
    let mut state = 7u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x3b
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn products(criterion: &mut Criterion) {
    let isa = Isa::active().expect("ORION_ISA names an instruction set of this CPU");
    let pool = ComputePool::shared().expect("threads start");
    let mut group = criterion.benchmark_group(format!("product/{isa}/{} threads", pool.threads()));
    group.sample_size(20);
    // Projections of SmolLM2 135M, Gemma 3 270M and a 1.1B model, and Gemma's head.
    let cases = [
        (TensorType::Q4_1, 1536, 576),
        (TensorType::Q5_0, 2048, 640),
        (TensorType::Q8_0, 262_144, 640),
        (TensorType::Q4K, 5632, 2048),
        (TensorType::Q6K, 2048, 5632),
        (TensorType::F16, 1536, 576),
    ];
    for (ty, n, k) in cases {
        let bytes = random(n * k / ty.block_len() * ty.block_bytes());
        let matrix = PackedMatrix::pack(&pool, ty, n, k, &bytes).expect("whole blocks");
        for rows in [1, 4, 512] {
            if rows * n > 1 << 24 {
                continue;
            }
            let input: Vec<f32> = (0..rows * k).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
            let mut scratch = LinearScratch::new(&pool, rows, k);
            let mut out = vec![0.0; rows * n];
            group.throughput(if rows == 1 {
                Throughput::Bytes(matrix.as_bytes().len() as u64)
            } else {
                Throughput::Elements((rows * n * k) as u64)
            });
            group.bench_function(BenchmarkId::new(format!("{ty} {n}x{k}"), rows), |bencher| {
                bencher.iter(|| {
                    linear(&pool, isa, &matrix, &input, &mut scratch, &mut out).expect("shapes fit")
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
