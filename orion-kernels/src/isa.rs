//! Which instructions may be used: tokens that prove a CPU has them, and the one place that chooses.

use std::fmt;
use std::sync::OnceLock;

use orion_core::{Error, Result};

/// Proof that the CPU has AVX2, FMA and F16C; it can only be had from [`Avx2::detect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if this CPU has the instructions and the operating system saves their registers.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Some(Self(()));
        }
        None
    }
}

/// An instruction set with kernels of its own. Every set computes the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust; the reference, and the path of every CPU without a better one.
    Scalar,
    /// 256-bit vectors with FMA and half-precision conversion.
    Avx2(Avx2),
}

impl Isa {
    /// Every set this CPU can run, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        all.extend(Avx2::detect().map(Self::Avx2));
        all
    }

    /// The set in use: what the variable `ORION_ISA` names (`scalar`, `avx2`), else the best one available.
    /// Read once per process.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) if the variable names a set that is unknown or that
    /// this CPU lacks. A measurement or a test that asked for a path must not silently get another.
    pub fn active() -> Result<Self> {
        static CHOICE: OnceLock<Result<Isa, String>> = OnceLock::new();
        let choice = CHOICE.get_or_init(|| match std::env::var("ORION_ISA") {
            Ok(name) => Self::from_name(&name).map_err(|error| error.to_string()),
            Err(std::env::VarError::NotPresent) => Ok(Self::best()),
            Err(error) => Err(format!("ORION_ISA: {error}")),
        });
        choice.clone().map_err(Error::unsupported)
    }

    /// The fastest set of this CPU.
    #[must_use]
    pub fn best() -> Self {
        Avx2::detect().map_or(Self::Scalar, Self::Avx2)
    }

    /// The set of that name, in any case.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) if there is no such set or this CPU lacks it.
    pub fn from_name(name: &str) -> Result<Self> {
        match name.to_ascii_lowercase().as_str() {
            "scalar" => Ok(Self::Scalar),
            "avx2" => Avx2::detect().map(Self::Avx2).ok_or_else(|| {
                Error::unsupported("this CPU has no AVX2 with FMA and F16C").about("ORION_ISA=avx2")
            }),
            _ => Err(Error::unsupported(format!("unknown instruction set {name:?}; known: scalar, avx2"))
                .about("ORION_ISA")),
        }
    }

    /// The name `ORION_ISA` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2(_) => "avx2",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::ErrorKind;

    #[test]
    fn names_go_both_ways_and_unknown_ones_are_refused() {
        for isa in Isa::available() {
            assert_eq!(Isa::from_name(&isa.name().to_uppercase()).unwrap(), isa);
        }
        let error = Isa::from_name("avx1024").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("ORION_ISA"), "{error}");
    }
}
