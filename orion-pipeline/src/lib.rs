#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod activations;
mod control;
mod convert;
mod imatrix;
mod merge;
mod mix;
mod output;
mod provenance;
mod quantize;
mod shard;
mod solve;

pub use activations::{Activations, ImatrixOrigin};
pub use control::{Control, Progress};
pub use convert::{ConvertOptions, as_gguf, as_hugging_face, convert};
pub use imatrix::Imatrix;
pub use merge::{MergeConfig, MergeOptions, MergeReport, Open, merge, plan_merge};
pub use mix::{FileType, Level, Plan, PlannedTensor, Traits, plan};
pub use provenance::{PROVENANCE, steps as provenance};
pub use quantize::{
    QuantizeOptions, Recipe, Report, TensorReport, optimize, plan_optimize, plan_quantize, quantize,
};
pub use shard::{
    ShardFormat, ShardOptions, ShardReport, ShardSize, UnshardOptions, plan_shards, shard, unshard,
};
pub use solve::{Target, types_for};
