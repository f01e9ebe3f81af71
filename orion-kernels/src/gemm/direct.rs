//! How quants are taken straight from a tile, for products with few rows.
//!
//! With one or two rows memory is what limits, and every instruction that does not load weights delays the next load;
//! with a few more, filling a panel would take as long as the products. The sums and float operations are those of the
//! panel's kernels.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;
use std::cmp::Ordering;

use super::kind::{self, Kind};
use crate::simd::prefetch;

/// Bytes of quants in one register: a line of four columns by sixteen rows, or half of it.
///
/// # Safety
/// Every method runs on a CPU with the instructions.
pub(super) trait Bytes: Copy {
    /// # Safety
    /// A register must be readable at `from`.
    unsafe fn load(from: *const u8) -> Self;
    /// Bits from `at` on of every byte, moved to `to` and masked. All three are constants where it is called.
    unsafe fn bits(self, at: usize, to: usize, mask: i8) -> Self;
    unsafe fn or(self, other: Self) -> Self;
}

/// Implements [`Bytes`] for a register.
macro_rules! bytes {
    ($vector:ty, $load:ident, $right:ident, $left:ident, $and:ident, $or:ident, $splat:ident) => {
        impl Bytes for $vector {
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                // SAFETY: by this function's contract.
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn bits(self, at: usize, to: usize, mask: i8) -> Self {
                // SAFETY: by the trait's contract.
                unsafe {
                    let count = |by: usize| _mm_cvtsi32_si128(by as i32);
                    let moved = match at.cmp(&to) {
                        Ordering::Equal => self,
                        Ordering::Greater => $right(self, count(at - to)),
                        Ordering::Less => $left(self, count(to - at)),
                    };
                    $and(moved, $splat(mask))
                }
            }
            #[inline(always)]
            unsafe fn or(self, other: Self) -> Self {
                // SAFETY: by the trait's contract.
                unsafe { $or(self, other) }
            }
        }
    };
}
bytes!(
    __m256i,
    _mm256_loadu_si256,
    _mm256_srl_epi16,
    _mm256_sll_epi16,
    _mm256_and_si256,
    _mm256_or_si256,
    _mm256_set1_epi8
);
bytes!(
    __m512i,
    _mm512_loadu_si512,
    _mm512_srl_epi16,
    _mm512_sll_epi16,
    _mm512_and_si512,
    _mm512_or_si512,
    _mm512_set1_epi8
);

/// How a type's quants, scales and minima are taken from a block of a tile.
pub(super) trait Direct: Kind {
    /// Bytes of a block's quants, of its integer scales, and of the whole block.
    const QUANTS: usize;
    const BYTES: usize;
    /// What integer minima are multiplied with, as a shift (offsets of symmetric types).
    const SHIFT: i32 = 0;
    /// Scale and minimum of a sub-block share a byte (Q2_K alone).
    const SHARED_BYTE: bool = Self::QUANTS == 1024;

    /// Groups that share lines of a bit plane: a part of the block.
    const PART: usize;

    /// Four columns of as many rows as fit a register, one byte each: group `group` of part `part`, from byte `from` of its
    /// line on. All are constants where it is called, so a line that several groups share is loaded once.
    ///
    /// # Safety
    /// A block must be readable at `block`; the CPU has the instructions.
    unsafe fn quants<V: Bytes>(block: *const u8, part: usize, group: usize, from: usize) -> V;
}

#[inline(always)]
unsafe fn line<V: Bytes>(block: *const u8, index: usize, from: usize) -> V {
    // SAFETY: the callers stay within the block.
    unsafe { V::load(block.add(index * 64 + from)) }
}

#[inline(always)]
unsafe fn nibble<V: Bytes>(block: *const u8, group: usize, from: usize) -> V {
    // SAFETY: the callers stay within the block.
    unsafe { line::<V>(block, group % 4, from).bits(group / 4 * 4, 0, 15) }
}

#[inline(always)]
unsafe fn five<V: Bytes>(block: *const u8, group: usize, from: usize) -> V {
    // SAFETY: the callers stay within the block.
    unsafe { nibble::<V>(block, group, from).or(line::<V>(block, 4, from).bits(group, 4, 16)) }
}

/// Q4_K and Q5_K.
#[inline(always)]
unsafe fn k_nibble<V: Bytes>(block: *const u8, part: usize, group: usize, from: usize) -> V {
    // SAFETY: the callers stay within the block.
    unsafe { line::<V>(block, part * 8 + group % 8, from).bits(group / 8 * 4, 0, 15) }
}

#[inline(always)]
unsafe fn k_five<V: Bytes>(block: *const u8, part: usize, group: usize, from: usize) -> V {
    // SAFETY: the callers stay within the block.
    unsafe {
        let fifth = line::<V>(block, 32 + group % 8, from).bits(part * 2 + group / 8, 4, 16);
        k_nibble::<V>(block, part, group, from).or(fifth)
    }
}

/// Q2_K and Q3_K.
#[inline(always)]
unsafe fn crumb<V: Bytes>(block: *const u8, part: usize, group: usize, from: usize) -> V {
    // SAFETY: the callers stay within the block.
    unsafe { line::<V>(block, part * 8 + group % 8, from).bits(group / 8 * 2, 0, 3) }
}

#[inline(always)]
unsafe fn three<V: Bytes>(block: *const u8, part: usize, group: usize, from: usize) -> V {
    // SAFETY: the callers stay within the block.
    unsafe {
        let third = line::<V>(block, 16 + group % 8, from).bits(part * 4 + group / 8, 2, 4);
        crumb::<V>(block, part, group, from).or(third)
    }
}

#[inline(always)]
unsafe fn six<V: Bytes>(block: *const u8, part: usize, group: usize, from: usize) -> V {
    let quarter = group / 8;
    // SAFETY: the callers stay within the block.
    unsafe {
        let lower =
            line::<V>(block, part * 16 + quarter % 2 * 8 + group % 8, from).bits(quarter / 2 * 4, 0, 15);
        lower.or(line::<V>(block, 32 + part * 8 + group % 8, from).bits(quarter * 2, 4, 48))
    }
}

/// Implements [`Direct`] by an expression over block, part, group and first byte.
macro_rules! direct {
    ($($kind:ident: $quants:expr, $bytes:expr, $part:expr, $shift:expr, |$b:ident, $p:ident, $g:ident, $f:ident| $body:expr;)*) => {
        $(
            impl Direct for kind::$kind {
                const QUANTS: usize = $quants;
                const BYTES: usize = $bytes;
                const PART: usize = $part;
                const SHIFT: i32 = $shift;
                #[inline(always)]
                unsafe fn quants<V: Bytes>($b: *const u8, $p: usize, $g: usize, $f: usize) -> V {
                    // SAFETY: by this function's contract.
                    unsafe { $body }
                }
            }
        )*
    };
}

direct! {
    Q4_0: 256, 288, 8, 0, |b, _p, g, f| nibble(b, g, f);
    Q4_1: 256, 320, 8, 0, |b, _p, g, f| nibble(b, g, f);
    Q5_0: 320, 352, 8, 0, |b, _p, g, f| five(b, g, f);
    Q5_1: 320, 384, 8, 0, |b, _p, g, f| five(b, g, f);
    Q8_0: 512, 544, 8, 0, |b, _p, g, f| line(b, g, f);
    Q2K: 1024, 1344, 32, 0, |b, p, g, f| crumb(b, p, g, f);
    Q3K: 1536, 1824, 32, 2, |b, p, g, f| three(b, p, g, f);
    Q4K: 2048, 2368, 16, 0, |b, p, g, f| k_nibble(b, p, g, f);
    Q5K: 2560, 2880, 16, 0, |b, p, g, f| k_five(b, p, g, f);
    Q6K: 3072, 3360, 32, 5, |b, p, g, f| six(b, p, g, f);
}

/// How far ahead of the products weights are asked for: into the second-level cache, from where they come in time and
/// where they push out nothing that is in use. What the CPU fetches by itself ends with each page.
const AHEAD: usize = 8192;

/// Asks for the weights that follow, as many as one part of a block holds.
#[inline(always)]
pub(super) fn fetch<K: Direct>(block: *const u8, part: usize) {
    let share = K::BYTES / (K::GROUPS / K::PART);
    let from = block.wrapping_add(AHEAD + part * share);
    for line in 0..share.div_ceil(64) {
        prefetch(from.wrapping_add(line * 64));
    }
}
