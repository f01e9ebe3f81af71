//! Which instructions the codecs may use.

/// Proof that the processor has AVX2 and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, if the processor has the instructions.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    /// No processor of this architecture has them.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn detect() -> Option<Self> {
        None
    }
}

/// The compilation of a codec that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    /// The target's baseline.
    Scalar,
    /// 256-bit registers.
    Avx2(Avx2),
}

impl Isa {
    /// The widest that this processor has.
    pub(super) fn best() -> Self {
        Avx2::detect().map_or(Self::Scalar, Self::Avx2)
    }

    /// All that this processor has.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        std::iter::once(Self::Scalar).chain(Avx2::detect().map(Self::Avx2)).collect()
    }
}
