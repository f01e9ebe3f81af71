//! Rotary embedding of one head, in place.
#![allow(unsafe_code, reason = "rows are shared between threads as pointers")]

use crate::isa::Isa;
use crate::simd::{Kernel, Lanes, dispatch};

/// Rotates the first `2 * half` elements of a head by the row's angles and multiplies all by `scale`.
pub(super) struct Rotate {
    /// `head_dim` elements.
    pub(super) head: *mut f32,
    pub(super) head_dim: usize,
    /// `half` elements each.
    pub(super) cos: *const f32,
    pub(super) sin: *const f32,
    pub(super) half: usize,
    pub(super) interleaved: bool,
    pub(super) scale: f32,
}

impl Rotate {
    /// # Safety
    /// The pointers must have the elements stated, with the head's alone to this call.
    pub(super) unsafe fn run(self, isa: Isa) {
        dispatch(isa, self);
    }
}

impl Kernel for Rotate {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { head, head_dim, cos, sin, half, interleaved, scale } = self;
        // SAFETY: the contract of `Rotate::run`; all indices are below `head_dim`.
        unsafe {
            let turn = |a: *mut f32, b: *mut f32, i: usize| {
                let (x, y, c, s) = (*a, *b, *cos.add(i), *sin.add(i));
                *a = y.mul_add(-s, x * c);
                *b = x.mul_add(s, y * c);
            };
            if interleaved {
                (0..half).for_each(|i| turn(head.add(2 * i), head.add(2 * i + 1), i));
            } else {
                let full = half / 8 * 8;
                for i in (0..full).step_by(8) {
                    let (x, y) = (L::load(head.add(i)), L::load(head.add(half + i)));
                    let (c, s) = (L::load(cos.add(i)), L::load(sin.add(i)));
                    y.fma(s.mul(L::splat(-1.0)), x.mul(c)).store(head.add(i));
                    x.fma(s, y.mul(c)).store(head.add(half + i));
                }
                (full..half).for_each(|i| turn(head.add(i), head.add(half + i), i));
            }
            if scale != 1.0 {
                (0..head_dim).for_each(|i| *head.add(i) *= scale);
            }
        }
    }
}
