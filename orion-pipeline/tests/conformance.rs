//! The conformance suite of `WeightSource` on models shown in the other format.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::sync::Arc;

use orion_core::{WeightSource, testing};
use orion_pipeline::{as_gguf, as_hugging_face};
use orion_testkit::references;

#[test]
fn a_model_shown_in_the_other_format_is_a_source_like_any() {
    // Heads permuted, norms changed, nothing tied: conversions that compute.
    for name in ["llama-mha", "gemma2", "phi3", "qwen2-bf16"] {
        let case = references::case(name);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        std::fs::write(&path, case.safetensors()).unwrap();
        std::fs::write(directory.path().join("config.json"), case.configs[0].to_string()).unwrap();
        let source: Arc<dyn WeightSource> = orion_loader::open(&path).unwrap();
        testing::weight_source(&*source);
        let gguf = as_gguf(source).unwrap();
        testing::weight_source(&*gguf);
        if let Ok(back) = as_hugging_face(gguf) {
            testing::weight_source(&*back);
        }
    }
}
