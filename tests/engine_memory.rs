//! Memory that is given back, measured at the process: a test of its own, so that nothing else moves the figure.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use orion::{Engine, Request};
use orion_testkit::models;

fn resident() -> u64 {
    orion::logging::memory_use().unwrap().resident
}

#[test]
fn an_unloaded_model_gives_its_memory_back_to_the_system() {
    let engine = Engine::builder().model("m", models::smollm2().to_str().unwrap()).build().unwrap();
    engine.infer_with(Request::new("hi").max_tokens(4)).unwrap();
    let held = engine.stats().unwrap().memory_used;
    assert!(held > 90_000_000, "weights of {held} bytes");
    let before = resident();
    engine.unload("m").unwrap();
    assert_eq!(engine.stats().unwrap().memory_used, 0);
    // The worker's thread ends by itself, a moment later.
    let start = Instant::now();
    while resident() + 80_000_000 > before {
        assert!(start.elapsed() < Duration::from_secs(60), "{before} bytes before, {} after", resident());
        std::thread::sleep(Duration::from_millis(10));
    }
    let answer = engine.infer_with(Request::new("hi").max_tokens(4)).unwrap();
    assert_eq!(answer.model.as_str(), "m");
}
