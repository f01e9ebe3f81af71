//! The integer product for CPUs that multiply bytes in fours (VNNI): `dpbusd` multiplies 64 unsigned quants with 64
//! signed activations and adds each four products to a 32-bit sum, in one instruction.
//!
//! A panel's group is what one such instruction takes: four columns of sixteen rows. Signed bytes (Q8_0) are moved to
//! 0..=255, and what that adds is taken off by the sum of the activations. One source serves registers of 512 bits, pairs
//! of 256 bits, and in tests an imitation in AVX2, so that everything but the instructions themselves runs on any CPU.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use orion_core::{Result, TensorType};

use super::kind::{self, Kind};
use super::{Part, for_kind};
use crate::activations::QuantView;
use crate::isa::Isa;
use crate::linear::{LinearScratch, linear};
use crate::pool::ComputePool;
use crate::tiles::{PackedMatrix, TILE_ROWS};

/// Sixteen lanes.
///
/// # Safety
/// Every method runs on a CPU with the instructions, and pointers are readable for sixteen lanes.
trait Lanes16: Copy {
    type Int: Copy;
    type Float: Copy;
    /// Rows whose sums fit the registers.
    const ROWS: usize;

    unsafe fn splat(value: i32) -> Self::Int;
    unsafe fn load(from: *const u8) -> Self::Int;
    /// Flips the sign of every byte.
    unsafe fn unsign(bytes: Self::Int) -> Self::Int;
    /// Adds products of unsigned bytes with signed ones, in fours.
    unsafe fn dot(sum: Self::Int, unsigned: Self::Int, signed: Self::Int) -> Self::Int;
    /// Products of 16-bit numbers, added in pairs.
    unsafe fn pairs(a: Self::Int, b: Self::Int) -> Self::Int;
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

#[derive(Clone, Copy)]
struct Wide;

// Every block below runs on a CPU with the instructions, by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the line above")]
impl Lanes16 for Wide {
    type Int = __m512i;
    type Float = __m512;
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn unsign(bytes: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, unsigned, signed) }
    }
    #[inline(always)]
    unsafe fn pairs(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_madd_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn upper(v: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<16>(v) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_float(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn keep(v: &mut __m512i) {
        unsafe { keep_512(v) }
    }
    #[inline(always)]
    unsafe fn splat_float(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load_float(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_float(v: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn mul_float(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn keep_512(v: &mut __m512i) {
    // SAFETY: no instruction; the register comes out as it went in.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) * v, options(nostack, preserves_flags)) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn keep_256(v: &mut __m256i) {
    // SAFETY: no instruction; the register comes out as it went in.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) * v, options(nostack, preserves_flags)) }
}

/// Two registers of eight lanes; all but the product of bytes is AVX2.
macro_rules! halves {
    ($(#[$meta:meta])* $name:ident, |$sum:ident, $unsigned:ident, $signed:ident| $dot:expr) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        struct $name;

        // Every block below runs on a CPU with the instructions, by the trait's contract.
        $(#[$meta])*
        #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the line above")]
        impl Lanes16 for $name {
            type Int = [__m256i; 2];
            type Float = [__m256; 2];
            const ROWS: usize = 4;

            #[inline(always)]
            unsafe fn splat(value: i32) -> Self::Int {
                unsafe { [_mm256_set1_epi32(value); 2] }
            }
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self::Int {
                unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
            }
            #[inline(always)]
            unsafe fn unsign(bytes: Self::Int) -> Self::Int {
                unsafe { bytes.map(|v| _mm256_xor_si256(v, _mm256_set1_epi8(-128))) }
            }
            #[inline(always)]
            unsafe fn dot(sum: Self::Int, unsigned: Self::Int, signed: Self::Int) -> Self::Int {
                let half = |at: usize| {
                    let ($sum, $unsigned, $signed) = (sum[at], unsigned[at], signed[at]);
                    unsafe { $dot }
                };
                [half(0), half(1)]
            }
            #[inline(always)]
            unsafe fn pairs(a: Self::Int, b: Self::Int) -> Self::Int {
                unsafe { [_mm256_madd_epi16(a[0], b[0]), _mm256_madd_epi16(a[1], b[1])] }
            }
            #[inline(always)]
            unsafe fn upper(v: Self::Int) -> Self::Int {
                unsafe { [_mm256_srai_epi32::<16>(v[0]), _mm256_srai_epi32::<16>(v[1])] }
            }
            #[inline(always)]
            unsafe fn mul(a: Self::Int, b: Self::Int) -> Self::Int {
                unsafe { [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])] }
            }
            #[inline(always)]
            unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int {
                unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
            }
            #[inline(always)]
            unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int {
                unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
            }
            #[inline(always)]
            unsafe fn to_float(v: Self::Int) -> Self::Float {
                unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
            }
            #[inline(always)]
            unsafe fn keep(v: &mut Self::Int) {
                unsafe { v.iter_mut().for_each(|half| keep_256(half)) }
            }
            #[inline(always)]
            unsafe fn splat_float(value: f32) -> Self::Float {
                unsafe { [_mm256_set1_ps(value); 2] }
            }
            #[inline(always)]
            unsafe fn load_float(from: *const f32) -> Self::Float {
                unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
            }
            #[inline(always)]
            unsafe fn store_float(v: Self::Float, to: *mut f32) {
                unsafe {
                    _mm256_storeu_ps(to, v[0]);
                    _mm256_storeu_ps(to.add(8), v[1]);
                }
            }
            #[inline(always)]
            unsafe fn mul_float(a: Self::Float, b: Self::Float) -> Self::Float {
                unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
            }
            #[inline(always)]
            unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
                unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
            }
            #[inline(always)]
            unsafe fn fnma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
                unsafe { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
            }
        }
    };
}

halves!(Narrow, |sum, unsigned, signed| _mm256_dpbusd_avx_epi32(sum, unsigned, signed));
halves!(
    /// Even and odd bytes apart, as 16-bit numbers, since `maddubs` saturates.
    #[cfg(test)]
    Imitated,
    |sum, unsigned, signed| {
        let low = _mm256_set1_epi16(0xff);
        let even = _mm256_madd_epi16(
            _mm256_and_si256(unsigned, low),
            _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(signed)),
        );
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(unsigned), _mm256_srai_epi16::<8>(signed));
        _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
    }
);

/// # Safety
/// As [`tile_product`](super::tile_product); the panel holds `part.cols` columns; the CPU has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn sweep_512(part: &Part<'_>, input: QuantView) {
    // SAFETY: passed on.
    unsafe { for_kind!(part.ty, sweep_kind(part, input), Wide) }
}

/// # Safety
/// As [`tile_product`](super::tile_product); the panel holds `part.cols` columns; the CPU has AVX2, FMA and AVX-VNNI.
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(super) unsafe fn sweep_256(part: &Part<'_>, input: QuantView) {
    // SAFETY: passed on.
    unsafe { for_kind!(part.ty, sweep_kind(part, input), Narrow) }
}

/// # Safety
/// As [`sweep_256`], without its own instructions.
#[cfg(test)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn sweep_imitated(part: &Part<'_>, input: QuantView) {
    // SAFETY: passed on.
    unsafe { for_kind!(part.ty, sweep_kind(part, input), Imitated) }
}

/// # Safety
/// As the functions above.
#[inline(always)]
unsafe fn sweep_kind<K: Kind, V: Lanes16>(part: &Part<'_>, input: QuantView) {
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
/// As the functions above; rows `row..row + M` exist.
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
            let offset = if K::SIGNED { 128 } else { K::OFFSET };
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
                    if K::SIGNED {
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
                    minima = V::add(minima, V::pairs(V::load(table.cast()), sums));
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
        // Rows for every branch by number.
        let (rows, n) = (15, TILE_ROWS);
        // Halves with these bits clear are finite, and so are all scales.
        let bytes: Vec<u8> = (0..n * k / ty.block_len() * ty.block_bytes()).map(|_| next() & 0xbb).collect();
        let pool = ComputePool::new(1)?;
        let matrix = PackedMatrix::pack(&pool, ty, n, k, &bytes)?;
        let input: Vec<f32> = (0..rows * k).map(|_| f32::from(next()) / 64.0 - 2.0).collect();
        let mut scratch = LinearScratch::new(&pool, rows, k);
        let mut product = |isa| -> Result<Vec<u32>> {
            let mut out = vec![0.0; rows * n];
            linear(&pool, isa, &matrix, &input, &mut scratch, &mut out)?;
            Ok(out.into_iter().map(f32::to_bits).collect())
        };
        Ok(product(isa)? == product(Isa::Scalar)?)
    };
    let mut quantised = TensorType::ALL.iter().filter(|ty| PackedMatrix::supports(**ty) && ty.is_quantised());
    quantised.all(|&ty| agree(ty).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The VNNI kernels' source on AVX2: all but the one instruction is what runs on CPUs that have it.
    #[test]
    fn the_vnni_product_gives_the_bits_of_the_reference() {
        let Some(avx2) = crate::isa::Avx2::detect() else { return };
        // Less than a panel, and more than one.
        for columns in [256, 1024 + 512] {
            assert!(agrees_with_reference(Isa::Imitated(avx2), columns));
            assert!(agrees_with_reference(Isa::Avx2(avx2), columns));
        }
    }
}
