#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod text;

mod guard;

mod keyword;

mod cache;
mod difficulty;
mod embedding;

mod context;
mod feedback;
mod policy;

mod compose;
mod explain;

mod calibrate;
mod cluster;
mod data;
mod grams;
mod head;
mod linear;
mod nonsense;
mod ridge;

mod agents;
mod eval;
mod plot;

pub use agents::agent_examples;
pub use cache::CachedEmbedder;
pub use calibrate::calibration_error;
pub use compose::{Cascade, Disagreement, Ensemble, Shadow, ShadowReport};
pub use context::{ContextOptions, ContextRouter, is_follow_up};
pub use data::{
    DifficultyRecord, Example, OUT_OF_SCOPE, parse_difficulty, parse_examples, read_difficulty, read_examples,
};
pub use difficulty::{
    Difficulty, DifficultyHead, DifficultyOptions, DifficultyRouter, encoder_of_head, is_difficulty_head,
};
pub use embedding::{EmbeddingOptions, EmbeddingRouter};
pub use eval::{
    ClassBaselines, ClassReport, Confusion, CostPoint, DifficultyReport, LabelReport, Latency, RiskPoint,
    evaluate, evaluate_difficulty, rank_difficulty,
};
pub use explain::{TimedDecision, route_timed};
pub use feedback::{FeedbackOptions, FeedbackRouter};
pub use grams::GramOptions;
pub use head::{AbstainAt, Head, HeadOptions, Verdict};
pub use keyword::{KeywordRouter, KeywordRule};
pub use linear::TrainOptions;
pub use policy::{Policy, PolicyRouter, TrafficShare};
pub use text::{language, unroutable};

use guard::guard;
