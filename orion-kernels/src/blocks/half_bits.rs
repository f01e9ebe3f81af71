//! Half precision to single precision by integer operations, so that loops over it vectorise on any target.

/// The value of an IEEE half. Exact for subnormals also where the processor is set to flush them; a NaN comes out quiet.
#[inline(always)]
pub(super) fn f16_to_f32(half: u16) -> f32 {
    const TWO_POW_MINUS_14: u32 = 113 << 23;
    let magnitude = u32::from(half & 0x7fff);
    let shifted = magnitude << 13;
    // A subnormal's fraction is put behind an implied one, which is then subtracted: both operands are normal.
    let subnormal = f32::from_bits(shifted + TWO_POW_MINUS_14) - f32::from_bits(TWO_POW_MINUS_14);
    let normal = shifted + (112 << 23);
    let special = shifted | 0x7f80_0000 | (u32::from(magnitude > 0x7c00) << 22);
    let bits = if magnitude < 0x0400 {
        subnormal.to_bits()
    } else if magnitude >= 0x7c00 {
        special
    } else {
        normal
    };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

/// The value of the little-endian half in the first two of `bytes`.
#[inline(always)]
pub(super) fn f16_at(bytes: &[u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_has_the_value_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32_const());
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{bits:04x}: {ours} {theirs}"
            );
        }
        assert_eq!(f16_to_f32(0x0001), 2f32.powi(-24));
    }
}
