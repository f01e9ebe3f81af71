//! The life of a request.

use std::time::Duration;

use super::Illegal;
use crate::clock::Timestamp;
use crate::id::ModelId;

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Limits and guardrails are checked, tokens counted.
    Validating,
    /// A model is chosen.
    Routing,
    /// Waiting for a place.
    Admitting,
    /// The model is brought into memory.
    Loading,
    /// The prompt runs; later layers may still be arriving.
    Prefilling,
    /// Tokens come.
    Decoding,
    /// Ended with a whole answer.
    Done,
    /// Ended by its caller.
    Cancelled,
    /// Ended by an error after it was admitted, or for want of a model.
    Failed,
    /// Refused before it was admitted.
    Rejected,
}

impl Phase {
    /// Every phase, in the order of a request's life.
    pub const ALL: [Self; 10] = [
        Self::Validating,
        Self::Routing,
        Self::Admitting,
        Self::Loading,
        Self::Prefilling,
        Self::Decoding,
        Self::Done,
        Self::Cancelled,
        Self::Failed,
        Self::Rejected,
    ];

    /// Whether a request ends here.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed | Self::Rejected)
    }
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// It is well-formed.
    Validated,
    /// It is not.
    Invalid,
    /// A model was chosen.
    Routed,
    /// No model can answer.
    NoRoute,
    /// It has its place and its permit.
    Admitted,
    /// Queue full, breaker open and no fallback left, or shutting down.
    Refused,
    /// The first layer is there: the prompt starts.
    PrefillStarted,
    /// The weights could not be had.
    LoadFailed,
    /// A token was generated.
    Token,
    /// The answer is complete.
    Finished,
    /// The model failed.
    GenerateFailed,
    /// The next model of the chain takes over. Never after the first token.
    FellBack,
    /// Its caller ended it.
    CancelRequested,
    /// Its time is up.
    DeadlinePassed,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 14] = [
        Self::Validated,
        Self::Invalid,
        Self::Routed,
        Self::NoRoute,
        Self::Admitted,
        Self::Refused,
        Self::PrefillStarted,
        Self::LoadFailed,
        Self::Token,
        Self::Finished,
        Self::GenerateFailed,
        Self::FellBack,
        Self::CancelRequested,
        Self::DeadlinePassed,
    ];
}

/// What to do after a transition, once the new state is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Ask the router.
    Route,
    /// Put it into the queue.
    Enqueue,
    /// Take it out of the queue.
    LeaveQueue,
    /// Make the model resident.
    Load,
    /// Give the weights' lease back.
    ReleaseModel,
    /// Give keys, values and the permit back.
    StopGeneration,
    /// Hand the token to the caller.
    EmitToken,
    /// Hand the final event to the caller.
    EmitEnd,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Transition {
    /// State before.
    pub from: Phase,
    /// Event.
    pub event: Event,
    /// State after.
    pub to: Phase,
    /// What to do.
    pub effects: &'static [Effect],
}

/// The whole machine; what is not listed is illegal.
pub static TRANSITIONS: &[Transition] = {
    use Effect::{EmitEnd, EmitToken, Enqueue, LeaveQueue, Load, ReleaseModel, Route, StopGeneration};
    use Event as E;
    use Phase as P;
    const fn t(from: P, event: E, to: P, effects: &'static [Effect]) -> Transition {
        Transition { from, event, to, effects }
    }
    &[
        t(P::Validating, E::Validated, P::Routing, &[Route]),
        t(P::Validating, E::Invalid, P::Rejected, &[EmitEnd]),
        t(P::Validating, E::Refused, P::Rejected, &[EmitEnd]),
        t(P::Validating, E::CancelRequested, P::Cancelled, &[EmitEnd]),
        t(P::Validating, E::DeadlinePassed, P::Rejected, &[EmitEnd]),
        t(P::Routing, E::Routed, P::Admitting, &[Enqueue]),
        t(P::Routing, E::NoRoute, P::Failed, &[EmitEnd]),
        t(P::Routing, E::Refused, P::Rejected, &[EmitEnd]),
        t(P::Routing, E::CancelRequested, P::Cancelled, &[EmitEnd]),
        t(P::Routing, E::DeadlinePassed, P::Rejected, &[EmitEnd]),
        t(P::Admitting, E::Admitted, P::Loading, &[Load]),
        t(P::Admitting, E::Refused, P::Rejected, &[LeaveQueue, EmitEnd]),
        t(P::Admitting, E::FellBack, P::Admitting, &[LeaveQueue, Enqueue]),
        t(P::Admitting, E::CancelRequested, P::Cancelled, &[LeaveQueue, EmitEnd]),
        t(P::Admitting, E::DeadlinePassed, P::Rejected, &[LeaveQueue, EmitEnd]),
        t(P::Loading, E::PrefillStarted, P::Prefilling, &[]),
        t(P::Loading, E::LoadFailed, P::Failed, &[ReleaseModel, EmitEnd]),
        t(P::Loading, E::FellBack, P::Admitting, &[ReleaseModel, Enqueue]),
        t(P::Loading, E::CancelRequested, P::Cancelled, &[ReleaseModel, EmitEnd]),
        t(P::Loading, E::DeadlinePassed, P::Failed, &[ReleaseModel, EmitEnd]),
        t(P::Prefilling, E::Token, P::Decoding, &[EmitToken]),
        t(P::Prefilling, E::Finished, P::Done, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Prefilling, E::LoadFailed, P::Failed, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Prefilling, E::GenerateFailed, P::Failed, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Prefilling, E::FellBack, P::Admitting, &[StopGeneration, ReleaseModel, Enqueue]),
        t(P::Prefilling, E::CancelRequested, P::Cancelled, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Prefilling, E::DeadlinePassed, P::Failed, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Decoding, E::Token, P::Decoding, &[EmitToken]),
        t(P::Decoding, E::Finished, P::Done, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Decoding, E::GenerateFailed, P::Failed, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Decoding, E::CancelRequested, P::Cancelled, &[StopGeneration, ReleaseModel, EmitEnd]),
        t(P::Decoding, E::DeadlinePassed, P::Failed, &[StopGeneration, ReleaseModel, EmitEnd]),
    ]
};

/// Where a request is, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestState {
    /// The phase.
    pub phase: Phase,
    /// When it was entered.
    pub since: Timestamp,
    /// Tokens that have reached the caller.
    pub tokens: u32,
    /// Models tried before this one.
    pub fallbacks: u32,
}

impl RequestState {
    /// A request that arrived at `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { phase: Phase::Validating, since: now, tokens: 0, fallbacks: 0 }
    }

    /// The state after `event` at `now`, and what to do then.
    ///
    /// # Errors
    /// [`Illegal`] if the table has no such transition; nothing changes.
    pub fn step(
        &self,
        event: Event,
        now: Timestamp,
    ) -> Result<(Self, &'static [Effect]), Illegal<Phase, Event>> {
        let row = TRANSITIONS.iter().find(|row| (row.from, row.event) == (self.phase, event));
        let row = row.ok_or(Illegal { state: self.phase, event })?;
        let next = Self {
            phase: row.to,
            since: if row.to == self.phase && event == Event::Token { self.since } else { now },
            tokens: self.tokens.saturating_add(u32::from(event == Event::Token)),
            fallbacks: self.fallbacks.saturating_add(u32::from(event == Event::FellBack)),
        };
        Ok((next, row.effects))
    }
}

/// A phase a request went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// The phase.
    pub phase: Phase,
    /// The model it was meant for, once one is chosen.
    pub model: Option<ModelId>,
    /// How long it stayed.
    pub stayed: Duration,
}

/// A request's way through the machine: the answer to "why was it slow?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    state: RequestState,
    model: Option<ModelId>,
    visits: Vec<Visit>,
}

impl Trace {
    /// A request that arrived at `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { state: RequestState::new(now), model: None, visits: Vec::new() }
    }

    /// Steps the machine and records the visit that ended.
    ///
    /// # Errors
    /// [`Illegal`], and the trace is unchanged.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Result<&'static [Effect], Illegal<Phase, Event>> {
        let (next, effects) = self.state.step(event, now)?;
        if next.since != self.state.since || next.phase != self.state.phase {
            let stayed = now.since(self.state.since);
            self.visits.push(Visit { phase: self.state.phase, model: self.model.clone(), stayed });
        }
        self.state = next;
        Ok(effects)
    }

    /// Says which model the phases from here on are about.
    pub fn set_model(&mut self, model: ModelId) {
        self.model = Some(model);
    }

    /// The model it is meant for now, once one is chosen.
    #[must_use]
    pub fn model(&self) -> Option<&ModelId> {
        self.model.as_ref()
    }

    /// Where it is now.
    #[must_use]
    pub fn state(&self) -> &RequestState {
        &self.state
    }

    /// The phases it has left, in order.
    #[must_use]
    pub fn visits(&self) -> &[Visit] {
        &self.visits
    }

    /// Time spent in `phase` so far, all visits together.
    #[must_use]
    pub fn time_in(&self, phase: Phase) -> Duration {
        self.visits.iter().filter(|visit| visit.phase == phase).map(|visit| visit.stayed).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(Duration::from_secs(seconds))
    }

    #[test]
    fn every_pair_of_phase_and_event_is_one_row_or_illegal() {
        for phase in Phase::ALL {
            for event in Event::ALL {
                let state = RequestState { phase, ..RequestState::new(at(0)) };
                let rows: Vec<_> =
                    TRANSITIONS.iter().filter(|row| (row.from, row.event) == (phase, event)).collect();
                assert!(rows.len() <= 1, "{phase:?} and {event:?} have {} rows", rows.len());
                match (rows.first(), state.step(event, at(1))) {
                    (Some(row), Ok((next, effects))) => {
                        assert_eq!((next.phase, effects), (row.to, row.effects));
                        assert!(!phase.is_terminal(), "{phase:?} is final");
                        assert_eq!(next.phase.is_terminal(), effects.contains(&Effect::EmitEnd));
                    }
                    (None, Err(illegal)) => assert_eq!(illegal, Illegal { state: phase, event }),
                    (row, got) => panic!("{phase:?} and {event:?}: table {row:?}, step {got:?}"),
                }
            }
        }
    }

    #[test]
    fn every_live_phase_can_be_cancelled_and_timed_out_and_reaches_an_end() {
        for phase in Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()) {
            for event in [Event::CancelRequested, Event::DeadlinePassed] {
                let state = RequestState { phase, ..RequestState::new(at(0)) };
                assert!(state.step(event, at(1)).unwrap().0.phase.is_terminal(), "{phase:?} {event:?}");
            }
        }
    }

    #[test]
    fn no_fallback_after_the_first_token() {
        let state = RequestState { phase: Phase::Decoding, ..RequestState::new(at(0)) };
        assert!(state.step(Event::FellBack, at(1)).is_err());
    }

    #[test]
    fn a_trace_adds_up_the_time_in_each_phase_across_a_fallback() {
        let mut trace = Trace::new(at(0));
        let script = [
            (Event::Validated, 1),
            (Event::Routed, 3),
            (Event::Admitted, 4),
            (Event::FellBack, 9),
            (Event::Admitted, 10),
            (Event::PrefillStarted, 12),
            (Event::Token, 15),
            (Event::Token, 16),
            (Event::Finished, 20),
        ];
        for (event, seconds) in script {
            trace.step(event, at(seconds)).unwrap();
        }
        assert_eq!(trace.time_in(Phase::Loading), Duration::from_secs(5 + 2));
        assert_eq!(trace.time_in(Phase::Decoding), Duration::from_secs(5));
        assert_eq!((trace.state().phase, trace.state().tokens, trace.state().fallbacks), (Phase::Done, 2, 1));
        let total: Duration = trace.visits().iter().map(|visit| visit.stayed).sum();
        assert_eq!(total, Duration::from_secs(20));
        assert!(trace.step(Event::Token, at(21)).is_err());
        assert_eq!(trace.state().tokens, 2);
    }
}
