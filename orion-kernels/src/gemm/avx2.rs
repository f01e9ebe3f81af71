//! The integer product for AVX2.
//!
//! `maddubs` multiplies 32 unsigned quants with 32 signed activations into 16 sums of two. As quants are small,
//! several such sums fit 16 bits; only then are they widened, and the widening multiplication takes the integer scale
//! of the sub-block along for free. Signed bytes (Q8_0) swap their sign over to the activations first.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use orion_core::TensorType;

use super::kind::{self, Kind};
use super::{Part, for_kind};
use crate::activations::QuantView;
use crate::tiles::TILE_ROWS;

/// # Safety
/// As [`tile_product`](super::tile_product); the panel holds `part.cols` columns; the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn sweep(part: &Part<'_>, input: QuantView) {
    // SAFETY: passed on.
    unsafe { for_kind!(part.ty, sweep_kind(part, input)) }
}

/// # Safety
/// As [`sweep`].
#[target_feature(enable = "avx2,fma")]
unsafe fn sweep_kind<K: Kind>(part: &Part<'_>, input: QuantView) {
    let mut row = 0;
    // SAFETY: rows `row..row + n` exist in every call.
    unsafe {
        if K::SIGNED {
            while part.rows - row >= 4 {
                product::<K, 4>(part, input, row);
                row += 4;
            }
        } else {
            while part.rows - row >= 6 {
                product::<K, 6>(part, input, row);
                row += 6;
            }
        }
        match part.rows - row {
            0 => {}
            1 => product::<K, 1>(part, input, row),
            2 => product::<K, 2>(part, input, row),
            3 => product::<K, 3>(part, input, row),
            4 => product::<K, 4>(part, input, row),
            _ => product::<K, 5>(part, input, row),
        }
    }
}

/// `M` rows by 16 columns.
///
/// # Safety
/// As [`sweep`]; rows `row..row + M` exist.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn product<K: Kind, const M: usize>(part: &Part<'_>, input: QuantView, row: usize) {
    let panel = part.panel;
    let (start, width) = (part.start, K::GROUPS * 4);
    // SAFETY: for the whole body: all offsets lie within the panel's `part.cols` columns and within the input's rows.
    unsafe {
        let input = input.at(row);
        let out = part.out.add(row * TILE_ROWS);
        let mut quants: *const u8 = panel.quants.as_ptr();
        let mut int_scale: *const i16 = panel.int_scale.as_ptr();
        let mut total = [[_mm256_setzero_ps(); 2]; M];
        for m in 0..M {
            total[m] = [_mm256_loadu_ps(out.add(m * TILE_ROWS)), _mm256_loadu_ps(out.add(m * TILE_ROWS + 8))];
        }
        // Each row's own pointer, or every load would be preceded by an addition of the stride.
        let x: [*const i8; M] =
            std::array::from_fn(|m| opaque(input.quants.add(start + m * input.quants_stride)));
        let mut column = 0;
        for block in 0..part.cols / width {
            let first = start + block * width;
            let mut sum = [[_mm256_setzero_si256(); 2]; M];
            if K::OFFSET != 0 {
                for m in 0..M {
                    let of = i32::from(*input.sum32.add(m * input.side_stride + first / 32));
                    sum[m] = [_mm256_set1_epi32(-K::OFFSET * of); 2];
                }
            }
            for run in 0..K::GROUPS / K::DEPTH {
                let mut short = [[_mm256_setzero_si256(); 2]; M];
                // Unrolled by number, so that all offsets are constant.
                macro_rules! groups {
                    ($($group:literal)*) => {
                        $(if $group < K::DEPTH {
                            let w = [
                                _mm256_load_si256(quants.add(64 * $group).cast()),
                                _mm256_load_si256(quants.add(64 * $group + 32).cast()),
                            ];
                            let magnitude =
                                if K::SIGNED { [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])] } else { w };
                            for m in 0..M {
                                let four = x[m].add(column + 4 * $group).cast::<i32>().read_unaligned();
                                let four = _mm256_set1_epi32(four);
                                for half in 0..2 {
                                    let signed = if K::SIGNED { _mm256_sign_epi8(four, w[half]) } else { four };
                                    let pairs = _mm256_maddubs_epi16(magnitude[half], signed);
                                    short[m][half] =
                                        if $group == 0 { pairs } else { _mm256_add_epi16(short[m][half], pairs) };
                                }
                                if M > 2 && K::DEPTH > 1 {
                                    keep(&mut short[m]);
                                }
                            }
                        })*
                    };
                }
                groups!(0 1 2 3 4 5 6 7);
                quants = quants.add(64 * K::DEPTH);
                column += 4 * K::DEPTH;
                let scale = if K::SUB == 0 {
                    [_mm256_set1_epi16(1); 2]
                } else {
                    [_mm256_load_si256(int_scale.cast()), _mm256_load_si256(int_scale.add(16).cast())]
                };
                if K::SUB != 0 && (run + 1) * K::DEPTH % K::SUB == 0 {
                    int_scale = int_scale.add(32);
                }
                for m in 0..M {
                    for half in 0..2 {
                        let wide = _mm256_madd_epi16(short[m][half], scale[half]);
                        sum[m][half] = _mm256_add_epi32(sum[m][half], wide);
                    }
                }
            }
            let at = block * TILE_ROWS;
            let scale = [
                _mm256_load_ps(panel.scale.as_ptr().add(at)),
                _mm256_load_ps(panel.scale.as_ptr().add(at + 8)),
            ];
            for m in 0..M {
                let side = m * input.side_stride;
                let x_scale = _mm256_set1_ps(*input.scale.add(side + first / width));
                let mut minima = [_mm256_setzero_si256(); 2];
                for pair in 0..K::PAIRS {
                    let sums = if K::PAIRS == 8 {
                        input.sum16.add(side + first / 16 + 2 * pair)
                    } else {
                        input.sum32.add(side + first / 32 + 2 * pair)
                    };
                    let sums = _mm256_set1_epi32(sums.cast::<i32>().read_unaligned());
                    let table = panel.int_minimum.as_ptr().add((block * K::PAIRS + pair) * 32);
                    for half in 0..2 {
                        let product = _mm256_madd_epi16(_mm256_load_si256(table.add(16 * half).cast()), sums);
                        minima[half] = _mm256_add_epi32(minima[half], product);
                    }
                }
                for half in 0..2 {
                    let mut exact = sum[m][half];
                    if K::PAIRS != 0 && !K::PAIRS_FACTOR {
                        exact = _mm256_sub_epi32(exact, minima[half]);
                    }
                    let both = _mm256_mul_ps(scale[half], x_scale);
                    let mut result = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), both, total[m][half]);
                    if K::PAIRS_FACTOR {
                        let minimum = _mm256_load_ps(panel.minimum.as_ptr().add(at + 8 * half));
                        let both = _mm256_mul_ps(minimum, x_scale);
                        result = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(minima[half]), both, result);
                    }
                    if K::MINIMUM {
                        let minimum = _mm256_load_ps(panel.minimum.as_ptr().add(at + 8 * half));
                        let x_sum = _mm256_set1_ps(*input.scaled_sum.add(side + first / 32));
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

/// Keeps the compiler from summing one row over several groups before it turns to the next row: the sums would be
/// the same, but every row would load the weights anew, and loads are what there are fewest of per cycle.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn keep(sums: &mut [__m256i; 2]) {
    // SAFETY: no instruction; the registers come out as they went in.
    unsafe {
        std::arch::asm!("/* {0} {1} */", inout(ymm_reg) sums[0], inout(ymm_reg) sums[1],
            options(pure, nomem, nostack, preserves_flags));
    }
}

/// The same pointer, of which the compiler does not know how it relates to others.
#[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written: there is no instruction")]
#[inline(always)]
pub(super) fn opaque<T>(mut pointer: *const T) -> *const T {
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags))
    };
    pointer
}
