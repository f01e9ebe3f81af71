//! The integer product in 512-bit vectors with VNNI and few rows, straight from the tile.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use orion_core::TensorType;

use super::direct::{Direct, fetch};
use super::for_kind;
use super::kind;
use crate::activations::QuantView;
use crate::tiles::TILE_ROWS;

/// Rows up to which unpacking weights anew for every eight of them beats a panel.
pub(super) const ROWS: usize = 16;

/// Writes one tile's products with `rows` rows to `out`, `[rows][16]`, up to eight rows at a time.
///
/// # Safety
/// As [`tile_product`](super::tile_product), with a tile of `cols` columns; the CPU has AVX-512 F, BW and VNNI, and F16C.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn product(
    ty: TensorType,
    tile: &[u8],
    cols: usize,
    input: QuantView,
    rows: usize,
    out: *mut f32,
) {
    // SAFETY: passed on.
    unsafe { for_kind!(ty, each(tile, cols, input, rows, out)) }
}

/// # Safety
/// As [`product`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
unsafe fn each<K: Direct>(tile: &[u8], cols: usize, input: QuantView, rows: usize, out: *mut f32) {
    let blocks = cols / (K::GROUPS * 4);
    assert!(tile.len() >= blocks * K::BYTES, "a tile of that many columns");
    let tile = tile.as_ptr();
    let mut row = 0;
    while row < rows {
        // SAFETY: rows `row..` exist, and the tile has the blocks.
        unsafe {
            let (input, out, first) = (input.at(row), out.add(row * TILE_ROWS), row == 0);
            row += match rows - row {
                1 => stream::<K, 1>(tile, blocks, input, out, first),
                2 => stream::<K, 2>(tile, blocks, input, out, first),
                3 | 5 => stream::<K, 3>(tile, blocks, input, out, first),
                4 | 7 => stream::<K, 4>(tile, blocks, input, out, first),
                6 | 11 | 12 => stream::<K, 6>(tile, blocks, input, out, first),
                _ => stream::<K, 8>(tile, blocks, input, out, first),
            };
        }
    }
}

/// `M` rows; returns how many that are.
///
/// # Safety
/// As [`product`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn stream<K: Direct, const M: usize>(
    tile: *const u8,
    blocks: usize,
    input: QuantView,
    out: *mut f32,
    ahead: bool,
) -> usize {
    let width = K::GROUPS * 4;
    // Quants are unsigned for the instruction; what that adds is taken off by the sum of the activations.
    let offset = if K::SIGNED { 128 } else { K::OFFSET };
    // SAFETY: for the whole body: blocks and columns lie within the tile and the input's rows.
    unsafe {
        let mut total = [_mm512_setzero_ps(); M];
        for index in 0..blocks {
            let block = tile.add(index * K::BYTES);
            let x: [*const i8; M] =
                std::array::from_fn(|m| input.quants.add(m * input.quants_stride + index * width));
            let scales = block.add(K::QUANTS);
            let nibbles = _mm_set1_epi8(15);
            let mut sum = [_mm512_setzero_si512(); M];
            if offset != 0 {
                for m in 0..M {
                    let of = i32::from(*input.sum32.add(m * input.side_stride + index));
                    sum[m] = _mm512_set1_epi32(-offset * of);
                }
            }
            for part in 0..K::GROUPS / K::PART {
                if ahead {
                    fetch::<K>(block, part);
                }
                if K::SUB == 0 {
                    sum = dots::<K, M, 0>(block, part, x, sum);
                    continue;
                }
                // Runs of groups with one integer scale, by number, so that all of it is constant.
                macro_rules! runs {
                    ($($run:literal)*) => {
                        $(if $run < K::PART / K::SUB.max(1) {
                            let short = dots::<K, M, $run>(block, part, x, [_mm512_setzero_si512(); M]);
                            let sub = part * K::PART / K::SUB.max(1) + $run;
                            let mut bytes = _mm_loadu_si128(scales.add(sub * 16).cast());
                            if K::SHARED_BYTE {
                                bytes = _mm_and_si128(bytes, nibbles);
                            }
                            // Types with a minimum of its own have unsigned scales.
                            let scale = if K::PAIRS_FACTOR {
                                _mm512_cvtepu8_epi32(bytes)
                            } else {
                                _mm512_cvtepi8_epi32(bytes)
                            };
                            for m in 0..M {
                                sum[m] = _mm512_add_epi32(sum[m], _mm512_mullo_epi32(short[m], scale));
                            }
                        })*
                    };
                }
                runs!(0 1 2 3 4 5 6 7);
            }
            let mut minima = [_mm512_setzero_si512(); M];
            for pair in 0..K::PAIRS {
                let at = |sub: usize| {
                    let row = if K::PAIRS == 4 { 8 + sub } else { sub };
                    let bytes = _mm_loadu_si128(scales.add(row * 16).cast());
                    if K::SHARED_BYTE { _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibbles) } else { bytes }
                };
                let (first, second) = (at(2 * pair), at(2 * pair + 1));
                let pairs =
                    _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
                let table = if K::PAIRS_FACTOR {
                    _mm512_cvtepu8_epi16(pairs)
                } else {
                    _mm512_sll_epi16(_mm512_cvtepi8_epi16(pairs), _mm_cvtsi32_si128(K::SHIFT))
                };
                for m in 0..M {
                    let side = m * input.side_stride;
                    let sums = if K::PAIRS == 8 {
                        input.sum16.add(side + index * 16 + 2 * pair)
                    } else {
                        input.sum32.add(side + index * 8 + 2 * pair)
                    };
                    let sums = _mm512_set1_epi32(sums.cast::<i32>().read_unaligned());
                    minima[m] = _mm512_dpwssd_epi32(minima[m], table, sums);
                }
            }
            let floats = block.add(K::BYTES - if K::MINIMUM || K::PAIRS_FACTOR { 64 } else { 32 });
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(floats.cast()));
            for m in 0..M {
                let side = m * input.side_stride;
                let x_scale = _mm512_set1_ps(*input.scale.add(side + index));
                let mut exact = sum[m];
                if K::PAIRS != 0 && !K::PAIRS_FACTOR {
                    exact = _mm512_sub_epi32(exact, minima[m]);
                }
                let both = _mm512_mul_ps(scale, x_scale);
                let mut result = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), both, total[m]);
                if K::PAIRS_FACTOR {
                    let minimum = _mm512_cvtph_ps(_mm256_loadu_si256(floats.add(32).cast()));
                    let both = _mm512_mul_ps(minimum, x_scale);
                    result = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(minima[m]), both, result);
                }
                if K::MINIMUM {
                    let minimum = _mm512_cvtph_ps(_mm256_loadu_si256(floats.add(32).cast()));
                    let x_sum = _mm512_set1_ps(*input.scaled_sum.add(side + index));
                    result = _mm512_fmadd_ps(minimum, x_sum, result);
                }
                total[m] = result;
            }
        }
        for m in 0..M {
            _mm512_storeu_ps(out.add(m * TILE_ROWS), total[m]);
        }
    }
    M
}

/// Adds the products of run `RUN` of a part: all groups of its sub-block, or of the part if it has one scale.
///
/// # Safety
/// As [`product`]; block and rows hold the part.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn dots<K: Direct, const M: usize, const RUN: usize>(
    block: *const u8,
    part: usize,
    x: [*const i8; M],
    mut sum: [__m512i; M],
) -> [__m512i; M] {
    // Where a byte holds two quants, whoever shares a line comes together.
    macro_rules! groups {
        ($($depth:literal)*) => {
            $(if $depth < K::SUB || K::SUB == 0 {
                let group = RUN * K::SUB + $depth;
                // SAFETY: the group lies within block and row.
                unsafe {
                    let mut w: __m512i = K::quants(block, part, group, 0);
                    if K::SIGNED {
                        w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
                    }
                    for m in 0..M {
                        let four = x[m].add(4 * (part * K::PART + group)).cast::<i32>().read_unaligned();
                        sum[m] = _mm512_dpbusd_epi32(sum[m], w, _mm512_set1_epi32(four));
                    }
                }
            })*
        };
    }
    groups!(0 4 1 5 2 6 3 7);
    sum
}
