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

/// Proof that the CPU also has AVX-512 F, BW and VNNI, and that they compute what they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512Vnni(Avx2);

/// Proof that the CPU also has AVX-VNNI, and that it computes what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvxVnni(Avx2);

/// Declares how a token for more than AVX2 is had: the features, then one product of every type beside the reference, once
/// per process. What a CPU, a hypervisor or an emulator gets wrong costs speed then, and no wrong answer.
macro_rules! verified {
    ($name:ident, $($feature:tt),+) => {
        impl $name {
            /// The token, if this CPU has the instructions, the operating system saves their registers, and products are right.
            #[must_use]
            pub fn detect() -> Option<Self> {
                static FOUND: OnceLock<Option<$name>> = OnceLock::new();
                *FOUND.get_or_init(|| {
                    #[cfg(target_arch = "x86_64")]
                    if $(is_x86_feature_detected!($feature))&&+ {
                        let candidate = Self(Avx2::detect()?);
                        return crate::gemm::fours::agrees_with_reference(Isa::$name(candidate), 256)
                            .then_some(candidate);
                    }
                    None
                })
            }
        }
    };
}
verified!(Avx512Vnni, "avx512f", "avx512bw", "avx512vnni");
verified!(AvxVnni, "avxvnni");

/// Proof that the CPU has NEON with products of bytes in fours (`sdot`), and that they are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neon(());

impl Neon {
    /// The token, if this CPU has the instructions and products are right.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        {
            static FOUND: OnceLock<Option<Neon>> = OnceLock::new();
            return *FOUND.get_or_init(|| {
                let there = std::arch::is_aarch64_feature_detected!("dotprod");
                (there && crate::gemm::fours::agrees_with_reference(Isa::Neon(Self(())), 256))
                    .then_some(Self(()))
            });
        }
        #[cfg(not(target_arch = "aarch64"))]
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
    /// AVX2, and the integer product in pairs of 256-bit vectors with VNNI.
    AvxVnni(AvxVnni),
    /// AVX2, and the integer product in 512-bit vectors with VNNI.
    Avx512Vnni(Avx512Vnni),
    /// Arm's 128-bit vectors, with the integer product in fours.
    Neon(Neon),
    /// The VNNI product with AVX2's instructions.
    #[cfg(test)]
    Imitated(Avx2),
}

/// The names [`Isa::from_name`] takes, the slowest first.
const NAMES: [&str; 5] = ["scalar", "avx2", "avxvnni", "avx512vnni", "neon"];

impl Isa {
    /// The token for AVX2, if this set holds it.
    pub(crate) fn avx2(self) -> Option<Avx2> {
        match self {
            Self::Scalar | Self::Neon(_) => None,
            Self::Avx2(avx2) | Self::AvxVnni(AvxVnni(avx2)) | Self::Avx512Vnni(Avx512Vnni(avx2)) => {
                Some(avx2)
            }
            #[cfg(test)]
            Self::Imitated(avx2) => Some(avx2),
        }
    }

    /// Every set this CPU can run, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        all.extend(Avx2::detect().map(Self::Avx2));
        all.extend(AvxVnni::detect().map(Self::AvxVnni));
        all.extend(Avx512Vnni::detect().map(Self::Avx512Vnni));
        all.extend(Neon::detect().map(Self::Neon));
        all
    }

    /// The set in use: what the variable `ORION_ISA` names (`scalar`, `avx2`, `avxvnni`, `avx512vnni`, `neon`), else the best one available.
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
        // One after the other: what is not needed is not tried out.
        Avx512Vnni::detect()
            .map(Self::Avx512Vnni)
            .or_else(|| AvxVnni::detect().map(Self::AvxVnni))
            .or_else(|| Avx2::detect().map(Self::Avx2))
            .or_else(|| Neon::detect().map(Self::Neon))
            .unwrap_or(Self::Scalar)
    }

    /// The set of that name, in any case.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) if there is no such set or this CPU lacks it.
    pub fn from_name(name: &str) -> Result<Self> {
        let name = name.to_ascii_lowercase();
        if !NAMES.contains(&&*name) {
            let known = NAMES.join(", ");
            return Err(Error::unsupported(format!("unknown instruction set {name:?}; known: {known}"))
                .about("ORION_ISA"));
        }
        Self::available().into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            Error::unsupported("this CPU has not its instructions").about(format!("ORION_ISA={name}"))
        })
    }

    /// The name `ORION_ISA` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => NAMES[0],
            Self::Avx2(_) => NAMES[1],
            Self::AvxVnni(_) => NAMES[2],
            Self::Avx512Vnni(_) => NAMES[3],
            Self::Neon(_) => NAMES[4],
            #[cfg(test)]
            Self::Imitated(_) => "imitated",
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
