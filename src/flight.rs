//! A request on its way: its trace and its events, shared by the caller's stream, the scheduler and the model's worker.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use orion_core::state::{Effect, Event, Phase, Trace};
use orion_core::{
    CancelToken, Clock, Completion, Decision, Error, FinishReason, Flow, ModelId, Observer, RequestEvent,
    RequestId, Timings, Usage,
};
use orion_resilience::Context;

use crate::answer::{Answer, EngineEvent, Report};
use crate::request::Request;

/// Events a consumer may leave unread before its generation pauses.
pub(crate) const UNREAD: usize = 256;

/// Who is told what happens. A panic of theirs costs nobody else anything.
#[derive(Clone, Default)]
pub(crate) struct Watchers(pub(crate) Vec<Arc<dyn Observer>>);

impl Watchers {
    fn each(&self, tell: impl Fn(&dyn Observer)) {
        for watcher in &self.0 {
            if catch_unwind(AssertUnwindSafe(|| tell(&**watcher))).is_err() {
                tracing::error!(target: "orion::engine", "an observer panicked");
            }
        }
    }
}

/// Keeps the reports of requests that ended.
pub(crate) trait Archive: Send + Sync {
    fn ended(&self, report: &Report);
}

pub(crate) struct Flight {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    /// Deadline, cancel flag, and whether a token has reached the caller.
    pub(crate) context: Context,
    clock: Arc<dyn Clock>,
    watchers: Watchers,
    archive: Arc<dyn Archive>,
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    trace: Trace,
    /// The attempt whose model may speak; late words of earlier ones are dropped.
    attempt: u32,
    decision: Option<Arc<Decision>>,
    usage: Option<Usage>,
    events: VecDeque<EngineEvent>,
    /// The caller has taken the last event.
    over: bool,
    waker: Option<Waker>,
}

/// How a request ends.
pub(crate) enum End {
    Answered(Completion),
    /// Ended by its caller before a model had answered.
    Cancelled,
    Failed(Error),
}

impl Flight {
    pub(crate) fn new(
        request: Request,
        context: Context,
        clock: Arc<dyn Clock>,
        watchers: Watchers,
        archive: Arc<dyn Archive>,
    ) -> Arc<Self> {
        let trace = Trace::new(clock.now());
        let state = State {
            trace,
            attempt: 0,
            decision: None,
            usage: None,
            events: VecDeque::new(),
            over: false,
            waker: None,
        };
        let id = RequestId::next();
        let flight = Self {
            id,
            request,
            context,
            clock,
            watchers,
            archive,
            state: Mutex::new(state),
            arrived: Condvar::new(),
        };
        flight
            .watchers
            .each(|watcher| watcher.event(id, RequestEvent::Entered(&Trace::new(flight.clock.now()))));
        Arc::new(flight)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its caller wants no more. The caller's own flag is passed on to the one the model reads.
    pub(crate) fn is_cancelled(&self) -> bool {
        let stop = self.context.cancel();
        if self.request.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            stop.cancel();
        }
        stop.is_cancelled()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().trace.state().phase
    }

    /// Puts an event where the caller finds it.
    fn put(&self, mut state: MutexGuard<'_, State>, event: EngineEvent) {
        state.events.push_back(event);
        let waker = state.waker.take();
        drop(state);
        self.arrived.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells the caller, unless the request is over.
    pub(crate) fn tell(&self, event: EngineEvent) {
        let state = self.lock();
        if !state.trace.state().phase.is_terminal() {
            self.put(state, event);
        }
    }

    /// Steps the machine. False, and one log line, if it does not allow that.
    pub(crate) fn step(&self, event: Event) -> bool {
        self.advance(&mut self.lock(), event).is_some()
    }

    fn advance(&self, state: &mut State, event: Event) -> Option<&'static [Effect]> {
        match state.trace.step(event, self.clock.now()) {
            Ok(effects) => {
                if event != Event::Token || state.trace.state().tokens == 1 {
                    self.watchers.each(|watcher| watcher.event(self.id, RequestEvent::Entered(&state.trace)));
                }
                Some(effects)
            }
            Err(illegal) => {
                tracing::error!(target: "orion::engine", request = %self.id, %illegal, "a step was refused");
                None
            }
        }
    }

    /// A model was chosen.
    pub(crate) fn decided(&self, decision: Option<Arc<Decision>>) {
        if let Some(decision) = decision {
            self.watchers.each(|watcher| watcher.event(self.id, RequestEvent::Decided(&decision)));
            self.lock().decision = Some(decision);
        }
    }

    /// The phases from here on are about `model`; only `attempt` may speak.
    pub(crate) fn meant_for(&self, model: &ModelId, attempt: u32) {
        let mut state = self.lock();
        state.trace.set_model(model.clone());
        state.attempt = attempt;
    }

    pub(crate) fn hears(&self, attempt: u32) -> bool {
        let state = self.lock();
        state.attempt == attempt && !state.trace.state().phase.is_terminal()
    }

    /// A model tells of its prompt or a token.
    pub(crate) fn heard(&self, attempt: u32, event: EngineEvent) -> Flow {
        let mut state = self.lock();
        let phase = state.trace.state().phase;
        if state.attempt != attempt || phase.is_terminal() || self.is_cancelled() {
            return Flow::Stop;
        }
        // A model that does not tell of its prompt begins with its first token.
        if phase == Phase::Loading && self.advance(&mut state, Event::PrefillStarted).is_none() {
            return Flow::Stop;
        }
        if matches!(event, EngineEvent::Token { .. }) {
            if self.advance(&mut state, Event::Token).is_none() {
                return Flow::Stop;
            }
            self.context.mark_started();
        }
        let flow = if state.events.len() + 1 >= UNREAD { Flow::Pause } else { Flow::Continue };
        self.put(state, event);
        flow
    }

    /// Whether a paused generation may go on.
    pub(crate) fn has_room(&self) -> bool {
        self.lock().events.len() < UNREAD / 2
    }

    /// Ends the request with `event`, exactly once: false if it was over, or the machine does not allow it.
    pub(crate) fn end(&self, event: Event, end: End) -> bool {
        let mut state = self.lock();
        if state.trace.state().phase.is_terminal() {
            return false;
        }
        match &end {
            End::Answered(completion) => {
                state.usage = Some(completion.usage);
                self.watchers.each(|watcher| watcher.event(self.id, RequestEvent::Completed(completion)));
            }
            End::Cancelled => {}
            End::Failed(error) => {
                self.watchers.each(|watcher| watcher.event(self.id, RequestEvent::Failed(error)));
            }
        }
        if matches!(end, End::Answered(_)) && state.trace.state().phase == Phase::Loading {
            self.advance(&mut state, Event::PrefillStarted);
        }
        if self.advance(&mut state, event).is_none() {
            return false;
        }
        let report = Report {
            request: self.id,
            trace: state.trace.clone(),
            decision: state.decision.clone(),
            usage: state.usage,
            error: match &end {
                End::Failed(error) => Some((error.kind(), error.to_string())),
                _ => None,
            },
        };
        self.watchers.each(|watcher| watcher.finished(self.id, &report.trace));
        self.archive.ended(&report);
        let last = match end {
            End::Failed(error) => EngineEvent::Failed { error, report },
            End::Answered(completion) => EngineEvent::Done(self.answer(completion, report)),
            End::Cancelled => {
                let (usage, timings) = (Usage::default(), Timings::default());
                let nothing =
                    Completion::new(FinishReason::Cancelled, String::new(), Vec::new(), usage, timings);
                EngineEvent::Done(self.answer(nothing, report))
            }
        };
        self.put(state, last);
        true
    }

    fn answer(&self, completion: Completion, report: Report) -> Answer {
        let confidence = report.decision.as_ref().map_or(1.0, |decision| decision.confidence);
        Answer {
            text: completion.text,
            tokens: completion.tokens,
            reason: completion.reason,
            model: report.trace.model().cloned().unwrap_or_else(|| ModelId::new("none")),
            confidence,
            usage: completion.usage,
            timings: completion.timings,
            report,
        }
    }

    /// The next event; waits for it. `None` after the last.
    pub(crate) fn next(&self) -> Option<EngineEvent> {
        let mut state = self.lock();
        loop {
            if let Some(event) = Self::take(&mut state) {
                return Some(event);
            }
            if state.over {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next event if it is there; else `waker` is woken when it is. `Some(None)` after the last.
    #[cfg(feature = "async")]
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Option<EngineEvent>> {
        let mut state = self.lock();
        if let Some(event) = Self::take(&mut state) {
            return Some(Some(event));
        }
        if state.over {
            return Some(None);
        }
        state.waker = Some(waker.clone());
        None
    }

    /// The next event if it is there.
    pub(crate) fn try_next(&self) -> Option<EngineEvent> {
        Self::take(&mut self.lock())
    }

    fn take(state: &mut State) -> Option<EngineEvent> {
        let event = state.events.pop_front()?;
        state.over |= event.is_last();
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::{ErrorKind, ManualClock, TokenId};
    use orion_resilience::Deadline;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tracing::span;

    #[derive(Default)]
    struct Kept(Mutex<Vec<Report>>);
    impl Archive for Kept {
        fn ended(&self, report: &Report) {
            self.0.lock().unwrap().push(report.clone());
        }
    }

    struct Panics;
    impl Observer for Panics {
        fn finished(&self, _: RequestId, _: &Trace) {
            panic!("an observer's own defect");
        }
    }

    fn flight() -> (Arc<Flight>, ManualClock, Arc<Kept>) {
        let (clock, kept) = (ManualClock::new(), Arc::new(Kept::default()));
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let context = Context::new(Deadline::never(shared.clone()));
        let watchers = Watchers(vec![Arc::new(Panics)]);
        (Flight::new(Request::new("hi"), context, shared, watchers, kept.clone()), clock, kept)
    }

    fn to_loading(flight: &Flight) {
        assert!(
            [Event::Validated, Event::Routed, Event::Admitted].into_iter().all(|event| flight.step(event))
        );
        flight.meant_for(&"m".into(), 1);
    }

    fn token() -> EngineEvent {
        EngineEvent::Token { id: TokenId(1), text: "x".into(), logprobs: None }
    }

    #[test]
    fn it_ends_exactly_once_and_only_the_current_attempt_speaks() {
        let (flight, clock, kept) = flight();
        to_loading(&flight);
        clock.advance(Duration::from_secs(2));
        assert_eq!(flight.heard(0, token()), Flow::Stop);
        assert_eq!(flight.heard(1, token()), Flow::Continue);
        assert_eq!(flight.phase(), Phase::Decoding);
        assert!(flight.context.has_started());
        let error = || Error::new(ErrorKind::Internal, "worker lost");
        assert!(flight.end(Event::GenerateFailed, End::Failed(error())));
        assert!(!flight.end(Event::CancelRequested, End::Cancelled));
        assert_eq!(flight.heard(1, token()), Flow::Stop);
        assert!(matches!(flight.next(), Some(EngineEvent::Token { .. })));
        let Some(EngineEvent::Failed { report, .. }) = flight.next() else { panic!("the last event") };
        assert_eq!(report.ttft(), Some(Duration::from_secs(2)));
        assert_eq!(report.error, Some((ErrorKind::Internal, "worker lost".into())));
        assert!(flight.next().is_none() && flight.next().is_none());
        assert_eq!(*kept.0.lock().unwrap(), [report]);
    }

    /// Counts the lines of a log.
    #[derive(Default)]
    struct Lines(AtomicUsize);
    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn an_illegal_step_changes_nothing_and_is_one_line_of_the_log() {
        use Event as E;
        let life = [E::Validated, E::Routed, E::Admitted, E::PrefillStarted, E::Token, E::Finished];
        let mut ways: Vec<&[Event]> = (0..=life.len()).map(|steps| &life[..steps]).collect();
        ways.extend([&[E::CancelRequested][..], &[E::Validated, E::NoRoute], &[E::Invalid]]);
        let mut reached = Vec::new();
        for way in ways {
            for event in Event::ALL {
                let (flight, ..) = flight();
                assert!(way.iter().all(|step| flight.step(*step)));
                let phase = flight.phase();
                reached.push(phase);
                if flight.lock().trace.state().step(event, flight.clock.now()).is_ok() {
                    continue;
                }
                let lines = Arc::new(Lines::default());
                tracing::subscriber::with_default(lines.clone(), || assert!(!flight.step(event)));
                assert_eq!((flight.phase(), lines.0.load(Ordering::SeqCst)), (phase, 1), "{event:?}");
            }
        }
        assert!(Phase::ALL.iter().all(|phase| reached.contains(phase)));
    }

    #[test]
    fn an_end_that_is_illegal_is_none() {
        let (flight, ..) = flight();
        assert!(!flight.end(Event::Finished, End::Cancelled));
        assert_eq!(flight.phase(), Phase::Validating);
    }

    #[test]
    fn a_consumer_that_does_not_read_pauses_its_model() {
        let (flight, ..) = flight();
        to_loading(&flight);
        let flows: Vec<_> = (0..UNREAD).map(|_| flight.heard(1, token())).collect();
        assert_eq!(flows.iter().position(|flow| *flow == Flow::Pause), Some(UNREAD - 1));
        assert!(!flight.has_room());
        for _ in 0..=UNREAD / 2 {
            flight.next();
        }
        assert!(flight.has_room());
    }
}
