//! The model's end of a request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;
use orion_core::{Clock, Error, ErrorKind, Flow, GenerationEvent, Result, TokenSink};

use super::{Job, Message};
use crate::answer::EngineEvent;
use crate::flight::Flight;
use crate::guard::Guardrail;

/// A sign of life of a model's worker.
#[derive(Default)]
pub(crate) struct Pulse {
    nanos: AtomicU64,
    paused: AtomicUsize,
}

impl Pulse {
    pub(crate) fn beat(&self, clock: &dyn Clock) {
        let nanos = u64::try_from(clock.now().0.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_max(nanos, Ordering::AcqRel);
    }

    /// Time since the last sign.
    pub(crate) fn silence(&self, clock: &dyn Clock) -> Duration {
        clock.now().0.saturating_sub(Duration::from_nanos(self.nanos.load(Ordering::Acquire)))
    }

    /// Jobs that wait for their consumers.
    pub(crate) fn paused(&self) -> usize {
        self.paused.load(Ordering::Acquire)
    }
}

pub(crate) struct Sink {
    pub(crate) flight: Arc<Flight>,
    pub(crate) job: Job,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) guardrails: Arc<[Arc<dyn Guardrail>]>,
    pub(crate) to: Sender<Message>,
    /// The answer so far, for the guardrails.
    text: String,
    violation: Option<Error>,
    paused: bool,
    ended: bool,
}

impl Sink {
    pub(crate) fn new(
        flight: Arc<Flight>,
        job: Job,
        pulse: Arc<Pulse>,
        clock: Arc<dyn Clock>,
        guardrails: Arc<[Arc<dyn Guardrail>]>,
        to: Sender<Message>,
    ) -> Self {
        let (text, violation, paused, ended) = (String::new(), None, false, false);
        Self { flight, job, pulse, clock, guardrails, to, text, violation, paused, ended }
    }

    fn pass(&mut self, event: EngineEvent) -> Flow {
        let flow = self.flight.heard(self.job.attempt, event);
        if flow == Flow::Pause && !self.paused {
            self.paused = true;
            self.pulse.paused.fetch_add(1, Ordering::AcqRel);
        }
        flow
    }

    fn unpause(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.pulse.paused.fetch_sub(1, Ordering::AcqRel);
            self.pulse.beat(&*self.clock);
        }
    }

    fn check(&mut self, piece: &str) -> Result<()> {
        if !self.guardrails.is_empty() {
            self.text += piece;
        }
        let look = || self.guardrails.iter().try_for_each(|guardrail| guardrail.output(&self.text, piece));
        // This is the worker's thread: a panic here would take every request of the model along.
        catch_unwind(AssertUnwindSafe(look))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a guardrail panicked")))
    }

    fn end(&mut self, result: Result<orion_core::Completion>) {
        self.ended = true;
        self.unpause();
        let result = match self.violation.take() {
            Some(violation) => Err(violation),
            None => result,
        };
        self.to.send(Message::Ended { job: self.job.clone(), result }).ok();
    }
}

impl TokenSink for Sink {
    fn event(&mut self, event: GenerationEvent) -> Flow {
        self.pulse.beat(&*self.clock);
        match event {
            GenerationEvent::Started { prompt_tokens, cached_tokens } => {
                self.pass(EngineEvent::Prefill { done: cached_tokens, total: prompt_tokens })
            }
            GenerationEvent::Prefill { done, total } => self.pass(EngineEvent::Prefill { done, total }),
            GenerationEvent::Token { id, text, logprobs } => match self.check(&text) {
                Ok(()) => self.pass(EngineEvent::Token { id, text, logprobs }),
                Err(error) => {
                    self.violation = Some(error);
                    Flow::Stop
                }
            },
            GenerationEvent::Done(completion) => {
                self.end(Ok(completion));
                Flow::Stop
            }
            GenerationEvent::Failed(error) => {
                self.end(Err(error));
                Flow::Stop
            }
            _ => Flow::Continue,
        }
    }

    fn ready(&mut self) -> bool {
        let ready = self.flight.has_room() || !self.flight.hears(self.job.attempt);
        if ready {
            self.unpause();
        }
        ready
    }
}

/// A model that drops a request has ended it.
impl Drop for Sink {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Err(Error::new(ErrorKind::Internal, "the model gave the request up without a word")));
        }
    }
}
