//! The integer product for AVX2 with few rows: weights go from the tile to registers, without a panel.
//!
//! With one or two rows memory is what limits, and every instruction that does not load weights delays the next load;
//! with a few more, filling a panel would take as long as the products. The sums and float operations are those of the
//! panel's kernel.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use orion_core::TensorType;

use super::avx2::{keep, opaque};
use super::kind::{self, Kind};
use crate::activations::QuantView;
use crate::simd::prefetch;
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

    /// Groups that share lines of a bit plane: a part of the block.
    const PART: usize;

    /// Four columns of eight rows, one byte each: group `group` of part `part`. `group` and `half` are constants where
    /// it is called, so a line that several groups share is loaded once.
    ///
    /// # Safety
    /// A block must be readable at `block`; the CPU has AVX2.
    unsafe fn quants(block: *const u8, part: usize, group: usize, half: usize) -> __m256i;
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

/// Bits from `at` on of every byte, moved to `to` and masked. Both are constants where it is called.
#[inline]
#[target_feature(enable = "avx2")]
fn bits(v: __m256i, at: usize, to: usize, mask: i8) -> __m256i {
    let count = |by: usize| _mm_cvtsi32_si128(by as i32);
    let moved =
        if at > to { _mm256_srl_epi16(v, count(at - to)) } else { _mm256_sll_epi16(v, count(to - at)) };
    _mm256_and_si256(moved, _mm256_set1_epi8(mask))
}

/// Bit `at` of every byte, moved to bit `TO`.
#[inline]
#[target_feature(enable = "avx2")]
fn bit<const TO: i32>(v: __m256i, at: usize) -> __m256i {
    let count = _mm_cvtsi32_si128(at as i32);
    _mm256_slli_epi16::<TO>(_mm256_and_si256(_mm256_srl_epi16(v, count), _mm256_set1_epi8(1)))
}

/// Implements [`Direct`] by an expression over block, part, group and half.
macro_rules! direct {
    ($($kind:ident: $quants:expr, $bytes:expr, $part:expr, $shift:expr, |$b:ident, $p:ident, $g:ident, $h:ident| $body:expr;)*) => {
        $(
            impl Direct for kind::$kind {
                const QUANTS: usize = $quants;
                const BYTES: usize = $bytes;
                const PART: usize = $part;
                const SHIFT: i32 = $shift;
                #[inline(always)]
                unsafe fn quants($b: *const u8, $p: usize, $g: usize, $h: usize) -> __m256i {
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

/// Q4_K and Q5_K.
#[inline(always)]
unsafe fn k_nibble(block: *const u8, part: usize, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe {
        let from = line(block, part * 8 + group % 8, half);
        if group < 8 { low(from) } else { high(from) }
    }
}

#[inline(always)]
unsafe fn k_five(block: *const u8, part: usize, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe {
        let fifth = bit::<4>(line(block, 32 + group % 8, half), part * 2 + group / 8);
        _mm256_or_si256(k_nibble(block, part, group, half), fifth)
    }
}

/// Q2_K and Q3_K.
#[inline(always)]
unsafe fn crumb(block: *const u8, part: usize, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe { bits(line(block, part * 8 + group % 8, half), group / 8 * 2, 0, 3) }
}

#[inline(always)]
unsafe fn three(block: *const u8, part: usize, group: usize, half: usize) -> __m256i {
    // SAFETY: the callers stay within the block.
    unsafe {
        let third = bit::<2>(line(block, 16 + group % 8, half), part * 4 + group / 8);
        _mm256_or_si256(crumb(block, part, group, half), third)
    }
}

#[inline(always)]
unsafe fn six(block: *const u8, part: usize, group: usize, half: usize) -> __m256i {
    let quarter = group / 8;
    // SAFETY: the callers stay within the block.
    unsafe {
        let from = line(block, part * 16 + quarter % 2 * 8 + group % 8, half);
        let upper = line(block, 32 + part * 8 + group % 8, half);
        let lower = if quarter < 2 { low(from) } else { high(from) };
        _mm256_or_si256(lower, bits(upper, quarter * 2, 4, 48))
    }
}

direct! {
    Q4_0: 256, 288, 8, 0, |b, _p, g, h| nibble(b, g, h);
    Q4_1: 256, 320, 8, 0, |b, _p, g, h| nibble(b, g, h);
    Q5_0: 320, 352, 8, 0, |b, _p, g, h| five(b, g, h);
    Q5_1: 320, 384, 8, 0, |b, _p, g, h| five(b, g, h);
    Q8_0: 512, 544, 8, 0, |b, _p, g, h| line(b, g, h);
    Q2K: 1024, 1344, 32, 0, |b, p, g, h| crumb(b, p, g, h);
    Q3K: 1536, 1824, 32, 2, |b, p, g, h| three(b, p, g, h);
    Q4K: 2048, 2368, 16, 0, |b, p, g, h| k_nibble(b, p, g, h);
    Q5K: 2560, 2880, 16, 0, |b, p, g, h| k_five(b, p, g, h);
    Q6K: 3072, 3360, 32, 5, |b, p, g, h| six(b, p, g, h);
}

/// Writes one tile's products with `rows` rows to `out`, `[rows][16]`, up to four rows at a time.
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
                        let mut row = 0;
                        while row < rows {
                            let (input, out) = (input.at(row), out.add(row * TILE_ROWS));
                            row += match rows - row {
                                1 => stream::<kind::$kind, 1>(tile.as_ptr(), blocks, input, out, row == 0),
                                2 => stream::<kind::$kind, 2>(tile.as_ptr(), blocks, input, out, row == 0),
                                // Six rows are better three and three than four and two.
                                3 | 5 | 6 => stream::<kind::$kind, 3>(tile.as_ptr(), blocks, input, out, row == 0),
                                _ => stream::<kind::$kind, 4>(tile.as_ptr(), blocks, input, out, row == 0),
                            };
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

/// `M` rows; returns how many that are.
///
/// # Safety
/// As [`product`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn stream<K: Direct, const M: usize>(
    tile: *const u8,
    blocks: usize,
    input: QuantView,
    out: *mut f32,
    ahead: bool,
) -> usize {
    let width = K::GROUPS * 4;
    // SAFETY: for the whole body: blocks and columns lie within the tile and the input's rows.
    unsafe {
        let mut total = [[_mm256_setzero_ps(); 2]; M];
        for index in 0..blocks {
            let block = tile.add(index * K::BYTES);
            let x: [*const i8; M] =
                std::array::from_fn(|m| input.quants.add(m * input.quants_stride + index * width));
            let scales = block.add(K::QUANTS);
            let nibbles = _mm_set1_epi8(15);
            let mut sum = [[_mm256_setzero_si256(); 2]; M];
            for part in 0..K::GROUPS / K::PART {
                if ahead {
                    fetch::<K>(block, part);
                }
                // One run of groups whose 16-bit sums are widened at once, by number, so that all of it is constant.
                macro_rules! runs {
                    ($($run:literal)*) => {
                        $(if $run < K::PART / K::DEPTH {
                            let short = short_sums::<K, M, $run>(if M > 2 { opaque(block) } else { block }, part, x);
                            let scale = if K::SUB == 0 {
                                [_mm256_set1_epi16(1); 2]
                            } else {
                                let sub = (part * K::PART + $run * K::DEPTH) / K::SUB.max(1);
                                let mut bytes = _mm_loadu_si128(scales.add(sub * 16).cast());
                                if K::SHARED_BYTE {
                                    bytes = _mm_and_si128(bytes, nibbles);
                                }
                                // Types with a minimum of its own have unsigned scales.
                                if K::PAIRS_FACTOR {
                                    [widen::<false>(bytes, bytes, 0), widen::<false>(bytes, bytes, 1)]
                                } else {
                                    [widen::<true>(bytes, bytes, 0), widen::<true>(bytes, bytes, 1)]
                                }
                            };
                            for m in 0..M {
                                for half in 0..2 {
                                    let wide = _mm256_madd_epi16(short[m][half], scale[half]);
                                    sum[m][half] = _mm256_add_epi32(sum[m][half], wide);
                                }
                            }
                        })*
                    };
                }
                runs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
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
    M
}

/// How far ahead of the products weights are asked for: into the second-level cache, from where they come in time and
/// where they push out nothing that is in use. What the CPU fetches by itself ends with each page.
const AHEAD: usize = 8192;

/// Asks for the weights that follow, as many as one part of a block holds.
#[target_feature(enable = "avx2")]
#[inline]
fn fetch<K: Direct>(block: *const u8, part: usize) {
    let share = K::BYTES / (K::GROUPS / K::PART);
    let from = block.wrapping_add(AHEAD + part * share);
    for line in 0..share.div_ceil(64) {
        prefetch(from.wrapping_add(line * 64));
    }
}

/// The 16-bit sums of the part's groups `RUN * DEPTH..`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn short_sums<K: Direct, const M: usize, const RUN: usize>(
    block: *const u8,
    part: usize,
    x: [*const i8; M],
) -> [[__m256i; 2]; M] {
    let mut short = [[_mm256_setzero_si256(); 2]; M];
    // Where a byte holds two quants, whoever shares a line comes together: a line kept for later would be spilled.
    macro_rules! groups {
        ($($depth:literal)*) => {
            $(if $depth < K::DEPTH {
                let group = RUN * K::DEPTH + $depth;
                // SAFETY: the group lies within block and row.
                unsafe {
                    let w = [K::quants(block, part, group, 0), K::quants(block, part, group, 1)];
                    let magnitude = if K::SIGNED { [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])] } else { w };
                    for m in 0..M {
                        let at = x[m].add(4 * (part * K::PART + group));
                        let four = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
                        for half in 0..2 {
                            let signed = if K::SIGNED { _mm256_sign_epi8(four, w[half]) } else { four };
                            let pairs = _mm256_maddubs_epi16(magnitude[half], signed);
                            short[m][half] = _mm256_add_epi16(short[m][half], pairs);
                        }
                        if M > 2 {
                            keep(&mut short[m]);
                        }
                    }
                }
            })*
        };
    }
    groups!(0 4 1 5 2 6 3 7);
    short
}
