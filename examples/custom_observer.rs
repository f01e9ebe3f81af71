//! An observer of one's own: where the time of each request went, drawn on a line.
//! `cargo run --release --example custom_observer`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orion::state::{Phase, Trace};
use orion::{Engine, Observer, Request, RequestEvent, RequestId, Result};

/// Columns of the longest request.
const COLUMNS: f64 = 60.0;

/// Remembers why a request failed over, and draws it when it ends.
#[derive(Default)]
pub(crate) struct Timeline(Mutex<HashMap<RequestId, String>>);

impl Observer for Timeline {
    fn event(&self, request: RequestId, event: RequestEvent<'_>) {
        let note = match event {
            RequestEvent::Decided(decision) => decision.reason.clone(),
            RequestEvent::Failed(error) => error.to_string(),
            _ => return,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(request, note);
    }

    fn finished(&self, request: RequestId, trace: &Trace) {
        let note = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&request);
        println!("{request} {:?} ({})\n  {}", trace.state().phase, note.unwrap_or_default(), line(trace));
    }
}

/// A letter per share of the request's time: v alidating, r outing, q ueue, l oading, p refill, d ecoding.
fn line(trace: &Trace) -> String {
    let total: Duration = trace.visits().iter().map(|visit| visit.stayed).sum();
    let mut line = String::new();
    for visit in trace.visits() {
        let letter = match visit.phase {
            Phase::Validating => 'v',
            Phase::Routing => 'r',
            Phase::Admitting => 'q',
            Phase::Loading => 'l',
            Phase::Prefilling => 'p',
            _ => 'd',
        };
        let share = visit.stayed.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        line.extend(std::iter::repeat_n(letter, (COLUMNS * share).round() as usize));
    }
    format!("{line} {total:.0?}")
}

fn main() -> Result<()> {
    let path = orion_testkit::models::smollm2();
    let engine = Engine::builder()
        .model("m", path.to_string_lossy())
        .observer(Arc::new(Timeline::default()))
        .parallel(1) // so that the third request has to wait
        .build()?;
    println!("the first request loads the model:");
    engine.infer_with(Request::new("What is rain?").max_tokens(30))?;
    println!("\nthe second finds it there, the third waits for the second, the fourth has no time to wait:");
    let ask = |request: Request| engine.stream(request.max_tokens(60));
    let second = ask(Request::new("Count to twenty."));
    let third = ask(Request::new("Name three colours."));
    let fourth = ask(Request::new("Hello!").timeout(Duration::from_millis(20)));
    second.answer()?;
    third.answer()?;
    // It is meant to fail; its observer has said why.
    drop(fourth.answer());
    Ok(())
}
