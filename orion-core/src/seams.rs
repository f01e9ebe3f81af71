//! The seams: the traits at which one crate can be put in another's place.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Completion, Flow, GenerationEvent};
use crate::header::ModelHeader;
use crate::id::{ModelId, RequestId};
use crate::request::{CancelToken, Generation};
use crate::spec::{Candidate, Decision, ModelSpec, Query};
use crate::state::Trace;
use crate::tensor::TensorBytes;

/// Knows the models of an installation.
pub trait Catalog: Send + Sync {
    /// The model of that id.
    fn get(&self, id: &ModelId) -> Option<Arc<ModelSpec>>;

    /// All models, in the catalogue's order. One call sees one version of the catalogue.
    fn all(&self) -> Vec<Arc<ModelSpec>>;
}

/// Decides which model should answer.
pub trait Router: Send + Sync {
    /// Ranks `candidates` for `query`, or abstains.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if there is no candidate.
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision>;
}

impl<R: Router + ?Sized> Router for Arc<R> {
    fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        (**self).route(query, candidates)
    }
}

/// Turns texts into unit vectors.
pub trait Embedder: Send + Sync {
    /// One vector of [`dimension`](Self::dimension) numbers and length 1 per text, in order.
    ///
    /// # Errors
    /// When the encoder fails.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>>;

    /// Length of the vectors.
    fn dimension(&self) -> usize;

    /// Names encoder and precision; heads trained on one fingerprint are refused on another.
    fn fingerprint(&self) -> String;
}

/// Where the weights of one model come from.
pub trait WeightSource: Send + Sync {
    /// Metadata, tensor table, side files.
    fn header(&self) -> &ModelHeader;

    /// The bytes of tensor `index` of the header's table. Blocks until just these have arrived and are verified.
    ///
    /// # Errors
    /// When they cannot be had: I/O, network, a digest that does not match, `index` out of range.
    fn tensor(&self, index: usize) -> Result<TensorBytes>;

    /// Hands the bytes of tensor `index` to `each`, from first to last, in pieces of `piece` bytes of which the last may be
    /// shorter. Like [`tensor`](Self::tensor), but who uses them up piece by piece need not hold them all.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor); what `each` returns.
    fn read(&self, index: usize, piece: usize, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.tensor(index)?.chunks(piece.max(1)).try_for_each(each)
    }

    /// Fills `out` with the bytes of tensor `index` from `offset` on, from any number of threads at once. It answers `false`,
    /// and `out` may hold anything, if they would have to be waited for and `wait` is not set, or if this source has no such
    /// way in, which it then says at every call: [`read`](Self::read) is there for all.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor); bytes beyond its end.
    fn read_at(&self, index: usize, offset: u64, out: &mut [u8], wait: bool) -> Result<bool> {
        let _ = (index, offset, out, wait);
        Ok(false)
    }

    /// The rows of matrix `index`, one behind the other in the order asked for. Like [`tensor`](Self::tensor), but where
    /// the bytes are still on their way these come first; they may be from before the whole was verified, so who
    /// uses them must not publish what follows from them before [`tensor`](Self::tensor) has answered for all other
    /// tensors. Shape `[rows, columns]`; `bytes / rows` each.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor); a row out of range; a layout that is not [`RowMajor`](crate::TileLayout::RowMajor).
    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        let missing = || Error::new(ErrorKind::NotFound, format!("tensor {index}"));
        let info = self.header().tensors.get(index).ok_or_else(missing)?;
        info.rows_of(&self.tensor(index)?, rows)
    }

    /// Says which tensors will be asked for, in order of need; the bytes then arrive in that order. A hint.
    fn expect(&self, order: &[usize]) {
        let _ = order;
    }

    /// The bytes of tensor `index` are not needed again; what caches them may let them go.
    fn release(&self, index: usize) {
        let _ = index;
    }
}

/// Makes models of weights.
pub trait Runtime: Send + Sync {
    /// Loads a model. Blocks; call it off the caller's thread.
    ///
    /// # Errors
    /// Unsupported architecture or option, weights that contradict the header, memory budget, I/O.
    fn load(&self, weights: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>>;
}

/// A loaded model.
pub trait Model: Send + Sync {
    /// What it is.
    fn info(&self) -> &ModelInfo;

    /// Queues a generation and returns at once. Events go to `sink` from the model's own thread; every accepted
    /// generation ends in exactly one [`GenerationEvent::Done`] or [`GenerationEvent::Failed`].
    ///
    /// # Errors
    /// [`Rejected`](crate::ErrorKind::Rejected) if the model takes no more work. Everything else, a prompt that
    /// does not fit included, is reported to the sink.
    fn submit(&self, job: Job) -> Result<()>;

    /// Counts the tokens of a prompt as [`submit`](Self::submit) would run it.
    ///
    /// # Errors
    /// As the sink would be told.
    fn count_tokens(&self, generation: &Generation) -> Result<usize>;

    /// Bytes it holds now: weights, keys and values.
    fn memory_bytes(&self) -> u64 {
        self.info().weight_bytes
    }
}

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// Architecture: `llama`, `qwen2`, …
    pub architecture: String,
    /// Name the file gives, if any.
    pub name: Option<String>,
    /// Longest context in tokens.
    pub context_length: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of its weights in memory.
    pub weight_bytes: u64,
    /// Bytes of keys and values per token.
    pub kv_bytes_per_token: u64,
    /// Which executor runs it, on which instruction set.
    pub executor: String,
}

impl ModelInfo {
    /// Information with everything but the architecture unknown.
    pub fn new(architecture: impl Into<String>) -> Self {
        Self {
            architecture: architecture.into(),
            name: None,
            context_length: 0,
            parameters: 0,
            weight_bytes: 0,
            kv_bytes_per_token: 0,
            executor: String::new(),
        }
    }
}

/// A generation on its way to a model.
#[non_exhaustive]
pub struct Job {
    /// The request it belongs to.
    pub request: RequestId,
    /// What to generate.
    pub generation: Generation,
    /// Ends it.
    pub cancel: CancelToken,
    /// Takes its events.
    pub sink: Box<dyn TokenSink>,
}

impl Job {
    /// A job of a fresh request.
    pub fn new(generation: Generation, sink: impl TokenSink + 'static) -> Self {
        Self { request: RequestId::next(), generation, cancel: CancelToken::new(), sink: Box::new(sink) }
    }

    /// Replaces the cancel token.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("request", &self.request).finish_non_exhaustive()
    }
}

/// Takes the events of one generation. Never blocks: the model's worker calls it between tokens.
pub trait TokenSink: Send {
    /// Takes an event and says what to do next. The answer to `Done` and `Failed` is not looked at.
    fn event(&mut self, event: GenerationEvent) -> Flow;

    /// After [`Flow::Pause`]: may more come now?
    fn ready(&mut self) -> bool {
        true
    }
}

impl<F: FnMut(GenerationEvent) -> Flow + Send> TokenSink for F {
    fn event(&mut self, event: GenerationEvent) -> Flow {
        self(event)
    }
}

/// What a permit is for; each has its own record of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// Bringing a model into memory.
    Load,
    /// Generating with it.
    Generate,
}

/// Whether a call that was permitted went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did.
    Success,
    /// It did not, and the model is to blame.
    Failure,
    /// It says nothing about the model: cancelled, or the caller's own mistake.
    Ignored,
}

/// Says whether a model may be called now.
pub trait Gate: Send + Sync {
    /// A permit, or how long to wait.
    ///
    /// # Errors
    /// [`Refused`] while the model is considered down.
    fn acquire(&self, model: &ModelId, operation: Operation) -> Result<Box<dyn Permit>, Refused>;
}

/// A permit to call a model once. Dropped without being settled it counts as [`Outcome::Failure`] while the
/// thread panics and as [`Outcome::Ignored`] otherwise.
pub trait Permit: Send {
    /// Reports how the call went, and after what time.
    fn settle(self: Box<Self>, outcome: Outcome, elapsed: Duration);
}

/// A model may not be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// When to try again; `None` if only a person can tell.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.retry_after {
            Some(wait) => write!(f, "calls are refused, try again in {wait:?}"),
            None => f.write_str("calls are refused until someone permits them again"),
        }
    }
}

impl std::error::Error for Refused {}

/// What happens to a request while it runs.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum RequestEvent<'a> {
    /// It entered the phase its trace now says.
    Entered(&'a Trace),
    /// The router decided.
    Decided(&'a Decision),
    /// Its model finished; the request is about to.
    Completed(&'a Completion),
    /// Something failed: the request falls back or is about to end.
    Failed(&'a Error),
}

/// Sees what happens to requests.
pub trait Observer: Send + Sync {
    /// Something happened to a request that runs. Called on the request's way, so it must be quick; tokens are not
    /// reported.
    fn event(&self, request: RequestId, event: RequestEvent<'_>) {
        let _ = (request, event);
    }

    /// A request reached a terminal state; its trace says how.
    fn finished(&self, request: RequestId, trace: &Trace);
}

/// Every seam must work behind a pointer.
#[allow(dead_code, reason = "compiling it is the test")]
type ObjectSafe = (
    Box<dyn Catalog>,
    Box<dyn Router>,
    Box<dyn Embedder>,
    Box<dyn WeightSource>,
    Box<dyn Runtime>,
    Box<dyn Model>,
    Box<dyn TokenSink>,
    Box<dyn Gate>,
    Box<dyn Permit>,
    Box<dyn Observer>,
);
