//! Time per decision. The encoder's benches need all-MiniLM-L6-v2 (`scripts/models.py minilm`).

#[path = "../../orion-runtime/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use orion_core::{Candidate, Embedder, ModelSpec, Query, Router};
use orion_router::{
    CachedEmbedder, EmbeddingOptions, EmbeddingRouter, Head, HeadOptions, KeywordRouter, KeywordRule,
    agent_examples,
};
use orion_runtime::{EncoderOptions, Precision, SentenceEncoder};

const AGENTS: [&str; 6] = ["code", "conversation", "creative", "reasoning", "summary", "translation"];

/// 20, 40 and 60 words.
fn prompt(words: usize) -> String {
    let text = "please write a function in rust that reads the attached report and lists the three customers who \
                ordered most often last year together with the total of their invoices sorted by country and then by \
                name and explain every step so that somebody new to the language can follow what it does and why it \
                was written that way";
    text.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

fn benches(criterion: &mut Criterion) {
    let specs = AGENTS.map(|id| ModelSpec::new(id.into(), vec![]));
    let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
    let words =
        |agent: &str| (0..20).map(|at| format!("{agent}{at}")).chain(["rust".to_owned()]).collect::<Vec<_>>();
    let rules = AGENTS.iter().map(|&agent| KeywordRule::new(agent, words(agent))).collect();
    let keyword = KeywordRouter::new(rules).expect("the rules are valid");
    let sixty = prompt(60);
    criterion.bench_function("keyword/126_words/60_word_prompt", |bench| {
        bench.iter(|| keyword.route(black_box(&Query::new(&sixty)), &candidates).expect("candidates exist"));
    });

    let folder = common::Folder::open(&common::minilm());
    let load = |precision| {
        let options = EncoderOptions::for_routing(3).precision(precision);
        SentenceEncoder::load(&folder, options).expect("the encoder loads")
    };
    let (exact, eight, encoder) = (load(Precision::F32), load(Precision::Int8), load(Precision::Int7));
    let head =
        Head::train(&encoder, &agent_examples(), &[], &HeadOptions::default()).expect("the examples fit");
    for count in [20, 40, 60] {
        let prompt = prompt(count);
        for (precision, encoder) in [("f32", &exact), ("int8", &eight), ("int7", &encoder)] {
            criterion.bench_function(&format!("encode/minilm_3_layers_{precision}/{count}_words"), |bench| {
                bench.iter(|| encoder.embed(black_box(&[prompt.as_str()])).expect("the encoder runs"));
            });
        }
    }
    let cached: Arc<dyn Embedder> = Arc::new(CachedEmbedder::new(encoder, 16));
    let router = EmbeddingRouter::with_head(cached, head, &BTreeMap::new(), EmbeddingOptions::default())
        .expect("head and encoder match");
    criterion.bench_function("embedding/6_labels/cached/60_words", |bench| {
        bench.iter(|| router.route(black_box(&Query::new(&sixty)), &candidates).expect("candidates exist"));
    });
}

criterion_group!(router, benches);
criterion_main!(router);
