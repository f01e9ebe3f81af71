//! Models of 4 million weights, in memory on the way in and a file on the way out.

use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orion_core::{ModelFormat, TensorType, WeightSource};
use orion_loader::MemorySource;
use orion_pipeline::{FileType, QuantizeOptions, quantize};

const ROWS: u64 = 2048;
const COLUMNS: u64 = 2048;

fn model() -> Arc<dyn WeightSource> {
    let value = |at: u64| (at as f32 * 0.37).sin() * 0.1;
    let weights: Vec<u8> = (0..ROWS * COLUMNS).flat_map(|at| value(at).to_le_bytes()).collect();
    let source = MemorySource::new(ModelFormat::Gguf);
    source.tensor("blk.0.ffn_up.weight", [ROWS, COLUMNS], TensorType::F32, weights).expect("it fits").build()
}

fn write(source: &dyn WeightSource, path: &Path, ty: &str) {
    let mut options = QuantizeOptions::new(FileType::from_name(ty).expect("a type"));
    options.overwrite = true;
    quantize(source, path, &options).expect("it is written");
}

fn benches(criterion: &mut Criterion) {
    let source = model();
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("out.gguf");
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(ROWS * COLUMNS)).sample_size(10);
    for ty in ["F16", "Q8_0", "Q4_0", "Q4_K_M"] {
        group.bench_function(format!("quantize/{ty}"), |bench| bench.iter(|| write(&*source, &path, ty)));
    }
}

criterion_group!(pipeline, benches);
criterion_main!(pipeline);
