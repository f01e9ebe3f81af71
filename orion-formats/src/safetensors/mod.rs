//! safetensors, single files. [`ShardIndex`](crate::ShardIndex) makes one model of several.
//!
//! The header is checked here, more strictly than the `safetensors` crate does (duplicate names, ranks, names that
//! are paths, memory); what is accepted here that crate accepts, too, and a property test keeps it so.

mod parse;
mod write;

pub use ::safetensors::Dtype;
pub use parse::{SafetensorsHeader, TensorEntry, parse, read_header};
pub use write::{SafetensorsWriter, TensorSpec, data_offset};

/// Longest tensor name in bytes.
pub(crate) const LONGEST_NAME: usize = 1024;

/// Most dimensions of a tensor.
pub(crate) const MOST_DIMS: usize = 8;

/// The name that is no tensor's.
pub(crate) const METADATA_KEY: &str = "__metadata__";
