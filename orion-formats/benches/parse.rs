//! Reading headers: a vocabulary of 262,144 entries in GGUF, 2,000 tensors in safetensors.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orion_core::{MetaArray, MetaValue, TensorType};
use orion_formats::gguf::{self, GgufWriter};
use orion_formats::safetensors::{self, Dtype, SafetensorsWriter};

fn with_vocabulary(entries: usize) -> Vec<u8> {
    let tokens = (0..entries).map(|n| format!("token {n}")).collect();
    let key = "tokenizer.ggml.tokens".to_owned();
    let metadata = BTreeMap::from([(key, MetaValue::Array(MetaArray::Str(tokens)))]);
    let tensor = gguf::TensorSpec::new("t", [1, 32], TensorType::F32);
    let mut writer = GgufWriter::start(Vec::new(), &metadata, &[tensor]).expect("a header");
    writer.tensor(&[0; 128]).expect("its tensor");
    writer.finish().expect("a file")
}

fn with_tensors(count: usize) -> Vec<u8> {
    let name = |n| format!("model.layers.{n}.self_attn.q_proj.weight");
    let specs: Vec<_> =
        (0..count).map(|n| safetensors::TensorSpec::new(name(n), [2, 16], Dtype::F16)).collect();
    let mut writer = SafetensorsWriter::start(Vec::new(), &BTreeMap::new(), &specs).expect("a header");
    (0..count).for_each(|_| writer.tensor(&[0; 64]).expect("its tensor"));
    writer.finish().expect("a file")
}

fn benches(criterion: &mut Criterion) {
    let file = with_vocabulary(262_144);
    let mut group = criterion.benchmark_group("formats");
    group.throughput(Throughput::Bytes(file.len() as u64)).sample_size(20);
    group.bench_function("gguf_header/262144_tokens", |bench| {
        bench.iter(|| gguf::parse(black_box(&file), file.len() as u64).expect("it parses"));
    });
    let file = with_tensors(2000);
    group.throughput(Throughput::Bytes(file.len() as u64));
    group.bench_function("safetensors_header/2000_tensors", |bench| {
        bench.iter(|| safetensors::parse(black_box(&file), file.len() as u64).expect("it parses"));
    });
}

criterion_group!(formats, benches);
criterion_main!(formats);
