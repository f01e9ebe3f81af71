//! GGUF, versions 2 and 3.
//!
//! Rules beyond the format's own text follow llama.cpp, the reference implementation: tensors stand in table order,
//! each at the next multiple of the alignment, so neither overlap nor hole nor misalignment is possible.

mod hyperparameters;
mod parse;
mod split;
mod write;

pub use parse::{GgufHeader, parse, read_header};
pub use split::{SplitName, join};
pub use write::{GgufWriter, TensorSpec, file_bytes};

/// The first bytes of every file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Alignment of the data where the file names none.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The key that holds the alignment.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// Longest tensor name in bytes: llama.cpp's 64 with its terminating NUL.
pub(crate) const LONGEST_NAME: usize = 63;

/// Most dimensions of a tensor.
pub(crate) const MOST_DIMS: usize = 4;

/// Value types as they are numbered in files.
pub(crate) mod value_type {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

pub(crate) fn is_alignment(value: u64) -> bool {
    value.is_power_of_two() && value <= 1 << 20
}
