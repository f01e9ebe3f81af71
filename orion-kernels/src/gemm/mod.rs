//! Products of packed weights with rows of activations.
//!
//! A tile's panel is unpacked once and swept by the rows, six or eight at a time; on x86 a few rows take the weights
//! straight from the tile. For every output the float operations and their order are the same in all of them and
//! on every instruction set: blocks ascending, in each block the exact integer sum, converted, times the product of
//! both scales, then the minimum's term. So results are bit-identical for any batch and number of threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_direct;
#[cfg(target_arch = "x86_64")]
mod direct;
mod float;
pub(crate) mod fours;
mod kind;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_direct;

use orion_core::TensorType;

use crate::activations::QuantView;
use crate::isa::Isa;
use crate::tiles::{CHUNK, PackedMatrix, Panel, TILE_ROWS};

/// Columns per panel when there are few rows: small enough that reading memory and computing overlap.
const SHORT_CHUNK: usize = 256;

/// Activations as a product takes them.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    Quantised(QuantView),
    /// First row and stride in elements.
    Float(*const f32, usize),
}

/// Computes `rows` rows by the 16 columns of one tile into `out`, `[rows][16]`.
///
/// # Safety
/// The rows must be readable, of the kind the matrix needs, with as many columns, and nobody may write them.
#[allow(unsafe_code, reason = "rows are shared between threads as pointers")]
pub(crate) unsafe fn tile_product(
    isa: Isa,
    matrix: &PackedMatrix,
    tile: usize,
    input: Rows,
    rows: usize,
    panel: &mut Panel,
    out: &mut [f32],
) {
    assert!(out.len() >= rows * TILE_ROWS, "room for the tile's results");
    #[cfg(target_arch = "x86_64")]
    if let Rows::Quantised(view) = input {
        let (ty, bytes, cols, out) = (matrix.ty(), matrix.tile(tile), matrix.cols(), out.as_mut_ptr());
        // SAFETY: by this function's contract, and the tokens prove the instructions.
        unsafe {
            match isa {
                Isa::Avx512Vnni(_) if rows <= vnni_direct::ROWS => {
                    return vnni_direct::product(ty, bytes, cols, view, rows, out);
                }
                _ if rows <= avx2_direct::ROWS && isa.avx2().is_some() => {
                    return avx2_direct::product(ty, bytes, cols, view, rows, out);
                }
                _ => {}
            }
        }
    }
    out[..rows * TILE_ROWS].fill(0.0);
    let chunk = if rows <= 2 { SHORT_CHUNK } else { CHUNK };
    for start in (0..matrix.cols()).step_by(chunk) {
        let cols = chunk.min(matrix.cols() - start);
        panel.fill(isa, matrix, tile, start, cols);
        let part = Part { ty: matrix.ty(), panel, start, cols, rows, out: out.as_mut_ptr() };
        match input {
            // SAFETY: by this function's contract; the panel has just been filled with `cols` columns.
            Rows::Float(first, stride) => unsafe { float::sweep(isa, part, first, stride) },
            // SAFETY: as above, and the tokens prove the instructions.
            Rows::Quantised(view) => unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(_) => avx2::sweep(&part, view),
                    #[cfg(target_arch = "x86_64")]
                    Isa::AvxVnni(_) => vnni::sweep_256(&part, view),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512Vnni(_) => vnni::sweep_512(&part, view),
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon(_) => neon::sweep(&part, view),
                    #[cfg(all(test, target_arch = "x86_64"))]
                    Isa::Imitated(_) => vnni::sweep_imitated(&part, view),
                    _ => plain::sweep(&part, view),
                }
            },
        }
    }
}

/// One panel and what to add its products to.
struct Part<'a> {
    ty: TensorType,
    panel: &'a Panel,
    start: usize,
    cols: usize,
    rows: usize,
    /// `[rows][16]`.
    out: *mut f32,
}

/// Calls `$sweep::<Kind>` for a runtime type, with one more parameter if there is one.
macro_rules! for_kind {
    ($ty:expr, $sweep:ident ( $($arg:expr),* ) $(, $more:ty)?) => {
        match $ty {
            TensorType::Q4_0 => for_kind!(@ $sweep, kind::Q4_0, [$($more)?], $($arg),*),
            TensorType::Q4_1 => for_kind!(@ $sweep, kind::Q4_1, [$($more)?], $($arg),*),
            TensorType::Q5_0 => for_kind!(@ $sweep, kind::Q5_0, [$($more)?], $($arg),*),
            TensorType::Q5_1 => for_kind!(@ $sweep, kind::Q5_1, [$($more)?], $($arg),*),
            TensorType::Q8_0 => for_kind!(@ $sweep, kind::Q8_0, [$($more)?], $($arg),*),
            TensorType::Q2K => for_kind!(@ $sweep, kind::Q2K, [$($more)?], $($arg),*),
            TensorType::Q3K => for_kind!(@ $sweep, kind::Q3K, [$($more)?], $($arg),*),
            TensorType::Q4K => for_kind!(@ $sweep, kind::Q4K, [$($more)?], $($arg),*),
            TensorType::Q5K => for_kind!(@ $sweep, kind::Q5K, [$($more)?], $($arg),*),
            TensorType::Q6K => for_kind!(@ $sweep, kind::Q6K, [$($more)?], $($arg),*),
            other => unreachable!("{other} has no integer product"),
        }
    };
    (@ $sweep:ident, $kind:ty, [], $($arg:expr),*) => { $sweep::<$kind>($($arg),*) };
    (@ $sweep:ident, $kind:ty, [$more:ty], $($arg:expr),*) => { $sweep::<$kind, $more>($($arg),*) };
}
use for_kind;
