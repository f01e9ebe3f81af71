//! Bringing weights into memory, off the scheduler's thread: permission, retries, progress, and who is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use orion_core::{
    CancelToken, Clock, Digest, Error, ErrorKind, MetaValue, Model, ModelHeader, ModelSpec, Outcome, Permit,
    Reservation, Result, Runtime, TensorBytes, Timestamp, WeightSource,
};
use orion_loader::Prefetch;
use orion_resilience::{Context, Deadline, RetryBudget, RetryPolicy, Sleep, ThreadSleep, classify};
use sha2::{Digest as _, Sha256};

use super::{Key, Message};

/// Opens the weights of a model.
pub(crate) type Sources = Arc<dyn Fn(&ModelSpec) -> Result<Arc<dyn WeightSource>> + Send + Sync>;
/// Has the files of a model read, or fetched, in the background.
pub(crate) type Prefetches = Arc<dyn Fn(&ModelSpec) -> Result<Prefetch> + Send + Sync>;

/// One attempt to bring weights into memory, as everyone sees it.
pub(crate) struct Arrival {
    pub(crate) key: Key,
    pub(crate) generation: u64,
    /// Set when nobody wants the weights any more.
    pub(crate) abandoned: CancelToken,
    done: AtomicU64,
    total: AtomicU64,
    /// Progress that was last told, in 64ths.
    told: AtomicU64,
    over: AtomicBool,
    failure: OnceLock<(ErrorKind, String)>,
    permit: Mutex<Option<Box<dyn Permit>>>,
    began: Timestamp,
    clock: Arc<dyn Clock>,
    to: Sender<Message>,
}

impl Arrival {
    pub(crate) fn new(
        key: Key,
        generation: u64,
        permit: Box<dyn Permit>,
        clock: Arc<dyn Clock>,
        to: Sender<Message>,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            generation,
            abandoned: CancelToken::new(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            told: AtomicU64::new(0),
            over: AtomicBool::new(false),
            failure: OnceLock::new(),
            permit: Mutex::new(Some(permit)),
            began: clock.now(),
            clock,
            to,
        })
    }

    /// Bytes of weights that have been handed out, and in all.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Acquire), self.total.load(Ordering::Acquire))
    }

    /// Whether all weights are there.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// What the weights could not be had for.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.get().map(|(kind, message)| Error::new(*kind, message.clone()))
    }

    /// The weights cannot be had. The first reason stands.
    pub(crate) fn fail(&self, error: &Error) {
        if self.failure.set((error.kind(), error.to_string())).is_ok() {
            self.settle(if self.abandoned.is_cancelled() { Outcome::Ignored } else { classify(error) });
        }
    }

    /// All weights are there.
    pub(crate) fn complete(&self) {
        if self.failure.get().is_none() && !self.over.swap(true, Ordering::AcqRel) {
            let abandoned = self.abandoned.is_cancelled();
            self.settle(if abandoned { Outcome::Ignored } else { Outcome::Success });
            let took = self.clock.now().since(self.began);
            // Without a scheduler nobody is interested.
            self.to.send(Message::Arrived { key: self.key.clone(), generation: self.generation, took }).ok();
        }
    }

    fn settle(&self, outcome: Outcome) {
        if let Some(permit) = self.permit.lock().unwrap_or_else(PoisonError::into_inner).take() {
            permit.settle(outcome, self.clock.now().since(self.began));
        }
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let part = 64 * done / self.total.load(Ordering::Acquire).max(1);
        if self.told.fetch_max(part, Ordering::AcqRel) < part {
            self.to.send(Message::Progress { key: self.key.clone(), generation: self.generation }).ok();
        }
    }
}

/// A source that tells how far it is, and ends when nobody wants it any more.
struct Watched {
    inner: Arc<dyn WeightSource>,
    /// In place of the inner one's, where the catalogue overrides the chat template or nothing names the weights.
    header: Option<ModelHeader>,
    taken: Vec<AtomicBool>,
    /// Bytes of each tensor that were read in parts.
    parts: Vec<AtomicU64>,
    left: AtomicU64,
    arrival: Arc<Arrival>,
}

impl Watched {
    fn new(inner: Arc<dyn WeightSource>, spec: &ModelSpec, arrival: Arc<Arrival>) -> Self {
        let (template, known) = (&spec.chat_template, inner.header().digest.is_some());
        let header = (template.is_some() || !known).then(|| {
            let mut header = inner.header().clone();
            if let Some(template) = template {
                let template = MetaValue::Str(template.clone());
                header.metadata.insert("tokenizer.chat_template".to_owned(), template);
            }
            // What tells sets of weights apart here names them for the runtime, too.
            let name = || Digest(Sha256::digest(arrival.key.as_bytes()).into());
            header.digest.get_or_insert_with(name);
            header
        });
        let tensors = inner.header().tensors.len();
        let taken = (0..tensors).map(|_| AtomicBool::new(false)).collect();
        let parts = (0..tensors).map(|_| AtomicU64::new(0)).collect();
        Self { inner, header, taken, parts, left: AtomicU64::new(tensors as u64), arrival }
    }
}

impl Watched {
    fn wanted(&self) -> Result<()> {
        match self.arrival.abandoned.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled, "the model is no longer wanted")),
            false => Ok(()),
        }
    }

    /// A tensor is there.
    fn took(&self, index: usize, bytes: u64) {
        if self.taken.get(index).is_some_and(|taken| !taken.swap(true, Ordering::AcqRel)) {
            self.arrival.advance(bytes);
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.arrival.complete();
            }
        }
    }
}

impl WeightSource for Watched {
    fn header(&self) -> &ModelHeader {
        self.header.as_ref().unwrap_or_else(|| self.inner.header())
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        self.wanted()?;
        let bytes = self.inner.tensor(index).inspect_err(|error| self.arrival.fail(error))?;
        self.took(index, bytes.len() as u64);
        Ok(bytes)
    }

    fn read(&self, index: usize, piece: usize, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.wanted()?;
        let mut read = 0;
        let counted = &mut |bytes: &[u8]| {
            self.wanted()?;
            read += bytes.len() as u64;
            each(bytes)
        };
        self.inner.read(index, piece, counted).inspect_err(|error| self.arrival.fail(error))?;
        self.took(index, read);
        Ok(())
    }

    fn read_at(&self, index: usize, offset: u64, out: &mut [u8], wait: bool) -> Result<bool> {
        self.wanted()?;
        if !self.inner.read_at(index, offset, out, wait).inspect_err(|error| self.arrival.fail(error))? {
            return Ok(false);
        }
        if let (Some(info), Some(parts)) = (self.inner.header().tensors.get(index), self.parts.get(index)) {
            let read = out.len() as u64;
            if parts.fetch_add(read, Ordering::AcqRel) + read >= info.bytes {
                self.took(index, info.bytes);
            }
        }
        Ok(true)
    }

    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        self.wanted()?;
        self.inner.rows(index, rows).inspect_err(|error| self.arrival.fail(error))
    }

    fn expect(&self, order: &[usize]) {
        self.inner.expect(order);
    }

    fn release(&self, index: usize) {
        self.inner.release(index);
    }
}

/// A runtime lets go of the source when it needs nothing more of it.
impl Drop for Watched {
    fn drop(&mut self) {
        self.arrival.complete();
    }
}

/// What a load needs.
pub(crate) struct Load {
    pub(crate) spec: Arc<ModelSpec>,
    pub(crate) arrival: Arc<Arrival>,
    pub(crate) sources: Sources,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) retry: RetryPolicy,
    pub(crate) budget: Arc<RetryBudget>,
}

/// A model that has been loaded, and the memory it was given.
pub(crate) struct Loaded {
    pub(crate) model: Arc<dyn Model>,
    pub(crate) reservation: Reservation,
}

impl Load {
    /// Runs the load on a thread of its own and tells the scheduler how it went.
    pub(crate) fn spawn(self) -> Result<()> {
        let thread = std::thread::Builder::new().name("orion-fetch".into());
        let run = move || {
            let (key, generation, to) =
                (self.arrival.key.clone(), self.arrival.generation, self.arrival.to.clone());
            let result = catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or_else(|panic| {
                Err(Error::new(ErrorKind::Internal, format!("loading panicked: {}", text(&*panic))))
            });
            if let Err(error) = &result {
                self.arrival.fail(error);
            }
            to.send(Message::Loaded { key, generation, result }).ok();
        };
        thread.spawn(run).map(drop).map_err(|error| Error::io(error, "starting a thread that loads"))
    }

    fn run(&self) -> Result<Loaded> {
        let inner = self.open()?;
        let total: u64 = inner.header().tensors.iter().map(|tensor| tensor.bytes).sum();
        self.arrival.total.store(total, Ordering::Release);
        let (reply, granted) = bounded(1);
        let key = self.arrival.key.clone();
        let opened = Message::Opened { key, generation: self.arrival.generation, bytes: total, reply };
        let gone = || Error::new(ErrorKind::Rejected, "the engine is shutting down");
        self.arrival.to.send(opened).map_err(|_| gone())?;
        let reservation = granted.recv().map_err(|_| gone())??;
        // Held until the outcome is known: only then does letting go of it mean that all has arrived.
        let source = Arc::new(Watched::new(inner, &self.spec, self.arrival.clone()));
        match self.runtime.load(source.clone()) {
            Ok(model) => Ok(Loaded { model, reservation }),
            Err(error) => {
                self.arrival.fail(&error);
                Err(error)
            }
        }
    }

    /// Opens the weights, again and again as the retry policy says.
    fn open(&self) -> Result<Arc<dyn WeightSource>> {
        let context = Context::new(Deadline::never(self.arrival.clock.clone()))
            .cancelled_by(self.arrival.abandoned.clone());
        self.budget.deposit();
        let mut attempts = 0;
        loop {
            let error = match (self.sources)(&self.spec) {
                Ok(source) => return Ok(source),
                Err(error) => error,
            };
            attempts += 1;
            let wait = self.retry.next_wait(attempts, &error, &context, fastrand::f64());
            match wait {
                Some(wait) if self.budget.withdraw() => {
                    tracing::info!(target: "orion::engine", model = %self.spec.id, %error, ?wait, "opening again");
                    ThreadSleep.sleep(wait, &self.arrival.abandoned);
                }
                _ => return Err(error),
            }
        }
    }
}

/// What a panic said.
pub(crate) fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// How long bringing a model in took last time, or may take if it never was: half a gigabyte a second.
pub(crate) fn expected(took: Option<Duration>, bytes: u64) -> Duration {
    took.unwrap_or_else(|| Duration::from_nanos(bytes.saturating_mul(2)))
}
