//! The product in fours with Arm's `sdot`: sixteen signed bytes times sixteen. Quants below 64 are signed bytes, too.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::aarch64::*;
use std::arch::asm;

use orion_core::TensorType;

use super::fours::sevens::{self, SevenBits};
use super::fours::{Lanes16, sweep_kind};
use super::kind;
use super::{Part, for_kind};
use crate::activations::QuantView;

/// Four registers of four lanes.
#[derive(Clone, Copy)]
struct Quads;

// Every block below runs on a CPU with the instructions, by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all: see the line above")]
impl Lanes16 for Quads {
    type Int = [int32x4_t; 4];
    type Float = [float32x4_t; 4];
    const ROWS: usize = 4;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self::Int {
        unsafe { [vdupq_n_s32(value); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Int {
        std::array::from_fn(|at| unsafe { vreinterpretq_s32_u8(vld1q_u8(from.add(16 * at))) })
    }
    #[inline(always)]
    unsafe fn unsign(bytes: Self::Int) -> Self::Int {
        bytes.map(|v| unsafe { veorq_s32(v, vreinterpretq_s32_u8(vdupq_n_u8(0x80))) })
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Int, weights: Self::Int, activations: Self::Int) -> Self::Int {
        std::array::from_fn(|at| unsafe { sdot(sum[at], weights[at], activations[at]) })
    }
    #[inline(always)]
    unsafe fn pairs(sum: Self::Int, a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|at| unsafe {
            let (a, b) = (vreinterpretq_s16_s32(a[at]), vreinterpretq_s16_s32(b[at]));
            let products = vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
            vaddq_s32(sum[at], products)
        })
    }
    #[inline(always)]
    unsafe fn upper(v: Self::Int) -> Self::Int {
        v.map(|v| unsafe { vshrq_n_s32::<16>(v) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|at| unsafe { vmulq_s32(a[at], b[at]) })
    }
    #[inline(always)]
    unsafe fn add(a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|at| unsafe { vaddq_s32(a[at], b[at]) })
    }
    #[inline(always)]
    unsafe fn sub(a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|at| unsafe { vsubq_s32(a[at], b[at]) })
    }
    #[inline(always)]
    unsafe fn to_float(v: Self::Int) -> Self::Float {
        v.map(|v| unsafe { vcvtq_f32_s32(v) })
    }
    #[inline(always)]
    unsafe fn keep(_: &mut Self::Int) {}
    #[inline(always)]
    unsafe fn splat_float(value: f32) -> Self::Float {
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    unsafe fn load_float(from: *const f32) -> Self::Float {
        std::array::from_fn(|at| unsafe { vld1q_f32(from.add(4 * at)) })
    }
    #[inline(always)]
    unsafe fn store_float(v: Self::Float, to: *mut f32) {
        for (at, v) in v.into_iter().enumerate() {
            unsafe { vst1q_f32(to.add(4 * at), v) };
        }
    }
    #[inline(always)]
    unsafe fn mul_float(a: Self::Float, b: Self::Float) -> Self::Float {
        std::array::from_fn(|at| unsafe { vmulq_f32(a[at], b[at]) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        std::array::from_fn(|at| unsafe { vfmaq_f32(c[at], a[at], b[at]) })
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float {
        std::array::from_fn(|at| unsafe { vfmsq_f32(c[at], a[at], b[at]) })
    }
}

/// As an instruction of its own: the standard library does not offer it yet. It keeps the order of the groups, too.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: by the caller the CPU has the instruction, which touches registers alone.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// # Safety
/// As [`tile_product`](super::tile_product); the panel holds `part.cols` columns; the CPU has NEON and `sdot`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn sweep(part: &Part<'_>, input: QuantView) {
    // SAFETY: passed on.
    unsafe { for_kind!(part.ty, sweep_kind(part, input), Quads) }
}

/// # Safety
/// As [`sevens::in_fours`]; the CPU has NEON and `sdot`. Activations of seven bits are signed bytes, too.
#[target_feature(enable = "neon")]
pub(super) unsafe fn sevens(tile: &[sevens::Block], input: &[SevenBits], out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { sevens::in_fours::<Quads>(tile, input, out) }
}

#[cfg(test)]
mod tests {
    use crate::gemm::fours::agrees_with_reference;
    use crate::isa::{Isa, Neon};

    #[test]
    fn the_product_gives_the_bits_of_the_reference() {
        let neon = Neon::detect().expect("this emulator or CPU has sdot, and it is right");
        for columns in [256, 1024 + 512] {
            assert!(agrees_with_reference(Isa::Neon(neon), columns));
        }
    }
}
