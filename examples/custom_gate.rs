//! A gate of one's own: the crate `failsafe` as it is, a breaker per model and operation, in the place of ours.
//! `cargo run --release --example custom_gate`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use failsafe::{Config, StateMachine, backoff, failure_policy};
use orion::{Engine, Error, ErrorKind, Gate, ModelId, Operation, Outcome, Permit, Refused, Request, Result};

/// Failures in a row that open a breaker, and how long it stays open.
pub(crate) const FAILURES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

type Policy = failure_policy::ConsecutiveFailures<backoff::Constant>;
type Breaker = StateMachine<Policy, ()>;

/// Breakers of `failsafe`, made when they are first asked for.
#[derive(Default)]
pub(crate) struct Failsafe(Mutex<HashMap<(ModelId, Operation), Breaker>>);

impl Gate for Failsafe {
    fn acquire(&self, model: &ModelId, operation: Operation) -> Result<Box<dyn Permit>, Refused> {
        let make = || {
            let policy = failure_policy::consecutive_failures(FAILURES, backoff::constant(PAUSE));
            Config::new().failure_policy(policy).build()
        };
        let mut breakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let breaker = breakers.entry((model.clone(), operation)).or_insert_with(make);
        match breaker.is_call_permitted() {
            true => Ok(Box::new(Held(Some(breaker.clone())))),
            // `failsafe` does not say how much of the pause is left.
            false => Err(Refused { retry_after: Some(PAUSE) }),
        }
    }
}

/// A permit; `None` once it is settled.
struct Held(Option<Breaker>);

impl Permit for Held {
    fn settle(mut self: Box<Self>, outcome: Outcome, _: Duration) {
        let breaker = self.0.take();
        match (breaker, outcome) {
            (Some(breaker), Outcome::Success) => breaker.on_success(),
            (Some(breaker), Outcome::Failure) => breaker.on_error(),
            _ => {}
        }
    }
}

impl Drop for Held {
    /// Not settled: the call panicked, or nobody wanted its result.
    fn drop(&mut self) {
        if let Some(breaker) = self.0.take().filter(|_| std::thread::panicking()) {
            breaker.on_error();
        }
    }
}

fn main() -> Result<()> {
    let path = orion_testkit::models::smollm2();
    let broken = AtomicU32::new(FAILURES);
    let engine = Engine::builder()
        .model("m", path.to_string_lossy())
        .gate(Arc::new(Failsafe::default()))
        // The disk fails as often as the breaker lets it, then it is well again.
        .sources(move |_| {
            match broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) {
                Ok(_) => Err(Error::new(ErrorKind::Corrupt, "the disk returned another digest")),
                Err(_) => orion::loader::open(&path),
            }
        })
        .build()?;
    for attempt in 1..=FAILURES + 2 {
        if attempt == FAILURES + 2 {
            println!("(waiting until the breaker lets a call through)");
            std::thread::sleep(PAUSE + PAUSE / 4);
        }
        match engine.infer_with(Request::new("Say hello.").max_tokens(12)) {
            Ok(answer) => println!("{attempt}: {}", answer.text),
            Err(error) => println!("{attempt}: {error}"),
        }
    }
    Ok(())
}
