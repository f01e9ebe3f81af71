//! IQ4_NL and IQ4_XS: sixteen levels, denser around zero.

use super::super::lanes::{Lanes, each, nearest_int};
use super::super::search::{iq4_index, nonlinear, transpose};
use super::weights::{block_weights, squares, sum_of_squares, weights};
use super::{Rows, pack_nibbles};

/// Blocks of 32: `d`, nibbles. The floor of the weights is the block's own.
#[inline(always)]
pub(super) fn iq4_nl<S: Lanes>(s: S, rows: Rows<'_>, out: &mut [u8]) {
    let per_row = rows.n_per_row / 32;
    let groups = rows.x.as_chunks::<32>().0.chunks(8);
    for (g, (blocks, out)) in groups.zip(out.as_chunks_mut::<18>().0.chunks_mut(8)).enumerate() {
        let x = transpose::<32>(blocks.as_flattened());
        let weights = match rows.imatrix {
            Some(imatrix) => {
                let columns = imatrix.as_chunks::<32>().0;
                let mut importances = [[0.0; 32]; 8];
                for (j, importances) in importances.iter_mut().enumerate().take(blocks.len()) {
                    *importances = columns[(8 * g + j) % per_row];
                }
                block_weights(s, &x, &transpose(importances.as_flattened()))
            }
            None => squares(s, &x),
        };
        for ((d, block), out) in nonlinear(s, &x, &weights).into_iter().zip(blocks).zip(out) {
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            out[..2].copy_from_slice(&s.to_half(d).to_le_bytes());
            pack_nibbles(&each(block, |x| iq4_index(inverse * x)), &mut out[2..]);
        }
    }
}

/// Super-blocks of 256: `d`, the high bit pairs of eight 6-bit scales, their low nibbles, nibbles.
#[inline(always)]
pub(super) fn iq4_xs<S: Lanes>(s: S, x: &[f32; 256], im: Option<&[f32; 256]>, out: &mut [u8; 136]) {
    let group = transpose::<32>(x);
    let weights = match im {
        Some(im) => weights(s, &group, &transpose(im), sum_of_squares(x) * (2.0 / 256.0)),
        None => squares(s, &group),
    };
    let scales = nonlinear(s, &group, &weights);
    let (mut largest, mut magnitude) = (0.0, 0.0);
    for scale in scales {
        if scale.abs() > magnitude {
            (largest, magnitude) = (scale, scale.abs());
        }
    }
    let d = -largest / 32.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let (mut high, mut low) = (0u16, [0u8; 4]);
    for (sub, (scale, x)) in scales.into_iter().zip(x.as_chunks::<32>().0).enumerate() {
        let level = nearest_int(inverse * scale).clamp(-32, 31);
        let sub_scale = d * level as f32;
        let sub_inverse = if sub_scale == 0.0 { 0.0 } else { 1.0 / sub_scale };
        pack_nibbles(&each(x, |x| iq4_index(sub_inverse * x)), &mut out[8 + 16 * sub..][..16]);
        let level = (level + 32) as u16;
        high |= (level >> 4) << (2 * sub);
        low[sub / 2] |= (level as u8 & 15) << (sub % 2 * 4);
    }
    out[..2].copy_from_slice(&s.to_half(d).to_le_bytes());
    out[2..4].copy_from_slice(&high.to_le_bytes());
    out[4..8].copy_from_slice(&low);
}
