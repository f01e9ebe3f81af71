//! Keys and values in bytes, with a real model.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use orion_core::{ErrorKind, Model as _};
use orion_runtime::{ExecutorKind, KvType, LocalModel, LocalRuntime, RuntimeOptions};

fn open(executor: ExecutorKind, kv: KvType) -> orion_core::Result<LocalModel> {
    let mut options = RuntimeOptions::default();
    options.executor = executor;
    options.kv_type = kv;
    LocalRuntime::new(options).open(orion_loader::open(orion_testkit::models::smollm2())?)
}

#[test]
fn bytes_take_seventeen_thirty_seconds_of_halves_and_cost_little_quality() {
    let text = std::fs::read_to_string("../benches/data/licences.txt").unwrap();
    let text = &text[..12_000];
    let [halves, bytes] = [KvType::F16, KvType::Q8].map(|kv| {
        let model = open(ExecutorKind::Cpu, kv).unwrap();
        let perplexity = model.perplexity(text, 512, |_, _, _| {}).unwrap().perplexity;
        (perplexity, model.info().kv_bytes_per_token, model.info().executor.clone())
    });
    assert_eq!(bytes.1 * 32, halves.1 * 17);
    assert!(bytes.0 != halves.0 && (bytes.0 / halves.0 - 1.0).abs() < 0.01, "{} and {}", bytes.0, halves.0);
    assert!(bytes.2.contains("8 bits") && !halves.2.contains("bits"), "{} and {}", bytes.2, halves.2);
}

#[test]
fn the_portable_executor_refuses_bytes() {
    let error = open(ExecutorKind::Portable, KvType::Q8).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
