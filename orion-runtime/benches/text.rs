//! Text on its way in and out, with the vocabulary and the template of SmolLM2.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orion_core::Generation;
use orion_runtime::{SpecialTokens, TextCodec};

const TEXT: &str = include_str!("../../benches/data/licences.txt");

fn benches(criterion: &mut Criterion) {
    let source = orion_loader::open(orion_testkit::models::smollm2()).expect("it opens");
    let codec = TextCodec::from_header(source.header(), usize::MAX).expect("a vocabulary");
    let tokenizer = codec.tokenizer().expect("a tokenizer");
    let tokens = tokenizer.encode(TEXT, SpecialTokens::Plain).expect("any text has tokens");

    let mut group = criterion.benchmark_group("runtime");
    group.sample_size(20);
    group.bench_function("vocabulary/smollm2", |bench| {
        bench.iter(|| TextCodec::from_header(source.header(), usize::MAX).expect("a vocabulary"));
    });
    let question = Generation::user("Why is the sky blue?");
    group.bench_function("chat_template/one_turn", |bench| {
        bench.iter(|| codec.encode(black_box(&question)).expect("it renders"));
    });
    group.throughput(Throughput::Bytes(TEXT.len() as u64));
    group.bench_function("encode/licences", |bench| {
        bench.iter(|| tokenizer.encode(black_box(TEXT), SpecialTokens::Plain).expect("any text has tokens"));
    });
    group.bench_function("decode/licences", |bench| bench.iter(|| tokenizer.decode(black_box(&tokens))));
}

criterion_group!(runtime, benches);
criterion_main!(runtime);
