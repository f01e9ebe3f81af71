//! The integer product for AVX2 with few rows, straight from the tile.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use orion_core::TensorType;

use super::avx2::{keep, opaque};
use super::direct::{Direct, fetch};
use super::kind::{self, Kind};
use crate::activations::QuantView;
use crate::tiles::TILE_ROWS;

/// Rows up to which unpacking weights anew for every few of them beats a panel.
pub(super) const ROWS: usize = 12;

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
                    let w: [__m256i; 2] =
                        [K::quants(block, part, group, 0), K::quants(block, part, group, 32)];
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
