//! Eight f32 lanes: one trait, with a plain, an AVX2 and a NEON implementation that compute the same bits.
//!
//! Kernels over floats are written once, generic over [`Lanes`], and stamped out per instruction set by
//! [`dispatch`]. Fused multiply-add is fused in all.
#![allow(unsafe_code, reason = "vector loads and stores, intrinsics")]

use crate::isa::Isa;

/// Eight f32 values.
pub(crate) trait Lanes: Copy {
    fn splat(value: f32) -> Self;
    /// # Safety
    /// Eight values must be readable at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// Eight halves, as bits.
    /// # Safety
    /// Eight values must be readable at `from`.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// # Safety
    /// Eight values must be readable at `from`.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// # Safety
    /// Eight values must be writable at `to`.
    unsafe fn store(self, to: *mut f32);
    /// Rounds to half, ties to even.
    /// # Safety
    /// Eight values must be writable at `to`.
    unsafe fn store_f16(self, to: *mut u16);
    /// Rounds to i8, ties to even. The values must lie within ±127; a NaN gives 0 or -128.
    /// # Safety
    /// Eight values must be writable at `to`.
    unsafe fn store_i8(self, to: *mut i8);
    /// [`store_i8`](Self::store_i8) of 32 values, with the sums of the first 16 and of the last 16 that were stored.
    /// # Safety
    /// 32 values must be writable at `to`.
    #[inline(always)]
    unsafe fn store_i8_summed(values: [Self; 4], to: *mut i8) -> [i16; 2] {
        // SAFETY: by this function's contract.
        unsafe {
            for (part, value) in values.into_iter().enumerate() {
                value.store_i8(to.add(8 * part));
            }
            [0, 16].map(|from| (0..16).map(|i| i16::from(*to.add(from + i))).sum())
        }
    }
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// The same pointer, which the compiler believes to be known only after this value: loads through it are not
    /// pulled ahead, where their results would take registers that are needed.
    #[inline(always)]
    fn before<T>(self, pointer: *const T) -> *const T {
        pointer
    }
    /// `self * factor + addend`, rounded once.
    fn fma(self, factor: Self, addend: Self) -> Self;
    /// `self > other ? self : other`: the other one if either is NaN.
    fn max(self, other: Self) -> Self;
    /// `self < other ? self : other`.
    fn min(self, other: Self) -> Self;
    fn abs(self) -> Self;
    /// The greater of each two by their bits; of magnitudes a NaN is the greatest, then infinity.
    #[inline(always)]
    fn max_bits(self, other: Self) -> Self {
        let (a, b) = (self.to_array(), other.to_array());
        let greater: [f32; 8] =
            std::array::from_fn(|i| if a[i].to_bits() > b[i].to_bits() { a[i] } else { b[i] });
        // SAFETY: eight values.
        unsafe { Self::load(greater.as_ptr()) }
    }
    /// The greatest lane by its bits.
    #[inline(always)]
    fn greatest_bits(self) -> f32 {
        f32::from_bits(self.to_array().iter().fold(0, |most, lane| lane.to_bits().max(most)))
    }
    /// Takes the sign of `sign`, magnitude of `self`.
    fn copysign(self, sign: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// Two to the power of an integer in -126..=127.
    fn exp2_int(self) -> Self;
    /// `self` where `a < b`, else `other`; `other` where either is NaN.
    fn where_less(self, a: Self, b: Self, other: Self) -> Self;
    fn to_array(self) -> [f32; 8];

    /// The sum, in a fixed order.
    #[inline(always)]
    fn sum(self) -> f32 {
        let v = self.to_array();
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    /// The greatest lane. With a NaN among them it may be any.
    #[inline(always)]
    fn greatest(self) -> f32 {
        let v = self.to_array();
        v.iter().skip(1).fold(v[0], |a, &b| if a > b { a } else { b })
    }
}

/// As many f32 values as a register holds, for kernels that work on each lane alone and on all of a row's lanes alike.
pub(crate) trait Vector: Copy {
    /// Values.
    const LANES: usize;
    fn splat(value: f32) -> Self;
    /// # Safety
    /// As many values must be readable at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// Halves, as bits.
    /// # Safety
    /// As many values must be readable at `from`.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// # Safety
    /// As many values must be readable at `from`.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// # Safety
    /// As many values must be writable at `to`.
    unsafe fn store(self, to: *mut f32);
    fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    fn fma(self, factor: Self, addend: Self) -> Self;
    /// [`Lanes::before`].
    fn before<T>(self, pointer: *const T) -> *const T;
}

impl<L: Lanes> Vector for L {
    const LANES: usize = 8;
    #[inline(always)]
    fn splat(value: f32) -> Self {
        L::splat(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by this function's contract.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: by this function's contract.
        unsafe { L::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: by this function's contract.
        unsafe { L::load_i8(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by this function's contract.
        unsafe { L::store(self, to) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        L::mul(self, other)
    }
    #[inline(always)]
    fn fma(self, factor: Self, addend: Self) -> Self {
        L::fma(self, factor, addend)
    }
    #[inline(always)]
    fn before<T>(self, pointer: *const T) -> *const T {
        L::before(self, pointer)
    }
}

/// The reference.
#[derive(Clone, Copy)]
pub(crate) struct Plain8([f32; 8]);

#[inline(always)]
fn map(a: [f32; 8], f: impl Fn(f32) -> f32) -> Plain8 {
    Plain8(a.map(f))
}

#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> Plain8 {
    Plain8(std::array::from_fn(|i| f(a[i], b[i])))
}

impl Lanes for Plain8 {
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by this function's contract.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: by this function's contract.
        Self(unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(f16_to_f32))
    }
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: by this function's contract.
        Self(unsafe { from.cast::<[i8; 8]>().read_unaligned() }.map(f32::from))
    }
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by this function's contract.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: by this function's contract.
        unsafe { to.cast::<[u16; 8]>().write_unaligned(self.0.map(f32_to_f16)) }
    }
    unsafe fn store_i8(self, to: *mut i8) {
        #[allow(clippy::cast_possible_truncation, reason = "within ±127 by the contract")]
        // SAFETY: by this function's contract.
        unsafe {
            to.cast::<[i8; 8]>().write_unaligned(self.0.map(|v| v.round_ties_even() as i8));
        }
    }
    fn add(self, other: Self) -> Self {
        zip(self.0, other.0, |a, b| a + b)
    }
    fn sub(self, other: Self) -> Self {
        zip(self.0, other.0, |a, b| a - b)
    }
    fn mul(self, other: Self) -> Self {
        zip(self.0, other.0, |a, b| a * b)
    }
    fn div(self, other: Self) -> Self {
        zip(self.0, other.0, |a, b| a / b)
    }
    fn fma(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
    }
    fn max(self, other: Self) -> Self {
        zip(self.0, other.0, |a, b| if a > b { a } else { b })
    }
    fn min(self, other: Self) -> Self {
        zip(self.0, other.0, |a, b| if a < b { a } else { b })
    }
    fn abs(self) -> Self {
        map(self.0, f32::abs)
    }
    fn copysign(self, sign: Self) -> Self {
        zip(self.0, sign.0, f32::copysign)
    }
    fn round(self) -> Self {
        map(self.0, f32::round_ties_even)
    }
    fn exp2_int(self) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "in range by the contract"
        )]
        map(self.0, |v| f32::from_bits(((v as i32 + 127) as u32) << 23))
    }
    fn where_less(self, a: Self, b: Self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if a.0[i] < b.0[i] { self.0[i] } else { other.0[i] }))
    }
    fn to_array(self) -> [f32; 8] {
        self.0
    }
}

/// Half to single, exact.
#[inline]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let rest = u32::from(bits & 0x7fff);
    let magnitude = if rest >= 0x7c00 {
        // Infinity or NaN; a NaN comes out quiet, as from the instruction.
        let quiet = if rest > 0x7c00 { 0x0040_0000 } else { 0 };
        0x7f80_0000 | (rest & 0x3ff) << 13 | quiet
    } else if rest >= 0x400 {
        (rest << 13) + ((127 - 15) << 23)
    } else {
        #[allow(clippy::cast_precision_loss, reason = "ten bits")]
        return f32::from_bits((rest as f32 * 2f32.powi(-24)).to_bits() | sign);
    };
    f32::from_bits(sign | magnitude)
}

/// Single to half, to nearest, ties to even.
#[inline]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    #[allow(clippy::cast_possible_truncation, reason = "one bit, and values below 2^16")]
    {
        let sign = (bits >> 16) as u16 & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        if magnitude > 0x7f80_0000 {
            return sign | 0x7e00 | (magnitude >> 13) as u16 & 0x3ff;
        }
        if magnitude >= 0x4780_0000 {
            return sign | 0x7c00;
        }
        if magnitude < 0x3880_0000 {
            // Subnormal: adding 0.5 lets the float unit round the lowest 24 bits to units of 2^-24.
            let rounded = f32::from_bits(magnitude) + 0.5;
            return sign | (rounded.to_bits() - 0.5f32.to_bits()) as u16;
        }
        let odd = magnitude >> 13 & 1;
        let rounded = magnitude - ((127 - 15) << 23) + 0xfff + odd;
        sign | (rounded >> 13) as u16
    }
}

#[inline]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// Eight lanes in one register. Only used inside functions compiled for AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx8(__m256);

    // Every block below runs on a CPU with the instructions: the type is reached through an `Avx2` token only.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the line above")]
    impl Lanes for Avx8 {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value)) }
        }
        #[allow(
            clippy::pointers_in_nomem_asm_block,
            reason = "nothing is read or written: there is no instruction"
        )]
        #[inline(always)]
        fn before<T>(self, mut pointer: *const T) -> *const T {
            // SAFETY: no instruction at all.
            unsafe {
                let half = _mm256_castps256_ps128(self.0);
                std::arch::asm!("/* {0} {1} */", in(xmm_reg) half, inout(reg) pointer,
                    options(pure, nomem, nostack, preserves_flags));
            }
            pointer
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
        }
        #[inline(always)]
        unsafe fn store_i8(self, to: *mut i8) {
            unsafe {
                let wide = _mm256_cvtps_epi32(self.0);
                let (low, high) = (_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
                let words = _mm_packs_epi32(low, high);
                _mm_storel_epi64(to.cast(), _mm_packs_epi16(words, words));
            }
        }
        #[inline(always)]
        unsafe fn store_i8_summed(values: [Self; 4], to: *mut i8) -> [i16; 2] {
            unsafe {
                let [a, b, c, d] = values.map(|value| _mm256_cvtps_epi32(value.0));
                let mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                let bytes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                _mm256_storeu_si256(to.cast(), bytes);
                // Sums of eight unsigned bytes, each 128 above its value.
                let raised = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
                let eights = _mm256_sad_epu8(raised, _mm256_setzero_si256());
                let sums = _mm256_add_epi64(eights, _mm256_shuffle_epi32::<0b01_00_11_10>(eights));
                let (first, second) = (_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
                #[allow(clippy::cast_possible_truncation, reason = "sixteen bytes")]
                [first, second].map(|sum| (_mm_cvtsi128_si32(sum) - 16 * 128) as i16)
            }
        }
        #[inline(always)]
        fn max_bits(self, other: Self) -> Self {
            unsafe {
                let (a, b) = (_mm256_castps_si256(self.0), _mm256_castps_si256(other.0));
                Self(_mm256_castsi256_ps(_mm256_max_epu32(a, b)))
            }
        }
        #[inline(always)]
        fn greatest_bits(self) -> f32 {
            unsafe {
                let v = _mm256_castps_si256(self.0);
                let v = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
                let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
                _mm_cvtss_f32(_mm_castsi128_ps(v))
            }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
        #[inline(always)]
        fn greatest(self) -> f32 {
            unsafe {
                let v = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            unsafe { Self(_mm256_div_ps(self.0, other.0)) }
        }
        #[inline(always)]
        fn fma(self, factor: Self, addend: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            unsafe { Self(_mm256_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            unsafe { Self(_mm256_min_ps(self.0, other.0)) }
        }
        #[inline(always)]
        fn abs(self) -> Self {
            unsafe { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            unsafe { Self(_mm256_or_ps(self.abs().0, _mm256_and_ps(_mm256_set1_ps(-0.0), sign.0))) }
        }
        #[inline(always)]
        fn round(self) -> Self {
            unsafe { Self(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
        }
        #[inline(always)]
        fn exp2_int(self) -> Self {
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))
            }
        }
        #[inline(always)]
        fn where_less(self, a: Self, b: Self, other: Self) -> Self {
            unsafe { Self(_mm256_blendv_ps(other.0, self.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0))) }
        }
        #[inline(always)]
        fn to_array(self) -> [f32; 8] {
            let mut out = [0.0; 8];
            unsafe { self.store(out.as_mut_ptr()) };
            out
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// Sixteen lanes in one register. Only used inside functions compiled for AVX-512 F.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx16(__m512);

    // Every block below runs on a CPU with the instructions: the type is reached through an `Avx512Vnni` token only.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the line above")]
    impl Vector for Avx16 {
        const LANES: usize = 16;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        fn fma(self, factor: Self, addend: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
        }
        #[inline(always)]
        fn before<T>(self, pointer: *const T) -> *const T {
            // There are registers enough for loads that are pulled ahead.
            pointer
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon {
    use super::Lanes;
    use std::arch::aarch64::*;
    use std::arch::asm;

    /// Eight lanes in two registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon8(float32x4_t, float32x4_t);

    #[inline(always)]
    fn map(v: Neon8, f: impl Fn(float32x4_t) -> float32x4_t) -> Neon8 {
        Neon8(f(v.0), f(v.1))
    }

    #[inline(always)]
    fn zip(a: Neon8, b: Neon8, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Neon8 {
        Neon8(f(a.0, b.0), f(a.1, b.1))
    }

    // Every AArch64 CPU has these instructions; memory is readable and writable by the trait's contract.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the line above")]
    impl Lanes for Neon8 {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            // The standard library has no stable name for these conversions.
            unsafe {
                let halves = vld1q_u16(from);
                let (low, high): (float32x4_t, float32x4_t);
                asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) low, in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
                asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) high, in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
                Self(low, high)
            }
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            unsafe {
                let words = vmovl_s8(vld1_s8(from));
                let (low, high) = (vmovl_s16(vget_low_s16(words)), vmovl_s16(vget_high_s16(words)));
                Self(vcvtq_f32_s32(low), vcvtq_f32_s32(high))
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                vst1q_f32(to, self.0);
                vst1q_f32(to.add(4), self.1);
            }
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            unsafe {
                let mut halves: uint16x8_t;
                asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) halves, in(vreg) self.0, options(pure, nomem, nostack, preserves_flags));
                asm!("fcvtn2 {0:v}.8h, {1:v}.4s", inout(vreg) halves, in(vreg) self.1, options(pure, nomem, nostack, preserves_flags));
                vst1q_u16(to, halves);
            }
        }
        #[inline(always)]
        unsafe fn store_i8(self, to: *mut i8) {
            unsafe {
                let words =
                    vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(self.0)), vqmovn_s32(vcvtnq_s32_f32(self.1)));
                vst1_s8(to, vqmovn_s16(words));
            }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            zip(self, other, |a, b| unsafe { vaddq_f32(a, b) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            zip(self, other, |a, b| unsafe { vsubq_f32(a, b) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            zip(self, other, |a, b| unsafe { vmulq_f32(a, b) })
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            zip(self, other, |a, b| unsafe { vdivq_f32(a, b) })
        }
        #[inline(always)]
        fn fma(self, factor: Self, addend: Self) -> Self {
            unsafe { Self(vfmaq_f32(addend.0, self.0, factor.0), vfmaq_f32(addend.1, self.1, factor.1)) }
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            zip(self, other, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            zip(self, other, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
        }
        #[inline(always)]
        fn abs(self) -> Self {
            map(self, |v| unsafe { vabsq_f32(v) })
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            zip(self, sign, |v, sign| unsafe { vbslq_f32(vdupq_n_u32(1 << 31), sign, v) })
        }
        #[inline(always)]
        fn round(self) -> Self {
            map(self, |v| unsafe { vrndnq_f32(v) })
        }
        #[inline(always)]
        fn exp2_int(self) -> Self {
            map(self, |v| unsafe {
                let exponent = vaddq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
            })
        }
        #[inline(always)]
        fn where_less(self, a: Self, b: Self, other: Self) -> Self {
            let choose = |v, a, b, other| unsafe { vbslq_f32(vcltq_f32(a, b), v, other) };
            Self(choose(self.0, a.0, b.0, other.0), choose(self.1, a.1, b.1, other.1))
        }
        #[inline(always)]
        fn to_array(self) -> [f32; 8] {
            let mut out = [0.0; 8];
            unsafe { self.store(out.as_mut_ptr()) };
            out
        }
    }
}

/// A kernel over lanes, as a value, so that one dispatch serves all.
pub(crate) trait Kernel {
    type Output;
    /// Runs with the lanes of some instruction set.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// A [`Kernel`] that uses wider registers too, where there are some.
pub(crate) trait WideKernel {
    /// Runs with the lanes and the registers of some instruction set.
    fn run<L: Lanes, V: Vector>(self);
}

/// Asks for a cache line, into the second-level cache. A hint: no address can make it fail.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is part of every x86-64 and faults on no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for a cache line to write to, which another thread may have read. A hint: no address can make it fail.
#[inline(always)]
pub(crate) fn prefetch_to_write<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 takes the instruction, some as none, and it faults on no address.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Runs a kernel on an instruction set.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if isa.avx2().is_some() {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<avx2::Avx8>()
        }
        // SAFETY: an `Avx2` token exists, so the CPU has the instructions.
        return unsafe { with_avx2(kernel) };
    }
    #[cfg(target_arch = "aarch64")]
    if let Isa::Neon(_) = isa {
        return kernel.run::<neon::Neon8>();
    }
    let _ = isa;
    kernel.run::<Plain8>()
}

/// Runs a kernel on an instruction set with its widest registers.
#[inline]
pub(crate) fn dispatch_wide<K: WideKernel>(isa: Isa, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512Vnni(_) = isa {
        #[target_feature(enable = "avx2,fma,f16c,avx512f")]
        unsafe fn with_avx512<K: WideKernel>(kernel: K) {
            kernel.run::<avx2::Avx8, avx512::Avx16>();
        }
        // SAFETY: the token proves the instructions.
        return unsafe { with_avx512(kernel) };
    }
    dispatch(isa, Narrow(kernel));
}

/// A kernel on one kind of registers.
struct Narrow<K>(K);

impl<K: WideKernel> Kernel for Narrow<K> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        self.0.run::<L, L>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_both_ways() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            if value.is_nan() {
                assert!(f16_to_f32(f32_to_f16(value)).is_nan());
            } else {
                assert_eq!(f32_to_f16(value), bits);
            }
        }
        for (value, bits) in [
            (1.0, 0x3c00),
            (65504.0, 0x7bff),
            (65519.9, 0x7bff),
            (65520.0, 0x7c00),
            (-2.0, 0xc000),
            (6e-8, 1),
            (2.9e-8, 0),
            (1e9, 0x7c00),
        ] {
            assert_eq!(f32_to_f16(value), bits, "{value}");
        }
    }

    struct Halves<'a>(&'a [u16], &'a mut [f32], &'a mut [u16]);
    impl Kernel for Halves<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            for i in (0..self.0.len()).step_by(8) {
                // SAFETY: all three have the same length, a multiple of eight.
                unsafe {
                    let v = L::load_f16(self.0.as_ptr().add(i));
                    v.store(self.1.as_mut_ptr().add(i));
                    v.store_f16(self.2.as_mut_ptr().add(i));
                }
            }
        }
    }

    #[test]
    fn every_isa_converts_halves_alike() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for isa in Isa::available() {
            let (mut wide, mut back) = (vec![0.0; all.len()], vec![0; all.len()]);
            dispatch(isa, Halves(&all, &mut wide, &mut back));
            for (i, &bits) in all.iter().enumerate() {
                assert_eq!(wide[i].to_bits(), f16_to_f32(bits).to_bits(), "{isa} {bits:04x}");
                assert_eq!(back[i], f32_to_f16(wide[i]), "{isa} {bits:04x}");
            }
        }
    }
}
