//! Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 with one or two half-precision numbers.

use super::super::lanes::{Lanes, each};
use super::super::search::{Trials, affine, symmetric, transpose};
use super::weights::{sum_of_squares, weights};
use super::{Rows, pack_nibbles};

type Block = [f32; 32];

/// `d`, then nibbles.
#[inline(always)]
pub(super) fn q4_0<S: Lanes>(s: S, rows: Rows<'_>, out: &mut [u8]) {
    symmetric_rows::<S, 18>(s, rows, out, 8);
}

/// `d`, fifth bits, nibbles.
#[inline(always)]
pub(super) fn q5_0<S: Lanes>(s: S, rows: Rows<'_>, out: &mut [u8]) {
    symmetric_rows::<S, 22>(s, rows, out, 16);
}

/// `d`, `m`, nibbles.
#[inline(always)]
pub(super) fn q4_1<S: Lanes>(s: S, rows: Rows<'_>, out: &mut [u8]) {
    affine_rows::<S, 20>(s, rows, out, 15);
}

/// `d`, `m`, fifth bits, nibbles.
#[inline(always)]
pub(super) fn q5_1<S: Lanes>(s: S, rows: Rows<'_>, out: &mut [u8]) {
    affine_rows::<S, 24>(s, rows, out, 31);
}

/// `d`, signed bytes; rounded half away from zero.
#[inline(always)]
pub(super) fn q8_0<S: Lanes>(s: S, rows: Rows<'_>, out: &mut [u8]) {
    for (x, _, out) in rows.blocks(out) {
        q8_0_block(s, x, out);
    }
}

#[inline(always)]
fn q8_0_block<S: Lanes>(s: S, x: &Block, out: &mut [u8; 34]) {
    let d = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0)) / 127.0;
    let (inverse, _) = inverse_of(d, 0.0);
    out[..2].copy_from_slice(&s.to_half(d).to_le_bytes());
    for (out, x) in out[2..].iter_mut().zip(x) {
        *out = (x * inverse).round() as i8 as u8;
    }
}

/// Blocks of `2 * half` levels around zero: the scale from the largest element or, with importances, searched for.
#[inline(always)]
fn symmetric_rows<S: Lanes, const BYTES: usize>(s: S, rows: Rows<'_>, out: &mut [u8], half: i32) {
    if let Some(imatrix) = rows.imatrix {
        for (row, out) in
            rows.x.chunks_exact(rows.n_per_row).zip(out.chunks_exact_mut(rows.n_per_row / 32 * BYTES))
        {
            let mean_square = sum_of_squares(row) / rows.n_per_row as f32;
            for (blocks, im, out) in eights::<BYTES>(row, imatrix, out) {
                let x = transpose::<32>(blocks.as_flattened());
                let fit = symmetric(s, &x, &weights(s, &x, &transpose(im), mean_square), half);
                for (j, (block, out)) in blocks.iter().zip(out).enumerate() {
                    write(out, &[s.to_half(fit.scale[j])], &each(block, |x| fit.level(j, x)));
                }
            }
        }
        return;
    }
    for (x, _, out) in rows.blocks::<32, BYTES>(out) {
        let d = extreme(x) / -half as f32;
        let (inverse, centre) = inverse_of(d, half as f32 + 0.5);
        let top = 2 * half as u8 - 1;
        write(out, &[s.to_half(d)], &each(x, |x| ((x * inverse + centre) as u8).min(top)));
    }
}

/// Blocks of levels `0..=top` above a minimum: from the extremes or, with importances, searched for.
#[inline(always)]
fn affine_rows<S: Lanes, const BYTES: usize>(s: S, rows: Rows<'_>, out: &mut [u8], top: u8) {
    const TRIALS: Trials = Trials { first: -0.9, step: 0.05, last: 36, absolute: false };
    if let Some(imatrix) = rows.imatrix {
        for (row, out) in
            rows.x.chunks_exact(rows.n_per_row).zip(out.chunks_exact_mut(rows.n_per_row / 32 * BYTES))
        {
            let mean_square = sum_of_squares(row) / rows.n_per_row as f32;
            for (blocks, im, out) in eights::<BYTES>(row, imatrix, out) {
                let x = transpose::<32>(blocks.as_flattened());
                let weights = weights(s, &x, &transpose(im), mean_square);
                let fit = affine(s, &x, &weights, i32::from(top), TRIALS);
                for (j, (block, out)) in blocks.iter().zip(out).enumerate() {
                    let head = [s.to_half(fit.scale[j]), s.to_half(-fit.min[j])];
                    write(out, &head, &each(block, |x| fit.level(j, x)));
                }
            }
        }
        return;
    }
    for (x, _, out) in rows.blocks::<32, BYTES>(out) {
        let (min, max) = extremes(x);
        let d = (max - min) / f32::from(top);
        let (inverse, centre) = inverse_of(d, 0.5);
        let head = [s.to_half(d), s.to_half(min)];
        write(out, &head, &each(x, |x| (((x - min) * inverse + centre) as u8).min(top)));
    }
}

/// The scales, the fifth bits if the block has room for them, the nibbles.
#[inline(always)]
fn write<const BYTES: usize, const SCALES: usize>(
    out: &mut [u8; BYTES],
    scales: &[u16; SCALES],
    levels: &[u8; 32],
) {
    let (head, nibbles) = out.split_at_mut(BYTES - 16);
    let (scale_bytes, fifth) = head.split_at_mut(2 * SCALES);
    for (out, scale) in scale_bytes.as_chunks_mut().0.iter_mut().zip(scales) {
        *out = scale.to_le_bytes();
    }
    if let Some(fifth) = fifth.first_chunk_mut() {
        let bits = levels.iter().enumerate().fold(0, |bits, (j, level)| bits | u32::from(level >> 4) << j);
        *fifth = bits.to_le_bytes();
    }
    pack_nibbles(levels, nibbles);
}

/// Up to eight blocks of a row at a time, with their columns' importances and their bytes.
#[inline(always)]
fn eights<'a, 'o, const BYTES: usize>(
    row: &'a [f32],
    imatrix: &'a [f32],
    out: &'o mut [u8],
) -> impl Iterator<Item = (&'a [Block], &'a [f32], &'o mut [[u8; BYTES]])> {
    let blocks = row.as_chunks::<32>().0.chunks(8).zip(imatrix.chunks(256));
    blocks.zip(out.as_chunks_mut().0.chunks_mut(8)).map(|((blocks, im), out)| (blocks, im, out))
}

/// What to multiply by, and what to add before truncating. The reciprocal of a scale near the bottom of the subnormals is
/// infinite; the reference's conversion then yields level 0 throughout.
#[inline(always)]
fn inverse_of(d: f32, centre: f32) -> (f32, f32) {
    let inverse = 1.0 / d;
    if d == 0.0 {
        (0.0, centre)
    } else if inverse.is_infinite() {
        (0.0, 0.0)
    } else {
        (inverse, centre)
    }
}

/// The element of largest magnitude, the first if there are several; zero has no sign. In integers, which vectorise.
#[inline(always)]
fn extreme(x: &Block) -> f32 {
    let largest = x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0);
    let seen = |bits: u32| x.iter().fold(false, |seen, x| seen | (x.to_bits() == bits));
    let (positive, negative) = (f32::from_bits(largest), -f32::from_bits(largest));
    if largest == 0 || !seen(negative.to_bits()) {
        positive
    } else if !seen(largest) {
        negative
    } else {
        *x.iter().find(|x| x.abs() == positive).unwrap_or(&positive)
    }
}

/// The smallest and the largest element. Of two zeros the first is the minimum, for its sign is stored.
#[inline(always)]
fn extremes(x: &Block) -> (f32, f32) {
    // Flips the magnitude of negative numbers, so that integers order as floats do; its own inverse.
    let ordered = |bits: i32| bits ^ ((bits >> 31) as u32 >> 1) as i32;
    let keys = each(x, |x| ordered(x.to_bits() as i32));
    let float = |key: i32| f32::from_bits(ordered(key) as u32);
    let (min, max) = keys.iter().fold((i32::MAX, i32::MIN), |(min, max), &key| (min.min(key), max.max(key)));
    let (min, max) = (float(min), float(max));
    if min == 0.0 { (*x.iter().find(|&&x| x == 0.0).unwrap_or(&min), max) } else { (min, max) }
}
