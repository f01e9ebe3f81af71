//! From numbers to blocks: ggml's reference quantiser (`ggml_quantize_chunk`), byte for byte.

mod k_quants;
mod legacy;
mod nonlinear;
mod weights;

use orion_core::TensorType;

use super::lanes::{Lanes, Portable};
use crate::isa::Isa;

/// Rows to encode. Lengths are checked: whole rows, whole blocks, one importance per column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Row after row.
    pub x: &'a [f32],
    /// Columns.
    pub n_per_row: usize,
    /// One importance per column.
    pub imatrix: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// Each block's numbers, its columns' importances and its bytes.
    #[inline(always)]
    fn blocks<'o, const LEN: usize, const BYTES: usize>(
        self,
        out: &'o mut [u8],
    ) -> impl Iterator<Item = (&'a [f32; LEN], Option<&'a [f32; LEN]>, &'o mut [u8; BYTES])> {
        let per_row = self.n_per_row / LEN;
        let importances = self.imatrix.map(|im| im.as_chunks::<LEN>().0);
        let blocks = self.x.as_chunks::<LEN>().0.iter().zip(out.as_chunks_mut::<BYTES>().0);
        blocks.enumerate().map(move |(b, (x, out))| (x, importances.map(|im| &im[b % per_row]), out))
    }
}

/// Encodes into `out`, which has the right length. Scales that overflow half precision come out infinite or NaN.
pub(super) fn encode(isa: Isa, ty: TensorType, rows: Rows<'_>, out: &mut [u8]) {
    match isa.avx2() {
        None => blocks(Portable, ty, rows, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` value exists only where the processor has AVX2 and F16C.
        #[allow(unsafe_code)]
        Some(avx2) => unsafe { blocks_avx2(avx2, ty, rows, out) },
        #[cfg(not(target_arch = "x86_64"))]
        Some(_) => blocks(Portable, ty, rows, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn blocks_avx2(avx2: crate::isa::Avx2, ty: TensorType, rows: Rows<'_>, out: &mut [u8]) {
    blocks(avx2, ty, rows, out);
}

#[inline(always)]
fn blocks<S: Lanes>(s: S, ty: TensorType, rows: Rows<'_>, out: &mut [u8]) {
    macro_rules! each {
        ($encode:path) => {
            for (x, im, out) in rows.blocks(out) {
                $encode(s, x, im, out);
            }
        };
    }
    match ty {
        TensorType::F32 => singles(rows.x, out),
        TensorType::F16 => halves(s, rows.x, out),
        TensorType::BF16 => brain_halves(rows.x, out),
        TensorType::Q4_0 => legacy::q4_0(s, rows, out),
        TensorType::Q4_1 => legacy::q4_1(s, rows, out),
        TensorType::Q5_0 => legacy::q5_0(s, rows, out),
        TensorType::Q5_1 => legacy::q5_1(s, rows, out),
        TensorType::Q8_0 => legacy::q8_0(s, rows, out),
        TensorType::Q2K => each!(k_quants::q2_k),
        TensorType::Q3K => each!(k_quants::q3_k),
        TensorType::Q4K => each!(k_quants::q4_k),
        TensorType::Q5K => each!(k_quants::q5_k),
        TensorType::Q6K => each!(k_quants::q6_k),
        TensorType::Iq4Nl => nonlinear::iq4_nl(s, rows, out),
        TensorType::Iq4Xs => each!(nonlinear::iq4_xs),
        other => unreachable!("{other} has no encoder; a test walks all types"),
    }
}

/// Byte offsets of the half-precision scales of a block.
pub(super) const fn scale_offsets(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 | TensorType::Iq4Nl | TensorType::Iq4Xs => {
            &[0]
        }
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q2K => &[80, 82],
        TensorType::Q3K => &[108],
        TensorType::Q6K => &[208],
        TensorType::F16 | TensorType::BF16 => &[0],
        _ => &[],
    }
}

#[inline(always)]
fn singles(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
        *out = x.to_le_bytes();
    }
}

/// To bfloat16, half to even.
#[inline(always)]
fn brain_halves(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
        let bits = x.to_bits();
        *out = (((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes();
    }
}

/// To half precision, half to even.
#[inline(always)]
fn halves<S: Lanes>(s: S, x: &[f32], out: &mut [u8]) {
    let (groups, rest) = x.as_chunks::<8>();
    let (out_groups, out_rest) = out.as_chunks_mut::<16>();
    for (x, out) in groups.iter().zip(out_groups) {
        for (out, half) in out.as_chunks_mut().0.iter_mut().zip(s.to_halves(s.load(x))) {
            *out = half.to_le_bytes();
        }
    }
    for (x, out) in rest.iter().zip(out_rest.as_chunks_mut().0) {
        *out = s.to_half(*x).to_le_bytes();
    }
}

/// Low nibbles from the first half of the levels, high ones from the second.
#[inline(always)]
fn pack_nibbles(levels: &[u8; 32], out: &mut [u8]) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = levels[j] & 15 | levels[j + 16] << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers of any magnitude that half-precision scales can hold, zeros and subnormals among them.
    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => -2.0..2.0f32,
            1 => Just(0.0),
            1 => Just(-0.0),
            1 => -1e-38..1e-38f32,
            1 => -1e4..1e4f32,
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn every_instruction_set_gives_the_same_bytes(
            ty in proptest::sample::select(TensorType::ALL),
            x in proptest::collection::vec(number(), 2 * 768),
            imatrix in proptest::option::of(proptest::collection::vec(0.0..4.0f32, 768)),
        ) {
            let rows = Rows { x: &x, n_per_row: 768, imatrix: imatrix.as_deref() };
            let outs = Isa::available().into_iter().map(|isa| {
                let mut out = vec![0; x.len() / ty.block_len() * ty.block_bytes()];
                encode(isa, ty, rows, &mut out);
                out
            }).collect::<Vec<_>>();
            prop_assert!(outs.iter().all(|out| *out == outs[0]), "{ty}");
        }
    }
}
