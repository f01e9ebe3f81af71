//! A program on the facade: `consumer-facade MODEL`.

use std::time::Duration;

use orion::{Engine, EngineEvent, FileSpec, ModelSpec, Request};

fn main() -> orion::Result<()> {
    let model = std::env::args().nth(1).expect("consumer-facade MODEL");
    let mut poet = ModelSpec::new("poet".into(), vec![FileSpec::new(model.as_str())]);
    poet.keywords = vec!["poem".into()];
    let engine = Engine::builder().model("general", model).spec(poet).default_model("general").build()?;

    let decision = engine.route("Write a poem about rain")?;
    assert_eq!(decision.chosen().map(|model| model.as_str()), Some("poet"), "{}", decision.reason);

    let mut text = String::new();
    for event in engine.stream(Request::new("Say hello.").max_tokens(16)) {
        match event {
            EngineEvent::Token { text: piece, .. } => text += &piece,
            EngineEvent::Done(answer) => {
                assert_eq!(answer.text, text);
                assert_eq!(answer.model.as_str(), "general");
            }
            EngineEvent::Failed { error, .. } => return Err(error),
            _ => {}
        }
    }
    assert!(!text.is_empty());

    let error = engine.infer_with(Request::new("hi").model("nobody")).expect_err("no such model");
    assert_eq!(error.kind(), orion::ErrorKind::NotFound);
    assert_eq!(engine.stats()?.outcomes.done, 1);
    engine.shutdown(Duration::from_secs(1));
    println!("facade: {text:?}");
    Ok(())
}
