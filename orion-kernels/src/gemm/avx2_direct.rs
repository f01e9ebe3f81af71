//! The integer product for AVX2 with one or two rows: weights go from the tile to registers, without a panel.
//!
//! With so few rows memory is what limits, and every instruction that does not load weights delays the next load.
//! The sums and float operations are those of the panel's kernel.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use orion_core::TensorType;

use super::kind::{self, Kind};
use crate::activations::QuantView;
use crate::tiles::TILE_ROWS;

/// How a type's quants, scales and minima are taken from a block of a tile.
trait Direct: Kind {
    /// Bytes of a block's quants, of its integer scales, and of the whole block.
    const QUANTS: usize;
    const BYTES: usize;
    /// What integer minima are multiplied with, as a shift (offsets of symmetric types).
    const SHIFT: i32 = 0;
    /// Scale and minimum of a sub-block share a byte (Q2_K alone).
    const SHARED_BYTE: bool = Self::QUANTS == 1024;

    /// Four columns of eight rows, one byte each. `group` and `half` are constants once unrolled, so bits that several
    /// groups share are loaded once.
    ///
    /// # Safety
    /// A block must be readable at `block`; the CPU has AVX2.
    unsafe fn quants(block: *const u8, group: usize, half: usize) -> __m256i;
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn line(block: *const u8, index: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe { _mm256_loadu_si256(block.add(index * 64 + half * 32).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn low(v: __m256i) -> __m256i {
    _mm256_and_si256(v, _mm256_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx2")]
fn high(v: __m256i) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(15))
}

/// Bits `at..` of every byte, moved up to `to` and masked.
#[inline]
#[target_feature(enable = "avx2")]
fn bits(v: __m256i, at: usize, to: usize, mask: i8) -> __m256i {
    let moved = if at > to {
        _mm256_srl_epi16(v, _mm_cvtsi32_si128((at - to) as i32))
    } else {
        _mm256_sll_epi16(v, _mm_cvtsi32_si128((to - at) as i32))
    };
    _mm256_and_si256(moved, _mm256_set1_epi8(mask))
}

/// Implements [`Direct`] by an expression over block, group and half.
macro_rules! direct {
    ($($kind:ident: $quants:expr, $bytes:expr, $shift:expr, |$block:ident, $group:ident, $half:ident| $body:expr;)*) => {
        $(
            impl Direct for kind::$kind {
                const QUANTS: usize = $quants;
                const BYTES: usize = $bytes;
                const SHIFT: i32 = $shift;
                #[inline(always)]
                unsafe fn quants($block: *const u8, $group: usize, $half: usize) -> __m256i {
                    // SAFETY: by this function's contract.
                    unsafe { $body }
                }
            }
        )*
    };
}

#[inline(always)]
unsafe fn nibble(block: *const u8, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe {
        let from = line(block, group % 4, half);
        if group < 4 { low(from) } else { high(from) }
    }
}

#[inline(always)]
unsafe fn five(block: *const u8, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe { _mm256_or_si256(nibble(block, group, half), bits(line(block, 4, half), group, 4, 16)) }
}

/// Q4_K and Q5_K: 64 columns share lines.
#[inline(always)]
unsafe fn k_nibble(block: *const u8, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe {
        let from = line(block, group / 16 * 8 + group % 8, half);
        if group % 16 < 8 { low(from) } else { high(from) }
    }
}

/// Q2_K and Q3_K: 128 columns share lines.
#[inline(always)]
unsafe fn crumb(block: *const u8, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe { bits(line(block, group / 32 * 8 + group % 8, half), group % 32 / 8 * 2, 0, 3) }
}

#[inline(always)]
unsafe fn six(block: *const u8, group: usize, half: usize) -> __m256i {
    let (part, quarter) = (group / 32, group % 32 / 8);
    // SAFETY: the callers stay within the block.
    unsafe {
        let from = line(block, part * 16 + quarter % 2 * 8 + group % 8, half);
        let upper = line(block, 32 + part * 8 + group % 8, half);
        let lower = if quarter < 2 { low(from) } else { high(from) };
        _mm256_or_si256(lower, bits(upper, quarter * 2, 4, 48))
    }
}

direct! {
    Q4_0: 256, 288, 0, |b, g, h| nibble(b, g, h);
    Q4_1: 256, 320, 0, |b, g, h| nibble(b, g, h);
    Q5_0: 320, 352, 0, |b, g, h| five(b, g, h);
    Q5_1: 320, 384, 0, |b, g, h| five(b, g, h);
    Q8_0: 512, 544, 0, |b, g, h| line(b, g, h);
    Q2K: 1024, 1344, 0, |b, g, h| crumb(b, g, h);
    Q3K: 1536, 1824, 2, |b, g, h| _mm256_or_si256(crumb(b, g, h), bits(line(b, 16 + g % 8, h), g / 8, 2, 4));
    Q4K: 2048, 2368, 0, |b, g, h| k_nibble(b, g, h);
    Q5K: 2560, 2880, 0, |b, g, h| _mm256_or_si256(k_nibble(b, g, h), bits(line(b, 32 + g % 8, h), g / 8, 4, 16));
    Q6K: 3072, 3360, 5, |b, g, h| six(b, g, h);
}

/// Adds one tile's products with `rows` rows, at most two, to `out`, `[rows][16]`.
///
/// # Safety
/// As [`tile_product`](super::tile_product), with a tile of `cols` columns; the CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn product(
    ty: TensorType,
    tile: &[u8],
    cols: usize,
    input: QuantView,
    rows: usize,
    out: *mut f32,
) {
    macro_rules! each {
        ($($kind:ident),*) => {
            match ty {
                $(TensorType::$kind => {
                    let blocks = cols / (kind::$kind::GROUPS * 4);
                    assert!(tile.len() >= blocks * kind::$kind::BYTES, "a tile of that many columns");
                    // SAFETY: passed on; the tile has the blocks.
                    unsafe {
                        match rows {
                            1 => stream::<kind::$kind, 1>(tile.as_ptr(), blocks, input, out),
                            _ => stream::<kind::$kind, 2>(tile.as_ptr(), blocks, input, out),
                        }
                    }
                })*
                other => unreachable!("{other} has no integer product"),
            }
        };
    }
    each!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K);
}

/// Sixteen bytes, each twice and widened, of lanes 0..8 or 8..16.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<const SIGNED: bool>(first: __m128i, second: __m128i, half: usize) -> __m256i {
    let pairs = if half == 0 { _mm_unpacklo_epi8(first, second) } else { _mm_unpackhi_epi8(first, second) };
    if SIGNED { _mm256_cvtepi8_epi16(pairs) } else { _mm256_cvtepu8_epi16(pairs) }
}

/// # Safety
/// As [`product`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn stream<K: Direct, const M: usize>(tile: *const u8, blocks: usize, input: QuantView, out: *mut f32) {
    let width = K::GROUPS * 4;
    // SAFETY: for the whole body: blocks and columns lie within the tile and the input's rows.
    unsafe {
        let mut total = [[_mm256_setzero_ps(); 2]; M];
        for index in 0..blocks {
            let block = tile.add(index * K::BYTES);
            let x: [*const i8; M] = std::array::from_fn(|m| input.quants.add(m * input.quants_stride + index * width));
            let scales = block.add(K::QUANTS);
            let nibbles = _mm_set1_epi8(15);
            let mut sum = [[_mm256_setzero_si256(); 2]; M];
            if K::SUB == 0 {
                for run in 0..K::GROUPS / K::DEPTH {
                    let short = short_sums::<K, M>(block, run, x);
                    for m in 0..M {
                        for half in 0..2 {
                            let wide = _mm256_madd_epi16(short[m][half], _mm256_set1_epi16(1));
                            sum[m][half] = _mm256_add_epi32(sum[m][half], wide);
                        }
                    }
                }
            } else {
                for sub in 0..K::GROUPS / K::SUB {
                    let mut bytes = _mm_loadu_si128(scales.add(sub * 16).cast());
                    if K::SHARED_BYTE {
                        bytes = _mm_and_si128(bytes, nibbles);
                    }
                    // Types with a minimum of its own have unsigned scales.
                    let scale: [__m256i; 2] = if K::PAIRS_FACTOR {
                        [widen::<false>(bytes, bytes, 0), widen::<false>(bytes, bytes, 1)]
                    } else {
                        [widen::<true>(bytes, bytes, 0), widen::<true>(bytes, bytes, 1)]
                    };
                    for run in 0..K::SUB / K::DEPTH {
                        let short = short_sums::<K, M>(block, sub * (K::SUB / K::DEPTH) + run, x);
                        for m in 0..M {
                            for half in 0..2 {
                                let wide = _mm256_madd_epi16(short[m][half], scale[half]);
                                sum[m][half] = _mm256_add_epi32(sum[m][half], wide);
                            }
                        }
                    }
                }
            }
            let mut minima = [[_mm256_setzero_si256(); 2]; M];
            for pair in 0..K::PAIRS {
                let at = |sub: usize| {
                    let row = if K::PAIRS == 4 { 8 + sub } else { sub };
                    let bytes = _mm_loadu_si128(scales.add(row * 16).cast());
                    if K::SHARED_BYTE { _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibbles) } else { bytes }
                };
                let (first, second) = (at(2 * pair), at(2 * pair + 1));
                for half in 0..2 {
                    let table = if K::PAIRS_FACTOR {
                        widen::<false>(first, second, half)
                    } else {
                        _mm256_sll_epi16(widen::<true>(first, second, half), _mm_cvtsi32_si128(K::SHIFT))
                    };
                    for m in 0..M {
                        let side = m * input.side_stride;
                        let sums = if K::PAIRS == 8 {
                            input.sum16.add(side + index * 16 + 2 * pair)
                        } else {
                            input.sum32.add(side + index * 8 + 2 * pair)
                        };
                        let sums = _mm256_set1_epi32(sums.cast::<i32>().read_unaligned());
                        minima[m][half] = _mm256_add_epi32(minima[m][half], _mm256_madd_epi16(table, sums));
                    }
                }
            }
            let floats = block.add(K::BYTES - if K::MINIMUM || K::PAIRS_FACTOR { 64 } else { 32 });
            for half in 0..2 {
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(floats.add(16 * half).cast()));
                for m in 0..M {
                    let side = m * input.side_stride;
                    let x_scale = _mm256_set1_ps(*input.scale.add(side + index));
                    let mut exact = sum[m][half];
                    if K::OFFSET != 0 {
                        let of = i32::from(*input.sum32.add(side + index));
                        exact = _mm256_sub_epi32(exact, _mm256_set1_epi32(K::OFFSET * of));
                    }
                    if K::PAIRS != 0 && !K::PAIRS_FACTOR {
                        exact = _mm256_sub_epi32(exact, minima[m][half]);
                    }
                    let both = _mm256_mul_ps(scale, x_scale);
                    let mut result = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), both, total[m][half]);
                    if K::PAIRS_FACTOR {
                        let minimum = _mm256_cvtph_ps(_mm_loadu_si128(floats.add(32 + 16 * half).cast()));
                        let both = _mm256_mul_ps(minimum, x_scale);
                        result = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(minima[m][half]), both, result);
                    }
                    if K::MINIMUM {
                        let minimum = _mm256_cvtph_ps(_mm_loadu_si128(floats.add(32 + 16 * half).cast()));
                        let x_sum = _mm256_set1_ps(*input.scaled_sum.add(side + index));
                        result = _mm256_fmadd_ps(minimum, x_sum, result);
                    }
                    total[m][half] = result;
                }
            }
        }
        for m in 0..M {
            _mm256_storeu_ps(out.add(m * TILE_ROWS), total[m][0]);
            _mm256_storeu_ps(out.add(m * TILE_ROWS + 8), total[m][1]);
        }
    }
}

/// The 16-bit sums of groups `run * DEPTH..`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn short_sums<K: Direct, const M: usize>(block: *const u8, run: usize, x: [*const i8; M]) -> [[__m256i; 2]; M] {
    let mut short = [[_mm256_setzero_si256(); 2]; M];
    for depth in 0..K::DEPTH {
        let group = run * K::DEPTH + depth;
        // SAFETY: the group lies within block and row.
        unsafe {
            let w = [K::quants(block, group, 0), K::quants(block, group, 1)];
            let magnitude = if K::SIGNED { [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])] } else { w };
            for m in 0..M {
                let four = _mm256_set1_epi32(x[m].add(4 * group).cast::<i32>().read_unaligned());
                for half in 0..2 {
                    let signed = if K::SIGNED { _mm256_sign_epi8(four, w[half]) } else { four };
                    let pairs = _mm256_maddubs_epi16(magnitude[half], signed);
                    short[m][half] = _mm256_add_epi16(short[m][half], pairs);
                }
            }
        }
    }
    short
}
