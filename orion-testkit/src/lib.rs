#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod gguf;
pub mod models;
mod recipe;
pub mod references;
pub mod server;
