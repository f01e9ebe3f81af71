#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod blocks;

pub use blocks::{dequantize, quantize};
