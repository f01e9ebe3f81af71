#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod mix;
mod output;
mod quantize;

pub use mix::{FileType, Plan, PlannedTensor, Traits, plan};
pub use quantize::{QuantizeOptions, Report, TensorReport, quantize};
