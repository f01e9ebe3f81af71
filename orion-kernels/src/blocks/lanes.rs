//! Eight floats that never meet: one lane per sub-block, so that each sub-block's sums are formed in the order of the format's
//! definition while eight of them advance at once.

use std::ops::{Add, Div, Mul, Sub};

#[cfg(target_arch = "x86_64")]
use crate::isa::Avx2;

/// Rounds to the nearest integer, half to even, by the addition that leaves the integer in the low bits.
///
/// Beyond ±2^22 the result is arbitrary but defined; every path shares it.
#[inline(always)]
pub(super) fn nearest_int(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23
    ((x + MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The operations on eight floats, on some instruction set. None of them fuses or reorders.
pub(super) trait Lanes: Copy {
    /// The eight floats.
    type F: Copy;

    /// Eight copies.
    fn splat(self, x: f32) -> Self::F;
    /// From memory.
    fn load(self, x: &[f32; 8]) -> Self::F;
    /// To memory.
    fn store(self, x: Self::F) -> [f32; 8];
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// Absolute value.
    fn abs(self, a: Self::F) -> Self::F;
    /// [`nearest_int`], limited to `low..=high`.
    fn level(self, a: Self::F, low: i32, high: i32) -> Self::F;
    /// `if a < b { x } else { y }`; a comparison with NaN is false.
    fn if_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// `if a == b { x } else { y }`
    fn if_equal(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Whether `a == b` in every lane.
    fn all_equal(self, a: Self::F, b: Self::F) -> bool;
    /// To half precision, half to even.
    fn to_halves(self, a: Self::F) -> [u16; 8];
    /// One number to half precision, half to even.
    fn to_half(self, a: f32) -> u16;
}

/// Eight floats with operators.
#[derive(Clone, Copy)]
pub(super) struct V<S: Lanes>(S, S::F);

impl<S: Lanes> V<S> {
    #[inline(always)]
    pub(super) fn splat(s: S, x: f32) -> Self {
        Self(s, s.splat(x))
    }
    #[inline(always)]
    pub(super) fn load(s: S, x: &[f32; 8]) -> Self {
        Self(s, s.load(x))
    }
    #[inline(always)]
    pub(super) fn store(self) -> [f32; 8] {
        self.0.store(self.1)
    }
    #[inline(always)]
    pub(super) fn sqrt(self) -> Self {
        Self(self.0, self.0.sqrt(self.1))
    }
    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        Self(self.0, self.0.abs(self.1))
    }
    /// [`nearest_int`], limited to `low..=high`, as a float.
    #[inline(always)]
    pub(super) fn level(self, low: i32, high: i32) -> Self {
        Self(self.0, self.0.level(self.1, low, high))
    }
    /// `if self < b { x } else { y }`
    #[inline(always)]
    pub(super) fn if_less(self, b: Self, x: Self, y: Self) -> Self {
        Self(self.0, self.0.if_less(self.1, b.1, x.1, y.1))
    }
    /// `if self == b { x } else { y }`
    #[inline(always)]
    pub(super) fn if_equal(self, b: Self, x: Self, y: Self) -> Self {
        Self(self.0, self.0.if_equal(self.1, b.1, x.1, y.1))
    }
    /// Whether every lane equals `b`'s.
    #[inline(always)]
    pub(super) fn all_equal(self, b: Self) -> bool {
        self.0.all_equal(self.1, b.1)
    }
}

macro_rules! operator {
    ($($trait:ident $method:ident),*) => { $(
        impl<S: Lanes> $trait for V<S> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, b: Self) -> Self {
                Self(self.0, self.0.$method(self.1, b.1))
            }
        }
    )* };
}
operator!(Add add, Sub sub, Mul mul, Div div);

/// Plain Rust: the reference, and the path of every processor without a better one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

/// `x.map(f)`, inlined whatever the length, so that it is compiled for the caller's instruction set.
#[inline(always)]
pub(super) fn each<T: Copy, U: Copy + Default, const N: usize>(x: &[T; N], f: impl Fn(T) -> U) -> [U; N] {
    let mut out = [U::default(); N];
    for i in 0..N {
        out[i] = f(x[i]);
    }
    out
}

/// Applies `f` lane by lane.
#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    let mut out = [0.0; 8];
    for i in 0..8 {
        out[i] = f(a[i], b[i]);
    }
    out
}

impl Lanes for Portable {
    type F = [f32; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 8]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F) -> [f32; 8] {
        x
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        each(&a, f32::sqrt)
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        each(&a, f32::abs)
    }
    #[inline(always)]
    fn level(self, a: Self::F, low: i32, high: i32) -> Self::F {
        each(&a, |a| nearest_int(a).clamp(low, high) as f32)
    }
    #[inline(always)]
    fn if_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let mut out = y;
        for i in 0..8 {
            if a[i] < b[i] {
                out[i] = x[i];
            }
        }
        out
    }
    #[inline(always)]
    fn if_equal(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let mut out = y;
        for i in 0..8 {
            if a[i] == b[i] {
                out[i] = x[i];
            }
        }
        out
    }
    #[inline(always)]
    fn all_equal(self, a: Self::F, b: Self::F) -> bool {
        a == b
    }
    #[inline(always)]
    fn to_halves(self, a: Self::F) -> [u16; 8] {
        each(&a, |a| self.to_half(a))
    }
    #[inline(always)]
    fn to_half(self, a: f32) -> u16 {
        half::f16::from_f32_const(a).to_bits()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(unsafe_code)]

    use std::arch::x86_64::*;

    use super::{Avx2, Lanes};

    /// Calls intrinsics that need no more than AVX2 and F16C.
    macro_rules! avx2 {
        ($call:expr) => {
            // SAFETY: `self` is an `Avx2`, which exists only where the processor has AVX2 and F16C; the three calls that
            // touch memory are given an array of exactly the register's size and make no demand on its alignment.
            unsafe { $call }
        };
    }

    impl Lanes for Avx2 {
        type F = __m256;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            avx2!(_mm256_set1_ps(x))
        }
        #[inline(always)]
        fn load(self, x: &[f32; 8]) -> __m256 {
            avx2!(_mm256_loadu_ps(x.as_ptr()))
        }
        #[inline(always)]
        fn store(self, x: __m256) -> [f32; 8] {
            let mut out = [0.0; 8];
            avx2!(_mm256_storeu_ps(out.as_mut_ptr(), x));
            out
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            avx2!(_mm256_add_ps(a, b))
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            avx2!(_mm256_sub_ps(a, b))
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            avx2!(_mm256_mul_ps(a, b))
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            avx2!(_mm256_div_ps(a, b))
        }
        #[inline(always)]
        fn sqrt(self, a: __m256) -> __m256 {
            avx2!(_mm256_sqrt_ps(a))
        }
        #[inline(always)]
        fn abs(self, a: __m256) -> __m256 {
            avx2!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
        }
        #[inline(always)]
        fn level(self, a: __m256, low: i32, high: i32) -> __m256 {
            avx2!({
                let shifted = _mm256_castps_si256(_mm256_add_ps(a, _mm256_set1_ps(12_582_912.0)));
                let fraction = _mm256_and_si256(shifted, _mm256_set1_epi32(0x007f_ffff));
                let nearest = _mm256_sub_epi32(fraction, _mm256_set1_epi32(0x0040_0000));
                let limited = _mm256_min_epi32(
                    _mm256_max_epi32(nearest, _mm256_set1_epi32(low)),
                    _mm256_set1_epi32(high),
                );
                _mm256_cvtepi32_ps(limited)
            })
        }
        #[inline(always)]
        fn if_less(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
            avx2!(_mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
        }
        #[inline(always)]
        fn if_equal(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
            avx2!(_mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)))
        }
        #[inline(always)]
        fn all_equal(self, a: __m256, b: __m256) -> bool {
            avx2!(_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b)) == 0xff)
        }
        #[inline(always)]
        fn to_half(self, a: f32) -> u16 {
            avx2!({
                let halves = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(a));
                _mm_extract_epi16::<0>(halves) as u16
            })
        }
        #[inline(always)]
        fn to_halves(self, a: __m256) -> [u16; 8] {
            let mut out = [0u16; 8];
            avx2!({
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a);
                _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
            });
            out
        }
    }
}
