//! Random weights in every type, without an encoder: random bits, with scales that keep values small.

pub(crate) mod model;

use orion_core::TensorType;

pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Bytes of a random matrix; every value is finite and of the order of `size`.
pub(crate) fn random(ty: TensorType, rows: usize, cols: usize, size: f32, rng: &mut Rng) -> Vec<u8> {
    let count = rows * cols;
    match ty {
        TensorType::F32 => (0..count).flat_map(|_| (rng.unit() * size).to_le_bytes()).collect(),
        TensorType::BF16 => {
            (0..count).flat_map(|_| (((rng.unit() * size).to_bits() >> 16) as u16).to_le_bytes()).collect()
        }
        TensorType::F16 => {
            (0..count).flat_map(|_| half::f16::from_f32(rng.unit() * size).to_le_bytes()).collect()
        }
        _ => {
            let (len, bytes) = (ty.block_len(), ty.block_bytes());
            let mut out: Vec<u8> = (0..count / len * bytes).map(|_| rng.next() as u8).collect();
            // Offsets of the half-precision scales within a block, and the greatest quant times scale.
            let (floats, greatest): (&[usize], f32) = match ty {
                TensorType::Q4_0 => (&[0], 8.0),
                TensorType::Q4_1 => (&[0, 2], 15.0),
                TensorType::Q5_0 => (&[0], 16.0),
                TensorType::Q5_1 => (&[0, 2], 31.0),
                TensorType::Q8_0 => (&[0], 128.0),
                TensorType::Q2K => (&[80, 82], 45.0),
                TensorType::Q3K => (&[108], 128.0),
                TensorType::Q4K => (&[0, 2], 945.0),
                TensorType::Q5K => (&[0, 2], 1953.0),
                TensorType::Q6K => (&[208], 4096.0),
                other => panic!("no random {other}"),
            };
            for block in out.chunks_exact_mut(bytes) {
                for &at in floats {
                    let scale = half::f16::from_f32(size / greatest * (0.5 + 0.5 * rng.unit().abs()));
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            out
        }
    }
}

#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) const TYPES: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];
