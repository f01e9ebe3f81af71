#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![allow(
    clippy::needless_range_loop,
    reason = "a kernel's registers are arrays, and its loops name which one"
)]

mod activations;
mod aligned;
mod arena;
mod attention;
mod blocks;
mod decoder;
mod encoder;
mod gemm;
mod isa;
mod linear;
mod math;
mod pool;
mod simd;
mod tiles;

pub use aligned::AlignedBuf;
pub use arena::Arena;
pub use attention::PAGE_TOKENS;
pub use blocks::{dequantize, quantize};
pub use decoder::{
    Block, DecoderShape, Embedding, Head, KvStore, KvType, Norm, Projection, Rope, Stages, Workspace,
};
pub use encoder::{
    EncoderBlock, EncoderMatrix, EncoderProjection, EncoderShape, EncoderWorkspace, LayerNorm,
};
pub use gemm::fours::sevens::SevenBitMatrix;
pub use isa::{Avx2, Avx512Vnni, AvxVnni, Isa, Neon};
pub use linear::{LinearScratch, linear};
pub use math::{Activation, activate_rows, layer_norm, rms_norm, soft_cap, top_k};
pub use pool::{ComputePool, Region};
pub use tiles::{PackedMatrix, Packer, Panel, TILE_ROWS, row_major};
