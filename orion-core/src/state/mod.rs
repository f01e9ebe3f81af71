//! The explicit state machines: the life of a request and the residency of a model.
//!
//! Both are pure functions over a static table. `step` takes a state and an event and returns the next state and
//! the effects to run, or [`Illegal`] with nothing changed. Whoever drives a machine stores the new state first and
//! runs the effects afterwards. Every event carries its time, so the trace of states and durations is data.

mod request;
mod residency;

pub use request::{Effect, Event, Phase, RequestState, TRANSITIONS, Trace, Transition, Visit};
pub use residency::{RESIDENCY_TRANSITIONS, Residency, ResidencyEvent};

use std::fmt;

/// An event that the state it met does not allow. The state is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event {event:?} is illegal in state {state:?}")]
pub struct Illegal<S: fmt::Debug, E: fmt::Debug> {
    /// The state.
    pub state: S,
    /// The event.
    pub event: E,
}

/// Renders a table as a Mermaid state diagram; events between the same two states share an arrow.
fn mermaid<S: Copy + Eq + fmt::Debug, E: Copy + fmt::Debug>(
    start: S,
    edges: impl IntoIterator<Item = (S, E, S)>,
    terminal: impl Fn(S) -> bool,
) -> String {
    let mut arrows: Vec<(S, S, Vec<E>)> = Vec::new();
    for (from, event, to) in edges {
        match arrows.iter_mut().find(|(f, t, _)| (*f, *t) == (from, to)) {
            Some((_, _, events)) => events.push(event),
            None => arrows.push((from, to, vec![event])),
        }
    }
    let mut out = format!("stateDiagram-v2\n    [*] --> {start:?}\n");
    let mut ends = Vec::new();
    for (from, to, events) in arrows {
        let label = events.iter().map(|event| format!("{event:?}")).collect::<Vec<_>>().join(", ");
        out += &format!("    {from:?} --> {to:?}: {label}\n");
        if terminal(to) && !ends.contains(&to) {
            ends.push(to);
        }
    }
    for end in ends {
        out += &format!("    {end:?} --> [*]\n");
    }
    out
}

/// The diagram of the life of a request.
#[must_use]
pub fn request_diagram() -> String {
    let edges = TRANSITIONS.iter().map(|t| (t.from, t.event, t.to));
    mermaid(Phase::Validating, edges, Phase::is_terminal)
}

/// The diagram of a model's residency.
#[must_use]
pub fn residency_diagram() -> String {
    mermaid(Residency::Absent, RESIDENCY_TRANSITIONS.iter().copied(), |_| false)
}
