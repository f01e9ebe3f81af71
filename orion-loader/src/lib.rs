#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod arriving;
mod cache;
mod directory;
mod expected;
mod fetch;
mod file;
mod http;
mod hub;
mod idle;
mod intervals;
mod loader;
mod mapped;
mod memory;
mod open;
mod options;
mod order;
mod page_cache;
mod progress;
mod remote;
mod rows;
mod shards;
mod side_files;
mod transfer;
mod window;

pub use cache::{Blob, Cache, Verified};
pub use expected::open_files;
pub use file::FileSource;
pub use loader::{Loader, Prefetch};
pub use memory::MemorySource;
pub use open::open;
pub use options::LoaderOptions;
pub use orion_formats::MANIFEST;
pub use progress::{Phase, Progress};
