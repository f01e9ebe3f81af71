//! The conformance suites of `Runtime`, `Model` and `Embedder` on both executors and on the sentence encoder.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use orion_core::{Prompt, TokenId, testing};
use orion_runtime::{EncoderOptions, ExecutorKind, LocalRuntime, Precision, RuntimeOptions, SentenceEncoder};
use orion_testkit::{models, references};

#[test]
fn both_executors_conform() {
    let case = references::case("llama-gqa-tied");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    std::fs::write(&path, case.safetensors()).unwrap();
    std::fs::write(directory.path().join("config.json"), case.configs[0].to_string()).unwrap();
    let prompt = Prompt::Tokens(case.tokens.iter().copied().map(TokenId).collect());
    for executor in [ExecutorKind::Cpu, ExecutorKind::Portable] {
        let mut options = RuntimeOptions::default();
        options.executor = executor;
        let weights = orion_loader::open(&path).unwrap();
        testing::runtime(&LocalRuntime::new(options), weights, &prompt);
    }
}

#[test]
fn a_real_model_conforms() {
    let model = LocalRuntime::default().open(orion_loader::open(models::smollm2()).unwrap()).unwrap();
    testing::model(&model, &Prompt::Text("Once upon a time".into()));
}

#[test]
fn the_sentence_encoder_conforms() {
    let weights = orion_loader::open(models::minilm()).unwrap();
    for precision in [Precision::F32, Precision::Int8, Precision::Int7] {
        let mut options = EncoderOptions::default();
        options.precision = precision;
        testing::embedder(&SentenceEncoder::load(&*weights, options).unwrap());
    }
}
