//! From a block's bytes to its numbers. Layouts are those of ggml's `block_*` structs, little-endian.
//!
//! A product is formed before a sum and never fused with it; scale times sub-scale comes first. That order is part of the format's definition.

use orion_core::TensorType;

use super::half_bits::{f16_at, f16_to_f32};
use crate::isa::Isa;

/// The sixteen levels of IQ4_NL and IQ4_XS.
pub(super) const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Decodes `bytes`, whose length the caller has checked against `out`.
pub(super) fn decode(isa: Isa, ty: TensorType, bytes: &[u8], out: &mut [f32]) {
    match isa.avx2() {
        None => blocks(ty, bytes, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` value exists only where the processor has AVX2 and F16C.
        #[allow(unsafe_code)]
        Some(_) => unsafe { blocks_avx2(ty, bytes, out) },
        #[cfg(not(target_arch = "x86_64"))]
        Some(_) => blocks(ty, bytes, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn blocks_avx2(ty: TensorType, bytes: &[u8], out: &mut [f32]) {
    blocks(ty, bytes, out);
}

#[inline(always)]
fn blocks(ty: TensorType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        TensorType::F32 => each(bytes, out, |b, y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)),
        TensorType::F16 => each(bytes, out, |b, y: &mut [f32; 1]| y[0] = f16_at(b)),
        TensorType::BF16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| {
            y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }),
        TensorType::Q4_0 => each(bytes, out, q4_0),
        TensorType::Q4_1 => each(bytes, out, q4_1),
        TensorType::Q5_0 => each(bytes, out, q5_0),
        TensorType::Q5_1 => each(bytes, out, q5_1),
        TensorType::Q8_0 => each(bytes, out, q8_0),
        TensorType::Q2K => each(bytes, out, q2_k),
        TensorType::Q3K => each(bytes, out, q3_k),
        TensorType::Q4K => each(bytes, out, q4_k),
        TensorType::Q5K => each(bytes, out, q5_k),
        TensorType::Q6K => each(bytes, out, q6_k),
        TensorType::Iq4Nl => each(bytes, out, iq4_nl),
        TensorType::Iq4Xs => each(bytes, out, iq4_xs),
        other => unreachable!("{other} has no decoder; a test walks all types"),
    }
}

#[inline(always)]
fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
}

/// `bytes[AT..AT + N]` as an array.
#[inline(always)]
fn part<const AT: usize, const N: usize, const BYTES: usize>(bytes: &[u8; BYTES]) -> &[u8; N] {
    const { assert!(AT + N <= BYTES) };
    bytes[AT..].first_chunk().expect("the constant assertion holds")
}

/// 32 numbers from 16 bytes: the low nibbles, then the high ones.
#[inline(always)]
fn nibbles(qs: &[u8; 16], y: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    for j in 0..16 {
        y[j] = value(j, qs[j] & 15);
        y[j + 16] = value(j + 16, qs[j] >> 4);
    }
}

/// Bit `j` of `qh`, moved to bit 4.
#[inline(always)]
fn fifth_bit(qh: u32, j: usize) -> u8 {
    ((qh >> j & 1) << 4) as u8
}

/// `d` f16, 16 bytes of nibbles.
#[inline(always)]
fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(part::<0, 2, 18>(b));
    nibbles(part::<2, 16, 18>(b), y, |_, q| (i32::from(q) - 8) as f32 * d);
}

/// `d` f16, `m` f16, 16 bytes of nibbles.
#[inline(always)]
fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(part::<0, 2, 20>(b)), f16_at(part::<2, 2, 20>(b)));
    nibbles(part::<4, 16, 20>(b), y, |_, q| f32::from(q) * d + m);
}

/// `d` f16, 32 fifth bits, 16 bytes of nibbles.
#[inline(always)]
fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = f16_at(part::<0, 2, 22>(b));
    let qh = u32::from_le_bytes(*part::<2, 4, 22>(b));
    nibbles(part::<6, 16, 22>(b), y, |j, q| (i32::from(q | fifth_bit(qh, j)) - 16) as f32 * d);
}

/// `d` f16, `m` f16, 32 fifth bits, 16 bytes of nibbles.
#[inline(always)]
fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(part::<0, 2, 24>(b)), f16_at(part::<2, 2, 24>(b)));
    let qh = u32::from_le_bytes(*part::<4, 4, 24>(b));
    nibbles(part::<8, 16, 24>(b), y, |j, q| f32::from(q | fifth_bit(qh, j)) * d + m);
}

/// `d` f16, 32 signed bytes.
#[inline(always)]
fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = f16_at(part::<0, 2, 34>(b));
    for (y, &q) in y.iter_mut().zip(part::<2, 32, 34>(b)) {
        *y = f32::from(q as i8) * d;
    }
}

/// 16 bytes of scale and minimum nibbles, 64 bytes of 2-bit numbers, `d` f16, `dmin` f16.
#[inline(always)]
fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, qs) = (part::<0, 16, 84>(b), part::<16, 64, 84>(b));
    let (d, dmin) = (f16_at(part::<80, 2, 84>(b)), f16_at(part::<82, 2, 84>(b)));
    for (sub, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[sub] & 15);
        let min = dmin * f32::from(scales[sub] >> 4);
        let (from, shift) = two_bit_place(sub);
        for (y, q) in y.iter_mut().zip(&qs[from..]) {
            *y = scale * f32::from(q >> shift & 3) - min;
        }
    }
}

/// Where the 2-bit numbers of sub-block `sub` of 16 lie: first byte and shift. Each half of 128 numbers has 32 bytes;
/// a shift serves two sub-blocks.
#[inline(always)]
pub(super) const fn two_bit_place(sub: usize) -> (usize, usize) {
    (sub / 8 * 32 + sub % 2 * 16, sub % 8 / 2 * 2)
}

/// 32 bytes of third bits (set means: do not subtract 4), 64 bytes of 2-bit numbers, 12 bytes of scales, `d` f16.
#[inline(always)]
fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let (hmask, qs, packed) = (part::<0, 32, 110>(b), part::<32, 64, 110>(b), part::<96, 12, 110>(b));
    let d = f16_at(part::<108, 2, 110>(b));
    for (sub, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(q3_k_scale(packed, sub));
        let (from, shift) = two_bit_place(sub);
        for ((y, q), high) in y.iter_mut().zip(&qs[from..]).zip(&hmask[sub % 2 * 16..]) {
            let q = (q >> shift & 3) | (high >> (sub / 2) & 1) << 2;
            *y = scale * (i32::from(q) - 4) as f32;
        }
    }
}

/// The 6-bit scale of sub-block `sub`, less 32: four bits in bytes 0 to 7, two in bytes 8 to 11.
#[inline(always)]
fn q3_k_scale(packed: &[u8; 12], sub: usize) -> i8 {
    let low = packed[sub % 8] >> (sub / 8 * 4) & 15;
    let high = packed[8 + sub % 4] >> (sub / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// The 6-bit scale and minimum of sub-block `sub` of Q4_K and Q5_K.
#[inline(always)]
pub(super) fn k4_scale_min(packed: &[u8; 12], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        (packed[sub + 4] & 15 | packed[sub - 4] >> 6 << 4, packed[sub + 4] >> 4 | packed[sub] >> 6 << 4)
    }
}

/// `d` f16, `dmin` f16, 12 bytes of scales and minima, 128 bytes of nibbles: 32 bytes for two sub-blocks of 32.
#[inline(always)]
fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(part::<0, 2, 144>(b)), f16_at(part::<2, 2, 144>(b)));
    let (packed, qs) = (part::<4, 12, 144>(b), part::<16, 128, 144>(b));
    for (sub, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = k4_scale_min(packed, sub);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (y, q) in y.iter_mut().zip(&qs[sub / 2 * 32..]) {
            *y = scale * f32::from(q >> (sub % 2 * 4) & 15) - min;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `sub` of each byte.
#[inline(always)]
fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(part::<0, 2, 176>(b)), f16_at(part::<2, 2, 176>(b)));
    let (packed, qh, qs) = (part::<4, 12, 176>(b), part::<16, 32, 176>(b), part::<48, 128, 176>(b));
    for (sub, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = k4_scale_min(packed, sub);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for ((y, q), high) in y.iter_mut().zip(&qs[sub / 2 * 32..]).zip(qh) {
            let q = q >> (sub % 2 * 4) & 15 | (high >> sub & 1) << 4;
            *y = scale * f32::from(q) - min;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, `d` f16.
#[inline(always)]
fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let (ql, qh, scales) = (part::<0, 128, 210>(b), part::<128, 64, 210>(b), part::<192, 16, 210>(b));
    let d = f16_at(part::<208, 2, 210>(b));
    for (sub, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[sub] as i8);
        // Within a half of 128: eight sub-blocks; two share a bit pair, the first four the low nibble.
        let (half, sub) = (sub / 8, sub % 8);
        let low = &ql[half * 64 + sub % 4 * 16..];
        let high = &qh[half * 32 + sub % 2 * 16..];
        for ((y, low), high) in y.iter_mut().zip(low).zip(high) {
            let q = low >> (sub / 4 * 4) & 15 | (high >> (sub / 2 * 2) & 3) << 4;
            *y = scale * (i32::from(q) - 32) as f32;
        }
    }
}

/// `d` f16, 16 bytes of nibbles into [`IQ4_LEVELS`].
#[inline(always)]
fn iq4_nl(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(part::<0, 2, 18>(b));
    nibbles(part::<2, 16, 18>(b), y, |_, q| d * f32::from(IQ4_LEVELS[usize::from(q)]));
}

/// `d` f16, 8 high bit pairs of the scales, 4 bytes of their low nibbles, 128 bytes of nibbles: 16 per sub-block of 32.
#[inline(always)]
fn iq4_xs(b: &[u8; 136], y: &mut [f32; 256]) {
    let d = f16_to_f32(u16::from_le_bytes(*part::<0, 2, 136>(b)));
    let high = u16::from_le_bytes(*part::<2, 2, 136>(b));
    let (low, qs) = (part::<4, 4, 136>(b), part::<8, 128, 136>(b));
    for (sub, (y, qs)) in y.as_chunks_mut::<32>().0.iter_mut().zip(qs.as_chunks().0).enumerate() {
        let scale = low[sub / 2] >> (sub % 2 * 4) & 15 | ((high >> (2 * sub) & 3) << 4) as u8;
        let scale = d * (i32::from(scale) - 32) as f32;
        nibbles(qs, y, |_, q| scale * f32::from(IQ4_LEVELS[usize::from(q)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Blocks of any content: scales may be subnormal, infinite or NaN.
    fn bytes(ty: TensorType) -> impl Strategy<Value = Vec<u8>> {
        (0..5usize).prop_flat_map(move |n| proptest::collection::vec(any::<u8>(), n * ty.block_bytes()))
    }

    proptest! {
        #[test]
        fn every_compilation_gives_the_same_bits(
            (ty, bytes) in proptest::sample::select(TensorType::ALL).prop_flat_map(|ty| (Just(ty), bytes(ty)))
        ) {
            let len = bytes.len() / ty.block_bytes() * ty.block_len();
            let outs = Isa::available().into_iter().map(|isa| {
                let mut out = vec![f32::NAN; len];
                decode(isa, ty, &bytes, &mut out);
                // Which payload survives a sum of two NaNs is not defined.
                out.iter().map(|y| if y.is_nan() { u32::MAX } else { y.to_bits() }).collect::<Vec<_>>()
            }).collect::<Vec<_>>();
            prop_assert!(outs.iter().all(|out| *out == outs[0]), "{ty}");
        }
    }
}
