//! A decoder's forward pass in one parallel region.
//!
//! The block of every supported architecture is the same five phases with options: normalise and project to queries,
//! keys and values; rotate, append to the pages, attend; project back; normalise, gate and raise; lower. Between
//! phases the threads meet at a barrier, nothing is allocated, and with one or two rows each thread normalises and
//! quantises for itself rather than wait for another to do it.

mod attend;
mod kv;
mod rotate;
mod step;
mod types;
mod workspace;

pub use kv::KvStore;
pub(crate) use types::KV_BLOCK;
pub use types::{Block, DecoderShape, Embedding, Head, KvType, Norm, Projection, Rope};
pub use workspace::{Stages, Workspace};
