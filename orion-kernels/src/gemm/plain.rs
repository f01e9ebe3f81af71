//! The reference product.
#![allow(unsafe_code, reason = "rows are shared between threads as pointers")]

use std::slice::from_raw_parts;

use orion_core::TensorType;

use super::kind::{self, Kind};
use super::{Part, for_kind};
use crate::activations::QuantView;
use crate::tiles::TILE_ROWS;

/// # Safety
/// As [`tile_product`](super::tile_product); the panel holds `part.cols` columns.
pub(super) unsafe fn sweep(part: &Part<'_>, input: QuantView) {
    // SAFETY: passed on.
    unsafe { for_kind!(part.ty, sweep_kind(part, input)) }
}

unsafe fn sweep_kind<K: Kind>(part: &Part<'_>, input: QuantView) {
    for row in 0..part.rows {
        // SAFETY: there are `part.rows` rows of input and of output.
        let (input, out) =
            unsafe { (input.at(row), &mut *part.out.add(row * TILE_ROWS).cast::<[f32; TILE_ROWS]>()) };
        for block in 0..part.cols / (K::GROUPS * 4) {
            for (lane, out) in out.iter_mut().enumerate() {
                // SAFETY: the block lies within the row.
                *out = unsafe { add_block::<K>(part, input, block, lane, *out) };
            }
        }
    }
}

/// Adds one block's product for one output.
#[allow(clippy::cast_precision_loss, reason = "the same rounding as the vector conversion")]
unsafe fn add_block<K: Kind>(
    part: &Part<'_>,
    input: QuantView,
    block: usize,
    lane: usize,
    mut out: f32,
) -> f32 {
    let width = K::GROUPS * 4;
    let first = part.start + block * width;
    // SAFETY: the row has at least `first + width` columns.
    let (quants, scale) =
        unsafe { (from_raw_parts(input.quants.add(first), width), *input.scale.add(first / width)) };
    let panel = part.panel;
    let weight = |column: usize| {
        let byte = panel.quants[(block * K::GROUPS + column / 4) * 64 + lane * 4 + column % 4];
        if K::SIGNED { i32::from(byte.cast_signed()) } else { i32::from(byte) }
    };
    let int_scale = |column: usize| {
        if K::SUB == 0 {
            return 1;
        }
        let sub = block * (K::GROUPS / K::SUB) + column / (K::SUB * 4);
        i32::from(panel.int_scale[(sub * TILE_ROWS + lane) * 2])
    };
    let mut sum: i32 =
        quants.iter().enumerate().map(|(column, &q)| weight(column) * i32::from(q) * int_scale(column)).sum();
    if K::OFFSET != 0 {
        // SAFETY: one sum per 32 columns of the row.
        sum -= K::OFFSET * i32::from(unsafe { *input.sum32.add(first / 32) });
    }
    let mut minima = 0;
    for pair in 0..K::PAIRS {
        let at = ((block * K::PAIRS + pair) * TILE_ROWS + lane) * 2;
        for i in 0..2 {
            let sub = block * K::PAIRS * 2 + part.start / (width / (K::PAIRS * 2)) + pair * 2 + i;
            // SAFETY: one sum per sub-block of the row.
            let sum = unsafe { if K::PAIRS == 8 { *input.sum16.add(sub) } else { *input.sum32.add(sub) } };
            minima += i32::from(panel.int_minimum[at + i]) * i32::from(sum);
        }
    }
    if !K::PAIRS_FACTOR {
        sum -= minima;
    }
    let at = block * TILE_ROWS + lane;
    out = (sum as f32).mul_add(panel.scale[at] * scale, out);
    if K::PAIRS_FACTOR {
        out = (minima as f32).mul_add(-(panel.minimum[at] * scale), out);
    }
    if K::MINIMUM {
        // SAFETY: one scaled sum per 32 columns of the row.
        out = panel.minimum[at].mul_add(unsafe { *input.scaled_sum.add(first / 32) }, out);
    }
    out
}
