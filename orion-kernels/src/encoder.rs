//! One block of a BERT-like encoder over texts that stand one behind the other.
#![allow(unsafe_code, reason = "threads write disjoint parts of shared buffers, separated by barriers")]

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use orion_core::{Error, Result};

use crate::activations::{ActKind, QuantRows, QuantView};
use crate::aligned::AlignedBuf;
use crate::gemm::fours::sevens::{SevenBitMatrix, SevenBits};
use crate::gemm::{Rows, tile_product};
use crate::isa::Isa;
use crate::math::{Activation, LayerNormRow, Sum, activate_rows, exp};
use crate::pool::{ComputePool, Region};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::tiles::{PackedMatrix, Panel, TILE_ROWS};

/// The widths of an encoder and what all its blocks share.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderShape {
    /// Width of the hidden states.
    pub hidden: usize,
    /// Width between up and down projection.
    pub ffn: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Added to the variance in every norm.
    pub norm_eps: f32,
    /// After the up projection.
    pub activation: Activation,
}

/// Weights of a layer norm.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// Scale.
    pub weight: Vec<f32>,
    /// Shift.
    pub bias: Vec<f32>,
}

/// The weights of an encoder's projection, `[out, in]`.
#[derive(Debug, Clone)]
pub enum EncoderMatrix {
    /// In a type of model files.
    Packed(PackedMatrix),
    /// In seven bits.
    SevenBit(SevenBitMatrix),
}

impl EncoderMatrix {
    /// Number of rows (outputs).
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.rows(),
            Self::SevenBit(matrix) => matrix.rows(),
        }
    }

    /// Number of columns (inputs).
    #[must_use]
    pub fn cols(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.cols(),
            Self::SevenBit(matrix) => matrix.cols(),
        }
    }
}

/// A matrix and its bias.
#[derive(Debug, Clone)]
pub struct EncoderProjection {
    /// `[out, in]`
    pub matrix: EncoderMatrix,
    /// `[out]`
    pub bias: Vec<f32>,
}

impl EncoderProjection {
    fn check(&self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let (r, c, bias) = (self.matrix.rows(), self.matrix.cols(), self.bias.len());
        if (r, c, bias) == (rows, cols, rows) {
            return Ok(());
        }
        Err(Error::invalid(format!("{name} is {r} x {c} with {bias} biases, expected {rows} x {cols}")))
    }
}

/// One block, with its norms behind attention and feed-forward part.
#[derive(Debug, Clone)]
pub struct EncoderBlock {
    /// Query, key and value in one matrix: `[3 * hidden, hidden]`.
    pub qkv: EncoderProjection,
    /// `[hidden, hidden]`
    pub attention_out: EncoderProjection,
    /// Of the sum of input and attention.
    pub attention_norm: LayerNorm,
    /// `[ffn, hidden]`
    pub up: EncoderProjection,
    /// `[hidden, ffn]`
    pub down: EncoderProjection,
    /// Of the sum of that and the feed-forward part.
    pub output_norm: LayerNorm,
}

impl EncoderBlock {
    fn check(&self, shape: &EncoderShape) -> Result<()> {
        let (hidden, ffn) = (shape.hidden, shape.ffn);
        self.qkv.check("qkv", 3 * hidden, hidden)?;
        self.attention_out.check("attention output", hidden, hidden)?;
        self.up.check("up", ffn, hidden)?;
        self.down.check("down", hidden, ffn)?;
        let norms = [&self.attention_norm, &self.output_norm];
        match norms.iter().all(|norm| norm.weight.len() == hidden && norm.bias.len() == hidden) {
            true => Ok(()),
            false => Err(Error::invalid(format!("a norm has another width than {hidden}"))),
        }
    }
}

/// What a thread needs for itself.
#[derive(Debug)]
struct Local {
    panel: Panel,
    /// `[rows][16]`
    tile: AlignedBuf<f32>,
    attention: AttentionScratch,
}

/// The buffers of a forward pass, allocated once.
#[derive(Debug)]
pub struct EncoderWorkspace {
    pool: ComputePool,
    isa: Isa,
    shape: EncoderShape,
    rows: usize,
    quantised: QuantRows,
    /// `[rows][in / 32]`
    seven_bits: Vec<SevenBits>,
    /// `[rows][3 * hidden]`
    qkv: AlignedBuf<f32>,
    /// `[rows][hidden]`
    mixed: AlignedBuf<f32>,
    /// `[rows][ffn]`
    inner: AlignedBuf<f32>,
    locals: Vec<Mutex<Local>>,
}

impl EncoderWorkspace {
    /// Room for `rows` tokens in all.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the shape contradicts itself.
    pub fn new(pool: ComputePool, isa: Isa, shape: EncoderShape, rows: usize) -> Result<Self> {
        let EncoderShape { hidden, ffn, heads, .. } = shape;
        if hidden == 0 || ffn == 0 || heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(Error::invalid(format!("{heads} heads of {hidden} columns, {ffn} inner ones")));
        }
        let local = |_| {
            let attention = AttentionScratch::new(rows, hidden / heads);
            let (panel, tile) = (Panel::default(), AlignedBuf::zeroed(rows * TILE_ROWS));
            Mutex::new(Local { panel, tile, attention })
        };
        Ok(Self {
            isa,
            rows,
            quantised: QuantRows::new(rows, hidden.max(ffn)),
            seven_bits: vec![SevenBits::ZERO; rows * hidden.max(ffn).div_ceil(32)],
            qkv: AlignedBuf::zeroed(rows * 3 * hidden),
            mixed: AlignedBuf::zeroed(rows * hidden),
            inner: AlignedBuf::zeroed(rows * ffn),
            locals: (0..pool.threads()).map(local).collect(),
            pool,
            shape,
        })
    }

    /// The tokens there is room for.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Passes hidden states, `[tokens][hidden]`, through blocks; `texts` cuts the tokens into those that see each other.
    /// `seen` is shown the states after every block, with the block's index.
    ///
    /// A text's states are the same bits whatever the other texts and the number of threads. Somebody waits for a text
    /// that comes alone, so it [goes first](ComputePool::run_first).
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if weights, states and texts do not fit each other or the room,
    /// and what [`ComputePool::run`] returns.
    pub fn run(
        &mut self,
        blocks: &[EncoderBlock],
        texts: &[Range<usize>],
        x: &mut [f32],
        seen: impl Fn(usize, &[f32]) + Sync,
    ) -> Result<()> {
        blocks.iter().try_for_each(|block| block.check(&self.shape))?;
        let hidden = self.shape.hidden;
        let rows = x.len() / hidden;
        let end =
            texts.iter().try_fold(0, |end, text| (text.start == end && text.end > end).then_some(text.end));
        if x.len() != rows * hidden || rows > self.rows || end != Some(rows) {
            let message =
                format!("{} values in {} texts; room for {} tokens", x.len(), texts.len(), self.rows);
            return Err(Error::invalid(message));
        }
        if rows == 0 {
            return Ok(());
        }
        let pass = Pass {
            isa: self.isa,
            shape: &self.shape,
            rows,
            texts,
            x: x.as_mut_ptr(),
            qkv: self.qkv.as_mut_ptr(),
            mixed: self.mixed.as_mut_ptr(),
            inner: self.inner.as_mut_ptr(),
            quantised: self.quantised.view(rows, hidden.max(self.shape.ffn)),
            seven_bits: self.seven_bits.as_mut_ptr(),
        };
        let (pool, locals) = (&self.pool, &self.locals);
        let body = |region: &Region<'_>| {
            let mut local = locals[region.thread()].lock().unwrap_or_else(PoisonError::into_inner);
            for (index, block) in blocks.iter().enumerate() {
                pass.block(region, &mut local, block);
                if region.thread() == 0 {
                    // SAFETY: the states are complete since the last barrier, and are written again only after one that
                    // this thread has to reach.
                    seen(index, unsafe { pass.states() });
                }
            }
        };
        match texts {
            [_] => pool.run_first(body),
            _ => pool.run(body),
        }
    }
}

struct Pass<'a> {
    isa: Isa,
    shape: &'a EncoderShape,
    rows: usize,
    texts: &'a [Range<usize>],
    x: *mut f32,
    qkv: *mut f32,
    mixed: *mut f32,
    inner: *mut f32,
    quantised: QuantView,
    seven_bits: *mut SevenBits,
}

// SAFETY: the pointers go to buffers borrowed exclusively for the pass. In each phase every element has at most one
// writer and then no reader; barriers separate phases.
unsafe impl Sync for Pass<'_> {}

impl Pass<'_> {
    /// The hidden states.
    ///
    /// # Safety
    /// They are complete, and nobody writes them meanwhile.
    unsafe fn states(&self) -> &[f32] {
        // SAFETY: by this function's contract.
        unsafe { std::slice::from_raw_parts(self.x, self.rows * self.shape.hidden) }
    }

    fn block(&self, region: &Region<'_>, local: &mut Local, block: &EncoderBlock) {
        let heads = self.shape.heads;
        self.quantise(region, &block.qkv, self.x);
        self.project(region, local, &block.qkv, self.x, self.qkv, None);
        region.for_chunks(self.texts.len() * heads, 1, |range| {
            for item in range {
                self.attend(&mut local.attention, &self.texts[item / heads], item % heads);
            }
        });
        self.quantise(region, &block.attention_out, self.mixed);
        // The queries have been used.
        self.project(region, local, &block.attention_out, self.mixed, self.qkv, None);
        self.settle(region, &block.attention_norm);
        self.quantise(region, &block.up, self.x);
        self.project(region, local, &block.up, self.x, self.inner, Some(self.shape.activation));
        self.quantise(region, &block.down, self.inner);
        self.project(region, local, &block.down, self.inner, self.qkv, None);
        self.settle(region, &block.output_norm);
    }

    /// Brings rows into the form in which a projection reads them.
    fn quantise(&self, region: &Region<'_>, projection: &EncoderProjection, from: *const f32) {
        let width = projection.matrix.cols();
        let kind = match &projection.matrix {
            EncoderMatrix::Packed(matrix) => Some(ActKind::of(matrix.ty())),
            EncoderMatrix::SevenBit(_) => None,
        };
        if kind == Some(ActKind::Float) {
            return;
        }
        region.for_chunks(self.rows, 4, |range| {
            for row in range {
                // SAFETY: the row is complete since the last barrier, and this thread's in this phase.
                unsafe {
                    let from = std::slice::from_raw_parts(from.add(row * width), width);
                    if let Some(kind) = kind {
                        self.quantised.at(row).quantise(self.isa, kind, from);
                    } else {
                        let (to, blocks) = (self.seven_bits, width / 32);
                        let to = std::slice::from_raw_parts_mut(to.add(row * blocks), blocks);
                        SevenBits::quantise(self.isa, from, to);
                    }
                }
            }
        });
    }

    /// `to = from · W + b`, `to` as wide as `W` is high.
    fn project(
        &self,
        region: &Region<'_>,
        local: &mut Local,
        projection: &EncoderProjection,
        from: *const f32,
        to: *mut f32,
        activation: Option<Activation>,
    ) {
        let (width, rows) = (projection.matrix.rows(), self.rows);
        region.for_chunks(width.div_ceil(TILE_ROWS), 1, |range| {
            for tile in range {
                let (panel, out) = (&mut local.panel, &mut local.tile);
                let values = &mut out[..rows * TILE_ROWS];
                match &projection.matrix {
                    EncoderMatrix::Packed(matrix) => {
                        let input = match ActKind::of(matrix.ty()) {
                            ActKind::Float => Rows::Float(from, matrix.cols()),
                            _ => Rows::Quantised(self.quantised),
                        };
                        // SAFETY: the input's rows are complete since the last barrier.
                        unsafe { tile_product(self.isa, matrix, tile, input, rows, panel, values) };
                    }
                    EncoderMatrix::SevenBit(matrix) => {
                        // SAFETY: the input's rows are complete since the last barrier, and only read in this phase.
                        let input =
                            unsafe { std::slice::from_raw_parts(self.seven_bits, rows * matrix.cols() / 32) };
                        matrix.tile_product(self.isa, tile, input, values);
                    }
                }
                let first = tile * TILE_ROWS;
                let columns = TILE_ROWS.min(width - first);
                let bias = &projection.bias[first..][..columns];
                for row in values.chunks_exact_mut(TILE_ROWS) {
                    row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
                if let Some(activation) = activation {
                    activate_rows(self.isa, activation, values, None);
                }
                for (row, values) in values.chunks_exact(TILE_ROWS).enumerate() {
                    // SAFETY: this thread has the tile, so these columns of every row are its own.
                    unsafe {
                        let to = to.add(row * width + first);
                        std::ptr::copy_nonoverlapping(values.as_ptr(), to, columns);
                    }
                }
            }
        });
    }

    fn attend(&self, scratch: &mut AttentionScratch, text: &Range<usize>, head: usize) {
        let hidden = self.shape.hidden;
        let head_dim = hidden / self.shape.heads;
        // SAFETY: the text's rows are complete since the last barrier, and the head's columns of `mixed` are this thread's.
        unsafe {
            let q = self.qkv.cast_const().add(text.start * 3 * hidden + head * head_dim);
            let attention = Attention {
                q,
                k: q.add(hidden),
                v: q.add(2 * hidden),
                stride: 3 * hidden,
                out: self.mixed.add(text.start * hidden + head * head_dim),
                out_stride: hidden,
                tokens: text.len(),
                head_dim,
                scratch,
            };
            dispatch(self.isa, attention);
        }
    }

    /// `x = norm(x + y)`, `y` being the last projection's result.
    fn settle(&self, region: &Region<'_>, norm: &LayerNorm) {
        let hidden = self.shape.hidden;
        region.for_chunks(self.rows, 4, |range| {
            for row in range {
                // SAFETY: the row is complete since the last barrier, and this thread's in this phase.
                unsafe {
                    let x = self.x.add(row * hidden);
                    dispatch(self.isa, Sum { x: self.qkv.add(row * hidden), to: x, len: hidden });
                    let (weight, bias) = (norm.weight.as_ptr(), norm.bias.as_ptr());
                    let eps = self.shape.norm_eps;
                    dispatch(self.isa, LayerNormRow { x, weight, bias, eps, out: x, len: hidden });
                }
            }
        });
    }
}

/// Queries that share one pass over keys and values.
const QUERIES: usize = 4;
/// Columns of keys and values that are padded with zeros to a multiple.
const COLUMNS: usize = 16;

#[derive(Debug)]
struct AttentionScratch {
    /// `[head_dim][tokens]`, padded
    keys: AlignedBuf<f32>,
    /// `[tokens][head_dim]`, padded
    values: AlignedBuf<f32>,
    /// `[QUERIES][tokens]`, padded
    scores: AlignedBuf<f32>,
}

impl AttentionScratch {
    fn new(tokens: usize, head_dim: usize) -> Self {
        let tokens = tokens.next_multiple_of(COLUMNS);
        let head_dim = head_dim.next_multiple_of(COLUMNS);
        Self {
            keys: AlignedBuf::zeroed(head_dim * tokens),
            values: AlignedBuf::zeroed(tokens * head_dim),
            scores: AlignedBuf::zeroed(QUERIES * tokens),
        }
    }
}

/// Full attention of one head within one text.
struct Attention<'a> {
    q: *const f32,
    k: *const f32,
    v: *const f32,
    /// Elements from token to token.
    stride: usize,
    out: *mut f32,
    out_stride: usize,
    tokens: usize,
    head_dim: usize,
    scratch: &'a mut AttentionScratch,
}

impl Kernel for Attention<'_> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::cast_precision_loss, reason = "head sizes are far below 2^24")]
    fn run<L: Lanes>(self) {
        let Self { q, k, v, stride, out, out_stride, tokens, head_dim, scratch } = self;
        let (padded, wide) = (tokens.next_multiple_of(COLUMNS), head_dim.next_multiple_of(COLUMNS));
        let keys = &mut scratch.keys[..head_dim * padded];
        let values = &mut scratch.values[..tokens * wide];
        let scores = &mut scratch.scores[..QUERIES * padded];
        // SAFETY: `q`, `k` and `v` have `tokens` rows of `head_dim` columns, `out` too, for this thread alone; the scratch was
        // cut to the lengths that follow.
        unsafe {
            for token in 0..padded {
                for d in 0..head_dim {
                    keys[d * padded + token] = if token < tokens { *k.add(token * stride + d) } else { 0.0 };
                }
            }
            for (token, row) in values.chunks_exact_mut(wide).enumerate() {
                std::ptr::copy_nonoverlapping(v.add(token * stride), row.as_mut_ptr(), head_dim);
                row[head_dim..].fill(0.0);
            }
            let scale = L::splat(1.0 / (head_dim as f32).sqrt());
            for first in (0..tokens).step_by(QUERIES) {
                // The last group repeats its last query.
                let query: [*const f32; QUERIES] =
                    std::array::from_fn(|i| q.add((first + i).min(tokens - 1) * stride));
                for at in (0..padded).step_by(COLUMNS) {
                    let mut sums = [[L::splat(0.0); 2]; QUERIES];
                    for d in 0..head_dim {
                        let key = keys.as_ptr().add(d * padded + at);
                        let key = [L::load(key), L::load(key.add(8))];
                        for i in 0..QUERIES {
                            let query = L::splat(*query[i].add(d));
                            sums[i] = [key[0].fma(query, sums[i][0]), key[1].fma(query, sums[i][1])];
                        }
                    }
                    for i in 0..QUERIES {
                        let to = scores.as_mut_ptr().add(i * padded + at);
                        sums[i][0].mul(scale).store(to);
                        sums[i][1].mul(scale).store(to.add(8));
                    }
                }
                let mut inverse = [L::splat(0.0); QUERIES];
                for i in 0..QUERIES {
                    let row = &mut scores[i * padded..][..padded];
                    row[tokens..].fill(f32::NEG_INFINITY);
                    inverse[i] = L::splat(1.0 / exponentials::<L>(row));
                }
                for at in (0..wide).step_by(COLUMNS) {
                    let mut sums = [[L::splat(0.0); 2]; QUERIES];
                    for token in 0..tokens {
                        let value = values.as_ptr().add(token * wide + at);
                        let value = [L::load(value), L::load(value.add(8))];
                        for i in 0..QUERIES {
                            let weight = L::splat(*scores.as_ptr().add(i * padded + token));
                            sums[i] = [value[0].fma(weight, sums[i][0]), value[1].fma(weight, sums[i][1])];
                        }
                    }
                    let columns = COLUMNS.min(head_dim - at);
                    for i in 0..QUERIES.min(tokens - first) {
                        let mut row = [0.0; COLUMNS];
                        sums[i][0].mul(inverse[i]).store(row.as_mut_ptr());
                        sums[i][1].mul(inverse[i]).store(row.as_mut_ptr().add(8));
                        let to = out.add((first + i) * out_stride + at);
                        std::ptr::copy_nonoverlapping(row.as_ptr(), to, columns);
                    }
                }
            }
        }
    }
}

/// Replaces scores by `e^(score - greatest)` and returns their sum. The length is a multiple of eight.
#[inline(always)]
fn exponentials<L: Lanes>(row: &mut [f32]) -> f32 {
    let (len, row) = (row.len(), row.as_mut_ptr());
    // SAFETY: all indices are below the length.
    unsafe {
        let mut greatest = L::load(row);
        for i in (8..len).step_by(8) {
            greatest = greatest.max(L::load(row.add(i)));
        }
        let greatest = L::splat(greatest.greatest());
        let mut sum = L::splat(0.0);
        for i in (0..len).step_by(8) {
            let value = exp(L::load(row.add(i)).sub(greatest));
            value.store(row.add(i));
            sum = sum.add(value);
        }
        sum.sum()
    }
}
