//! Products of seven-bit weights with seven-bit activations.
//!
//! AVX2 multiplies bytes by `maddubs`, unsigned with signed, and the sums of two saturate at 16 bits. Weights of eight bits
//! (Q8_0) have their signs swapped over to the activations first, and are widened after every product. Weights up to ±63
//! and activations moved from ±63 to 1..=127 need neither: sums of four products fit 16 bits. What the move adds, 64 times
//! the sum of the weights, is known beforehand. Weights are kept as the product reads them, so nothing is unpacked.
//!
//! For every output the float operations are the same on every instruction set: blocks ascending, in each the exact integer
//! sum, converted, times the product of both scales.
#![allow(unsafe_code, reason = "intrinsics, and vectors over arrays")]

use orion_core::{Error, Result};

use super::Lanes16;
use crate::activations::block_scale;
use crate::isa::Isa;
use crate::simd::{Kernel, Lanes, dispatch};
use crate::tiles::TILE_ROWS;

/// Columns with one scale.
const BLOCK: usize = 32;
/// Groups of four columns in a block.
const GROUPS: usize = BLOCK / 4;
/// The greatest magnitude of a quant.
const GREATEST: f32 = 63.0;
/// What is added to the quants of activations.
const MOVE: i32 = 64;

/// 32 columns of 16 rows.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(in crate::gemm) struct Block {
    /// `[group][row][column]`
    quants: [[[i8; 4]; TILE_ROWS]; GROUPS],
    /// `-MOVE` times the sum of a row's quants.
    moved: [i32; TILE_ROWS],
    scale: [f32; TILE_ROWS],
}

/// 32 activations, moved.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct SevenBits {
    quants: [u8; BLOCK],
    scale: f32,
}

impl SevenBits {
    pub(crate) const ZERO: Self = Self { quants: [MOVE as u8; BLOCK], scale: 0.0 };

    /// Quantises a row of as many values as `to` holds. A block with an infinity or a NaN gets the scale NaN, which reaches
    /// every product it enters.
    pub(crate) fn quantise(isa: Isa, row: &[f32], to: &mut [Self]) {
        assert_eq!(row.len(), to.len() * BLOCK, "whole blocks");
        dispatch(isa, Quantise { row, to });
    }
}

struct Quantise<'a> {
    row: &'a [f32],
    to: &'a mut [SevenBits],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (block, to) in self.row.chunks_exact(BLOCK).zip(self.to) {
            let scale = block_scale::<L>(block, GREATEST);
            to.scale = scale;
            if scale > 0.0 {
                let inverse = L::splat(1.0 / scale);
                for i in (0..BLOCK).step_by(8) {
                    // SAFETY: both hold 32 values.
                    unsafe {
                        let value = L::load(block.as_ptr().add(i)).mul(inverse);
                        value.store_i8(to.quants.as_mut_ptr().add(i).cast());
                    }
                }
                to.quants.iter_mut().for_each(|quant| *quant = quant.wrapping_add(MOVE as u8));
            } else {
                to.quants = [MOVE as u8; BLOCK];
            }
        }
    }
}

/// A matrix of weights, `[rows, cols]`, in seven bits with a scale per 32 columns.
#[derive(Debug, Clone)]
pub struct SevenBitMatrix {
    rows: usize,
    cols: usize,
    /// `[tile][block]`
    blocks: Vec<Block>,
}

impl SevenBitMatrix {
    /// Quantises a row-major matrix of `cols` columns.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) if `cols` is no multiple of 32,
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the weights are no whole number of rows or not finite.
    #[allow(clippy::cast_possible_truncation, reason = "quants are at most 63 in magnitude")]
    pub fn quantise(cols: usize, weights: &[f32]) -> Result<Self> {
        if !cols.is_multiple_of(BLOCK) || cols == 0 {
            let message = format!("seven bits need widths that are multiples of {BLOCK}, this one is {cols}");
            return Err(Error::unsupported(message));
        }
        if !weights.len().is_multiple_of(cols) || weights.iter().any(|weight| !weight.is_finite()) {
            return Err(Error::invalid("the weights are no whole number of rows, or not finite"));
        }
        let rows = weights.len() / cols;
        let empty =
            Block { quants: [[[0; 4]; TILE_ROWS]; GROUPS], moved: [0; TILE_ROWS], scale: [0.0; TILE_ROWS] };
        let across = cols / BLOCK;
        let mut blocks = vec![empty; rows.div_ceil(TILE_ROWS) * across];
        for (row, weights) in weights.chunks_exact(cols).enumerate() {
            let (tile, lane) = (row / TILE_ROWS, row % TILE_ROWS);
            for (weights, block) in weights.chunks_exact(BLOCK).zip(&mut blocks[tile * across..]) {
                let greatest = weights.iter().fold(0.0f32, |greatest, weight| greatest.max(weight.abs()));
                let scale = greatest / GREATEST;
                let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
                block.scale[lane] = scale;
                for (at, weight) in weights.iter().enumerate() {
                    let quant = (weight * inverse).round().clamp(-GREATEST, GREATEST) as i8;
                    block.quants[at / 4][lane][at % 4] = quant;
                    block.moved[lane] -= MOVE * i32::from(quant);
                }
            }
        }
        Ok(Self { rows, cols, blocks })
    }

    /// Number of rows (outputs).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `row` as the numbers that its quants and scales stand for.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> Vec<f32> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let (tile, lane) = (self.tile(row / TILE_ROWS), row % TILE_ROWS);
        let of_block = |block: &Block| {
            let scale = block.scale[lane];
            block.quants.map(|group| group[lane].map(|quant| f32::from(quant) * scale))
        };
        tile.iter().flat_map(of_block).flatten().collect()
    }

    fn tile(&self, tile: usize) -> &[Block] {
        let across = self.cols / BLOCK;
        &self.blocks[tile * across..][..across]
    }

    /// Computes the columns of one tile for rows of activations, `[rows][cols / 32]`, into `out`, `[rows][16]`.
    pub(crate) fn tile_product(&self, isa: Isa, tile: usize, input: &[SevenBits], out: &mut [f32]) {
        let tile = self.tile(tile);
        assert!(input.len().is_multiple_of(tile.len()), "whole rows");
        assert_eq!(out.len(), input.len() / tile.len() * TILE_ROWS, "room for the tile's results");
        // SAFETY: lengths have just been checked, and the tokens prove the instructions.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(_) => avx2::sweep(tile, input, out),
                #[cfg(target_arch = "x86_64")]
                Isa::AvxVnni(_) => crate::gemm::vnni::sevens_256(tile, input, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni(_) => crate::gemm::vnni::sevens_512(tile, input, out),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon(_) => crate::gemm::neon::sevens(tile, input, out),
                #[cfg(all(test, target_arch = "x86_64"))]
                Isa::Imitated(_) => crate::gemm::vnni::sevens_imitated(tile, input, out),
                _ => plain(tile, input, out),
            }
        }
    }
}

/// The reference.
#[allow(clippy::cast_precision_loss, reason = "the same rounding as the vector conversion")]
fn plain(tile: &[Block], input: &[SevenBits], out: &mut [f32]) {
    for (row, out) in input.chunks_exact(tile.len()).zip(out.chunks_exact_mut(TILE_ROWS)) {
        out.fill(0.0);
        for (block, x) in tile.iter().zip(row) {
            for (lane, out) in out.iter_mut().enumerate() {
                let weights = block.quants.iter().flat_map(|group| group[lane]);
                let products = weights.zip(x.quants).map(|(w, x)| i32::from(w) * i32::from(x));
                let sum = block.moved[lane] + products.sum::<i32>();
                *out = (sum as f32).mul_add(block.scale[lane] * x.scale, *out);
            }
        }
    }
}

/// The product where one instruction multiplies bytes in fours.
///
/// # Safety
/// The CPU has the instructions of `V`; the input is whole rows, and `out` has 16 values for each.
#[inline(always)]
pub(in crate::gemm) unsafe fn in_fours<V: Lanes16>(tile: &[Block], input: &[SevenBits], out: &mut [f32]) {
    let (across, rows) = (tile.len(), input.len() / tile.len());
    // SAFETY: by this function's contract; the rows of a group exist.
    unsafe {
        let (x, out) = (input.as_ptr(), out.as_mut_ptr());
        let mut row = 0;
        while rows - row >= 4 {
            four_by_four::<V, 4>(tile, x.add(row * across), out.add(row * TILE_ROWS));
            row += 4;
        }
        while row < rows {
            four_by_four::<V, 1>(tile, x.add(row * across), out.add(row * TILE_ROWS));
            row += 1;
        }
    }
}

/// # Safety
/// As [`in_fours`]; there are `M` rows.
#[inline(always)]
unsafe fn four_by_four<V: Lanes16, const M: usize>(tile: &[Block], x: *const SevenBits, out: *mut f32) {
    // SAFETY: by this function's contract.
    unsafe {
        let mut total = [V::splat_float(0.0); M];
        for (at, block) in tile.iter().enumerate() {
            let mut sum = [V::load(block.moved.as_ptr().cast()); M];
            for (group, quants) in block.quants.iter().enumerate() {
                let w = V::load(quants.as_ptr().cast());
                for m in 0..M {
                    let x = (*x.add(m * tile.len() + at)).quants.as_ptr().add(4 * group);
                    sum[m] = V::dot(sum[m], V::splat(x.cast::<i32>().read_unaligned()), w);
                }
                for m in 0..M {
                    V::keep(&mut sum[m]);
                }
            }
            let scale = V::load_float(block.scale.as_ptr());
            for m in 0..M {
                let both = V::mul_float(scale, V::splat_float((*x.add(m * tile.len() + at)).scale));
                total[m] = V::fma(V::to_float(sum[m]), both, total[m]);
            }
        }
        for m in 0..M {
            V::store_float(total[m], out.add(m * TILE_ROWS));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Block, SevenBits};
    use crate::tiles::TILE_ROWS;

    /// # Safety
    /// The CPU has AVX2 and FMA; the input is whole rows, and `out` has 16 values for each.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn sweep(tile: &[Block], input: &[SevenBits], out: &mut [f32]) {
        let (across, rows) = (tile.len(), input.len() / tile.len());
        // SAFETY: by this function's contract; the rows of a group exist.
        unsafe {
            let (x, out) = (input.as_ptr(), out.as_mut_ptr());
            let mut row = 0;
            while rows - row >= 4 {
                product::<4>(tile, x.add(row * across), out.add(row * TILE_ROWS));
                row += 4;
            }
            let (x, out) = (x.add(row * across), out.add(row * TILE_ROWS));
            match rows - row {
                0 => {}
                1 => product::<1>(tile, x, out),
                2 => product::<2>(tile, x, out),
                _ => product::<3>(tile, x, out),
            }
        }
    }

    /// # Safety
    /// As [`sweep`]; there are `M` rows.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn product<const M: usize>(tile: &[Block], x: *const SevenBits, out: *mut f32) {
        let ones = _mm256_set1_epi16(1);
        // SAFETY: by this function's contract; a block's arrays are 64-byte aligned and of 64 bytes each.
        unsafe {
            let mut total = [[_mm256_setzero_ps(); 2]; M];
            for (at, block) in tile.iter().enumerate() {
                let moved = block.moved.as_ptr();
                let moved = [_mm256_load_si256(moved.cast()), _mm256_load_si256(moved.add(8).cast())];
                let mut sum = [moved; M];
                for (pair, [first, second]) in block.quants.as_chunks::<2>().0.iter().enumerate() {
                    let (first, second): (*const __m256i, *const __m256i) =
                        (first.as_ptr().cast(), second.as_ptr().cast());
                    let first = [_mm256_load_si256(first), _mm256_load_si256(first.add(1))];
                    let second = [_mm256_load_si256(second), _mm256_load_si256(second.add(1))];
                    for m in 0..M {
                        let fours = (*x.add(m * tile.len() + at)).quants.as_ptr().cast::<i32>().add(2 * pair);
                        let x = _mm256_set1_epi32(fours.read_unaligned());
                        let y = _mm256_set1_epi32(fours.add(1).read_unaligned());
                        for half in 0..2 {
                            let products = _mm256_add_epi16(
                                _mm256_maddubs_epi16(x, first[half]),
                                _mm256_maddubs_epi16(y, second[half]),
                            );
                            let wide = _mm256_madd_epi16(products, ones);
                            sum[m][half] = _mm256_add_epi32(sum[m][half], wide);
                        }
                        keep(&mut sum[m]);
                    }
                }
                let scale = block.scale.as_ptr();
                let scale = [_mm256_load_ps(scale), _mm256_load_ps(scale.add(8))];
                for m in 0..M {
                    let x_scale = _mm256_set1_ps((*x.add(m * tile.len() + at)).scale);
                    for half in 0..2 {
                        let both = _mm256_mul_ps(scale[half], x_scale);
                        total[m][half] =
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m][half]), both, total[m][half]);
                    }
                }
            }
            for m in 0..M {
                _mm256_storeu_ps(out.add(m * TILE_ROWS), total[m][0]);
                _mm256_storeu_ps(out.add(m * TILE_ROWS + 8), total[m][1]);
            }
        }
    }

    /// Keeps the rows in turn at every pair of groups; else the compiler sums row by row, and loads the weights anew for each.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn keep(sums: &mut [__m256i; 2]) {
        // SAFETY: no instruction; the registers come out as they went in.
        unsafe {
            std::arch::asm!("/* {0} {1} */", inout(ymm_reg) sums[0], inout(ymm_reg) sums[1],
                options(pure, nomem, nostack, preserves_flags));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn isas() -> Vec<Isa> {
        #[cfg(target_arch = "x86_64")]
        let imitated = crate::isa::Avx2::detect().map(Isa::Imitated);
        #[cfg(not(target_arch = "x86_64"))]
        let imitated = None;
        Isa::available().into_iter().chain(imitated).collect()
    }

    fn product(isa: Isa, matrix: &SevenBitMatrix, x: &[f32]) -> Vec<u32> {
        let mut quantised = vec![SevenBits::ZERO; x.len() / BLOCK];
        SevenBits::quantise(isa, x, &mut quantised);
        let rows = x.len() / matrix.cols();
        let mut all = Vec::new();
        for tile in 0..matrix.rows().div_ceil(TILE_ROWS) {
            let mut out = vec![f32::NAN; rows * TILE_ROWS];
            matrix.tile_product(isa, tile, &quantised, &mut out);
            all.extend(out.into_iter().map(f32::to_bits));
        }
        all
    }

    #[test]
    fn the_greatest_quants_do_not_saturate() {
        for (weight, x) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
            let matrix = SevenBitMatrix::quantise(64, &[weight; 16 * 64]).unwrap();
            for isa in isas() {
                for value in product(isa, &matrix, &[x; 64]) {
                    assert!((f32::from_bits(value) - 64.0 * weight * x).abs() < 1e-3, "{isa} {weight} {x}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn products_are_near_the_exact_ones_and_alike_on_every_isa(
            weights in prop::collection::vec(-2f32..2.0, 21 * 96),
            x in prop::collection::vec(-3f32..3.0, 7 * 96),
        ) {
            let matrix = SevenBitMatrix::quantise(96, &weights).unwrap();
            let reference = product(Isa::Scalar, &matrix, &x);
            for isa in isas() {
                prop_assert_eq!(&product(isa, &matrix, &x), &reference, "{}", isa);
            }
            for row in 0..21 {
                // Half a step of the block's 126.
                for (kept, weight) in matrix.row(row).iter().zip(&weights[row * 96..]) {
                    prop_assert!((kept - weight).abs() <= 2.0 / 63.0 * 0.5001, "{kept} {weight}");
                }
                for (m, x) in x.chunks(96).enumerate() {
                    let exact: f64 = weights[row * 96..].iter().zip(x).map(|(w, x)| f64::from(w * x)).sum();
                    let got = reference[(row / TILE_ROWS * 7 + m) * TILE_ROWS + row % TILE_ROWS];
                    // 96 products, each off by half a step of one factor times the other.
                    let bound = 96.0 * (2.0 * 3.0 / 63.0) * 0.51;
                    prop_assert!((f64::from(f32::from_bits(got)) - exact).abs() < bound);
                }
            }
        }
    }

    #[test]
    fn no_number_stays_none_and_misuse_is_refused() {
        let matrix = SevenBitMatrix::quantise(32, &[0.5; 16 * 32]).unwrap();
        let mut x = [1.0; 64];
        x[3] = f32::INFINITY;
        for isa in isas() {
            let out = product(isa, &matrix, &x);
            assert!(out[..16].iter().all(|bits| f32::from_bits(*bits).is_nan()));
            assert!(out[16..].iter().all(|bits| (f32::from_bits(*bits) - 16.0).abs() < 1e-3));
        }
        assert!(SevenBitMatrix::quantise(48, &[0.0; 48]).is_err());
        assert!(SevenBitMatrix::quantise(0, &[]).is_err());
        assert!(SevenBitMatrix::quantise(32, &[0.0; 33]).is_err());
        assert!(SevenBitMatrix::quantise(32, &[f32::NAN; 32]).is_err());
    }
}
