//! Faults while it serves: a disk that fails, a link that comes back, a model that breaks. Nobody waits for ever, and
//! everyone is told why. `cargo run --release --example resilient`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orion::resilience::{Backoff, BreakerSettings};
use orion::{Engine, EngineEvent, Error, ErrorKind, FileSpec, ModelSpec, Request, Result};

fn main() -> Result<()> {
    let path = orion_testkit::models::smollm2();
    let file = FileSpec::new(path.to_string_lossy());
    let mut clever = ModelSpec::new("clever".into(), vec![FileSpec::new("clever.gguf")]);
    clever.fallback = vec!["small".into()];
    let faults = Arc::new(AtomicU32::new(4));
    let left = faults.clone();
    let engine = Engine::builder()
        .spec(clever)
        .spec(ModelSpec::new("small".into(), vec![file]))
        .breaker(
            BreakerSettings::new()
                .consecutive_failures(2)
                .wait(Backoff::constant(Duration::from_millis(300))),
        )
        // The disk of the clever model fails four times, then it is well again.
        .sources(move |spec| {
            let fails = |left: u32| left.checked_sub(1);
            if spec.id.as_str() == "clever"
                && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok()
            {
                return Err(Error::new(ErrorKind::Corrupt, "the disk returned another digest"));
            }
            orion::loader::open(&path)
        })
        .build()?;
    let ask = || {
        let mut failed = None;
        for event in engine.stream(Request::new("Say hello.").model("clever").max_tokens(12)) {
            match event {
                EngineEvent::Fallback { from, error, .. } => {
                    failed = Some(format!("{from} failed ({error})"))
                }
                EngineEvent::Done(answer) => {
                    let why = failed.take().unwrap_or_else(|| "nothing failed".into());
                    println!("{} answered: {why}", answer.model);
                }
                EngineEvent::Failed { error, .. } => println!("no answer: {error}"),
                _ => {}
            }
        }
    };
    println!("the clever model's disk is broken; the small one stands in:");
    (0..3).for_each(|_| ask());
    println!("\nits breaker is open now, it is not even tried:");
    ask();
    println!("\nnow and then one request probes; when the disk is well, the clever model is back:");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(350));
        ask();
    }

    println!("\na deadline that cannot be met is an answer, too:");
    let late = engine.infer_with(Request::new("Count to a thousand.").timeout(Duration::from_millis(150)));
    println!("{}", late.map_or_else(|error| error.to_string(), |answer| answer.text));

    println!("\nshutting down while it serves:");
    let streams: Vec<_> = (0..20).map(|n| engine.stream(format!("Count from {n}."))).collect();
    std::thread::sleep(Duration::from_millis(200));
    println!("{:?}", engine.shutdown(Duration::from_millis(300)));
    let ended = streams.into_iter().map(|stream| stream.answer()).filter(|answer| answer.is_ok()).count();
    println!("of 20 callers {ended} have an answer or the part of it there was; the others were turned away");
    Ok(())
}
