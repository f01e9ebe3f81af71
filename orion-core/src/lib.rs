#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod budget;
mod clock;
mod error;
mod event;
mod header;
mod id;
mod request;
mod seams;
mod spec;
pub mod state;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use budget::{MemoryBudget, Reservation};
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use error::{Error, ErrorKind, Result};
pub use event::{Completion, FinishReason, Flow, GenerationEvent, Timings, TokenLogprob, Usage};
pub use header::{MetaArray, MetaValue, ModelFormat, ModelHeader, StringTable};
pub use id::{Digest, ModelId, RequestId, TokenId};
pub use request::{CancelToken, Constraint, Generation, Message, Prompt, Role, SamplingParams};
pub use seams::{
    Catalog, Embedder, Gate, Job, Model, ModelInfo, Observer, Operation, Outcome, Permit, Refused,
    RequestEvent, Router, Runtime, TokenSink, WeightSource,
};
pub use spec::{Candidate, Decision, FileSpec, Health, ModelSpec, Query, Ranked};
pub use tensor::{TensorBytes, TensorInfo, TensorType, TileLayout};
