//! Rows of activations, quantised to int8 for the integer products.
#![allow(unsafe_code, reason = "vector loads and stores, and rows handed to threads one by one")]

use orion_core::TensorType;

use crate::aligned::AlignedBuf;
use crate::isa::Isa;
use crate::simd::{Kernel, Lanes, dispatch, prefetch_to_write};

/// How activations are cut into blocks with one scale each: as the weights they meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActKind {
    /// 32 columns.
    Block32,
    /// 256 columns.
    Block256,
    /// Not quantised: float weights.
    Float,
}

impl ActKind {
    pub(crate) fn of(ty: TensorType) -> Self {
        match ty.block_len() {
            1 => Self::Float,
            32 => Self::Block32,
            _ => Self::Block256,
        }
    }

    fn block(self) -> usize {
        match self {
            Self::Block32 => 32,
            Self::Block256 | Self::Float => 256,
        }
    }
}

/// Quantised rows. For every row: the quants, a scale per block, and the sums of the quants, which meet the minima
/// and offsets of the weights.
#[derive(Debug, Default)]
pub(crate) struct QuantRows {
    rows: usize,
    cols: usize,
    quants: AlignedBuf<i8>,
    scale: AlignedBuf<f32>,
    /// Per 32 columns: sum of quants times scale.
    scaled_sum: AlignedBuf<f32>,
    /// Per 16 columns.
    sum16: AlignedBuf<i16>,
    /// Per 32 columns.
    sum32: AlignedBuf<i16>,
}

/// Where row 0 and the following rows lie; all strides in elements.
#[derive(Clone, Copy)]
pub(crate) struct QuantView {
    pub(crate) quants: *const i8,
    pub(crate) quants_stride: usize,
    pub(crate) scale: *const f32,
    pub(crate) scaled_sum: *const f32,
    pub(crate) sum16: *const i16,
    pub(crate) sum32: *const i16,
    /// Of the scales and all sums.
    pub(crate) side_stride: usize,
}

// SAFETY: a view only says where rows are; what reads or writes through it states its own conditions.
unsafe impl Send for QuantView {}
// SAFETY: as above.
unsafe impl Sync for QuantView {}

/// Extra bytes per row, so that rows of 2048 columns do not all fall on the same cache sets.
const ROW_PAD: usize = 64;

impl QuantRows {
    /// Room for `rows` rows of up to `cols` columns of any kind.
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        let (stride, side) = (Self::stride(cols), Self::side(cols));
        Self {
            rows,
            cols,
            quants: AlignedBuf::zeroed(rows * stride),
            scale: AlignedBuf::zeroed(rows * side),
            scaled_sum: AlignedBuf::zeroed(rows * side),
            sum16: AlignedBuf::zeroed(rows * side),
            sum32: AlignedBuf::zeroed(rows * side),
        }
    }

    fn stride(cols: usize) -> usize {
        cols.next_multiple_of(64) + ROW_PAD
    }

    fn side(cols: usize) -> usize {
        cols.div_ceil(16).next_multiple_of(16)
    }

    /// The view for rows of `cols` columns.
    pub(crate) fn view(&mut self, rows: usize, cols: usize) -> QuantView {
        assert!(rows <= self.rows && cols <= self.cols, "room for the rows");
        QuantView {
            quants: self.quants.as_mut_ptr(),
            quants_stride: Self::stride(cols),
            scale: self.scale.as_mut_ptr(),
            scaled_sum: self.scaled_sum.as_mut_ptr(),
            sum16: self.sum16.as_mut_ptr(),
            sum32: self.sum32.as_mut_ptr(),
            side_stride: Self::side(cols),
        }
    }
}

impl QuantView {
    /// The view that starts at another row.
    ///
    /// # Safety
    /// The rows must be there.
    pub(crate) unsafe fn at(self, row: usize) -> Self {
        let side = row * self.side_stride;
        // SAFETY: by this function's contract.
        unsafe {
            Self {
                quants: self.quants.add(row * self.quants_stride),
                scale: self.scale.add(side),
                scaled_sum: self.scaled_sum.add(side),
                sum16: self.sum16.add(side),
                sum32: self.sum32.add(side),
                ..self
            }
        }
    }

    /// Asks for the lines that [`quantise`](Self::quantise) will write for a row of `cols` columns: all threads have read
    /// what stood there, and stores that wait for them one after the other would take longer than the arithmetic.
    pub(crate) fn expect(self, kind: ActKind, cols: usize) {
        let lines = |from: *const u8, bytes: usize| {
            (0..bytes).step_by(64).for_each(|at| prefetch_to_write(from.wrapping_add(at)));
        };
        lines(self.quants.cast(), cols);
        lines(self.scale.cast(), cols / kind.block() * 4);
        lines(self.scaled_sum.cast(), cols / 8);
        lines(self.sum16.cast(), cols / 8);
        lines(self.sum32.cast(), cols / 16);
    }

    /// Quantises a row into the view's first row.
    ///
    /// A block whose greatest magnitude is below about 1e-36 becomes zero; one with an infinity or a NaN gets the
    /// scale NaN, which reaches every product it enters.
    ///
    /// # Safety
    /// The view must come from a `QuantRows` with room for the row, borrowed mutably, and no other thread may touch
    /// this row meanwhile. The row's length must be a multiple of the kind's block.
    pub(crate) unsafe fn quantise(self, isa: Isa, kind: ActKind, row: &[f32]) {
        dispatch(isa, Quantise { to: self, kind, row });
    }
}

/// Below this, the inverse scale would overflow.
const TINY: f32 = f32::MIN_POSITIVE * 128.0;

struct Quantise<'a> {
    to: QuantView,
    kind: ActKind,
    row: &'a [f32],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { to, kind, row } = self;
        match kind {
            ActKind::Block32 => blocks::<L, 32>(to, row),
            ActKind::Block256 => blocks::<L, 256>(to, row),
            ActKind::Float => {}
        }
        debug_assert!(row.len().is_multiple_of(kind.block()) || kind == ActKind::Float);
    }
}

#[inline(always)]
#[allow(clippy::cast_precision_loss, reason = "sums of 32 bytes are exact in f32")]
fn blocks<L: Lanes, const BLOCK: usize>(to: QuantView, row: &[f32]) {
    for (index, block) in row.chunks_exact(BLOCK).enumerate() {
        let scale = block_scale::<L>(block, 127.0);
        let inverse = if scale > 0.0 { L::splat(1.0 / scale) } else { L::splat(0.0) };
        // SAFETY: `quantise` has been promised room for the row; `block` has `BLOCK` values, a multiple of 32.
        unsafe {
            to.scale.cast_mut().add(index).write(scale);
            let quants = to.quants.cast_mut().add(index * BLOCK);
            for part in 0..BLOCK / 32 {
                let at = index * (BLOCK / 32) + part;
                let values = std::array::from_fn(|eight| {
                    let value = L::load(block.as_ptr().add(part * 32 + eight * 8)).mul(inverse);
                    if scale.is_nan() { L::splat(0.0) } else { value }
                });
                let [first, second] = L::store_i8_summed(values, quants.add(part * 32));
                to.sum16.cast_mut().add(2 * at).write(first);
                to.sum16.cast_mut().add(2 * at + 1).write(second);
                to.sum32.cast_mut().add(at).write(first + second);
                to.scaled_sum.cast_mut().add(at).write(f32::from(first + second) * scale);
            }
        }
    }
}

/// The scale that maps the block's greatest magnitude to `to`; 0 for a block of nothing, NaN for one that holds an
/// infinity or a NaN.
#[inline(always)]
pub(crate) fn block_scale<L: Lanes>(block: &[f32], to: f32) -> f32 {
    let mut greatest = L::splat(0.0);
    for eight in block.chunks_exact(8) {
        // SAFETY: eight values.
        greatest = greatest.max_bits(unsafe { L::load(eight.as_ptr()) }.abs());
    }
    let greatest = greatest.greatest_bits();
    if !greatest.is_finite() {
        return f32::NAN;
    }
    if greatest < TINY { 0.0 } else { greatest / to }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Parts = (Vec<i8>, Vec<u32>, Vec<i16>, Vec<i16>, Vec<u32>);

    fn quantised(isa: Isa, kind: ActKind, row: &[f32]) -> Parts {
        let mut rows = QuantRows::new(1, row.len());
        let view = rows.view(1, row.len());
        // SAFETY: the room is there and nobody else is.
        unsafe { view.quantise(isa, kind, row) };
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (blocks, n) = (row.len() / kind.block(), row.len());
        (
            rows.quants[..n].to_vec(),
            bits(&rows.scale[..blocks]),
            rows.sum16[..n / 16].to_vec(),
            rows.sum32[..n / 32].to_vec(),
            bits(&rows.scaled_sum[..n / 32]),
        )
    }

    proptest! {
        #[test]
        fn quants_are_within_half_a_step_and_alike_on_every_isa(
            row in prop::collection::vec(-1e4f32..1e4, 512), power in -40i32..30,
        ) {
            let row: Vec<f32> = row.iter().map(|v| v * 2f32.powi(power)).collect();
            for kind in [ActKind::Block32, ActKind::Block256] {
                let (quants, scale, sum16, sum32, _) = quantised(Isa::Scalar, kind, &row);
                for (i, (&q, &v)) in quants.iter().zip(&row).enumerate() {
                    let scale = f32::from_bits(scale[i / kind.block()]);
                    prop_assert!((f32::from(q) * scale - v).abs() <= scale * 0.5001, "{q} {scale} {v}");
                }
                let total: i32 = quants.iter().map(|&q| i32::from(q)).sum();
                prop_assert_eq!(total, sum16.iter().map(|&s| i32::from(s)).sum::<i32>());
                prop_assert_eq!(total, sum32.iter().map(|&s| i32::from(s)).sum::<i32>());
                for isa in Isa::available() {
                    prop_assert_eq!(quantised(isa, kind, &row), quantised(Isa::Scalar, kind, &row));
                }
            }
        }
    }

    #[test]
    fn nothing_is_zero_and_no_number_is_nan() {
        for isa in Isa::available() {
            for (value, expected) in
                [(0.0, 0.0f32), (1e-40, 0.0), (f32::INFINITY, f32::NAN), (f32::NAN, f32::NAN)]
            {
                let mut row = vec![0.5f32; 64];
                row[..32].fill(0.0);
                row[7] = value;
                let (quants, scale, ..) = quantised(isa, ActKind::Block32, &row);
                assert!(quants[..32].iter().all(|&q| q == 0));
                assert_eq!(f32::from_bits(scale[0]).is_nan(), expected.is_nan(), "{isa} {value}");
                assert_eq!(quants[32..], [127; 32]);
            }
        }
    }
}
