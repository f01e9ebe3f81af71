//! Four agents on one small model: the engine picks who answers, says why, and loads the weights once.
//! `cargo run --release --example agents`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::io::Write;

use orion::{Engine, EngineEvent, Request};

fn main() -> orion::Result<()> {
    let _ = orion_testkit::models::smollm2();
    let engine = Engine::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models.json"))?;
    for prompt in [
        "Write a Rust function that adds two numbers.",
        "Write a short poem about the sea.",
        "Translate into French: the house is small.",
        "Hello! How are you today?",
    ] {
        println!("\n> {prompt}");
        for event in engine.stream(Request::new(prompt).max_tokens(60)) {
            match event {
                EngineEvent::Routed { model, confidence, reason } => {
                    println!("[{model}, {:.0} % sure: {reason}]", 100.0 * confidence);
                }
                EngineEvent::Token { text, .. } => {
                    print!("{text}");
                    std::io::stdout().flush().map_err(|error| orion::Error::io(error, "standard output"))?;
                }
                EngineEvent::Done(answer) => println!("\n[{}]", answer.report),
                EngineEvent::Failed { error, .. } => return Err(error),
                _ => {}
            }
        }
    }
    let stats = engine.stats()?;
    println!("\n{} answers; weights loaded {} time(s)", stats.outcomes.done, stats.models[0].loads);
    Ok(())
}
