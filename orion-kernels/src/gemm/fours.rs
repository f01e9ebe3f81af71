//! The integer product for CPUs that multiply bytes in fours: one instruction multiplies four quants of each row with four
//! activations and adds the products to a 32-bit sum.
//!
//! A panel's group is what one such step takes: four columns of sixteen rows. One source serves x86 (`vnni`) and Arm
//! (`neon`); what differs is behind [`Lanes16`].
#![allow(unsafe_code, reason = "vector operations behind a trait")]

pub(crate) mod sevens;

use orion_core::{Result, TensorType};

use super::Part;
use super::kind::Kind;
use crate::activations::QuantView;
use crate::isa::Isa;
use crate::linear::{LinearScratch, linear};
use crate::pool::ComputePool;
use crate::tiles::{PackedMatrix, TILE_ROWS};

/// Sixteen lanes.
///
/// # Safety
/// Every method runs on a CPU with the instructions, and pointers are readable for sixteen lanes.
pub(super) trait Lanes16: Copy {
    type Int: Copy;
    type Float: Copy;
    /// Rows whose sums fit the registers.
    const ROWS: usize;
    /// Whether `dot` takes weights as they are in a panel. If not, signed ones (Q8_0) are moved to 0..=255 first, and what
    /// that adds is taken off by the sum of the activations.
    const SIGNED: bool;

    unsafe fn splat(value: i32) -> Self::Int;
    unsafe fn load(from: *const u8) -> Self::Int;
    /// Flips the sign of every byte.
    unsafe fn unsign(bytes: Self::Int) -> Self::Int;
    /// Adds products of weights with activations, in fours. Weights are unsigned if not [`SIGNED`](Self::SIGNED), and below
    /// 64 where the panel's are.
    unsafe fn dot(sum: Self::Int, weights: Self::Int, activations: Self::Int) -> Self::Int;
    /// Adds products of 16-bit numbers, in pairs.
    unsafe fn pairs(sum: Self::Int, a: Self::Int, b: Self::Int) -> Self::Int;
    /// The upper half of every lane, with its sign.
    unsafe fn upper(v: Self::Int) -> Self::Int;
    unsafe fn mul(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int;
    unsafe fn to_float(v: Self::Int) -> Self::Float;

    /// Holds a sum in its register while one group follows the other: else the compiler reads all groups first, and has
    /// registers for none.
    unsafe fn keep(v: &mut Self::Int);

    unsafe fn splat_float(value: f32) -> Self::Float;
    unsafe fn load_float(from: *const f32) -> Self::Float;
    unsafe fn store_float(v: Self::Float, to: *mut f32);
    unsafe fn mul_float(a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    /// `c - a * b`, rounded once.
    unsafe fn fnma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
}

/// # Safety
/// As [`tile_product`](super::tile_product); the panel holds `part.cols` columns; the CPU has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn sweep_kind<K: Kind, V: Lanes16>(part: &Part<'_>, input: QuantView) {
    let mut row = 0;
    // SAFETY: rows `row..row + n` exist in every call.
    unsafe {
        if V::ROWS == 8 {
            while part.rows - row >= 8 {
                product::<K, V, 8>(part, input, row);
                row += 8;
            }
        }
        while part.rows - row >= 4 {
            product::<K, V, 4>(part, input, row);
            row += 4;
        }
        match part.rows - row {
            0 => {}
            1 => product::<K, V, 1>(part, input, row),
            2 => product::<K, V, 2>(part, input, row),
            _ => product::<K, V, 3>(part, input, row),
        }
    }
}

/// `M` rows by 16 columns.
///
/// # Safety
/// As [`sweep_kind`]; rows `row..row + M` exist.
#[inline(always)]
unsafe fn product<K: Kind, V: Lanes16, const M: usize>(part: &Part<'_>, input: QuantView, row: usize) {
    let panel = part.panel;
    let (start, width) = (part.start, K::GROUPS * 4);
    // SAFETY: for the whole body: all offsets lie within the panel's `part.cols` columns and within the input's rows.
    unsafe {
        let input = input.at(row);
        let out = part.out.add(row * TILE_ROWS);
        let quants: *const u8 = panel.quants.as_ptr();
        // Columns passed.
        let mut at = 0;
        let mut int_scale: *const i16 = panel.int_scale.as_ptr();
        let mut total = [V::splat_float(0.0); M];
        for m in 0..M {
            total[m] = V::load_float(out.add(m * TILE_ROWS));
        }
        let mut x: [*const i8; M] = [input.quants.add(start); M];
        for m in 1..M {
            x[m] = x[m - 1].add(input.quants_stride);
        }
        for block in 0..part.cols / width {
            let first = start + block * width;
            let mut sum = [V::splat(0); M];
            let offset = if K::SIGNED && !V::SIGNED { 128 } else { K::OFFSET };
            if offset != 0 {
                for m in 0..M {
                    let of = i32::from(*input.sum32.add(m * input.side_stride + first / 32));
                    sum[m] = V::splat(-offset * of);
                }
            }
            let run = if K::SUB == 0 { K::GROUPS } else { K::SUB };
            for _ in 0..K::GROUPS / run {
                let mut short = if K::SUB == 0 { sum } else { [V::splat(0); M] };
                for _ in 0..run {
                    let mut w = V::load(quants.add(at * 16));
                    if K::SIGNED && !V::SIGNED {
                        w = V::unsign(w);
                    }
                    for m in 0..M {
                        let four = V::splat(x[m].add(at).cast::<i32>().read_unaligned());
                        short[m] = V::dot(short[m], w, four);
                    }
                    at += 4;
                    for m in 0..M {
                        V::keep(&mut short[m]);
                    }
                }
                if K::SUB == 0 {
                    sum = short;
                } else {
                    // Each scale stands there twice.
                    let scale = V::upper(V::load(int_scale.cast()));
                    int_scale = int_scale.add(32);
                    for m in 0..M {
                        sum[m] = V::add(sum[m], V::mul(short[m], scale));
                    }
                }
            }
            let lane = block * TILE_ROWS;
            let scale = V::load_float(panel.scale.as_ptr().add(lane));
            for m in 0..M {
                let side = m * input.side_stride;
                let x_scale = V::splat_float(*input.scale.add(side + first / width));
                let mut minima = V::splat(0);
                for pair in 0..K::PAIRS {
                    let sums = if K::PAIRS == 8 {
                        input.sum16.add(side + first / 16 + 2 * pair)
                    } else {
                        input.sum32.add(side + first / 32 + 2 * pair)
                    };
                    let sums = V::splat(sums.cast::<i32>().read_unaligned());
                    let table = panel.int_minimum.as_ptr().add((block * K::PAIRS + pair) * 32);
                    minima = V::pairs(minima, V::load(table.cast()), sums);
                }
                let mut exact = sum[m];
                if K::PAIRS != 0 && !K::PAIRS_FACTOR {
                    exact = V::sub(exact, minima);
                }
                let both = V::mul_float(scale, x_scale);
                let mut result = V::fma(V::to_float(exact), both, total[m]);
                if K::PAIRS_FACTOR {
                    let minimum = V::load_float(panel.minimum.as_ptr().add(lane));
                    let both = V::mul_float(minimum, x_scale);
                    result = V::fnma(V::to_float(minima), both, result);
                }
                if K::MINIMUM {
                    let minimum = V::load_float(panel.minimum.as_ptr().add(lane));
                    let x_sum = V::splat_float(*input.scaled_sum.add(side + first / 32));
                    result = V::fma(minimum, x_sum, result);
                }
                total[m] = result;
            }
        }
        for m in 0..M {
            V::store_float(total[m], out.add(m * TILE_ROWS));
        }
    }
}

/// Whether an instruction set gives the reference's bits for a small product of every quantised type, with `k` columns.
/// Nothing in it may ask which set is the best one: that waits for this answer.
pub(crate) fn agrees_with_reference(isa: Isa, k: usize) -> bool {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut agree = |ty: TensorType| -> Result<bool> {
        let n = TILE_ROWS;
        // Halves with these bits clear are finite, and so are all scales.
        let bytes: Vec<u8> = (0..n * k / ty.block_len() * ty.block_bytes()).map(|_| next() & 0xbb).collect();
        let pool = ComputePool::new(1)?;
        let matrix = PackedMatrix::pack(&pool, ty, n, k, &bytes)?;
        // Rows for every branch by number: from a panel, and the first of them straight from the tile.
        let (most, few) = (23, 7);
        let input: Vec<f32> = (0..most * k).map(|_| f32::from(next()) / 64.0 - 2.0).collect();
        let mut scratch = LinearScratch::new(&pool, most, k);
        let mut product = |isa, rows: usize| -> Result<Vec<u32>> {
            let mut out = vec![0.0; rows * n];
            linear(&pool, isa, &matrix, &input[..rows * k], &mut scratch, &mut out)?;
            Ok(out.into_iter().map(f32::to_bits).collect())
        };
        let reference = product(Isa::Scalar, most)?;
        Ok(product(isa, most)? == reference && product(isa, few)? == reference[..few * n])
    };
    let mut quantised = TensorType::ALL.iter().filter(|ty| PackedMatrix::supports(**ty) && ty.is_quantised());
    quantised.all(|&ty| agree(ty).unwrap_or(false))
}
