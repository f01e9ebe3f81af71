//! A matrix with a bias, and how it is multiplied.

use candle_core::{Device, Tensor};
use half::f16;
use orion_core::{Error, ErrorKind, Result, TensorType};
use orion_kernels::{ComputePool, Isa, LinearScratch, PackedMatrix};

pub(super) fn candle(error: candle_core::Error) -> Error {
    Error::new(ErrorKind::Internal, error.to_string()).about("encoder").with_source(error)
}

/// `y = x Wᵀ + b`.
pub(super) struct Linear {
    weight: Weight,
    bias: Vec<f32>,
    inputs: usize,
}

enum Weight {
    Portable(Tensor), // [outputs, inputs]
    Packed(PackedMatrix),
}

/// What packed matrices are multiplied with.
pub(super) struct Engine {
    pub(super) pool: ComputePool,
    pub(super) isa: Isa,
    pub(super) scratch: LinearScratch,
}

impl Linear {
    pub(super) fn f32(weight: Vec<f32>, bias: Vec<f32>, inputs: usize) -> Result<Self> {
        let weight = Tensor::from_vec(weight, (bias.len(), inputs), &Device::Cpu).map_err(candle)?;
        Ok(Self { weight: Weight::Portable(weight), bias, inputs })
    }

    pub(super) fn int8(pool: &ComputePool, weight: &[f32], bias: Vec<f32>, inputs: usize) -> Result<Self> {
        let block = TensorType::Q8_0.block_len();
        if !inputs.is_multiple_of(block) {
            let message = format!("int8 needs widths that are multiples of {block}, this one is {inputs}");
            return Err(Error::unsupported(message).about("encoder"));
        }
        let packed = PackedMatrix::pack(pool, TensorType::Q8_0, bias.len(), inputs, &q8_0(weight))?;
        Ok(Self { weight: Weight::Packed(packed), bias, inputs })
    }

    /// Multiplies rows of `inputs` numbers; the answer holds rows of as many numbers as the bias.
    pub(super) fn apply(&self, x: &[f32], engine: &mut Engine) -> Result<Vec<f32>> {
        let rows = x.len() / self.inputs;
        let mut y = match &self.weight {
            Weight::Portable(weight) => {
                let product = || -> candle_core::Result<Vec<f32>> {
                    let x = Tensor::from_slice(x, (rows, self.inputs), &Device::Cpu)?;
                    x.matmul(&weight.t()?)?.flatten_all()?.to_vec1()
                };
                product().map_err(candle)?
            }
            Weight::Packed(weight) => {
                let mut y = vec![0.0; rows * self.bias.len()];
                orion_kernels::linear(&engine.pool, engine.isa, weight, x, &mut engine.scratch, &mut y)?;
                y
            }
        };
        for row in y.chunks_exact_mut(self.bias.len()) {
            row.iter_mut().zip(&self.bias).for_each(|(a, b)| *a += b);
        }
        Ok(y)
    }
}

/// Blocks of 32 signed bytes behind their f16 scale, the largest value at ±127, as ggml defines Q8_0.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / 32 * TensorType::Q8_0.block_bytes());
    for block in values.chunks_exact(32) {
        let most = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let scale = most / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        bytes.extend(block.iter().map(|value| ((value * inverse).round() as i8).cast_unsigned()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_q8_0_block_holds_its_scale_and_rounded_values() {
        let mut values = [0.0_f32; 32];
        values[..4].copy_from_slice(&[12.7, -12.7, 0.04, -1.26]);
        let bytes = q8_0(&values);
        assert_eq!(bytes.len(), 34);
        assert!((f16::from_le_bytes([bytes[0], bytes[1]]).to_f32() - 0.1).abs() < 1e-4);
        let quants: Vec<i8> = bytes[2..6].iter().map(|&byte| byte.cast_signed()).collect();
        assert_eq!(quants, [127, -127, 0, -13]);
        assert_eq!(q8_0(&[0.0; 32]), [0; 34]);
    }
}
