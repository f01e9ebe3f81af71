//! The scheduler: one thread that owns all requests and all residency, and does nothing that takes time.
//!
//! Everything that happens comes to it as a [`Message`]; whatever takes time (routing, opening and loading weights,
//! generating, letting go of memory) runs elsewhere and reports back. So no lock guards any of this, and a request can
//! end only once.

mod ahead;
pub(crate) mod load;
mod residency;
pub(crate) mod route;
mod sink;
pub(crate) mod slot;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use orion_core::state::{Event, Phase, Residency};
use orion_core::{
    Catalog, Clock, Completion, Decision, Error, ErrorKind, FinishReason, Gate, Health, MemoryBudget,
    ModelId, ModelSpec, Operation, Outcome, Permit, Ranked, Refused, RequestId, Reservation, Result, Runtime,
    Timestamp,
};
use orion_loader::Prefetch;
use orion_resilience::{
    FallbackLimits, FallbackWalk, QueueSettings, Receipt, RetryBudget, RetryPolicy, Submission, Ticket,
    classify,
};

use self::load::{Loaded, Prefetches, Sources};
pub use self::residency::ModelStats;
use self::route::{Question, Seen};
use self::sink::Sink;
use self::slot::{Key, Slot, key_of};
use crate::answer::EngineEvent;
use crate::flight::{End, Flight};
use crate::guard::Guardrail;
use crate::predict::Predictor;

/// How often flags and deadlines are looked at while requests run.
const TICK: Duration = Duration::from_millis(20);
/// How long the files behind a model are believed to be as they were.
const KEY_AGE: Duration = Duration::from_secs(1);

/// What happens.
pub(crate) enum Message {
    /// A request was accepted.
    Submit(Arc<Flight>),
    /// The router answered.
    Routed { flight: Arc<Flight>, result: Result<Decision> },
    /// A request's flag was set.
    Cancel(Arc<Flight>),
    /// The header of weights is read; they need so many bytes.
    Opened { key: Key, generation: u64, bytes: u64, reply: Sender<Result<Reservation>> },
    /// More weights are there.
    Progress { key: Key, generation: u64 },
    /// All weights are there.
    Arrived { key: Key, generation: u64, took: Duration },
    /// A load ended; with some runtimes weights still arrive.
    Loaded { key: Key, generation: u64, result: Result<Loaded> },
    /// A model has let go of a request.
    Ended { job: Job, result: Result<Completion> },
    /// The memory of a model is back.
    Unloaded { key: Key },
    /// Someone asks.
    Task(Box<dyn FnOnce(&mut Scheduler) + Send>),
    /// No handle is left.
    Close,
}

/// A request with a model.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) request: RequestId,
    pub(crate) attempt: u32,
    pub(crate) key: Key,
    pub(crate) generation: u64,
}

/// What the engine was built with.
pub(crate) struct Settings {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) sources: Sources,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) health: Arc<dyn Fn(&ModelId) -> Health + Send + Sync>,
    pub(crate) default_model: Arc<dyn Fn() -> Option<ModelId> + Send + Sync>,
    pub(crate) memory: MemoryBudget,
    pub(crate) parallel: usize,
    pub(crate) queue: QueueSettings,
    pub(crate) retry: RetryPolicy,
    pub(crate) fallback: FallbackLimits,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) patience: Duration,
    pub(crate) stall: Duration,
    pub(crate) guardrails: Arc<[Arc<dyn Guardrail>]>,
    /// Foretells which model comes next, and where it keeps what it has learned.
    pub(crate) predictor: Option<Predictor>,
    pub(crate) habits: Option<PathBuf>,
    /// Not where the program opens weights itself.
    pub(crate) prefetches: Option<Prefetches>,
}

/// What callers read without asking the scheduler.
#[derive(Default)]
pub(crate) struct Door {
    /// Requests that have no place yet.
    pub(crate) waiting: AtomicUsize,
    pub(crate) closed: AtomicBool,
}

/// A request the scheduler knows.
struct Active {
    flight: Arc<Flight>,
    walk: Option<FallbackWalk>,
    /// Models in its chain.
    models: usize,
    spec: Option<Arc<ModelSpec>>,
    key: Option<Key>,
    attempt: u32,
    ticket: Option<Ticket<RequestId>>,
    receipt: Option<Receipt<RequestId>>,
    permit: Option<(Box<dyn Permit>, Timestamp)>,
    waiting: bool,
    deputy: Deputy,
}

/// Whether a first responder speaks for the chosen model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deputy {
    /// If the model is not there.
    MaySpeak,
    Speaks,
    /// It could not: the model is waited for.
    Failed,
}

/// The engine is closing.
struct Closing {
    until: Instant,
    aborted: bool,
    outcome: Drained,
    reply: Option<Sender<Drained>>,
}

/// What became of the requests of an engine that was shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Drained {
    /// Had no place yet and were turned away.
    pub rejected: usize,
    /// Ran, and ended in their own time.
    pub finished: usize,
    /// Ran, and were cut off when the time was up; what they had is in their answers.
    pub aborted: usize,
}

pub(crate) struct Scheduler {
    settings: Settings,
    door: Arc<Door>,
    to: Sender<Message>,
    messages: Receiver<Message>,
    router: Sender<Question>,
    retries: Arc<RetryBudget>,
    active: HashMap<RequestId, Active>,
    slots: BTreeMap<Key, Slot>,
    keys: HashMap<ModelId, (Arc<ModelSpec>, Key, Timestamp)>,
    evictions: u64,
    /// Bytes that were loaded ahead and left unused.
    wasted: u64,
    /// The model whose files were last read ahead.
    warmed: Option<(Key, Prefetch)>,
    /// A request has ended, or what was foretold is there, since the next model was last foretold.
    rested: bool,
    looked: Instant,
    closing: Option<Closing>,
    closed: bool,
}

impl Scheduler {
    pub(crate) fn new(
        settings: Settings,
        door: Arc<Door>,
        to: Sender<Message>,
        messages: Receiver<Message>,
        router: Sender<Question>,
    ) -> Self {
        Self {
            settings,
            door,
            to,
            messages,
            router,
            retries: Arc::default(),
            active: HashMap::new(),
            slots: BTreeMap::new(),
            keys: HashMap::new(),
            evictions: 0,
            wasted: 0,
            warmed: None,
            rested: false,
            looked: Instant::now(),
            closing: None,
            closed: false,
        }
    }

    /// Works until the engine is closed.
    pub(crate) fn run(mut self) {
        while !self.closed {
            let message = match self.rest() {
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(time) => self.messages.recv_timeout(time),
            };
            // A defect in here must not leave everyone waiting.
            let work = AssertUnwindSafe(|| {
                if let Ok(message) = message {
                    self.handle(message);
                }
                while let Ok(message) = self.messages.try_recv() {
                    self.handle(message);
                }
                if self.looked.elapsed() >= TICK {
                    self.looked = Instant::now();
                    self.look();
                }
                self.pump();
            });
            if let Err(panic) = catch_unwind(work) {
                let panic = load::text(&*panic);
                tracing::error!(target: "orion::engine", %panic, "the scheduler caught a panic");
            }
        }
    }

    /// How long nothing need be looked at.
    fn rest(&self) -> Option<Duration> {
        if !self.active.is_empty() || self.closing.is_some() {
            return Some(TICK);
        }
        let resident = self.slots.values().any(|slot| slot.model.is_some());
        resident.then_some(Duration::from_millis(500))
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Submit(flight) => self.submit(flight),
            Message::Routed { flight, result } => self.routed(&flight, result),
            Message::Cancel(flight) => self.cancel(flight.id),
            Message::Opened { key, generation, bytes, reply } => self.opened(&key, generation, bytes, reply),
            Message::Progress { key, generation } => self.progress(&key, generation),
            Message::Arrived { key, generation, took } => self.arrived(&key, generation, took),
            Message::Loaded { key, generation, result } => self.loaded(&key, generation, result),
            Message::Ended { job, result } => self.ended(&job, result),
            Message::Unloaded { key } => self.unloaded(&key),
            Message::Task(task) => task(self),
            Message::Close => self.close(Duration::ZERO, None),
        }
    }

    fn now(&self) -> Timestamp {
        self.settings.clock.now()
    }

    // --- a request comes in ---

    fn submit(&mut self, flight: Arc<Flight>) {
        let id = flight.id;
        let forced = flight.request.model.clone();
        let active = Active {
            flight: flight.clone(),
            walk: None,
            models: 0,
            spec: None,
            key: None,
            attempt: 0,
            ticket: None,
            receipt: None,
            permit: None,
            waiting: true,
            deputy: Deputy::MaySpeak,
        };
        self.active.insert(id, active);
        if self.closing.is_some() {
            return self.finish(id, Event::Refused, End::Failed(shutting_down()));
        }
        if flight.is_cancelled() || flight.context.deadline().is_over() {
            return self.over_already(id);
        }
        if let Some(model) = forced {
            return self.choose(id, &model, None);
        }
        let seen = self.candidates();
        match &seen[..] {
            [] => {
                let error = Error::new(ErrorKind::NotFound, "the catalogue holds no model that can answer");
                self.finish(id, Event::NoRoute, End::Failed(error));
            }
            [only] => {
                let model = only.spec.id.clone();
                let ranked = vec![Ranked { model: model.clone(), score: 1.0 }];
                let decision = Decision::new(ranked, 1.0, false, "it is the only model", "only");
                self.choose(id, &model, Some(decision));
            }
            _ => {
                if self.router.send(Question::Flight(flight, seen)).is_err() {
                    let error = Error::new(ErrorKind::Internal, "the router's thread has ended");
                    self.finish(id, Event::NoRoute, End::Failed(error));
                }
            }
        }
    }

    /// The models a router may choose from, as they are now.
    pub(crate) fn candidates(&mut self) -> Vec<Seen> {
        let specs = self.settings.catalog.all();
        let generative = |spec: &ModelSpec| {
            spec.capabilities.is_empty() || spec.capabilities.iter().any(|it| it != "embedding")
        };
        specs
            .into_iter()
            .filter(|spec| generative(spec))
            .map(|spec| {
                let key = self.key(&spec);
                let health = (self.settings.health)(&spec.id);
                let (residency, switch_cost) = match self.slots.get(&key) {
                    Some(slot) if slot.model.is_some() => (slot.state, Duration::ZERO),
                    Some(slot) => (slot.state, load::expected(slot.took, spec.weight_bytes)),
                    None => (Residency::Absent, load::expected(None, spec.weight_bytes)),
                };
                Seen { spec, residency, health, switch_cost }
            })
            .collect()
    }

    fn key(&mut self, spec: &Arc<ModelSpec>) -> Key {
        let now = self.now();
        if let Some((known, key, at)) = self.keys.get(&spec.id)
            && Arc::ptr_eq(known, spec)
            && now.since(*at) < KEY_AGE
        {
            return key.clone();
        }
        let key = key_of(spec);
        self.keys.insert(spec.id.clone(), (spec.clone(), key.clone(), now));
        key
    }

    fn routed(&mut self, flight: &Arc<Flight>, result: Result<Decision>) {
        let id = flight.id;
        if !self.active.contains_key(&id) || flight.phase() != Phase::Routing {
            return;
        }
        let default = (self.settings.default_model)();
        match result {
            Ok(decision) => {
                let first = || decision.ranked.first().map(|ranked| ranked.model.clone());
                match decision.chosen().cloned().or(default).or_else(first) {
                    Some(model) => self.choose(id, &model, Some(decision)),
                    None => {
                        let error = Error::new(ErrorKind::NotFound, "the router knows no model");
                        self.finish(id, Event::NoRoute, End::Failed(error));
                    }
                }
            }
            Err(error) => match default {
                Some(model) => {
                    tracing::warn!(target: "orion::engine", %error, %model, "the default answers");
                    let ranked = vec![Ranked { model: model.clone(), score: 0.0 }];
                    let reason = format!("the router failed: {error}");
                    self.choose(id, &model, Some(Decision::new(ranked, 0.0, true, reason, "default")));
                }
                None => self.finish(id, Event::NoRoute, End::Failed(error.about("router"))),
            },
        }
    }

    /// The request is for `model`, and for its chain when that fails.
    fn choose(&mut self, id: RequestId, model: &ModelId, decision: Option<Decision>) {
        let catalog = self.settings.catalog.clone();
        let Some(spec) = catalog.get(model) else {
            let error = Error::new(ErrorKind::NotFound, "no model of that name in the catalogue");
            return self.finish(id, Event::NoRoute, End::Failed(error.about(format!("model {model}"))));
        };
        let Some(active) = self.active.get_mut(&id) else { return };
        let flight = active.flight.clone();
        let mut chain = vec![spec.id.clone()];
        if flight.request.fallback {
            let default = (self.settings.default_model)();
            for next in spec.fallback.iter().chain(&default) {
                if let Some(next) = catalog.get(next)
                    && !chain.contains(&next.id)
                {
                    chain.push(next.id.clone());
                }
            }
        }
        active.models = chain.len();
        match FallbackWalk::new(chain, self.settings.fallback, &flight.context) {
            Ok(walk) => active.walk = Some(walk),
            Err(error) => return self.finish(id, Event::NoRoute, End::Failed(error)),
        }
        self.learn(&spec.id);
        let Some(active) = self.active.get(&id) else { return };
        let flight = active.flight.clone();
        let decision = decision.map(Arc::new);
        let (confidence, reason) = match &decision {
            Some(decision) => (decision.confidence, decision.reason.clone()),
            None => (1.0, "the caller chose it".to_owned()),
        };
        flight.decided(decision);
        flight.meant_for(&spec.id, 0);
        flight.tell(EngineEvent::Routed { model: spec.id.clone(), confidence, reason });
        if flight.step(Event::Routed) {
            self.enqueue(id);
        }
    }

    /// Puts the request into the queue of the model its walk is at.
    fn enqueue(&mut self, id: RequestId) {
        let Some(model) =
            self.active.get(&id).and_then(|it| it.walk.as_ref()).map(|walk| walk.model().clone())
        else {
            return;
        };
        let Some(spec) = self.settings.catalog.get(&model) else {
            let error = Error::new(ErrorKind::NotFound, "the model has left the catalogue");
            return self.hop(id, error.about(format!("model {model}")));
        };
        let spec = self.speaker(id, spec);
        let model = spec.id.clone();
        let key = self.key(&spec);
        self.slot(&key, &spec);
        let (Some(slot), Some(active)) = (self.slots.get(&key), self.active.get_mut(&id)) else { return };
        active.attempt += 1;
        active.spec = Some(spec);
        active.key = Some(key);
        if !std::mem::replace(&mut active.waiting, true) {
            self.door.waiting.fetch_add(1, Ordering::AcqRel);
        }
        let flight = active.flight.clone();
        flight.meant_for(&model, active.attempt);
        let request = &flight.request;
        let submission =
            Submission::new(id).caller(request.caller).priority(request.priority).tokens(request.work());
        match slot.queue.submit(submission) {
            Ok(ticket) => {
                let position = ticket.position().unwrap_or(0);
                active.ticket = Some(ticket);
                flight.tell(EngineEvent::Queued { position });
            }
            Err(refused) => self.hop(id, Error::from(refused).about(format!("model {model}"))),
        }
    }

    /// The model itself, or its first responder while its own weights are not there; they are brought in meanwhile.
    fn speaker(&mut self, id: RequestId, spec: Arc<ModelSpec>) -> Arc<ModelSpec> {
        let small = spec.first_responder.as_ref().and_then(|small| self.settings.catalog.get(small));
        let Some(small) = small else { return spec };
        let key = self.key(&spec);
        if self.key(&small) == key || self.slots.get(&key).is_some_and(Slot::is_here) {
            return spec;
        }
        let Some(active) = self.active.get_mut(&id).filter(|active| active.deputy != Deputy::Failed) else {
            return spec;
        };
        active.deputy = Deputy::Speaks;
        active
            .flight
            .tell(EngineEvent::FirstResponder { model: small.id.clone(), instead_of: spec.id.clone() });
        let slot = self.slot(&key, &spec);
        if matches!(slot.state, Residency::Absent | Residency::Failed) {
            self.begin(&key);
        }
        small
    }

    /// The slot of these weights, used by `spec` now.
    fn slot(&mut self, key: &Key, spec: &Arc<ModelSpec>) -> &mut Slot {
        let (now, settings) = (self.now(), &self.settings);
        let slot = self.slots.entry(key.clone()).or_insert_with(|| {
            Slot::new(key.clone(), spec.clone(), settings.queue.clone(), settings.clock.clone())
        });
        slot.spec = spec.clone();
        slot.pinned |= spec.pinned;
        slot.used(now);
        slot.foretold = false;
        slot
    }

    // --- a request gets its place ---

    /// Gives places to those who wait, and has models brought in for those who have none.
    fn pump(&mut self) {
        let keys: Vec<Key> = self.slots.keys().cloned().collect();
        for key in &keys {
            self.serve(key);
        }
        self.grant();
        if self.active.is_empty() && std::mem::take(&mut self.rested) && self.closing.is_none() {
            self.look_ahead();
        }
        orion_logging::metric::queue_depth(self.door.waiting.load(Ordering::Acquire));
    }

    fn serve(&mut self, key: &Key) {
        loop {
            let Some(slot) = self.slots.get_mut(key) else { return };
            if slot.yielding || slot.jobs.len() + slot.admitted.len() >= self.settings.parallel {
                return;
            }
            let serves = slot.state.accepts_work() || slot.is_arriving();
            let asleep = matches!(slot.state, Residency::Absent | Residency::Failed);
            if !serves && !asleep {
                return;
            }
            if asleep && slot.queue.statistics().queued > 0 {
                self.begin(key);
                continue;
            }
            let Some(work) = slot.queue.try_next() else { return };
            let (id, receipt) = work.split();
            match self.active.get_mut(&id) {
                Some(active) => {
                    active.receipt = Some(receipt);
                    active.ticket = None;
                    self.start(id, key);
                }
                None => receipt.fail(shutting_down()),
            }
        }
    }

    /// The request has its place: with the model, or before its door.
    fn start(&mut self, id: RequestId, key: &Key) {
        let Some(active) = self.active.get_mut(&id) else { return };
        if active.flight.is_cancelled() || active.flight.context.deadline().is_over() {
            return self.over_already(id);
        }
        let resident = self.slots.get(key).is_some_and(|slot| slot.model.is_some());
        if resident && let Err(error) = self.permit(id) {
            return self.hop(id, error);
        }
        let Some(active) = self.active.get_mut(&id) else { return };
        if !active.flight.step(Event::Admitted) {
            return;
        }
        self.placed(id);
        if resident {
            self.give(id, key);
        } else if let Some(slot) = self.slots.get_mut(key) {
            slot.admitted.push(id);
            let (done, total) = slot.arrival.as_ref().map_or((0, 0), |arrival| arrival.progress());
            if let Some(active) = self.active.get(&id)
                && let Some(spec) = &active.spec
            {
                active.flight.tell(EngineEvent::Loading { model: spec.id.clone(), done, total });
            }
        }
    }

    fn placed(&mut self, id: RequestId) {
        if let Some(active) = self.active.get_mut(&id)
            && std::mem::take(&mut active.waiting)
        {
            self.door.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Asks whether the request's model may be called.
    fn permit(&mut self, id: RequestId) -> Result<()> {
        let now = self.now();
        let Some(active) = self.active.get_mut(&id) else { return Ok(()) };
        let Some(spec) = &active.spec else { return Ok(()) };
        let permit = self
            .settings
            .gate
            .acquire(&spec.id, Operation::Generate)
            .map_err(|refused| Error::from(refused).about(format!("model {}", spec.id)))?;
        active.permit = Some((permit, now));
        Ok(())
    }

    /// Hands the request to the model.
    fn give(&mut self, id: RequestId, key: &Key) {
        let now = self.now();
        let (Some(active), Some(slot)) = (self.active.get(&id), self.slots.get_mut(key)) else { return };
        let (Some(spec), Some(model)) = (active.spec.clone(), slot.model.clone()) else { return };
        let job = Job { request: id, attempt: active.attempt, key: key.clone(), generation: slot.generation };
        let flight = active.flight.clone();
        let sink = Sink::new(
            flight.clone(),
            job,
            slot.pulse.clone(),
            self.settings.clock.clone(),
            self.settings.guardrails.clone(),
            self.to.clone(),
        );
        let mut work = orion_core::Job::new(flight.request.generation(&spec), sink)
            .cancelled_by(flight.context.cancel().clone());
        work.request = id;
        if slot.jobs.is_empty() {
            slot.step(orion_core::state::ResidencyEvent::Leased);
            slot.pulse.beat(&*self.settings.clock);
        }
        slot.jobs.insert((id, active.attempt));
        slot.used(now);
        let submitted = catch_unwind(AssertUnwindSafe(|| model.submit(work)))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the model panicked")));
        if let Err(error) = submitted {
            // The sink says so, too, as it is dropped; this knows better why.
            self.take_back(key, id);
            let lost = error.kind() == ErrorKind::Internal;
            self.settle(id, classify(&error));
            self.hop(id, error.about(format!("model {}", spec.id)));
            if lost {
                self.lost(key, "its worker has ended");
            }
        }
    }

    /// The model no longer has the request.
    fn take_back(&mut self, key: &Key, id: RequestId) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.jobs.retain(|(request, _)| *request != id);
        self.rested(key);
    }

    fn settle(&mut self, id: RequestId, outcome: Outcome) {
        let now = self.now();
        if let Some(active) = self.active.get_mut(&id)
            && let Some((permit, since)) = active.permit.take()
        {
            permit.settle(outcome, now.since(since));
        }
    }

    // --- a request goes on, or ends ---

    fn ended(&mut self, job: &Job, result: Result<Completion>) {
        let id = job.request;
        let mut broken = None;
        let mut current = false;
        if let Some(slot) = self.slots.get_mut(&job.key)
            && slot.generation == job.generation
        {
            current = slot.jobs.remove(&(id, job.attempt));
            if let Some(arrival) = &slot.arrival {
                broken = arrival.failure();
                if result.as_ref().is_ok_and(|completion| completion.reason != FinishReason::Cancelled) {
                    arrival.complete();
                }
            }
        }
        if current {
            self.rested(&job.key);
        }
        let known = self.active.get(&id).is_some_and(|active| active.attempt == job.attempt);
        if known && current {
            match result {
                Ok(completion) => {
                    let cancelled = completion.reason == FinishReason::Cancelled;
                    self.settle(id, if cancelled { Outcome::Ignored } else { Outcome::Success });
                    let event = if cancelled { Event::CancelRequested } else { Event::Finished };
                    self.finish(id, event, End::Answered(completion));
                }
                Err(error) => {
                    let outcome = if broken.is_some() { Outcome::Ignored } else { classify(&error) };
                    self.settle(id, outcome);
                    self.hop(id, error);
                }
            }
        }
        if let Some(error) = broken {
            self.broke(&job.key, &error);
        }
    }

    /// The request's model failed: the next takes over, if there may be one.
    fn hop(&mut self, id: RequestId, error: Error) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let flight = active.flight.clone();
        let phase = flight.phase();
        let last = match phase {
            Phase::Routing => Event::NoRoute,
            Phase::Admitting => Event::Refused,
            Phase::Loading => Event::LoadFailed,
            _ => Event::GenerateFailed,
        };
        if active.deputy == Deputy::Speaks && phase != Phase::Decoding {
            active.deputy = Deputy::Failed;
            let (from, to) = match (&active.spec, &active.walk) {
                (Some(small), Some(walk)) => (small.id.clone(), walk.model().clone()),
                _ => return self.finish(id, last, End::Failed(error)),
            };
            let error = error.to_string();
            self.release(id, Some(&error));
            if flight.step(Event::FellBack) {
                flight.tell(EngineEvent::Fallback { from, to, error });
                self.enqueue(id);
            }
            return;
        }
        let Some(walk) = active.walk.as_mut().filter(|_| phase != Phase::Decoding && active.models > 1)
        else {
            return self.finish(id, last, End::Failed(error));
        };
        let (from, text) = (walk.model().clone(), error.to_string());
        match walk.failed(error) {
            Ok(()) => {
                let to = walk.model().clone();
                self.release(id, Some(&text));
                if flight.step(Event::FellBack) {
                    tracing::info!(target: "orion::engine", request = %id, %from, %to, error = %text, "falling back");
                    flight.tell(EngineEvent::Fallback { from, to, error: text });
                    self.enqueue(id);
                }
            }
            Err(error) => self.finish(id, last, End::Failed(error)),
        }
    }

    /// Gives back what the request holds of the model it was meant for.
    fn release(&mut self, id: RequestId, failed: Option<&str>) {
        self.settle(id, Outcome::Ignored);
        let Some(active) = self.active.get_mut(&id) else { return };
        if let Some(ticket) = active.ticket.take() {
            ticket.cancel();
        }
        if let Some(receipt) = active.receipt.take() {
            match failed {
                None => receipt.complete(()),
                Some(error) => receipt.fail(Error::new(ErrorKind::Internal, error)),
            }
        }
        if let Some(slot) = active.key.as_ref().and_then(|key| self.slots.get_mut(key)) {
            slot.admitted.retain(|admitted| *admitted != id);
        }
    }

    /// Ends the request. What a model still does for it ends, too, and is not heard any more.
    fn finish(&mut self, id: RequestId, event: Event, end: End) {
        self.placed(id);
        match &end {
            End::Answered(_) => self.release(id, None),
            End::Cancelled => self.release(id, Some("cancelled")),
            End::Failed(error) => self.release(id, Some(&error.to_string())),
        }
        let Some(active) = self.active.remove(&id) else { return };
        self.rested = true;
        if !active.flight.end(event, end) {
            let error = Error::new(ErrorKind::Internal, "the request could not end as it should");
            active.flight.end(Event::Refused, End::Failed(error));
        }
        active.flight.context.cancel().cancel();
        if let Some(closing) = &mut self.closing {
            match event {
                Event::Refused => closing.outcome.rejected += 1,
                Event::CancelRequested if closing.aborted => closing.outcome.aborted += 1,
                _ => closing.outcome.finished += 1,
            }
        }
    }

    /// The caller wants no more. A model that has the request ends it at its next step and tells what it had.
    fn cancel(&mut self, id: RequestId) {
        let Some(active) = self.active.get(&id) else { return };
        if !matches!(active.flight.phase(), Phase::Prefilling | Phase::Decoding) {
            self.finish(id, Event::CancelRequested, End::Cancelled);
        }
    }

    /// The request was over before anything was done for it.
    fn over_already(&mut self, id: RequestId) {
        match self.active.get(&id).is_some_and(|active| active.flight.is_cancelled()) {
            true => self.cancel(id),
            false => self.expire(id),
        }
    }

    fn expire(&mut self, id: RequestId) {
        let Some(active) = self.active.get(&id) else { return };
        let phase = active.flight.phase();
        if matches!(phase, Phase::Prefilling | Phase::Decoding) {
            self.settle(id, Outcome::Failure);
        }
        let message = format!("the deadline passed while the request was {phase:?}").to_lowercase();
        let error = Error::new(ErrorKind::DeadlineExceeded, message);
        self.finish(id, Event::DeadlinePassed, End::Failed(error));
    }
}

pub(crate) fn shutting_down() -> Error {
    Error::new(ErrorKind::Rejected, "the engine is shutting down")
}

/// An error for each of several who are told the same.
fn copy(error: &Error) -> Error {
    let copied = Error::new(error.kind(), error.to_string());
    match error.retry_after() {
        Some(wait) => copied.with_source(Refused { retry_after: Some(wait) }),
        None => copied,
    }
}

/// Whoever still waits is told, whatever ended the scheduler.
impl Drop for Scheduler {
    fn drop(&mut self) {
        let error = || Error::new(ErrorKind::Internal, "the engine has ended");
        for (_, active) in self.active.drain() {
            end_anyhow(&active.flight, error);
        }
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Submit(flight) = message {
                end_anyhow(&flight, shutting_down);
            }
        }
    }
}

/// Ends a request in whichever way its phase allows.
pub(crate) fn end_anyhow(flight: &Flight, error: impl Fn() -> Error) {
    let event = match flight.phase() {
        Phase::Validating | Phase::Routing | Phase::Admitting => Event::Refused,
        Phase::Loading => Event::LoadFailed,
        _ => Event::GenerateFailed,
    };
    flight.end(event, End::Failed(error()));
    flight.context.cancel().cancel();
}
