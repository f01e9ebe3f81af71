//! What distinguishes the quantised types once they are unpacked.

/// Constants of one type; kernels are generic over it, so that nothing is decided in inner loops.
pub(super) trait Kind {
    /// Groups of four columns whose products fit a 16-bit sum: `2 * max quant * 127 * DEPTH <= 32767`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no 16-bit sums there"))]
    const DEPTH: usize;
    /// Groups per block.
    const GROUPS: usize;
    /// Groups per integer scale; 0 if there is none.
    const SUB: usize = 0;
    /// What quants are stored above their value, taken off by the sum of the activations.
    const OFFSET: i32 = 0;
    /// Whether a float minimum is added per block.
    const MINIMUM: bool = false;
    /// Pairs of integer minima per block.
    const PAIRS: usize = 0;
    /// Whether the integer minima have a float factor of their own; else they share the block's scale.
    const PAIRS_FACTOR: bool = false;
    /// Whether quants are signed bytes.
    const SIGNED: bool = false;
}

/// Declares the kinds.
macro_rules! kinds {
    ($($name:ident { $($constant:ident : $ty:ty = $value:expr),* $(,)? })*) => {
        $(
            pub(super) struct $name;
            impl Kind for $name { $(const $constant: $ty = $value;)* }
        )*
    };
}

kinds! {
    Q4_0 { DEPTH: usize = 8, GROUPS: usize = 8, OFFSET: i32 = 8 }
    Q4_1 { DEPTH: usize = 8, GROUPS: usize = 8, MINIMUM: bool = true }
    Q5_0 { DEPTH: usize = 4, GROUPS: usize = 8, OFFSET: i32 = 16 }
    Q5_1 { DEPTH: usize = 4, GROUPS: usize = 8, MINIMUM: bool = true }
    Q8_0 { DEPTH: usize = 1, GROUPS: usize = 8, SIGNED: bool = true }
    Q2K { DEPTH: usize = 4, GROUPS: usize = 64, SUB: usize = 4, PAIRS: usize = 8, PAIRS_FACTOR: bool = true }
    Q3K { DEPTH: usize = 4, GROUPS: usize = 64, SUB: usize = 4, PAIRS: usize = 8 }
    Q4K { DEPTH: usize = 8, GROUPS: usize = 64, SUB: usize = 8, PAIRS: usize = 4, PAIRS_FACTOR: bool = true }
    Q5K { DEPTH: usize = 4, GROUPS: usize = 64, SUB: usize = 8, PAIRS: usize = 4, PAIRS_FACTOR: bool = true }
    Q6K { DEPTH: usize = 2, GROUPS: usize = 64, SUB: usize = 4, PAIRS: usize = 8 }
}
