//! The weights of the reference models, as `scripts/reference/recipe.py` defines them.

use half::{bf16, f16};
use serde::Deserialize;

/// How a file of the model stores its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// The nearest value of this type, ties to even.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Appends `values`, little-endian.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        for &value in values {
            match self {
                Self::F32 => out.extend(value.to_le_bytes()),
                Self::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
                Self::Bf16 => out.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
    }
}

/// Shape of a tensor and the range its values are drawn from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Fill {
    pub(crate) shape: Vec<usize>,
    offset: f32,
    scale: f32,
}

impl Fill {
    /// The values of the tensor called `name` in a model of `seed`, before they are rounded to its dtype.
    pub(crate) fn values(&self, seed: u64, name: &str) -> Vec<f32> {
        let key = fnv1a(name) ^ seed;
        let count: usize = self.shape.iter().product();
        (1..=count as u64)
            .map(|i| {
                let bits = mix(key.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 40;
                let unit = bits as f32 / (1u32 << 23) as f32 - 1.0;
                self.offset + self.scale * unit
            })
            .collect()
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
