//! The engine: one object that runs it all.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use orion_core::state::Event;
use orion_core::{
    CancelToken, Clock, Decision, Embedder, Error, ErrorKind, Health, ModelId, Refused, Result,
};
use orion_logging::LogHandle;
use orion_resilience::{Context, Deadline};

use crate::answer::{Answer, EngineEvent, Report};
use crate::builder::EngineBuilder;
use crate::flight::{Archive, End, Flight, Watchers};
use crate::guard::{Guardrail, InputLimits};
use crate::ledger::{Ledger, Outcomes};
use crate::predict::Foresight;
use crate::request::Request;
use crate::scheduler::route::Question;
use crate::scheduler::{Door, Drained, Message, Scheduler, end_anyhow, shutting_down};

pub use crate::scheduler::ModelStats;

/// Runs the models of a catalogue: picks who answers, brings it into memory, generates, survives what fails, and can
/// say afterwards what it did. Clones share one engine; it closes when the last handle and the last stream are gone.
///
/// Nothing here blocks on a model except what says so: requests are handed to the engine's own threads, and what
/// comes back are events.
///
/// ```no_run
/// use orion::{Engine, EngineEvent};
///
/// let engine = Engine::open("models.json")?;
/// for event in engine.stream("Why is the sky blue?") {
///     match event {
///         EngineEvent::Token { text, .. } => print!("{text}"),
///         EngineEvent::Failed { error, .. } => return Err(error),
///         _ => {}
///     }
/// }
/// # Ok::<(), orion::Error>(())
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) to: Sender<Message>,
    pub(crate) router: Sender<Question>,
    pub(crate) door: Arc<Door>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) watchers: Watchers,
    pub(crate) limits: InputLimits,
    pub(crate) guardrails: Arc<[Arc<dyn Guardrail>]>,
    pub(crate) most_waiting: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) log: Option<LogHandle>,
    pub(crate) health: Arc<dyn Fn(&ModelId) -> Health + Send + Sync>,
    pub(crate) catalog: Arc<dyn orion_core::Catalog>,
    pub(crate) embedder: Box<dyn Fn() -> Result<Arc<dyn Embedder>> + Send + Sync>,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A scheduler that has ended needs no telling.
        self.to.send(Message::Close).ok();
    }
}

/// What an engine holds and has done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Requests by how they ended, and their tokens.
    pub outcomes: Outcomes,
    /// Requests that wait for a place.
    pub waiting: usize,
    /// Every set of weights that was ever asked for.
    pub models: Vec<ModelStats>,
    /// Times a model left memory.
    pub evictions: u64,
    /// Bytes of the memory budget in use.
    pub memory_used: u64,
    /// Bytes of the memory budget.
    pub memory_limit: u64,
    /// How well loading ahead went, where it was asked for.
    pub foresight: Option<Foresight>,
}

impl Engine {
    /// An engine over the models of a registry file, with default settings.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`].
    pub fn open(registry: impl AsRef<Path>) -> Result<Self> {
        Self::builder().registry(registry.as_ref()).build()
    }

    /// An engine to be set up.
    #[must_use]
    pub fn builder() -> EngineBuilder {
        EngineBuilder::new()
    }

    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Answers a prompt. Blocks until the answer is whole.
    ///
    /// # Errors
    /// Why there is none. Ended by its flag, a request has an answer all the same: what there was, with
    /// [`FinishReason::Cancelled`](orion_core::FinishReason).
    pub fn infer(&self, prompt: impl Into<String>) -> Result<Answer> {
        self.infer_with(Request::new(prompt))
    }

    /// Answers a request. Blocks until the answer is whole.
    ///
    /// # Errors
    /// As [`infer`](Self::infer).
    pub fn infer_with(&self, request: Request) -> Result<Answer> {
        self.stream(request).answer()
    }

    /// Starts a request and returns at once. Whatever happens to it, being refused included, comes as an event.
    pub fn stream(&self, request: impl Into<Request>) -> AnswerStream {
        let request = request.into();
        let inner = &*self.0;
        let mut deadline = Deadline::never(inner.clock.clone());
        for time in [inner.timeout, request.timeout].into_iter().flatten() {
            deadline = deadline.within(time);
        }
        let context = Context::new(deadline);
        let archive: Arc<dyn Archive> = inner.ledger.clone();
        let flight = Flight::new(request, context, inner.clock.clone(), inner.watchers.clone(), archive);
        if let Err((event, error)) = inner.admit(&flight) {
            flight.end(event, End::Failed(error));
        } else {
            flight.step(Event::Validated);
            inner.door.waiting.fetch_add(1, Ordering::AcqRel);
            if inner.to.send(Message::Submit(flight.clone())).is_err() {
                end_anyhow(&flight, shutting_down);
            }
        }
        AnswerStream { flight, engine: self.clone(), over: false }
    }

    /// What the router would decide for a request now, without answering it. Blocks for as long as the router takes.
    ///
    /// # Errors
    /// The router's own; [`NotFound`](ErrorKind::NotFound) if no model can answer.
    pub fn route(&self, request: impl Into<Request>) -> Result<Decision> {
        let seen = self.ask(Scheduler::candidates)?;
        if seen.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "the catalogue holds no model that can answer"));
        }
        let (reply, decision) = bounded(1);
        let question = Question::Dry(Box::new(request.into()), seen, reply);
        self.0.router.send(question).map_err(|_| shutting_down())?;
        decision.recv().map_err(|_| shutting_down())?
    }

    /// Brings a model into memory. Blocks until all its weights are there.
    ///
    /// # Errors
    /// Why it cannot be had; [`OutOfMemory`](ErrorKind::OutOfMemory) with the figures if it is larger than the budget.
    pub fn preload(&self, model: impl Into<ModelId>) -> Result<()> {
        let (model, (reply, done)) = (model.into(), bounded(1));
        self.ask(move |scheduler| scheduler.preload(&model, reply))?;
        done.recv().map_err(|_| shutting_down())?
    }

    /// Sends a model out of memory as soon as nothing uses it. Blocks until it is gone.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if the catalogue does not know it.
    pub fn unload(&self, model: impl Into<ModelId>) -> Result<()> {
        let (model, (reply, done)) = (model.into(), bounded(1));
        self.ask(move |scheduler| scheduler.unload(&model, reply))??;
        done.recv().map_err(|_| shutting_down())
    }

    /// Turns texts into unit vectors with the catalogue's embedder. Blocks.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no embedder; its own.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        (self.0.embedder)()?.embed(texts)
    }

    /// What it holds and has done.
    ///
    /// # Errors
    /// [`Rejected`](ErrorKind::Rejected) once it is shut down.
    pub fn stats(&self) -> Result<EngineStats> {
        let (models, (evictions, memory_used, memory_limit), foresight) =
            self.ask(|scheduler| (scheduler.models(), scheduler.memory(), scheduler.foresight()))?;
        Ok(EngineStats {
            outcomes: self.0.ledger.outcomes(),
            waiting: self.0.door.waiting.load(Ordering::Acquire),
            models,
            evictions,
            memory_used,
            memory_limit,
            foresight,
        })
    }

    /// The health of every model of the catalogue, by its breakers.
    #[must_use]
    pub fn health(&self) -> Vec<(ModelId, Health)> {
        let specs = self.0.catalog.all();
        specs.iter().map(|spec| (spec.id.clone(), (self.0.health)(&spec.id))).collect()
    }

    /// The latest requests that ended, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Report> {
        self.0.ledger.recent()
    }

    /// Controls the logging that [`EngineBuilder::logging`] installed.
    #[must_use]
    pub fn log(&self) -> Option<&LogHandle> {
        self.0.log.as_ref()
    }

    /// Takes nothing more in, turns away who has no place yet, lets the others end for at most `time`, then cuts them off;
    /// everyone gets a last event. Then what was logged is written out. Blocks until then, at most a second longer than `time` and a
    /// second for each output of the log that is stuck.
    #[allow(clippy::must_use_candidate, reason = "done for what it does, not for what it says")]
    pub fn shutdown(&self, time: Duration) -> Drained {
        self.0.door.closed.store(true, Ordering::Release);
        let (reply, done) = bounded(1);
        let task = Message::Task(Box::new(move |scheduler| scheduler.close(time, Some(reply))));
        // An engine that is shut down already has nothing to drain.
        let drained = match self.0.to.send(task) {
            Ok(()) => done.recv().unwrap_or_default(),
            Err(_) => Drained::default(),
        };
        let threads = std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(target: "orion::engine", "a thread of the engine panicked");
            }
        }
        if let Some(log) = self.log() {
            // An output that is stuck keeps its lines to itself; nobody could be told through it.
            let _written = log.flush(Duration::from_secs(1));
        }
        drained
    }

    /// Has the scheduler look something up.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Scheduler) -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = bounded(1);
        let task = move |scheduler: &mut Scheduler| {
            reply.send(question(scheduler)).ok();
        };
        self.0.to.send(Message::Task(Box::new(task))).map_err(|_| shutting_down())?;
        answer.recv().map_err(|_| shutting_down())
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("outcomes", &self.0.ledger.outcomes()).finish_non_exhaustive()
    }
}

impl Inner {
    /// Whether a request may come in: on the caller's thread, so that a refusal costs nobody else anything.
    fn admit(&self, flight: &Flight) -> Result<(), (Event, Error)> {
        if self.door.closed.load(Ordering::Acquire) {
            return Err((Event::Refused, shutting_down()));
        }
        let request = &flight.request;
        self.limits.check(request).map_err(|error| (Event::Invalid, error))?;
        let look = || self.guardrails.iter().try_for_each(|guardrail| guardrail.input(request));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(look))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a guardrail panicked")))
            .map_err(|error| (Event::Invalid, error))?;
        let waiting = self.door.waiting.load(Ordering::Acquire);
        if waiting >= self.most_waiting {
            let message = format!("the queue is full: {waiting} requests wait");
            let refused = Refused { retry_after: Some(Duration::from_secs(1)) };
            return Err((Event::Refused, Error::new(ErrorKind::Rejected, message).with_source(refused)));
        }
        Ok(())
    }
}

/// The events of one request, in order; the last is [`EngineEvent::Done`] or [`EngineEvent::Failed`].
///
/// Dropping the stream cancels the request, wherever it is. A stream that is not read pauses its generation after a
/// while, and only its own.
#[must_use = "dropping the stream cancels the request"]
pub struct AnswerStream {
    flight: Arc<Flight>,
    /// Keeps the engine open for as long as the stream is.
    engine: Engine,
    over: bool,
}

impl AnswerStream {
    /// The request.
    #[must_use]
    pub fn id(&self) -> orion_core::RequestId {
        self.flight.id
    }

    /// Ends the request; what was generated until then comes in the last event.
    pub fn cancel(&self) {
        self.flight.context.cancel().cancel();
        // A scheduler that has ended has ended the request, too.
        self.engine.0.to.send(Message::Cancel(self.flight.clone())).ok();
    }

    /// The flag that ends the request, to be set from elsewhere.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.flight.context.cancel().clone()
    }

    /// The next event if it is there now.
    pub fn try_next(&mut self) -> Option<EngineEvent> {
        let event = self.flight.try_next();
        self.note(event)
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn answer(mut self) -> Result<Answer> {
        for event in &mut self {
            match event {
                EngineEvent::Done(answer) => return Ok(answer),
                EngineEvent::Failed { error, .. } => return Err(error),
                _ => {}
            }
        }
        Err(read_to_its_end())
    }

    fn note(&mut self, event: Option<EngineEvent>) -> Option<EngineEvent> {
        self.over |= event.as_ref().is_some_and(EngineEvent::is_last);
        event
    }
}

fn read_to_its_end() -> Error {
    Error::new(ErrorKind::Internal, "the stream had been read to its end")
}

impl Iterator for AnswerStream {
    type Item = EngineEvent;

    fn next(&mut self) -> Option<EngineEvent> {
        let event = self.flight.next();
        self.note(event)
    }
}

#[cfg(feature = "async")]
impl futures_core::Stream for AnswerStream {
    type Item = EngineEvent;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<EngineEvent>> {
        match self.flight.poll(context.waker()) {
            Some(event) => std::task::Poll::Ready(self.note(event)),
            None => std::task::Poll::Pending,
        }
    }
}

/// The whole answer of a stream, awaited; dropping it cancels the request.
///
/// ```no_run
/// # async fn ask(engine: orion::Engine) -> orion::Result<()> {
/// let answer = engine.stream("Why is the sky blue?").await?;
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "async")]
#[derive(Debug)]
pub struct AnswerFuture(AnswerStream);

#[cfg(feature = "async")]
impl Future for AnswerFuture {
    type Output = Result<Answer>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let this = &mut self.0;
        while let Some(event) = this.flight.poll(context.waker()) {
            match this.note(event) {
                Some(EngineEvent::Done(answer)) => return std::task::Poll::Ready(Ok(answer)),
                Some(EngineEvent::Failed { error, .. }) => return std::task::Poll::Ready(Err(error)),
                Some(_) => {}
                None => return std::task::Poll::Ready(Err(read_to_its_end())),
            }
        }
        std::task::Poll::Pending
    }
}

#[cfg(feature = "async")]
impl IntoFuture for AnswerStream {
    type Output = Result<Answer>;
    type IntoFuture = AnswerFuture;

    fn into_future(self) -> AnswerFuture {
        AnswerFuture(self)
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
        }
    }
}

impl std::fmt::Debug for AnswerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerStream").field("request", &self.flight.id).finish_non_exhaustive()
    }
}
