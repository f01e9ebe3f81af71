//! A matrix product as one call: quantise the rows, multiply, store.
#![allow(unsafe_code, reason = "threads write disjoint columns of one output")]

use std::sync::{Mutex, PoisonError};

use orion_core::{Error, Result};

use crate::activations::{ActKind, QuantRows};
use crate::aligned::AlignedBuf;
use crate::gemm::{Rows, tile_product};
use crate::isa::Isa;
use crate::pool::ComputePool;
use crate::simd::prefetch_to_write;
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
    // With many rows a tile is long enough by itself.
    let grain = if rows <= 16 { (weights.tiles() / (pool.threads() * 8)).clamp(1, 64) } else { 1 };
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
                    let to = out.get().wrapping_add(row * n + tile * TILE_ROWS);
                    prefetch_to_write(to.wrapping_add(ROWS_AHEAD * n));
                    // SAFETY: row and columns lie within `out`, and only this thread has this tile.
                    unsafe { copy(&block[row * TILE_ROWS..][..width], to) };
                }
            }
        });
    })
}

/// Rows whose lines are asked for before their turn: each is another line, that another thread has read.
pub(crate) const ROWS_AHEAD: usize = 12;

/// Copies a row of a tile's results.
#[inline(always)]
pub(crate) unsafe fn copy(values: &[f32], to: *mut f32) {
    // SAFETY: the caller vouches for the target.
    unsafe {
        match <&[f32; TILE_ROWS]>::try_from(values) {
            // All but the matrix's last tile are whole, and of a length known beforehand this takes no call.
            Ok(whole) => to.cast::<[f32; TILE_ROWS]>().write_unaligned(*whole),
            Err(_) => std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()),
        }
    }
}
