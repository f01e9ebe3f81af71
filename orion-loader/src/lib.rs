#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod directory;
mod file;
mod memory;
mod open;
mod side_files;

pub use file::FileSource;
pub use memory::MemorySource;
pub use open::open;
