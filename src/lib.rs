#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod builder;
mod chat;
mod engine;

mod answer;
mod guard;
mod request;

mod flight;
mod ledger;
mod predict;
mod scheduler;

mod first_responder;
mod imatrix;
mod routing;
mod wire;

mod stream;

/// The guide's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;

pub use first_responder::{Continues, FirstResponder, HandOver, Part, RelayEvent, RelayStream, Speaker};
#[cfg(feature = "testing")]
pub use orion_core::testing;
pub use orion_formats as formats;
pub use orion_loader as loader;
pub use orion_logging as logging;
pub use orion_pipeline as pipeline;
pub use orion_registry as registry;
pub use orion_resilience as resilience;
pub use orion_router as router;
pub use orion_runtime as runtime;

pub use answer::{Answer, EngineEvent, Report};
pub use builder::EngineBuilder;
pub use chat::{Chat, ChatStream};
#[cfg(feature = "async")]
pub use engine::AnswerFuture;
pub use engine::{AnswerStream, Engine, EngineStats, ModelStats};
pub use guard::{Guardrail, InputLimits};
pub use imatrix::{ImatrixOptions, measure_imatrix};
pub use ledger::Outcomes;
pub use orion_resilience::{Caller, Priority};
pub use predict::{Foresight, Predictor};
pub use request::Request;
pub use routing::{RoutingOptions, answering, open_encoder, open_encoder_of_head, open_router};
pub use scheduler::Drained;
pub use stream::{ModelExt, TokenStream};
pub use wire::open;

pub use orion_core::{
    CancelToken, Candidate, Catalog, Clock, Completion, Constraint, Decision, Digest, Embedder, Error,
    ErrorKind, FileSpec, FinishReason, Flow, Gate, Generation, GenerationEvent, Health, Job, ManualClock,
    MemoryBudget, Message, MetaArray, MetaValue, Model, ModelFormat, ModelHeader, ModelId, ModelInfo,
    ModelSpec, Observer, Operation, Outcome, Permit, Prompt, Query, Ranked, Refused, RequestEvent, RequestId,
    Reservation, Result, Role, Router, Runtime, SamplingParams, StringTable, SystemClock, TensorBytes,
    TensorInfo, TensorType, TileLayout, Timestamp, Timings, TokenId, TokenLogprob, TokenSink, Usage,
    WeightSource, state,
};
