//! Codecs of the block-quantised tensor types.
//!
//! Decoding is a function from one block's bytes to its numbers; [`decode`] holds one per type. Each is written once, in
//! portable code without floating-point contraction, and compiled twice: for the baseline and, where the processor has
//! them, for AVX2's wider registers. Lanes never exchange values, so both give the same bits.
//!
//! Encoding is a search for scales ([`search`]), eight sub-blocks at a time ([`lanes`]), and the writing of blocks ([`encode`]).

mod decode;
mod encode;
mod half_bits;
mod lanes;
mod search;

use orion_core::{Error, Result, TensorType};

use crate::isa::Isa;

/// Decodes consecutive blocks of type `ty`.
///
/// Bit-identical to ggml's `dequantize_row_*` for every input, infinite and NaN scales included, but for the payload of a NaN.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if `bytes` is not exactly what `out.len()` elements take. The
/// error of [`Isa::active`] if the instruction set that was asked for is not there.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check_lengths(ty, bytes.len(), out.len())?;
    decode::decode(Isa::active()?, ty, bytes, out);
    Ok(())
}

/// Encodes rows of `n_per_row` numbers as blocks of type `ty`, appended to `out`.
///
/// Byte-identical to ggml's reference quantiser `ggml_quantize_chunk`. `imatrix` holds one importance per column, which Q8_0 and
/// the types without blocks ignore. Rows do not influence each other, so a tensor may be encoded in pieces, by several threads.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the lengths do not fit each other or the type's blocks, if a
/// number is infinite or NaN or too large for the type's scales, or if an importance is negative, infinite or NaN. The error of
/// [`Isa::active`] if the instruction set that was asked for is not there. In all cases `out` is as before.
pub fn quantize(
    ty: TensorType,
    x: &[f32],
    n_per_row: usize,
    imatrix: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let start = out.len();
    let bytes = encoded_bytes(ty, x.len(), n_per_row)?;
    if let Some(at) = first_beyond(x, f32::MAX) {
        return Err(Error::invalid(format!("element {at} is {}", x[at])));
    }
    if ty.is_quantised()
        && let Some(at) = first_beyond(x, UNREACHABLE)
    {
        return Err(Error::invalid(format!("element {at} is {}, too large for {ty}", x[at])));
    }
    if let Some(imatrix) = imatrix {
        if imatrix.len() != n_per_row {
            return Err(Error::invalid(format!("{} importances for {n_per_row} columns", imatrix.len())));
        }
        if let Some(at) = imatrix.iter().position(|im| !(im.is_finite() && *im >= 0.0)) {
            return Err(Error::invalid(format!("the importance of column {at} is {}", imatrix[at])));
        }
    }
    let isa = Isa::active()?;
    out.resize(start + bytes, 0);
    encode::encode(isa, ty, encode::Rows { x, n_per_row, imatrix }, &mut out[start..]);
    if let Some(block) = first_overflow(ty, &out[start..]) {
        out.truncate(start);
        let from = block * ty.block_len();
        return Err(Error::invalid(format!(
            "elements {from} to {} are too large for {ty}",
            from + ty.block_len() - 1
        )));
    }
    Ok(())
}

/// Bytes that `elements` in rows of `n_per_row` take.
fn encoded_bytes(ty: TensorType, elements: usize, n_per_row: usize) -> Result<usize> {
    if n_per_row == 0 || !elements.is_multiple_of(n_per_row) {
        return Err(Error::invalid(format!(
            "{elements} elements are no whole number of rows of {n_per_row}"
        )));
    }
    if !n_per_row.is_multiple_of(ty.block_len()) {
        return Err(Error::invalid(format!(
            "rows of {n_per_row} are no whole number of {ty} blocks of {}",
            ty.block_len()
        )));
    }
    Ok(elements / ty.block_len() * ty.block_bytes())
}

/// Beyond every type's range (Q6_K reaches 65504 * 128 * 32), and small enough that no search overflows on its way there.
const UNREACHABLE: f32 = (1u32 << 29) as f32;

/// The position of the first NaN or magnitude above `limit`.
fn first_beyond(x: &[f32], limit: f32) -> Option<usize> {
    // The order of magnitudes is that of their bits, NaN last. Without an early exit the scan of a chunk vectorises.
    let beyond = |x: &f32| x.abs().to_bits() > limit.to_bits();
    let chunk = x.chunks(1024).position(|chunk| chunk.iter().fold(false, |found, x| found | beyond(x)))?;
    x[chunk * 1024..].iter().position(beyond).map(|at| chunk * 1024 + at)
}

/// The first block with an infinite or NaN scale.
fn first_overflow(ty: TensorType, bytes: &[u8]) -> Option<usize> {
    let exponent = if ty == TensorType::BF16 { 0x7f80 } else { 0x7c00 };
    let offsets = encode::scale_offsets(ty);
    bytes.chunks_exact(ty.block_bytes()).position(|block| {
        offsets.iter().any(|&at| u16::from_le_bytes([block[at], block[at + 1]]) & exponent == exponent)
    })
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
