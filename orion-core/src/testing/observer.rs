//! What every observer must do, and what it may rely on.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::at_once;
use crate::state::{Event, Phase, TRANSITIONS, Trace};
use crate::{
    Completion, Decision, Error, ErrorKind, FinishReason, ModelId, Observer, Ranked, RequestEvent, RequestId,
    Timestamp, Timings, Usage,
};

/// Checks an observer: it takes every life a request can have, each step of it, without a panic; lives of several requests
/// mixed and on several threads; one that ends before anything else was heard of it.
///
/// # Panics
/// As the observer does.
pub fn observer(observer: &dyn Observer) {
    let lives = lives();
    at_once(|| {
        // All at once, a step of each in turn.
        let requests: Vec<_> = lives.iter().map(|life| (RequestId::next(), life)).collect();
        let longest = lives.iter().map(Vec::len).max().unwrap_or_default();
        for step in 0..=longest {
            for (id, life) in &requests {
                tell(observer, *id, life, step);
            }
        }
        let mut unheard = Trace::new(Timestamp::default());
        unheard.step(Event::Refused, Timestamp::default()).expect("a request may be refused at once");
        observer.finished(RequestId::next(), &unheard);
    });
}

/// The ways through the machine that take no transition twice, as their events.
fn lives() -> Vec<Vec<Event>> {
    let (mut open, mut ended) = (vec![(Phase::Validating, Vec::new())], Vec::new());
    while let Some((phase, events)) = open.pop() {
        if phase.is_terminal() {
            ended.push(events);
            continue;
        }
        for row in TRANSITIONS.iter().filter(|row| row.from == phase && !events.contains(&row.event)) {
            let further = events.iter().copied().chain([row.event]).collect();
            open.push((row.to, further));
        }
    }
    ended
}

/// Tells what a driver of requests tells at step `step` of a life; a second passes between steps.
fn tell(observer: &dyn Observer, id: RequestId, life: &[Event], step: usize) {
    let mut trace = Trace::new(Timestamp::default());
    for (at, event) in (1..).zip(life.iter().take(step)) {
        let now = Timestamp::default().after(Duration::from_secs(at));
        trace.step(*event, now).expect("a life follows the table");
        if *event == Event::Routed {
            trace.set_model(ModelId::new("m"));
        }
    }
    if step == 0 {
        observer.event(id, RequestEvent::Entered(&trace));
        return;
    }
    let Some(event) = life.get(step - 1) else { return };
    match event {
        Event::Routed => {
            let ranked = vec![Ranked { model: ModelId::new("m"), score: 1.0 }];
            let decision = Decision::new(ranked, 1.0, false, "the only one", "suite");
            observer.event(id, RequestEvent::Decided(&decision));
        }
        Event::LoadFailed | Event::GenerateFailed | Event::FellBack | Event::NoRoute => {
            let error = Error::new(ErrorKind::Io, "a disk failed").about("model m");
            observer.event(id, RequestEvent::Failed(&error));
        }
        Event::Finished => {
            let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 1 };
            let text = "hi".to_owned();
            let done = Completion::new(FinishReason::Stop, text, Vec::new(), usage, Timings::default());
            observer.event(id, RequestEvent::Completed(&done));
        }
        _ => {}
    }
    if *event != Event::Token {
        observer.event(id, RequestEvent::Entered(&trace));
    }
    if trace.state().phase.is_terminal() {
        observer.finished(id, &trace);
    }
}

/// An observer that checks who drives it: an engine, or whatever stands in its place. Give it to one as an observer, let
/// requests run, then ask [`check`](Self::check).
///
/// What it holds them to: each request is first heard of on entering a phase; its traces grow and never change their
/// past; it is finished exactly once, in a terminal phase, and nothing is heard of it afterwards.
#[derive(Debug, Default)]
pub struct Protocol(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    requests: HashMap<RequestId, (Option<Trace>, bool)>,
    broken: Vec<String>,
}

impl Protocol {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many requests it has seen; every one of them must have finished.
    ///
    /// # Panics
    /// With the laws that were broken.
    #[allow(clippy::must_use_candidate, reason = "called for what it checks")]
    pub fn check(&self) -> usize {
        let seen = self.lock();
        let mut broken = seen.broken.clone();
        for (id, (_, finished)) in &seen.requests {
            if !finished {
                broken.push(format!("{id} was never finished"));
            }
        }
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        seen.requests.len()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn take(&mut self, id: RequestId, what: &str, trace: Option<&Trace>, last: bool) {
        let (before, finished) = self.requests.entry(id).or_default();
        let mut broken = Vec::new();
        if *finished {
            broken.push(format!("{id}: {what} after it was finished"));
        }
        match (&before, trace) {
            (None, None) => broken.push(format!("{id}: {what} before it entered a phase")),
            (Some(before), Some(now)) if !now.visits().starts_with(before.visits()) => {
                broken.push(format!("{id}: {what} changes the past: {before:?}, then {now:?}"));
            }
            _ => {}
        }
        if last && !trace.is_some_and(|trace| trace.state().phase.is_terminal()) {
            broken.push(format!("{id}: finished in a phase that is no end: {trace:?}"));
        }
        *finished |= last;
        if let Some(trace) = trace {
            *before = Some(trace.clone());
        }
        self.broken.append(&mut broken);
    }
}

impl Observer for Protocol {
    fn event(&self, request: RequestId, event: RequestEvent<'_>) {
        let (what, trace) = match event {
            RequestEvent::Entered(trace) => ("entered", Some(trace)),
            RequestEvent::Decided(_) => ("decided", None),
            RequestEvent::Completed(_) => ("completed", None),
            RequestEvent::Failed(_) => ("failed", None),
        };
        self.lock().take(request, what, trace, false);
    }

    fn finished(&self, request: RequestId, trace: &Trace) {
        self.lock().take(request, "finished", Some(trace), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_end_in_every_way_and_the_protocol_accepts_them() {
        let mut ends = std::collections::BTreeSet::new();
        for life in lives() {
            let mut trace = Trace::new(Timestamp::default());
            for event in life {
                trace.step(event, Timestamp::default()).expect("a legal step");
            }
            ends.insert(trace.state().phase);
        }
        assert_eq!(ends, [Phase::Done, Phase::Cancelled, Phase::Failed, Phase::Rejected].into());
        let protocol = Protocol::new();
        // `finished` without a word before is the one thing the suite does that no driver may.
        for life in lives() {
            let id = RequestId::next();
            (0..=life.len()).for_each(|step| tell(&protocol, id, &life, step));
        }
        assert_eq!(protocol.check(), lives().len());
    }

    #[test]
    fn the_protocol_names_what_is_broken() {
        let broken = |drive: &dyn Fn(&Protocol, RequestId)| {
            let protocol = Protocol::new();
            drive(&protocol, RequestId(7));
            let check = std::panic::AssertUnwindSafe(|| protocol.check());
            let panic = std::panic::catch_unwind(check).expect_err("a law was broken");
            panic.downcast_ref::<String>().expect("a message").clone()
        };
        let trace = Trace::new(Timestamp::default());
        let mut ended = trace.clone();
        ended.step(Event::Invalid, Timestamp::default()).expect("a legal step");
        let enter = |protocol: &Protocol, id| protocol.event(id, RequestEvent::Entered(&trace));
        assert!(broken(&enter).contains("never finished"));
        let twice = broken(&|protocol, id| {
            enter(protocol, id);
            protocol.finished(id, &ended);
            protocol.finished(id, &ended);
        });
        assert!(twice.contains("finished after it was finished"), "{twice}");
        let early = broken(&|protocol, id| {
            enter(protocol, id);
            protocol.finished(id, &trace);
        });
        assert!(early.contains("no end"), "{early}");
        let past = broken(&|protocol, id| {
            protocol.event(id, RequestEvent::Entered(&ended));
            protocol.event(id, RequestEvent::Entered(&trace));
            protocol.finished(id, &ended);
        });
        assert!(past.contains("changes the past"), "{past}");
    }
}
