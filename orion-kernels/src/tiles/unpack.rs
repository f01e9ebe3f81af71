//! From a tile to a panel: the same numbers, one byte per quant, ready for the product kernels.
//!
//! A panel is at most [`CHUNK`] columns of one tile and stays in the first-level cache while all rows of activations
//! are swept over it. Unpacking is written for plain bytes in fixed-size rows, which compilers vectorise for each
//! instruction set it is stamped out for.

use orion_core::TensorType;

use super::{PackedMatrix, TILE_ROWS};
use crate::aligned::AlignedBuf;
use crate::isa::Isa;
use crate::simd::{Kernel, Lanes, bf16_to_f32, dispatch};

/// Columns per panel: a multiple of every block's length.
pub(crate) const CHUNK: usize = 1024;

/// Scratch space for one thread: a part of a tile, unpacked.
#[derive(Debug)]
pub struct Panel {
    /// `[group of 4 columns][16 rows][4]`; for float weights f32 as `[column][16 rows]`.
    pub(crate) quants: AlignedBuf<u8>,
    pub(crate) floats: AlignedBuf<f32>,
    /// Block scales, `[block][16]`.
    pub(crate) scale: AlignedBuf<f32>,
    /// Block minima, `[block][16]`: added for Q4_1 and Q5_1, subtracted for the K types.
    pub(crate) minimum: AlignedBuf<f32>,
    /// Integer scales, `[sub-block][16][2]`, each twice.
    pub(crate) int_scale: AlignedBuf<i16>,
    /// Integer minima in pairs of sub-blocks, `[pair][16][2]`.
    pub(crate) int_minimum: AlignedBuf<i16>,
}

impl Default for Panel {
    fn default() -> Self {
        Self {
            quants: AlignedBuf::zeroed(CHUNK * TILE_ROWS),
            floats: AlignedBuf::zeroed(CHUNK * TILE_ROWS),
            scale: AlignedBuf::zeroed(CHUNK / 32 * TILE_ROWS),
            minimum: AlignedBuf::zeroed(CHUNK / 32 * TILE_ROWS),
            int_scale: AlignedBuf::zeroed(CHUNK / 16 * TILE_ROWS * 2),
            int_minimum: AlignedBuf::zeroed(CHUNK / 16 * TILE_ROWS),
        }
    }
}

impl Panel {
    /// Unpacks columns `start..start + cols` of a tile; `start` must be a multiple of the block length and `cols`
    /// at most [`CHUNK`].
    pub(crate) fn fill(&mut self, isa: Isa, matrix: &PackedMatrix, tile: usize, start: usize, cols: usize) {
        let shape = matrix.shape();
        let bytes = &matrix.tile(tile)[start / shape.cols * shape.bytes()..];
        let blocks = &bytes[..cols / shape.cols * shape.bytes()];
        dispatch(isa, Fill { panel: self, ty: matrix.ty(), blocks, ahead: &bytes[blocks.len()..] });
    }

    /// One row of the panel as f32, in the same columns.
    pub(crate) fn read_row(&self, matrix: &PackedMatrix, lane: usize, out: &mut [f32]) {
        let ty = matrix.ty();
        let shape = matrix.shape();
        if shape.cols == 1 {
            for (column, value) in out.iter_mut().enumerate() {
                *value = self.floats[column * TILE_ROWS + lane];
            }
            return;
        }
        for (column, value) in out.iter_mut().enumerate() {
            let quant = self.quants[column / 4 * 64 + lane * 4 + column % 4];
            let block = column / shape.cols * TILE_ROWS + lane;
            let scale = self.scale[block];
            let sub = |width: usize| f32::from(self.int_scale[(column / width * TILE_ROWS + lane) * 2]);
            let minimum = |width: usize| {
                let index = column / width;
                f32::from(self.int_minimum[(index / 2 * TILE_ROWS + lane) * 2 + index % 2])
            };
            let quant_f = f32::from(quant);
            *value = match ty {
                TensorType::Q4_0 => (quant_f - 8.0) * scale,
                TensorType::Q5_0 => (quant_f - 16.0) * scale,
                TensorType::Q8_0 => f32::from(quant.cast_signed()) * scale,
                TensorType::Q4_1 | TensorType::Q5_1 => quant_f * scale + self.minimum[block],
                TensorType::Q4K | TensorType::Q5K => {
                    scale * sub(32) * quant_f - self.minimum[block] * minimum(32)
                }
                TensorType::Q2K => scale * sub(16) * quant_f - self.minimum[block] * minimum(16),
                TensorType::Q3K => scale * sub(16) * (quant_f - 4.0),
                TensorType::Q6K => scale * sub(16) * (quant_f - 32.0),
                other => unreachable!("{other} has no panel"),
            };
        }
    }
}

struct Fill<'a> {
    panel: &'a mut Panel,
    ty: TensorType,
    blocks: &'a [u8],
    ahead: &'a [u8],
}

type Line = [u8; 64];

#[inline(always)]
fn lines(bytes: &[u8]) -> &[Line] {
    bytes.as_chunks::<64>().0
}

#[inline(always)]
fn lines_mut(bytes: &mut [u8]) -> &mut [Line] {
    bytes.as_chunks_mut::<64>().0
}

#[inline(always)]
fn each(out: &mut Line, f: impl Fn(usize) -> u8) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = f(i);
    }
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Fill { panel, ty, blocks, ahead } = self;
        let _ = ahead;
        match ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => floats::<L>(panel, ty, blocks),
            TensorType::Q4_0 => nibbles::<L, false, false>(panel, blocks),
            TensorType::Q4_1 => nibbles::<L, false, true>(panel, blocks),
            TensorType::Q5_0 => nibbles::<L, true, false>(panel, blocks),
            TensorType::Q5_1 => nibbles::<L, true, true>(panel, blocks),
            TensorType::Q8_0 => bytes::<L>(panel, blocks),
            TensorType::Q4K => k_nibbles::<L, false>(panel, blocks),
            TensorType::Q5K => k_nibbles::<L, true>(panel, blocks),
            TensorType::Q2K => k_crumbs::<L, false>(panel, blocks),
            TensorType::Q3K => k_crumbs::<L, true>(panel, blocks),
            TensorType::Q6K => k_six::<L>(panel, blocks),
            other => unreachable!("{other} has no panel"),
        }
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "vector loads")]
fn halves<L: Lanes>(from: &[u8], to: &mut [f32]) {
    assert!(from.len() >= 2 * TILE_ROWS && to.len() >= TILE_ROWS);
    for i in [0, 8] {
        // SAFETY: the lengths are checked above; unaligned access is what `load_f16` does.
        unsafe { L::load_f16(from.as_ptr().add(2 * i).cast()).store(to.as_mut_ptr().add(i)) };
    }
}

#[inline(always)]
fn floats<L: Lanes>(panel: &mut Panel, ty: TensorType, from: &[u8]) {
    match ty {
        TensorType::F32 => {
            for (value, to) in from.as_chunks::<4>().0.iter().zip(panel.floats.iter_mut()) {
                *to = f32::from_le_bytes(*value);
            }
        }
        TensorType::F16 => {
            for (values, to) in from.chunks_exact(32).zip(panel.floats.chunks_exact_mut(TILE_ROWS)) {
                halves::<L>(values, to);
            }
        }
        _ => {
            for (value, to) in from.as_chunks::<2>().0.iter().zip(panel.floats.iter_mut()) {
                *to = bf16_to_f32(u16::from_le_bytes(*value));
            }
        }
    }
}

/// Q4_0, Q4_1, Q5_0, Q5_1: byte `i` holds column `i` below and column `i + 16` above.
#[inline(always)]
fn nibbles<L: Lanes, const FIVE: bool, const MIN: bool>(panel: &mut Panel, blocks: &[u8]) {
    let planes = if FIVE { 320 } else { 256 };
    let stride = planes + if MIN { 64 } else { 32 };
    for (index, block) in blocks.chunks_exact(stride).enumerate() {
        let from = lines(&block[..planes]);
        let to = lines_mut(&mut panel.quants[index * 512..index * 512 + 512]);
        for g in 0..4 {
            let low = from[g];
            if FIVE {
                let high = from[4];
                each(&mut to[g], |i| low[i] & 15 | (high[i] >> g & 1) << 4);
                each(&mut to[g + 4], |i| low[i] >> 4 | (high[i] >> (g + 4) & 1) << 4);
            } else {
                each(&mut to[g], |i| low[i] & 15);
                each(&mut to[g + 4], |i| low[i] >> 4);
            }
        }
        let at = index * TILE_ROWS;
        halves::<L>(&block[planes..], &mut panel.scale[at..at + TILE_ROWS]);
        if MIN {
            halves::<L>(&block[planes + 32..], &mut panel.minimum[at..at + TILE_ROWS]);
        }
    }
}

#[inline(always)]
fn bytes<L: Lanes>(panel: &mut Panel, blocks: &[u8]) {
    for (index, block) in blocks.chunks_exact(544).enumerate() {
        panel.quants[index * 512..index * 512 + 512].copy_from_slice(&block[..512]);
        let at = index * TILE_ROWS;
        halves::<L>(&block[512..], &mut panel.scale[at..at + TILE_ROWS]);
    }
}

/// Duplicates 16 scales into pairs.
#[inline(always)]
fn doubled(scales: impl Fn(usize) -> i16, to: &mut [i16]) {
    let to = to.first_chunk_mut::<32>().expect("room for sixteen pairs");
    for lane in 0..TILE_ROWS {
        to[2 * lane] = scales(lane);
        to[2 * lane + 1] = scales(lane);
    }
}

#[inline(always)]
fn paired(first: impl Fn(usize) -> i16, second: impl Fn(usize) -> i16, to: &mut [i16]) {
    let to = to.first_chunk_mut::<32>().expect("room for sixteen pairs");
    for lane in 0..TILE_ROWS {
        to[2 * lane] = first(lane);
        to[2 * lane + 1] = second(lane);
    }
}

/// Q4_K, Q5_K: in 64 columns, byte `i` holds column `i` below and column `i + 32` above; bit `s` of the fifth-bit
/// plane belongs to the 32 columns from `32 s` on.
#[inline(always)]
fn k_nibbles<L: Lanes, const FIVE: bool>(panel: &mut Panel, blocks: &[u8]) {
    let planes = if FIVE { 2560 } else { 2048 };
    for (index, block) in blocks.chunks_exact(planes + 320).enumerate() {
        let (low, high) = block[..planes].split_at(2048);
        let to = lines_mut(&mut panel.quants[index * 4096..index * 4096 + 4096]);
        let (low, high) = (lines(low), lines(high));
        for part in 0..4 {
            for g in 0..8 {
                let from = low[part * 8 + g];
                let (a, b) = (part * 16 + g, part * 16 + 8 + g);
                if FIVE {
                    let fifth = high[g];
                    each(&mut to[a], |i| from[i] & 15 | (fifth[i] >> (2 * part) & 1) << 4);
                    each(&mut to[b], |i| from[i] >> 4 | (fifth[i] >> (2 * part + 1) & 1) << 4);
                } else {
                    each(&mut to[a], |i| from[i] & 15);
                    each(&mut to[b], |i| from[i] >> 4);
                }
            }
        }
        let scales = &block[planes..planes + 256];
        for sub in 0..8 {
            let from = scales[sub * TILE_ROWS..].first_chunk::<TILE_ROWS>().expect("sixteen scales");
            doubled(|lane| from[lane].into(), &mut panel.int_scale[(index * 8 + sub) * 32..]);
        }
        for pair in 0..4 {
            let from = scales[128 + pair * 32..].first_chunk::<32>().expect("two rows of minima");
            let to = &mut panel.int_minimum[(index * 4 + pair) * 32..];
            paired(|lane| from[lane].into(), |lane| from[lane + TILE_ROWS].into(), to);
        }
        let at = index * TILE_ROWS;
        halves::<L>(&block[planes + 256..], &mut panel.scale[at..at + TILE_ROWS]);
        halves::<L>(&block[planes + 288..], &mut panel.minimum[at..at + TILE_ROWS]);
    }
}

/// Q2_K, Q3_K: in 128 columns, byte `i` of 32 holds columns `i`, `i + 32`, `i + 64`, `i + 96`, two bits each; bit
/// `s` of Q3_K's third-bit plane belongs to the 32 columns from `32 s` on.
#[inline(always)]
fn k_crumbs<L: Lanes, const THREE: bool>(panel: &mut Panel, blocks: &[u8]) {
    let planes = if THREE { 1536 } else { 1024 };
    let stride = planes + 256 + if THREE { 32 } else { 64 };
    for (index, block) in blocks.chunks_exact(stride).enumerate() {
        let (low, high) = block[..planes].split_at(1024);
        let to = lines_mut(&mut panel.quants[index * 4096..index * 4096 + 4096]);
        let (low, high) = (lines(low), lines(high));
        for half in 0..2 {
            for g in 0..8 {
                let from = low[half * 8 + g];
                for part in 0..4 {
                    let line = &mut to[half * 32 + part * 8 + g];
                    if THREE {
                        let third = high[g];
                        each(line, |i| from[i] >> (2 * part) & 3 | (third[i] >> (half * 4 + part) & 1) << 2);
                    } else {
                        each(line, |i| from[i] >> (2 * part) & 3);
                    }
                }
            }
        }
        let scales = block[planes..].first_chunk::<256>().expect("sixteen rows of scales");
        if THREE {
            signed_scales(panel, index, scales, 4);
        } else {
            for sub in 0..16 {
                let to = &mut panel.int_scale[(index * 16 + sub) * 32..];
                doubled(|lane| (scales[sub * TILE_ROWS + lane] & 15).into(), to);
            }
            for pair in 0..8 {
                let from = scales[pair * 32..].first_chunk::<32>().expect("two rows");
                let to = &mut panel.int_minimum[(index * 8 + pair) * 32..];
                paired(|lane| (from[lane] >> 4).into(), |lane| (from[lane + TILE_ROWS] >> 4).into(), to);
            }
            let at = index * TILE_ROWS;
            halves::<L>(&block[planes + 288..], &mut panel.minimum[at..at + TILE_ROWS]);
        }
        let at = index * TILE_ROWS;
        halves::<L>(&block[planes + 256..], &mut panel.scale[at..at + TILE_ROWS]);
    }
}

/// Signed 8-bit scales; the quants' offset becomes an integer minimum per 16 columns.
#[inline(always)]
fn signed_scales(panel: &mut Panel, index: usize, scales: &[u8; 256], offset: i16) {
    for sub in 0..16 {
        let to = &mut panel.int_scale[(index * 16 + sub) * 32..];
        doubled(|lane| scales[sub * TILE_ROWS + lane].cast_signed().into(), to);
    }
    for pair in 0..8 {
        let from = scales[pair * 32..].first_chunk::<32>().expect("two rows");
        let to = &mut panel.int_minimum[(index * 8 + pair) * 32..];
        let scaled = |byte: u8| i16::from(byte.cast_signed()) * offset;
        paired(|lane| scaled(from[lane]), |lane| scaled(from[lane + TILE_ROWS]), to);
    }
}

/// Q6_K: in 128 columns, the low nibbles of bytes 0..64 are columns 0..64, the high ones 64..128; byte `i` of 32
/// holds the upper two bits of columns `i`, `i + 32`, `i + 64`, `i + 96`.
#[inline(always)]
fn k_six<L: Lanes>(panel: &mut Panel, blocks: &[u8]) {
    for (index, block) in blocks.chunks_exact(3360).enumerate() {
        let (low, high) = (lines(&block[..2048]), lines(&block[2048..3072]));
        let to = lines_mut(&mut panel.quants[index * 4096..index * 4096 + 4096]);
        for half in 0..2 {
            for g in 0..8 {
                let (a, b, h) = (low[half * 16 + g], low[half * 16 + 8 + g], high[half * 8 + g]);
                let at = half * 32 + g;
                each(&mut to[at], |i| a[i] & 15 | (h[i] & 3) << 4);
                each(&mut to[at + 8], |i| b[i] & 15 | (h[i] >> 2 & 3) << 4);
                each(&mut to[at + 16], |i| a[i] >> 4 | (h[i] >> 4 & 3) << 4);
                each(&mut to[at + 24], |i| b[i] >> 4 | h[i] >> 6 << 4);
            }
        }
        let scales = block[3072..].first_chunk::<256>().expect("sixteen rows of scales");
        signed_scales(panel, index, scales, 32);
        let at = index * TILE_ROWS;
        halves::<L>(&block[3328..], &mut panel.scale[at..at + TILE_ROWS]);
    }
}
