//! A matrix product as one call: quantise the rows, multiply, store.
#![allow(unsafe_code, reason = "threads write disjoint columns of one output")]

use std::sync::{Mutex, PoisonError};

use orion_core::{Error, Result, TensorType};

use crate::activations::{ActKind, QuantRows};
use crate::aligned::AlignedBuf;
use crate::gemm::{Rows, tile_product};
use crate::isa::Isa;
use crate::pool::ComputePool;
use crate::tiles::{PackedMatrix, Panel, TILE_ROWS};

/// Scratch space of [`linear`], allocated once.
#[derive(Debug)]
pub struct LinearScratch {
    rows: usize,
    cols: usize,
    quantised: QuantRows,
    threads: Vec<Mutex<(Panel, AlignedBuf<f32>)>>,
}

impl LinearScratch {
    /// Room for products of up to `rows` rows with up to `cols` columns on that pool.
    #[must_use]
    pub fn new(pool: &ComputePool, rows: usize, cols: usize) -> Self {
        let thread = |_| Mutex::new((Panel::default(), AlignedBuf::zeroed(rows * TILE_ROWS)));
        Self {
            rows,
            cols,
            quantised: QuantRows::new(rows, cols),
            threads: (0..pool.threads()).map(thread).collect(),
        }
    }
}

#[derive(Clone, Copy)]
struct Out(*mut f32);
// SAFETY: threads write disjoint parts.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}
impl Out {
    fn get(self) -> *mut f32 {
        self.0
    }
}
struct In(Rows);
// SAFETY: only read, behind a barrier after the writes.
unsafe impl Sync for In {}
impl In {
    fn get(&self) -> Rows {
        self.0
    }
}

/// Whether an instruction set gives the reference's bits for a small product of every type, with `k` columns.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no set needs it there"))]
pub(crate) fn agrees_with_reference(isa: Isa, k: usize) -> bool {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut agree = |ty: TensorType| -> Result<bool> {
        // Rows for every branch by number.
        let (rows, n) = (15, TILE_ROWS);
        // Halves with these bits clear are finite, and so are all scales.
        let bytes: Vec<u8> = (0..n * k / ty.block_len() * ty.block_bytes()).map(|_| next() & 0xbb).collect();
        let pool = ComputePool::new(1)?;
        let matrix = PackedMatrix::pack(&pool, ty, n, k, &bytes)?;
        let input: Vec<f32> = (0..rows * k).map(|_| f32::from(next()) / 64.0 - 2.0).collect();
        let mut scratch = LinearScratch::new(&pool, rows, k);
        let mut product = |isa| -> Result<Vec<u32>> {
            let mut out = vec![0.0; rows * n];
            linear(&pool, isa, &matrix, &input, &mut scratch, &mut out)?;
            Ok(out.into_iter().map(f32::to_bits).collect())
        };
        Ok(product(isa)? == product(Isa::Scalar)?)
    };
    INTEGER.into_iter().all(|ty| agree(ty).unwrap_or(false))
}

/// Types with an integer product.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no set needs it there"))]
const INTEGER: [TensorType; 10] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];

/// `out[i] = weights · input[i]` for every row; `input` is `[rows, weights.cols()]`, `out` `[rows, weights.rows()]`.
///
/// Allocates nothing. Every row's result is the same bits whatever the other rows and the number of threads.
///
/// # Errors
/// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if lengths do not fit each other or the scratch space, and
/// what [`ComputePool::run`] returns.
pub fn linear(
    pool: &ComputePool,
    isa: Isa,
    weights: &PackedMatrix,
    input: &[f32],
    scratch: &mut LinearScratch,
    out: &mut [f32],
) -> Result<()> {
    let (n, k) = (weights.rows(), weights.cols());
    let rows = input.len().checked_div(k).unwrap_or(0);
    if input.len() != rows * k || out.len() != rows * n || rows > scratch.rows || k > scratch.cols {
        return Err(Error::invalid(format!(
            "a product of {n} x {k} weights with {} values into {} does not fit (room for {} x {})",
            input.len(),
            out.len(),
            scratch.rows,
            scratch.cols
        )));
    }
    let kind = ActKind::of(weights.ty());
    let view = scratch.quantised.view(rows, k);
    let source = In(match kind {
        ActKind::Float => Rows::Float(input.as_ptr(), k),
        _ => Rows::Quantised(view),
    });
    let out = Out(out.as_mut_ptr());
    let grain = (weights.tiles() / (pool.threads() * 8)).clamp(1, 64);
    pool.run(|region| {
        region.for_chunks(rows, 8, |range| {
            for row in range {
                // SAFETY: the scratch has room, and each row is quantised by one thread.
                unsafe { view.at(row).quantise(isa, kind, &input[row * k..][..k]) };
            }
        });
        let mut local = scratch.threads[region.thread()].lock().unwrap_or_else(PoisonError::into_inner);
        let (panel, block) = &mut *local;
        region.for_chunks(weights.tiles(), grain, |range| {
            for tile in range {
                // SAFETY: the rows are complete since the barrier and not written any more.
                unsafe { tile_product(isa, weights, tile, source.get(), rows, panel, block) };
                let width = TILE_ROWS.min(n - tile * TILE_ROWS);
                for row in 0..rows {
                    let from = &block[row * TILE_ROWS..][..width];
                    // SAFETY: row and columns lie within `out`, and only this thread has this tile.
                    unsafe {
                        let to = out.get().add(row * n + tile * TILE_ROWS);
                        std::ptr::copy_nonoverlapping(from.as_ptr(), to, width);
                    }
                }
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The VNNI kernels' source on AVX2: all but the one instruction is what runs on CPUs that have it.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_vnni_product_gives_the_bits_of_the_reference() {
        let Some(avx2) = crate::isa::Avx2::detect() else { return };
        // Less than a panel, and more than one.
        for columns in [256, 1024 + 512] {
            assert!(agrees_with_reference(Isa::Imitated(avx2), columns));
            assert!(agrees_with_reference(Isa::Avx2(avx2), columns));
        }
    }
}
