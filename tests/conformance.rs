//! The seams' conformance suites on what the examples put in ORION's place, and on the engine that drives observers.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]
#![allow(dead_code, unused_imports, reason = "the examples' `main` is for who runs them")]

use std::sync::Arc;
use std::time::Duration;

use orion::{
    CancelToken, Catalog, Error, ErrorKind, FileSpec, ModelFormat, ModelHeader, ModelSpec, Prompt, Request,
};
use orion_core::testing;
use orion_testkit::references;

#[path = "../examples/custom_catalog.rs"]
mod custom_catalog;
#[path = "../examples/custom_gate.rs"]
mod custom_gate;
#[path = "../examples/custom_observer.rs"]
mod custom_observer;
#[path = "../examples/custom_router.rs"]
mod custom_router;
#[path = "../examples/custom_runtime.rs"]
mod custom_runtime;
#[path = "../examples/custom_source.rs"]
mod custom_source;
mod fakes;

use fakes::{Stage, builder, spec, with};

#[test]
fn the_source_of_the_example_conforms() {
    let file = references::case("llama-gqa-tied").gguf().unwrap();
    testing::weight_source(&custom_source::Buffer::new(file).unwrap());
    let broken = custom_source::Buffer::new(b"GGUF".to_vec()).map(|_| ()).unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::Corrupt);
}

#[test]
fn the_gate_of_the_example_conforms() {
    testing::gate(&custom_gate::Failsafe::default());
    // `failsafe` asks for more than the pause, not for as much.
    let wait = |time: Duration| std::thread::sleep(time + Duration::from_millis(20));
    testing::breaking_gate(&custom_gate::Failsafe::default(), custom_gate::FAILURES, wait);
}

#[test]
fn the_catalogue_of_the_example_conforms() {
    let staff = custom_catalog::Staff::default();
    staff.hire(custom_catalog::agent("clerk", &[], "Be brief."));
    staff.hire(custom_catalog::agent("poet", &["poem"], "Answer in verse."));
    testing::catalog(&staff);
}

#[test]
fn the_router_of_the_example_conforms() {
    let models = ["brief", "patient", "other"].map(|id| ModelSpec::new(id.into(), Vec::new()));
    testing::router(&custom_router::ByLength, &models);
}

#[test]
fn the_runtime_of_the_example_conforms() {
    let header = ModelHeader::new(ModelFormat::Gguf, Default::default(), Vec::new());
    let nothing = Arc::new(custom_runtime::NoWeights(header));
    testing::weight_source(&*nothing);
    let prompt = Prompt::Text("any runtime can stand here".into());
    testing::runtime(&custom_runtime::EchoRuntime, nothing, &prompt);
}

#[test]
fn the_observer_of_the_example_conforms() {
    testing::observer(&custom_observer::Timeline::default());
}

#[test]
fn the_engine_tells_observers_what_it_must() {
    let (stage, protocol) = (Stage::new(), Arc::new(testing::Protocol::new()));
    stage.script("fails", |turn| {
        turn.started();
        Err(Error::new(ErrorKind::Internal, "a model's own defect"))
    });
    stage.script("patient", |turn| {
        turn.started();
        turn.say("well ");
        turn.until_cancelled();
        Ok(())
    });
    let engine = builder(
        &stage,
        [with("fails", |it| it.fallback = vec!["good".into()]), spec("good"), spec("patient")],
    )
    .default_model("good")
    .observer(protocol.clone())
    .build()
    .unwrap();
    assert_eq!(engine.infer("hi").unwrap().text, "good: hi");
    assert_eq!(engine.infer_with(Request::new("hi").model("fails")).unwrap().text, "good: hi");
    assert_eq!(
        engine.infer_with(Request::new("hi").model("nobody")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(engine.infer("").unwrap_err().kind(), ErrorKind::InvalidInput);
    let stop = CancelToken::new();
    stop.cancel();
    drop(engine.infer_with(Request::new("hi").cancelled_by(stop)));
    // Dropped while it answers, and while it waits.
    let mut read = engine.stream(Request::new("hi").model("patient"));
    assert!(read.by_ref().any(|event| matches!(event, orion::EngineEvent::Token { .. })));
    drop(read);
    drop(engine.stream(Request::new("hi").model("patient")));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|n| drop(engine.infer(n.to_string()))));
        }
    });
    engine.shutdown(Duration::from_secs(5));
    assert_eq!(engine.infer("too late").unwrap_err().kind(), ErrorKind::Rejected);
    assert_eq!(protocol.check(), 88);
}
