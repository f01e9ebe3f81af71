//! Codecs of the block-quantised tensor types.
//!
//! Decoding is a function from one block's bytes to its numbers; [`decode`] holds one per type. Each is written once, in
//! portable code without floating-point contraction, and compiled twice: for the baseline and, where the processor has
//! them, for AVX2's wider registers. Lanes never exchange values, so both give the same bits.

mod decode;
mod half_bits;
mod isa;

use orion_core::{Error, Result, TensorType};

use isa::Isa;

/// Decodes consecutive blocks of type `ty`.
///
/// Bit-identical to ggml's `dequantize_row_*` for every input, infinite and NaN scales included, but for the payload of a NaN.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if `bytes` is not exactly what `out.len()` elements take.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check_lengths(ty, bytes.len(), out.len())?;
    decode::decode(Isa::best(), ty, bytes, out);
    Ok(())
}

fn check_lengths(ty: TensorType, bytes: usize, elements: usize) -> Result<()> {
    match ty.bytes_of(elements as u64) {
        Some(expected) if expected == bytes as u64 => Ok(()),
        Some(expected) => {
            Err(Error::invalid(format!("{elements} elements of {ty} take {expected} bytes, got {bytes}")))
        }
        None => Err(Error::invalid(format!(
            "{elements} elements are no whole number of {ty} blocks of {}",
            ty.block_len()
        ))),
    }
}
