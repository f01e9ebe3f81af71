//! The caller's thread stays free: it counts while a model loads and answers. `cargo run --release --example responsive`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::time::{Duration, Instant};

use orion::{Engine, EngineEvent, Request};

fn main() -> orion::Result<()> {
    let model = orion_testkit::models::smollm2();
    let engine = Engine::builder().model("smollm2", model.to_string_lossy()).build()?;

    let start = Instant::now();
    let mut stream = engine.stream(Request::new("Why do leaves fall in autumn?").max_tokens(80));
    println!("stream() returned after {:.0?}; nothing is loaded yet", start.elapsed());

    let (mut frames, mut longest, mut first) = (0, Duration::ZERO, None);
    let answer = 'answer: loop {
        let frame = Instant::now();
        while let Some(event) = stream.try_next() {
            match event {
                EngineEvent::Token { .. } => first = first.or(Some(start.elapsed())),
                EngineEvent::Done(answer) => break 'answer answer,
                EngineEvent::Failed { error, .. } => return Err(error),
                _ => {}
            }
        }
        longest = longest.max(frame.elapsed());
        // Sixty frames a second would be drawn here.
        std::thread::sleep(Duration::from_millis(16));
        frames += 1;
    };
    println!(
        "first token after {:.0?}, the whole answer after {:.0?}",
        first.unwrap_or_default(),
        start.elapsed()
    );
    println!(
        "{frames} frames were drawn meanwhile; taking events took {longest:.0?} at most in any of them\n"
    );
    println!("{}", answer.text);
    Ok(())
}
