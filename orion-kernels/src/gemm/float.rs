//! Products with float weights: one fused multiply-add per column, columns ascending.
#![allow(unsafe_code, reason = "rows are shared between threads as pointers")]

use super::Part;
use crate::isa::Isa;
use crate::simd::{Kernel, Lanes, dispatch};
use crate::tiles::TILE_ROWS;

/// # Safety
/// As [`tile_product`](super::tile_product); the panel holds `part.cols` columns.
pub(super) unsafe fn sweep(isa: Isa, part: Part<'_>, first: *const f32, stride: usize) {
    // SAFETY: the panel's columns lie within the row.
    let first = unsafe { first.add(part.start) };
    dispatch(isa, Sweep { part, first, stride });
}

struct Sweep<'a> {
    part: Part<'a>,
    first: *const f32,
    stride: usize,
}

impl Kernel for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut row = 0;
        while self.part.rows - row >= 6 {
            self.product::<L, 6>(row);
            row += 6;
        }
        match self.part.rows - row {
            0 => {}
            1 => self.product::<L, 1>(row),
            2 => self.product::<L, 2>(row),
            3 => self.product::<L, 3>(row),
            4 => self.product::<L, 4>(row),
            _ => self.product::<L, 5>(row),
        }
    }
}

impl Sweep<'_> {
    #[inline(always)]
    fn product<L: Lanes, const M: usize>(&self, row: usize) {
        let weights = self.part.panel.floats.as_ptr();
        // SAFETY: the contract of `sweep`: rows `row..row + M` of input and output exist, with `cols` columns.
        unsafe {
            let out = self.part.out.add(row * TILE_ROWS);
            let x = self.first.add(row * self.stride);
            let mut total = [[L::splat(0.0); 2]; M];
            for m in 0..M {
                total[m] = [L::load(out.add(m * TILE_ROWS)), L::load(out.add(m * TILE_ROWS + 8))];
            }
            for column in 0..self.part.cols {
                let w =
                    [L::load(weights.add(column * TILE_ROWS)), L::load(weights.add(column * TILE_ROWS + 8))];
                for m in 0..M {
                    let value = L::splat(*x.add(m * self.stride + column));
                    total[m] = [value.fma(w[0], total[m][0]), value.fma(w[1], total[m][1])];
                }
            }
            for m in 0..M {
                total[m][0].store(out.add(m * TILE_ROWS));
                total[m][1].store(out.add(m * TILE_ROWS + 8));
            }
        }
    }
}
