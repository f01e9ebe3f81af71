//! Q2_K to Q6_K: super-blocks of 256 whose sub-blocks' scales are quantised in turn.

use super::super::decode::{k4_scale_min, two_bit_place};
use super::super::half_bits::f16_to_f32;
use super::super::lanes::{Lanes, each, nearest_int};
use super::super::search::{
    Affine, Group, Symmetric, Trials, ZERO, affine, descend, positive, symmetric, symmetric_level, transpose,
};
use super::weights::{lane_sums, magnitudes, offset_magnitudes, squares, sum_of_squares, weights};

type Super = [f32; 256];

/// The search with importances; that without differs from type to type.
const WEIGHTED: Trials = Trials { first: -0.9, step: 0.05, last: 36, absolute: false };

/// 16 bytes of scale and minimum nibbles, 64 bytes of 2-bit numbers, `d`, `dmin`.
#[inline(always)]
pub(super) fn q2_k<S: Lanes>(s: S, x: &Super, im: Option<&Super>, out: &mut [u8; 84]) {
    let groups = [transpose::<16>(&x[..128]), transpose::<16>(&x[128..])];
    let (scales, mins, fits): ([f32; 16], [f32; 16], [Affine; 2]);
    let (d, dmin, scale_levels, min_levels);
    match im {
        None => {
            const TRIALS: Trials = Trials { first: -0.5, step: 0.1, last: 15, absolute: true };
            let weighted = [magnitudes(s, &groups[0]), magnitudes(s, &groups[1])];
            fits = [
                affine(s, &groups[0], &weighted[0], 3, TRIALS),
                affine(s, &groups[1], &weighted[1], 3, TRIALS),
            ];
            (scales, mins) = (both(&fits[0].scale, &fits[1].scale), both(&fits[0].min, &fits[1].min));
            (d, scale_levels) = by_largest(&scales, 15.0);
            (dmin, min_levels) = by_largest(&mins, 15.0);
        }
        Some(im) => {
            let floor = sum_of_squares(x) / 256.0;
            let weighted = half_weights(s, &groups, im, floor);
            fits = [
                affine(s, &groups[0], &weighted[0], 3, WEIGHTED),
                affine(s, &groups[1], &weighted[1], 3, WEIGHTED),
            ];
            (scales, mins) = (both(&fits[0].scale, &fits[1].scale), both(&fits[0].min, &fits[1].min));
            let totals = both(&lane_sums(s, &weighted[0]), &lane_sums(s, &weighted[1]));
            (d, scale_levels) = positive(&scales, &totals, 15);
            (dmin, min_levels) = positive(&mins, &totals, 15);
        }
    }
    let (d, dmin) = (s.to_half(d), s.to_half(dmin));
    out[80..82].copy_from_slice(&d.to_le_bytes());
    out[82..84].copy_from_slice(&dmin.to_le_bytes());

    out[16..80].fill(0);
    for (sub, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let packed = scale_levels[sub] | min_levels[sub] << 4;
        out[sub] = packed;
        let scale = f16_to_f32(d) * f32::from(packed & 15);
        let min = f16_to_f32(dmin) * f32::from(packed >> 4);
        let levels = affine_levels(x, scale, min, 3, &fits[sub / 8], sub % 8);
        let (from, shift) = two_bit_place(sub);
        for (out, level) in out[16 + from..].iter_mut().zip(levels) {
            *out |= level << shift;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of 2-bit numbers, 12 bytes of scales, `d`.
#[inline(always)]
pub(super) fn q3_k<S: Lanes>(s: S, x: &Super, im: Option<&Super>, out: &mut [u8; 110]) {
    const HALF: i32 = 4;
    let groups = [transpose::<16>(&x[..128]), transpose::<16>(&x[128..])];
    let (d, scale_levels, found): (u16, [u8; 16], [u8; 256]);
    match im {
        None => {
            let (scales, levels) = descend(s, &groups);
            let largest = largest_magnitude(&scales);
            let inverse = -32.0 / largest;
            d = if largest == 0.0 { 0 } else { s.to_half(1.0 / inverse) };
            scale_levels = each(&scales, |scale| {
                if largest == 0.0 {
                    0
                } else {
                    (nearest_int(inverse * scale) as i8).clamp(-32, 31).wrapping_add(32) as u8
                }
            });
            found = levels;
        }
        Some(im) => {
            let floor = 2.0 * sum_of_squares(x) / 256.0;
            let weighted = half_weights(s, &groups, im, floor);
            let fits =
                [symmetric(s, &groups[0], &weighted[0], HALF), symmetric(s, &groups[1], &weighted[1], HALF)];
            let totals = both(&lane_sums(s, &weighted[0]), &lane_sums(s, &weighted[1]));
            let scales = both(&fits[0].scale, &fits[1].scale);
            // The scales of one super-block fill one lane; the others are zero.
            let lane = |x: &[f32; 16]| each(x, |x| [x, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
            let outer = symmetric(s, &lane(&scales), &lane(&totals), 32);
            d = s.to_half(outer.scale[0]);
            scale_levels = each(&scales, |scale| outer.level(0, scale));
            found = searched(x, &fits);
        }
    }
    out.fill(0);
    out[108..].copy_from_slice(&d.to_le_bytes());
    for (sub, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let packed = scale_levels[sub];
        out[96 + sub % 8] |= (packed & 15) << (sub / 8 * 4);
        out[104 + sub % 4] |= packed >> 4 << (sub / 4 * 2);
        let scale = f16_to_f32(d) * (i32::from(packed) - 32) as f32;
        let levels = symmetric_levels(x, scale, HALF, &found[16 * sub..]);
        let (from, shift) = two_bit_place(sub);
        for (i, level) in levels.into_iter().enumerate() {
            out[32 + from + i] |= (level & 3) << shift;
            out[sub % 2 * 16 + i] |= level >> 2 << (sub / 2);
        }
    }
}

/// `d`, `dmin`, 12 bytes of scales and minima, 128 bytes of nibbles.
#[inline(always)]
pub(super) fn q4_k<S: Lanes>(s: S, x: &Super, im: Option<&Super>, out: &mut [u8; 144]) {
    const TRIALS: Trials = Trials { first: -1.0, step: 0.1, last: 20, absolute: false };
    let (head, levels) = k4(s, x, im, 15, TRIALS);
    out[..16].copy_from_slice(&head);
    for (out, pair) in out[16..].as_chunks_mut::<32>().0.iter_mut().zip(levels.as_chunks::<64>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = pair[i] | pair[i + 32] << 4;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles.
#[inline(always)]
pub(super) fn q5_k<S: Lanes>(s: S, x: &Super, im: Option<&Super>, out: &mut [u8; 176]) {
    const TRIALS: Trials = Trials { first: -0.5, step: 0.1, last: 15, absolute: false };
    let (head, levels) = k4(s, x, im, 31, TRIALS);
    out[..16].copy_from_slice(&head);
    let (fifth, nibbles) = out[16..].split_at_mut(32);
    fifth.fill(0);
    for (sub, levels) in levels.as_chunks::<32>().0.iter().enumerate() {
        for (out, level) in fifth.iter_mut().zip(levels) {
            *out |= level >> 4 << sub;
        }
    }
    for (out, pair) in nibbles.as_chunks_mut::<32>().0.iter_mut().zip(levels.as_chunks::<64>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = pair[i] & 15 | pair[i + 32] << 4;
        }
    }
}

/// The first 16 bytes and the levels of Q4_K (`top` 15) and Q5_K (31).
#[inline(always)]
fn k4<S: Lanes>(s: S, x: &Super, im: Option<&Super>, top: i32, trials: Trials) -> ([u8; 16], [u8; 256]) {
    let group = transpose::<32>(x);
    let (fit, d, dmin, scale_levels, min_levels);
    match im {
        None => {
            fit = affine(s, &group, &offset_magnitudes(s, &group), top, trials);
            let found = [by_largest(&fit.scale, 63.0), by_largest(&fit.min, 63.0)];
            [(d, scale_levels), (dmin, min_levels)] = found;
        }
        Some(im) => {
            let weighted = weights(s, &group, &transpose(im), 2.0 * sum_of_squares(x) / 256.0);
            fit = affine(s, &group, &weighted, top, WEIGHTED);
            let totals = lane_sums(s, &weighted);
            (d, scale_levels) = positive(&fit.scale, &totals, 63);
            (dmin, min_levels) = positive(&fit.min, &totals, 63);
        }
    }
    let (d, dmin) = (s.to_half(d), s.to_half(dmin));
    let (mut head, mut levels) = ([0; 16], [0; 256]);
    head[..2].copy_from_slice(&d.to_le_bytes());
    head[2..4].copy_from_slice(&dmin.to_le_bytes());
    let packed = &mut head[4..];
    // The reference's only path that does not limit them; where a scale came out negative its bytes show it.
    let limit = if im.is_some() && top == 15 { u8::MAX } else { 63 };
    for sub in 0..8 {
        let (scale, min) = (scale_levels[sub].min(limit), min_levels[sub].min(limit));
        if sub < 4 {
            (packed[sub], packed[sub + 4]) = (scale, min);
        } else {
            packed[sub + 4] = scale & 15 | min << 4;
            packed[sub - 4] |= scale >> 4 << 6;
            packed[sub] |= min >> 4 << 6;
        }
    }
    let packed = head.last_chunk().expect("16 bytes have a last 12");
    for (sub, (x, levels)) in x.as_chunks::<32>().0.iter().zip(levels.as_chunks_mut().0).enumerate() {
        let (scale, min) = k4_scale_min(packed, sub);
        let (scale, min) = (f16_to_f32(d) * f32::from(scale), f16_to_f32(dmin) * f32::from(min));
        *levels = affine_levels(x, scale, min, top, &fit, sub);
    }
    (head, levels)
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, `d`. Importances weigh as they are.
#[inline(always)]
pub(super) fn q6_k<S: Lanes>(s: S, x: &Super, im: Option<&Super>, out: &mut [u8; 210]) {
    const HALF: i32 = 32;
    out.fill(0);
    let groups = [transpose::<16>(&x[..128]), transpose::<16>(&x[128..])];
    let weighted = match im {
        None => [squares(s, &groups[0]), squares(s, &groups[1])],
        Some(im) => [transpose(&im[..128]), transpose(&im[128..])],
    };
    let fits = [symmetric(s, &groups[0], &weighted[0], HALF), symmetric(s, &groups[1], &weighted[1], HALF)];
    let scales = both(&fits[0].scale, &fits[1].scale);
    let largest = largest_magnitude(&scales);
    if largest.abs() < ZERO {
        return;
    }
    let inverse = -128.0 / largest;
    let d = s.to_half(1.0 / inverse);
    out[208..].copy_from_slice(&d.to_le_bytes());
    let found = searched(x, &fits);
    for (sub, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let packed = nearest_int(inverse * scales[sub]).min(127) as i8;
        out[192 + sub] = packed as u8;
        let scale = f16_to_f32(d) * f32::from(packed);
        let levels = symmetric_levels(x, scale, HALF, &found[16 * sub..]);
        // Within a half of 128: eight sub-blocks; two share a bit pair, the first four the low nibble.
        let (half, sub) = (sub / 8, sub % 8);
        for (i, level) in levels.into_iter().enumerate() {
            out[half * 64 + sub % 4 * 16 + i] |= (level & 15) << (sub / 4 * 4);
            out[128 + half * 32 + sub % 2 * 16 + i] |= level >> 4 << (sub / 2 * 2);
        }
    }
}

/// [`weights`] of both halves of a super-block.
#[inline(always)]
fn half_weights<S: Lanes>(s: S, groups: &[Group<16>; 2], im: &Super, floor: f32) -> [Group<16>; 2] {
    [
        weights(s, &groups[0], &transpose(&im[..128]), floor),
        weights(s, &groups[1], &transpose(&im[128..]), floor),
    ]
}

/// Levels of a sub-block for its final scale and minimum; where that scale is zero, those of the search stay.
#[inline(always)]
fn affine_levels<const N: usize>(
    x: &[f32; N],
    scale: f32,
    min: f32,
    top: i32,
    fit: &Affine,
    lane: usize,
) -> [u8; N] {
    if scale == 0.0 {
        each(x, |x| fit.level(lane, x))
    } else {
        each(x, |x| nearest_int((x + min) / scale).clamp(0, top) as u8)
    }
}

/// Levels of a sub-block for its final scale; where that is zero, those of the search stay.
#[inline(always)]
fn symmetric_levels(x: &[f32; 16], scale: f32, half: i32, found: &[u8]) -> [u8; 16] {
    let mut levels = [0; 16];
    if scale == 0.0 {
        levels.copy_from_slice(&found[..16]);
    } else {
        levels = each(x, |x| symmetric_level(x / scale, half));
    }
    levels
}

/// The levels of the search.
#[inline(always)]
fn searched(x: &Super, fits: &[Symmetric; 2]) -> [u8; 256] {
    let mut levels = [0; 256];
    for (i, level) in levels.iter_mut().enumerate() {
        *level = fits[i / 128].level(i % 128 / 16, x[i]);
    }
    levels
}

/// Levels relative to the largest of `x`, and the step between them.
#[inline(always)]
fn by_largest<const N: usize>(x: &[f32; N], top: f32) -> (f32, [u8; N]) {
    let largest = x.iter().fold(0.0, |largest: f32, &x| if x > largest { x } else { largest });
    let inverse = if largest > 0.0 { top / largest } else { 0.0 };
    (largest / top, each(x, |x| nearest_int(inverse * x) as u8))
}

/// The element of largest magnitude, the first if there are several.
#[inline(always)]
fn largest_magnitude(x: &[f32; 16]) -> f32 {
    x.iter().fold(0.0, |largest: f32, &x| if x.abs() > largest.abs() { x } else { largest })
}

#[inline(always)]
fn both(a: &[f32; 8], b: &[f32; 8]) -> [f32; 16] {
    let mut both = [0.0; 16];
    both[..8].copy_from_slice(a);
    both[8..].copy_from_slice(b);
    both
}
