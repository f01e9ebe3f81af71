//! The product in fours with VNNI: `dpbusd` takes 64 unsigned quants and 64 signed activations.
//!
//! Registers of 512 bits, pairs of 256 bits, and in tests an imitation in AVX2, so that everything but the instructions
//! themselves runs on any CPU.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use orion_core::TensorType;

use super::fours::sevens::{self, SevenBits};
use super::fours::{Lanes16, sweep_kind};
use super::kind;
use super::{Part, for_kind};
use crate::activations::QuantView;

#[derive(Clone, Copy)]
struct Wide;

// Every block below runs on a CPU with the instructions, by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the line above")]
impl Lanes16 for Wide {
    type Int = __m512i;
    type Float = __m512;
    const ROWS: usize = 8;
    const SIGNED: bool = false;

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
    unsafe fn pairs(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
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
            const SIGNED: bool = false;

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
            unsafe fn pairs(sum: Self::Int, a: Self::Int, b: Self::Int) -> Self::Int {
                let half = |at: usize| unsafe { _mm256_add_epi32(sum[at], _mm256_madd_epi16(a[at], b[at])) };
                [half(0), half(1)]
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
/// As [`sevens::in_fours`]; the CPU has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn sevens_512(tile: &[sevens::Block], input: &[SevenBits], out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { sevens::in_fours::<Wide>(tile, input, out) }
}

/// # Safety
/// As [`sevens::in_fours`]; the CPU has AVX2, FMA and AVX-VNNI.
#[target_feature(enable = "avx2,fma,avxvnni")]
pub(super) unsafe fn sevens_256(tile: &[sevens::Block], input: &[SevenBits], out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { sevens::in_fours::<Narrow>(tile, input, out) }
}

/// # Safety
/// As [`sevens_256`], without its own instructions.
#[cfg(test)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn sevens_imitated(tile: &[sevens::Block], input: &[SevenBits], out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { sevens::in_fours::<Imitated>(tile, input, out) }
}

#[cfg(test)]
mod tests {
    use crate::gemm::fours::agrees_with_reference;
    use crate::isa::Isa;

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
