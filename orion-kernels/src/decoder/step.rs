//! One pass over the rows of a step.
#![allow(unsafe_code, reason = "threads write disjoint parts of shared buffers, separated by barriers")]

use std::ops::Range;
use std::sync::PoisonError;

use orion_core::{Error, Result};

use super::attend::Attending;
use super::kv::KvStore;
use super::types::{Block, DecoderShape, Embedding, Head, Projection, Rope};
use super::workspace::{Local, MAX_ROPES, REPLICATED_ROWS, Segment, Stages, Workspace};
use crate::activations::{ActKind, QuantView};
use crate::gemm::{Rows, tile_product};
use crate::isa::Isa;
use crate::linear::{ROWS_AHEAD, copy};
use crate::math::{RmsNorm, Sum, activate_rows, soft_cap};
use crate::pool::{Region, Shares};
use crate::simd::{dispatch, prefetch, prefetch_to_write};
use crate::tiles::{PackedMatrix, TILE_ROWS};

impl Workspace {
    /// Runs some stages over the rows that were pushed. `logits`, `[wanted rows][vocab]`, is written if there is a
    /// head among them; otherwise it is left alone.
    ///
    /// The keys and values of the rows go into their pages, so running the same rows again gives the same result.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if weights, pages or `logits` do not fit, and what
    /// [`ComputePool::run`](crate::ComputePool::run) returns.
    pub fn run(&mut self, kv: &mut KvStore, stages: Stages<'_>, logits: &mut [f32]) -> Result<()> {
        self.check(kv, &stages, logits)?;
        self.prepare(kv)?;
        if self.tokens.is_empty() {
            return Ok(());
        }
        let (rows, shape) = (self.tokens.len(), &self.shape);
        let widest = shape.hidden.max(shape.ffn).max(shape.q_width());
        let mut angles =
            [Angles { cos: std::ptr::null_mut(), sin: std::ptr::null_mut(), half: 0 }; MAX_ROPES];
        for ((to, [cos, sin]), rope) in angles.iter_mut().zip(&mut self.angles).zip(&self.ropes) {
            *to = Angles { cos: cos.as_mut_ptr(), sin: sin.as_mut_ptr(), half: rope.frequencies.len() };
        }
        let [small, large] = &mut self.quantised;
        let step = Step {
            isa: self.isa,
            shape,
            rows,
            buffers: Buffers {
                x: [self.x[0].as_mut_ptr(), self.x[1].as_mut_ptr()],
                q: self.q.as_mut_ptr(),
                k: self.k.as_mut_ptr(),
                v: self.v.as_mut_ptr(),
                attended: self.attended.as_mut_ptr(),
                y: self.y.as_mut_ptr(),
                h: self.h.as_mut_ptr(),
                normed: self.normed.as_mut_ptr(),
                partials: self.partials.as_mut_ptr(),
                logits: logits.as_mut_ptr(),
                quantised: [small.view(rows, widest), large.view(rows, widest)],
                angles,
            },
            widest,
            segments: &self.segments,
            pages: &self.pages.0,
            kv,
            tokens: &self.tokens,
            wanted: &self.wanted,
            ropes: &self.ropes,
        };
        let (start, locals) = (Residual { current: self.current, pending: self.pending }, &self.locals);
        let (before, pool) = (&self.pending_norm, &self.pool);
        pool.run(|region| {
            let mut local = locals[region.thread()].lock().unwrap_or_else(PoisonError::into_inner);
            step.pass(region, &mut local, &stages, start, before);
        })?;
        if let Some(last) = stages.blocks.last() {
            // Every block with norms behind it turns the residual over twice, and leaves its own result pending.
            if let Some(norm) = &last.post_ffn_norm {
                let turns = stages.blocks.iter().filter(|b| b.post_ffn_norm.is_some()).count() * 2;
                self.current = (self.current + turns - usize::from(!self.pending)) % 2;
                self.pending = true;
                self.pending_norm.copy_from_slice(norm);
            }
        }
        Ok(())
    }

    fn check(&self, kv: &KvStore, stages: &Stages<'_>, logits: &[f32]) -> Result<()> {
        let shape = &self.shape;
        if let Some(embedding) = stages.embedding {
            embedding.check(shape, &self.tokens)?;
        }
        if let Some(head) = stages.head {
            head.check(shape)?;
            if logits.len() != self.wanted.len() * shape.vocab {
                let message =
                    format!("{} logits for {} rows of {}", logits.len(), self.wanted.len(), shape.vocab);
                return Err(Error::invalid(message));
            }
        }
        if stages.first + stages.blocks.len() > shape.layers || !kv.fits(shape) {
            return Err(Error::invalid("more blocks than the shape has, or a store of another shape"));
        }
        let norms = stages.blocks.first().is_some_and(|block| block.post_ffn_norm.is_some());
        for (index, block) in stages.blocks.iter().enumerate() {
            block.check(shape).map_err(|error| error.about(format!("block {}", stages.first + index)))?;
            if block.post_ffn_norm.is_some() != norms {
                return Err(Error::unsupported("blocks with and without norms behind them"));
            }
        }
        Ok(())
    }
}

/// Cosines and sines of one rotary embedding, `[row][half]`.
#[derive(Clone, Copy)]
pub(super) struct Angles {
    pub(super) cos: *mut f32,
    pub(super) sin: *mut f32,
    pub(super) half: usize,
}

/// Where the shared buffers start; all are `[row][width]`.
pub(super) struct Buffers {
    x: [*mut f32; 2],
    pub(super) q: *mut f32,
    pub(super) k: *mut f32,
    pub(super) v: *mut f32,
    pub(super) attended: *mut f32,
    y: *mut f32,
    h: *mut f32,
    normed: *mut f32,
    pub(super) partials: *mut f32,
    logits: *mut f32,
    quantised: [QuantView; 2],
    pub(super) angles: [Angles; MAX_ROPES],
}

/// Which residual stream is current, and whether the last result still has to be normalised and added to it. Every
/// thread keeps its own copy, which follows the same rules.
#[derive(Clone, Copy)]
struct Residual {
    current: usize,
    pending: bool,
}

pub(super) struct Step<'a> {
    pub(super) isa: Isa,
    pub(super) shape: &'a DecoderShape,
    pub(super) rows: usize,
    pub(super) buffers: Buffers,
    widest: usize,
    pub(super) segments: &'a [Segment],
    pub(super) pages: &'a [*mut u16],
    pub(super) kv: &'a KvStore,
    tokens: &'a [u32],
    wanted: &'a [usize],
    ropes: &'a [Rope],
}

// SAFETY: the pointers go to buffers borrowed exclusively for the step. In each phase every element has at most one
// writer and then no reader; barriers separate phases.
unsafe impl Sync for Step<'_> {}

/// What a product reads.
#[derive(Clone, Copy)]
struct Input {
    quantised: [QuantView; 2],
    float: *const f32,
    stride: usize,
    rows: usize,
}

impl Input {
    fn rows_for(&self, matrix: &PackedMatrix) -> Rows {
        match ActKind::of(matrix.ty()) {
            ActKind::Block32 => Rows::Quantised(self.quantised[0]),
            ActKind::Block256 => Rows::Quantised(self.quantised[1]),
            ActKind::Float => Rows::Float(self.float, self.stride),
        }
    }
}

/// Which forms of its input a phase's matrices need.
#[derive(Clone, Copy, Default)]
struct Forms {
    small: bool,
    large: bool,
    float: bool,
}

impl Forms {
    fn of<'m>(matrices: impl IntoIterator<Item = &'m PackedMatrix>) -> Self {
        let mut forms = Self::default();
        for matrix in matrices {
            match ActKind::of(matrix.ty()) {
                ActKind::Block32 => forms.small = true,
                ActKind::Block256 => forms.large = true,
                ActKind::Float => forms.float = true,
            }
        }
        forms
    }
}

/// Where a phase's rows come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// The residual stream, normalised; the pending result is taken in first, under its own norm.
    Residual { norm: &'a [f32], pending: Option<&'a [f32]>, current: usize },
    /// A buffer as it is, with this width.
    Plain(*const f32, usize),
}

/// Weights that come later: matrices that are multiplied together, and how many tiles are shared out then.
#[derive(Clone, Copy, Default)]
struct Next<'a> {
    matrices: [Option<&'a PackedMatrix>; 2],
    tiles: usize,
}

impl<'a> Next<'a> {
    fn of(matrix: &'a PackedMatrix) -> Self {
        Self { matrices: [Some(matrix), None], tiles: matrix.tiles() }
    }

    /// The products that a block begins with.
    fn block(block: &'a Block) -> Self {
        let tiles = [&block.q, &block.k, &block.v].map(|it| it.matrix.tiles()).iter().sum();
        Self { tiles, ..Self::of(&block.q.matrix) }
    }
}

/// What brings rows back to the residual stream.
#[derive(Clone, Copy)]
struct Lowering<'a> {
    projection: &'a Projection,
    source: Source<'a>,
    /// Whether a norm comes before the result is added.
    normed: bool,
    next: Next<'a>,
}

impl Step<'_> {
    fn pass(
        &self,
        region: &Region<'_>,
        local: &mut Local,
        stages: &Stages<'_>,
        start: Residual,
        before: &[f32],
    ) {
        let mut residual = start;
        let mut pending_norm = before;
        if let Some(embedding) = stages.embedding {
            self.embed(region, local, embedding);
        }
        for (index, block) in stages.blocks.iter().enumerate() {
            if index > 0 {
                region.give_way();
            }
            let layer = stages.first + index;
            self.attention(region, local, block, layer, &mut residual, pending_norm);
            if let Some(norm) = &block.post_attn_norm {
                pending_norm = norm;
            }
            let next = match (stages.blocks.get(index + 1), stages.head) {
                (Some(block), _) => Next::block(block),
                (None, Some(head)) => Next::of(&head.matrix),
                (None, None) => Next::default(),
            };
            self.feed_forward(region, local, block, &mut residual, pending_norm, next);
            if let Some(norm) = &block.post_ffn_norm {
                pending_norm = norm;
            }
        }
        if let Some(head) = stages.head
            && !self.wanted.is_empty()
        {
            self.head(region, local, head, &mut residual, pending_norm);
        }
    }

    fn embed(&self, region: &Region<'_>, local: &mut Local, embedding: &Embedding) {
        let hidden = self.shape.hidden;
        region.for_chunks(self.rows, 4, |range| {
            for row in range {
                // SAFETY: the row is this thread's in this phase; tokens were checked when pushed.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(self.buffers.x[0].add(row * hidden), hidden) };
                let from = embedding.row(self.tokens[row]);
                embedding.table.gather(self.isa, from, &mut local.panel, out);
                if embedding.scale != 1.0 {
                    out.iter_mut().for_each(|value| *value *= embedding.scale);
                }
                self.turn(row);
            }
        });
    }

    /// Computes the angles of a row's position.
    #[allow(clippy::cast_precision_loss, reason = "positions are below 2^24")]
    fn turn(&self, row: usize) {
        let segment =
            self.segments.iter().rfind(|segment| segment.row <= row).expect("rows belong to segments");
        let position = (segment.start + row - segment.row) as f32;
        let [global, own] = segment.ropes;
        for index in [global, own].into_iter().take(if own == global { 1 } else { 2 }) {
            let (rope, angles) = (&self.ropes[index], self.buffers.angles[index]);
            for (pair, frequency) in rope.frequencies.iter().enumerate() {
                let angle = position * frequency;
                // SAFETY: the buffers have `half` elements for each row, and the row is this thread's.
                unsafe {
                    angles.cos.add(row * angles.half + pair).write(angle.cos() * rope.magnitude);
                    angles.sin.add(row * angles.half + pair).write(angle.sin() * rope.magnitude);
                }
            }
        }
    }

    fn attention(
        &self,
        region: &Region<'_>,
        local: &mut Local,
        block: &Block,
        layer: usize,
        residual: &mut Residual,
        pending_norm: &[f32],
    ) {
        let projections = [&block.q, &block.k, &block.v];
        let forms = Forms::of(projections.map(|p| &p.matrix));
        let input = self.residual_input(region, local, forms, &block.attn_norm, residual, pending_norm);
        let targets = [self.buffers.q, self.buffers.k, self.buffers.v];
        let ends = projections.map(|p| p.matrix.tiles());
        self.tiles(region, ends.iter().sum(), input.rows, Next::of(&block.o.matrix), |index| {
            let (which, tile) = match index {
                i if i < ends[0] => (0, i),
                i if i < ends[0] + ends[1] => (1, i - ends[0]),
                i => (2, i - ends[0] - ends[1]),
            };
            self.product(local, &input, projections[which], tile, 0);
            let width = projections[which].matrix.rows();
            self.each_row(local, tile, width, targets[which], false);
        });
        self.attend(region, local, block, layer);
        let lowering = Lowering {
            projection: &block.o,
            source: Source::Plain(self.buffers.attended, self.shape.q_width()),
            normed: block.post_attn_norm.is_some(),
            next: Next {
                matrices: [Some(&block.gate.matrix), Some(&block.up.matrix)],
                tiles: block.gate.matrix.tiles(),
            },
        };
        self.lower(region, local, lowering, residual);
    }

    fn feed_forward(
        &self,
        region: &Region<'_>,
        local: &mut Local,
        block: &Block,
        residual: &mut Residual,
        pending_norm: &[f32],
        next: Next<'_>,
    ) {
        let forms = Forms::of([&block.gate.matrix, &block.up.matrix]);
        let input = self.residual_input(region, local, forms, &block.ffn_norm, residual, pending_norm);
        let width = self.shape.ffn;
        self.tiles(region, block.gate.matrix.tiles(), input.rows, Next::of(&block.down.matrix), |tile| {
            self.product(local, &input, &block.gate, tile, 0);
            self.product(local, &input, &block.up, tile, 1);
            let [gate, up] = &mut local.tiles;
            let values = input.rows * TILE_ROWS;
            activate_rows(self.isa, self.shape.activation, &mut gate[..values], Some(&up[..values]));
            self.each_row(local, tile, width, self.buffers.h, false);
        });
        let lowering = Lowering {
            projection: &block.down,
            source: Source::Plain(self.buffers.h, width),
            normed: block.post_ffn_norm.is_some(),
            next,
        };
        self.lower(region, local, lowering, residual);
    }

    /// A projection back to the residual stream: added at once, or left pending for its norm.
    fn lower(&self, region: &Region<'_>, local: &mut Local, lowering: Lowering<'_>, residual: &mut Residual) {
        let Lowering { projection, source, normed, next } = lowering;
        let input = self.input(region, local, Forms::of([&projection.matrix]), source, None);
        let width = self.shape.hidden;
        let to = if normed { self.buffers.y } else { self.buffers.x[residual.current] };
        self.tiles(region, projection.matrix.tiles(), input.rows, next, |tile| {
            self.product(local, &input, projection, tile, 0);
            self.each_row(local, tile, width, to, !normed);
        });
        residual.pending = normed;
    }

    fn head(
        &self,
        region: &Region<'_>,
        local: &mut Local,
        head: &Head,
        residual: &mut Residual,
        pending_norm: &[f32],
    ) {
        let forms = Forms::of([&head.matrix]);
        let pending = residual.pending.then_some(pending_norm);
        let source = Source::Residual { norm: &head.norm, pending, current: residual.current };
        let input = self.input(region, local, forms, source, Some(self.wanted));
        let width = self.shape.vocab;
        self.tiles(region, head.matrix.tiles(), input.rows, Next::default(), |tile| {
            self.multiply(local, &input, &head.matrix, tile, 0);
            if let Some(cap) = head.soft_cap {
                soft_cap(self.isa, &mut local.tiles[0][..input.rows * TILE_ROWS], cap);
            }
            for row in 0..input.rows {
                let columns = tile * TILE_ROWS;
                let values = &local.tiles[0][row * TILE_ROWS..][..TILE_ROWS.min(width - columns)];
                // SAFETY: this thread has the tile; there are as many rows of logits as wanted rows.
                unsafe { copy(values, self.buffers.logits.add(row * width + columns)) }
            }
        });
    }

    fn residual_input(
        &self,
        region: &Region<'_>,
        local: &mut Local,
        forms: Forms,
        norm: &[f32],
        residual: &mut Residual,
        pending_norm: &[f32],
    ) -> Input {
        let pending = residual.pending.then_some(pending_norm);
        let source = Source::Residual { norm, pending, current: residual.current };
        let input = self.input(region, local, forms, source, None);
        if residual.pending {
            *residual = Residual { current: 1 - residual.current, pending: false };
        }
        input
    }

    /// Brings rows into the forms that products read: all of them, or those listed. With few rows every thread does
    /// all for itself, without a barrier.
    fn input(
        &self,
        region: &Region<'_>,
        local: &mut Local,
        forms: Forms,
        source: Source<'_>,
        listed: Option<&[usize]>,
    ) -> Input {
        let rows = listed.map_or(self.rows, <[usize]>::len);
        let alone = rows <= REPLICATED_ROWS;
        let [small, large] = &mut local.quantised;
        let quantised = match alone {
            true => [small.view(REPLICATED_ROWS, self.widest), large.view(REPLICATED_ROWS, self.widest)],
            false => self.buffers.quantised,
        };
        let hidden = self.shape.hidden;
        let (float, stride) = match source {
            Source::Plain(from, width) => (from, width),
            Source::Residual { .. } if alone => (local.rows.as_mut_ptr().cast_const(), hidden),
            Source::Residual { .. } if forms.float => (self.buffers.normed.cast_const(), hidden),
            // Nobody reads it but who quantises it.
            Source::Residual { .. } => (local.rows.as_mut_ptr().cast_const(), 0),
        };
        let width = match source {
            Source::Plain(_, width) => width,
            Source::Residual { .. } => hidden,
        };
        let mut prepare = |index: usize| {
            let row = listed.map_or(index, |listed| listed[index]);
            if !alone {
                // SAFETY: there are as many rows.
                let [small, large] = quantised.map(|rows| unsafe { rows.at(index) });
                if forms.small {
                    small.expect(ActKind::Block32, width);
                }
                if forms.large {
                    large.expect(ActKind::Block256, width);
                }
            }
            // SAFETY: the row is this thread's, or all it writes to is, except for the residual, which thread 0 writes
            // and nobody reads in this phase.
            unsafe {
                let from = match source {
                    Source::Plain(from, width) => std::slice::from_raw_parts(from.add(row * width), width),
                    Source::Residual { norm, pending, current } => {
                        let write = !alone || region.thread() == 0;
                        let x = self.settle(local.residual.as_mut_ptr(), row, pending, current, write);
                        let out = float.cast_mut().add(index * stride);
                        let eps = self.shape.norm_eps;
                        dispatch(self.isa, RmsNorm { x, weight: norm.as_ptr(), eps, out, len: hidden });
                        std::slice::from_raw_parts(out.cast_const(), hidden)
                    }
                };
                if forms.small {
                    quantised[0].at(index).quantise(self.isa, ActKind::Block32, from);
                }
                if forms.large {
                    quantised[1].at(index).quantise(self.isa, ActKind::Block256, from);
                }
            }
        };
        if alone {
            (0..rows).for_each(&mut prepare);
        } else {
            region.for_chunks(rows, 4, |range| range.for_each(&mut prepare));
        }
        Input { quantised, float, stride, rows }
    }

    /// The residual row with the pending result taken in, if there is one.
    unsafe fn settle(
        &self,
        scratch: *mut f32,
        row: usize,
        pending: Option<&[f32]>,
        current: usize,
        write: bool,
    ) -> *const f32 {
        let hidden = self.shape.hidden;
        // SAFETY: the row exists in all buffers; the caller vouches for who writes.
        unsafe {
            let x = self.buffers.x[current].add(row * hidden);
            let Some(norm) = pending else { return x };
            let y = self.buffers.y.add(row * hidden);
            let eps = self.shape.norm_eps;
            dispatch(self.isa, RmsNorm { x: y, weight: norm.as_ptr(), eps, out: scratch, len: hidden });
            dispatch(self.isa, Sum { x, to: scratch, len: hidden });
            if write {
                std::ptr::copy_nonoverlapping(scratch, self.buffers.x[1 - current].add(row * hidden), hidden);
            }
            scratch
        }
    }

    /// Shares tiles out, then meets at a barrier; who waits there asks for the weights it will begin with next.
    fn tiles(
        &self,
        region: &Region<'_>,
        tiles: usize,
        rows: usize,
        next: Next<'_>,
        mut body: impl FnMut(usize),
    ) {
        let mut ahead = Ahead::new(region, next, rows);
        region.share(shares(region, tiles, rows), |range| range.for_each(&mut body), || ahead.ask());
    }

    fn product(&self, local: &mut Local, input: &Input, projection: &Projection, tile: usize, slot: usize) {
        self.multiply(local, input, &projection.matrix, tile, slot);
        if let Some(bias) = &projection.bias {
            let bias = &bias[tile * TILE_ROWS..][..TILE_ROWS.min(bias.len() - tile * TILE_ROWS)];
            for values in local.tiles[slot][..input.rows * TILE_ROWS].chunks_exact_mut(TILE_ROWS) {
                values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
    }

    fn multiply(&self, local: &mut Local, input: &Input, matrix: &PackedMatrix, tile: usize, slot: usize) {
        let (rows, out) = (input.rows_for(matrix), &mut local.tiles[slot]);
        // SAFETY: the input's rows are complete since the last barrier, or this thread's own.
        unsafe { tile_product(self.isa, matrix, tile, rows, input.rows, &mut local.panel, out) }
    }

    /// Copies the tile's results to their columns of `to`, which is `width` wide, or adds them to what is there.
    fn each_row(&self, local: &Local, tile: usize, width: usize, to: *mut f32, adds: bool) {
        let columns = tile * TILE_ROWS;
        let values = TILE_ROWS.min(width - columns);
        for row in 0..self.rows {
            let to = to.wrapping_add(row * width + columns);
            prefetch_to_write(to.wrapping_add(ROWS_AHEAD * width));
            let values = &local.tiles[0][row * TILE_ROWS..][..values];
            // SAFETY: this thread has the tile, so these columns of every row are its own.
            unsafe { if adds { add(values, to) } else { copy(values, to) } }
        }
    }
}

/// How tiles are shared out: half of them beforehand, the rest in enough chunks that a slower thread can take fewer. With many
/// rows a tile is long enough by itself.
fn shares(region: &Region<'_>, tiles: usize, rows: usize) -> Shares {
    let each = tiles / region.threads();
    match rows <= FEW_ROWS {
        true => Shares { items: tiles, first: each / 2, grain: (each / CHUNKS_PER_THREAD).clamp(1, 64) },
        false => Shares { items: tiles, first: 0, grain: 1 },
    }
}

/// Rows up to which reading weights takes about as long as multiplying them.
const FEW_ROWS: usize = 16;

/// Chunks of the tiles that are not shared out beforehand, for each thread, were they all the tiles.
const CHUNKS_PER_THREAD: usize = 6;

/// Bytes of weights that are asked for before their turn: a part of the second-level cache.
const AHEAD: usize = 128 << 10;
/// Cache lines that are asked for between two looks at whether the wait is over.
const LINES: usize = 4;

/// The weights that a thread begins with in a later phase. Memory rests while threads wait for each other, unless somebody asks.
struct Ahead {
    /// Next byte and bytes left, by matrix.
    parts: [(*const u8, usize); 2],
}

impl Ahead {
    fn new(region: &Region<'_>, next: Next<'_>, rows: usize) -> Self {
        let mut parts = [(std::ptr::null(), 0); 2];
        if rows <= FEW_ROWS {
            let Range { start, end } = shares(region, next.tiles, rows).first_of(region.thread());
            let matrices = next.matrices.iter().flatten();
            let most = AHEAD / matrices.clone().count().max(1);
            for (part, matrix) in parts.iter_mut().zip(matrices) {
                let bytes = matrix.tiles_bytes(start.min(matrix.tiles())..end.min(matrix.tiles()));
                *part = (bytes.as_ptr(), bytes.len().min(most));
            }
        }
        Self { parts }
    }

    /// Asks for a few lines. False once there are none.
    fn ask(&mut self) -> bool {
        let Some((at, left)) = self.parts.iter_mut().find(|(_, left)| *left > 0) else { return false };
        for line in 0..LINES {
            prefetch(at.wrapping_add(line * 64));
        }
        *at = at.wrapping_add(LINES * 64);
        *left = left.saturating_sub(LINES * 64);
        true
    }
}

/// [`copy`], added to what is there.
#[inline(always)]
unsafe fn add(values: &[f32], to: *mut f32) {
    // SAFETY: the caller vouches for the target.
    unsafe {
        let to = std::slice::from_raw_parts_mut(to, values.len());
        match (<&[f32; TILE_ROWS]>::try_from(values), <&mut [f32; TILE_ROWS]>::try_from(&mut *to)) {
            (Ok(values), Ok(to)) => to.iter_mut().zip(values).for_each(|(to, value)| *to += value),
            _ => to.iter_mut().zip(values).for_each(|(to, value)| *to += value),
        }
    }
}
