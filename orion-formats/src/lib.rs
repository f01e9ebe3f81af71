#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod gguf;
mod looks_like;
mod name;
mod reader;
mod reason;
pub mod safetensors;
mod shape;
mod shard_index;
mod shard_set;

pub use looks_like::{LooksLike, looks_like};
pub use reason::Reason;
pub use shard_index::ShardIndex;
pub use shard_set::{FileEntry, MANIFEST, Shard, ShardSet, ShardTensor};
