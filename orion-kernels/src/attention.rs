//! Attention over pages of keys and values.
//!
//! Keys are taken in blocks of 128 at absolute positions. Each block is reduced by itself (greatest score, sum of
//! exponentials, weighted values, every sum over ascending elements) and merged into the running result in ascending
//! order. Prefill, decoding, any batch and any split of the context over threads so give the same bits.
//!
//! A page holds 64 positions. For each layer and head its keys lie as `[head_dim][64]`, so that eight positions meet
//! one broadcast query element and no sum runs across lanes; values lie as `[64][head_dim]`. Both are halves; or bytes,
//! and scales as `[head_dim / 32][64]` behind each. A byte times its scale is exact, so it does not matter where that is done.
#![allow(unsafe_code, reason = "pages and rows are shared between threads as pointers")]

use crate::aligned::AlignedBuf;
use crate::decoder::{KV_BLOCK, KvType};
use crate::isa::Isa;
use crate::math::{exp, exp1, tanh};
use crate::simd::{Kernel, Lanes, Vector, WideKernel, dispatch, dispatch_wide, prefetch};

/// Positions per page.
pub const PAGE_TOKENS: usize = 64;
/// Keys per block.
pub(crate) const BLOCK_KEYS: usize = 128;

/// Rows from which on converting keys and values to f32 once is cheaper than at every use: more than are multiplied at a time.
const fn panel_rows<V: Vector>() -> usize {
    if V::LANES == 16 { 9 } else { 8 }
}

/// Rows up to which 32 keys or values at a time are needed to keep the multipliers busy.
const WIDE_ROWS: usize = 3;

/// The sum of a block none of whose keys the query sees; sums are never negative.
const UNSEEN: f32 = -1.0;

/// Queries of one key-value head: `tokens` consecutive positions by `group` heads.
#[derive(Clone, Copy)]
pub(crate) struct Queries {
    /// First head of the first token, already rotated and scaled.
    pub(crate) q: *const f32,
    /// Where the first head of the first token's result goes.
    pub(crate) out: *mut f32,
    /// Elements from token to token, in both.
    pub(crate) stride: usize,
    pub(crate) tokens: usize,
    pub(crate) group: usize,
    /// Position of the first token.
    pub(crate) start: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) soft_cap: Option<f32>,
}

impl Queries {
    fn rows(&self) -> usize {
        self.tokens * self.group
    }

    /// Keys that any of the queries sees.
    fn keys(&self) -> (usize, usize) {
        (self.first_key(0), self.start + self.tokens)
    }

    fn first_key(&self, token: usize) -> usize {
        self.window.map_or(0, |window| (self.start + token + 1).saturating_sub(window))
    }

    /// The blocks that hold keys to see.
    pub(crate) fn blocks(&self) -> std::ops::Range<usize> {
        let (first, end) = self.keys();
        first / BLOCK_KEYS..end.div_ceil(BLOCK_KEYS)
    }

    unsafe fn row(&self, row: usize) -> *const f32 {
        let (token, head) = (row / self.group, row % self.group);
        // SAFETY: the caller keeps `row` below `rows`.
        unsafe { self.q.add(token * self.stride + head * self.head_dim) }
    }

    unsafe fn out_row(&self, row: usize) -> *mut f32 {
        let (token, head) = (row / self.group, row % self.group);
        // SAFETY: the caller keeps `row` below `rows`.
        unsafe { self.out.add(token * self.stride + head * self.head_dim) }
    }
}

/// The pages of a sequence and where in each the head's keys start; the values follow at once.
#[derive(Clone, Copy)]
pub(crate) struct Pages<'a> {
    pub(crate) table: &'a [*mut u16],
    pub(crate) offset: usize,
    pub(crate) kv: KvType,
}

impl Pages<'_> {
    /// # Safety
    /// Page `page` must exist.
    pub(crate) unsafe fn keys(&self, page: usize) -> *mut u16 {
        // SAFETY: by this function's contract, the offset lies within the page.
        unsafe { self.table[page].add(self.offset) }
    }

    /// Where the head's part of a block lies, of those of its pages that there are.
    pub(crate) fn block(&self, block: usize) -> Ahead {
        [0, 1].map(|second| {
            let page = self.table.get(block * (BLOCK_KEYS / PAGE_TOKENS) + second)?;
            Some(page.wrapping_add(self.offset).cast_const())
        })
    }
}

/// What to ask for during a block: the keys, then the values, of the pages of the block that comes next.
pub(crate) type Ahead = [Option<*const u16>; 2];
/// Nothing to ask for.
pub(crate) const NOTHING: Ahead = [None; 2];

/// Scratch space of one thread.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// `[rows][128]`
    scores: AlignedBuf<f32>,
    /// A strip of up to 32 keys `[head_dim][32]` or of 32 value columns `[128][32]`.
    panel: AlignedBuf<f32>,
    /// `[rows][head_dim]`: the running result and the current block's.
    total: AlignedBuf<f32>,
    block: AlignedBuf<f32>,
    /// Greatest score and sum per row, so far and of the current block.
    greatest: AlignedBuf<f32>,
    sum: AlignedBuf<f32>,
    block_greatest: AlignedBuf<f32>,
    block_sum: AlignedBuf<f32>,
    /// `[128]`: of the block's values, in the columns at hand.
    scales: AlignedBuf<f32>,
}

impl Scratch {
    /// Room for `rows` queries.
    pub(crate) fn new(rows: usize, head_dim: usize) -> Self {
        Self {
            scores: AlignedBuf::zeroed(rows * BLOCK_KEYS),
            panel: AlignedBuf::zeroed(head_dim.max(BLOCK_KEYS) * 32),
            total: AlignedBuf::zeroed(rows * head_dim),
            block: AlignedBuf::zeroed(rows * head_dim),
            greatest: AlignedBuf::zeroed(rows),
            sum: AlignedBuf::zeroed(rows),
            block_greatest: AlignedBuf::zeroed(rows),
            block_sum: AlignedBuf::zeroed(rows),
            scales: AlignedBuf::zeroed(BLOCK_KEYS),
        }
    }
}

/// Computes the queries' results over all keys they see.
///
/// # Safety
/// The queries' rows and results must be valid and not shared with a writer; the pages must hold every key below the
/// last query's position and be written by nobody; the scratch must have room; `head_dim` is a multiple of 16.
pub(crate) unsafe fn attend(isa: Isa, queries: Queries, pages: Pages<'_>, scratch: &mut Scratch) {
    dispatch_wide(isa, Whole { queries, pages, scratch });
}

/// Computes one block's part for the queries of one token: per head the greatest score, the sum and the weighted
/// values go to `partial`, `[group][2 + head_dim]`.
///
/// # Safety
/// As [`attend`]; `partial` must have room and be this call's alone.
pub(crate) unsafe fn attend_block(
    isa: Isa,
    queries: Queries,
    pages: Pages<'_>,
    block: usize,
    next: Ahead,
    scratch: &mut Scratch,
    partial: *mut f32,
) {
    dispatch_wide(isa, Part { queries, pages, block, next, scratch, partial });
}

/// Merges the partials of consecutive blocks, `stride` apart, into `out`.
///
/// # Safety
/// `blocks` partials of one head must be readable and `out` writable.
pub(crate) unsafe fn merge_blocks(
    isa: Isa,
    partials: *const f32,
    stride: usize,
    blocks: usize,
    head_dim: usize,
    out: *mut f32,
) {
    dispatch(isa, MergeAll { partials, stride, blocks, head_dim, out });
}

struct Whole<'a> {
    queries: Queries,
    pages: Pages<'a>,
    scratch: &'a mut Scratch,
}

impl WideKernel for Whole<'_> {
    #[inline(always)]
    fn run<L: Lanes, V: Vector>(self) {
        let Self { queries, pages, scratch } = self;
        let (rows, head_dim) = (queries.rows(), queries.head_dim);
        assert!(rows * head_dim <= scratch.total.len() && rows * BLOCK_KEYS <= scratch.scores.len(), "room");
        scratch.total[..rows * head_dim].fill(0.0);
        scratch.greatest[..rows].fill(f32::NEG_INFINITY);
        scratch.sum[..rows].fill(0.0);
        for block in queries.blocks() {
            // SAFETY: the contract of `attend`.
            unsafe { reduce::<L, V>(&queries, pages, block, pages.block(block + 1), scratch) };
            for row in 0..rows {
                let (greatest, sum) = (scratch.block_greatest[row], scratch.block_sum[row]);
                if sum == UNSEEN {
                    continue;
                }
                // SAFETY: both rows lie within the scratch.
                unsafe {
                    let total = scratch.total.as_mut_ptr().add(row * head_dim);
                    let part = scratch.block.as_ptr().add(row * head_dim);
                    let state = (&mut scratch.greatest[row], &mut scratch.sum[row]);
                    merge::<L>(total, state, part, (greatest, sum), head_dim);
                }
            }
        }
        for row in 0..rows {
            // SAFETY: the contract of `attend`.
            unsafe {
                let total = scratch.total.as_ptr().add(row * head_dim);
                divide::<L>(total, scratch.sum[row], queries.out_row(row), head_dim);
            }
        }
    }
}

struct Part<'a> {
    queries: Queries,
    pages: Pages<'a>,
    block: usize,
    next: Ahead,
    scratch: &'a mut Scratch,
    partial: *mut f32,
}

impl WideKernel for Part<'_> {
    #[inline(always)]
    fn run<L: Lanes, V: Vector>(self) {
        let Self { queries, pages, block, next, scratch, partial } = self;
        let head_dim = queries.head_dim;
        // SAFETY: the contract of `attend_block`.
        unsafe {
            reduce::<L, V>(&queries, pages, block, next, scratch);
            for row in 0..queries.rows() {
                let to = partial.add(row * (2 + head_dim));
                to.write(scratch.block_greatest[row]);
                to.add(1).write(scratch.block_sum[row]);
                let from = scratch.block.as_ptr().add(row * head_dim);
                std::ptr::copy_nonoverlapping(from, to.add(2), head_dim);
            }
        }
    }
}

struct MergeAll {
    partials: *const f32,
    stride: usize,
    blocks: usize,
    head_dim: usize,
    out: *mut f32,
}

impl Kernel for MergeAll {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { partials, stride, blocks, head_dim, out } = self;
        // SAFETY: the contract of `merge_blocks`.
        unsafe {
            std::slice::from_raw_parts_mut(out, head_dim).fill(0.0);
            let (mut greatest, mut sum) = (f32::NEG_INFINITY, 0.0);
            for block in 0..blocks {
                let part = partials.add(block * stride);
                let (part_greatest, part_sum) = (*part, *part.add(1));
                if part_sum != UNSEEN {
                    let state = (&mut greatest, &mut sum);
                    merge::<L>(out, state, part.add(2), (part_greatest, part_sum), head_dim);
                }
            }
            divide::<L>(out, sum, out, head_dim);
        }
    }
}

/// `total` and `state` take in a block's part.
#[inline(always)]
unsafe fn merge<L: Lanes>(
    total: *mut f32,
    (greatest, sum): (&mut f32, &mut f32),
    part: *const f32,
    (part_greatest, part_sum): (f32, f32),
    head_dim: usize,
) {
    let next = if part_greatest > *greatest { part_greatest } else { *greatest };
    let (old, new) = (exp1::<L>(*greatest - next), exp1::<L>(part_greatest - next));
    *sum = part_sum.mul_add(new, *sum * old);
    *greatest = next;
    let (old, new) = (L::splat(old), L::splat(new));
    for i in (0..head_dim).step_by(8) {
        // SAFETY: both have `head_dim` elements, a multiple of 16.
        unsafe { L::load(part.add(i)).fma(new, L::load(total.add(i)).mul(old)).store(total.add(i)) };
    }
}

#[inline(always)]
unsafe fn divide<L: Lanes>(total: *const f32, sum: f32, out: *mut f32, head_dim: usize) {
    let inverse = L::splat(1.0 / sum);
    for i in (0..head_dim).step_by(8) {
        // SAFETY: both have `head_dim` elements, a multiple of 16.
        unsafe { L::load(total.add(i)).mul(inverse).store(out.add(i)) };
    }
}

/// What a kernel takes keys or values from.
trait Stored {
    /// Whether they have scales.
    const SCALED: bool;
    /// 16-bit words to ask for ahead for each element of 32 keys or values.
    const WORDS: usize = 0;
    /// A vector from element `index` on.
    ///
    /// # Safety
    /// As many elements must be readable.
    unsafe fn load<V: Vector>(from: *const u8, index: usize, scale: V) -> V;
}

/// A panel.
struct Floats;
struct Halves;
struct Bytes;

impl Stored for Floats {
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8, index: usize, _: V) -> V {
        // SAFETY: by this function's contract.
        unsafe { V::load(from.cast::<f32>().add(index)) }
    }
}

impl Stored for Halves {
    const SCALED: bool = false;
    const WORDS: usize = 32;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8, index: usize, _: V) -> V {
        // SAFETY: by this function's contract.
        unsafe { V::load_f16(from.cast::<u16>().add(index)) }
    }
}

impl Stored for Bytes {
    const SCALED: bool = true;
    const WORDS: usize = 16;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8, index: usize, scale: V) -> V {
        // SAFETY: by this function's contract.
        unsafe { V::load_i8(from.cast::<i8>().add(index)).mul(scale) }
    }
}

/// Runs a micro-kernel over rows of that many keys or columns, as many rows at a time as there are registers for, but for one or
/// two left over, which would not keep the multipliers busy.
macro_rules! each_rows {
    ($row:ident of $rows:expr, $width:expr, $kernel:ident, $vector:ident, $stored:ty, $args:tt) => {{
        let (rows, mut $row) = ($rows, 0);
        match $width / $vector::LANES {
            4 => each_rows!(@ $row, rows, $kernel, $vector, 4, $stored, $args, [3 2 1]),
            2 if $vector::LANES == 16 => {
                each_rows!(@ $row, rows, $kernel, $vector, 2, $stored, $args, [12 8 6 5 4 3 2 1])
            }
            1 if $vector::LANES == 16 => {
                each_rows!(@ $row, rows, $kernel, $vector, 1, $stored, $args, [12 8 6 5 4 3 2 1])
            }
            _ => each_rows!(@ $row, rows, $kernel, $vector, 2, $stored, $args, [6 5 4 3 2 1]),
        }
    }};
    (@ $row:ident, $rows:ident, $kernel:ident, $vector:ident, $width:tt, $stored:ty, $args:tt, [$($most:tt)*]) => {
        {
            $(while $rows - $row >= $most && ($most < 5 || !matches!($rows - $row - $most, 1 | 2)) {
                $kernel::<$vector, $most, $width, $stored> $args;
                $row += $most;
            })*
        }
    };
}

/// Reduces one block for all rows: weighted values into `scratch.block`, greatest score and sum beside them.
#[inline(always)]
unsafe fn reduce<L: Lanes, V: Vector>(
    queries: &Queries,
    pages: Pages<'_>,
    block: usize,
    next: Ahead,
    scratch: &mut Scratch,
) {
    // SAFETY: passed on; the pages hold what they say.
    unsafe {
        match pages.kv {
            KvType::F16 => reduce_block::<L, V, Halves>(queries, pages, block, next, scratch),
            KvType::Q8 => reduce_block::<L, V, Bytes>(queries, pages, block, next, scratch),
        }
    }
}

/// With few rows halves are taken eight at a time: converting them takes as long as the products, and is no faster sixteen at a
/// time.
#[inline(always)]
unsafe fn reduce_block<L: Lanes, V: Vector, S: Stored>(
    queries: &Queries,
    pages: Pages<'_>,
    block: usize,
    next: Ahead,
    scratch: &mut Scratch,
) {
    let (rows, head_dim) = (queries.rows(), queries.head_dim);
    let base = block * BLOCK_KEYS;
    let (first, end) = queries.keys();
    // Keys of the block that any query sees.
    let (low, high) = (first.max(base) - base, end.min(base + BLOCK_KEYS) - base);
    let panel = scratch.panel.as_mut_ptr();
    let scores = scratch.scores.as_mut_ptr();
    // With one token memory is what limits, and what the CPU fetches by itself ends with each page: the next block is asked
    // for meanwhile.
    let ahead = if queries.tokens == 1 { next } else { NOTHING };
    // Where the values follow their keys, and in both the scales their bytes, in words.
    let (values, scales) = (pages.kv.head_words(head_dim) / 2, head_dim * PAGE_TOKENS / 2);
    if S::SCALED {
        for part in ahead.into_iter().flatten() {
            for line in (0..head_dim / KV_BLOCK * PAGE_TOKENS).step_by(32) {
                prefetch(part.wrapping_add(scales + line));
                prefetch(part.wrapping_add(values + scales + line));
            }
        }
    }
    // Keys or values at a time.
    let width = if rows <= WIDE_ROWS || V::LANES == 16 { 32 } else { 16 };
    let words = width * S::WORDS / 32;
    // SAFETY: here and in the block below: the contract of `attend`; the page of every key below `high` exists.
    unsafe {
        for strip in (low / width * width..high).step_by(width) {
            let (keys, at) = (pages.keys((base + strip) / PAGE_TOKENS).cast_const(), strip % PAGE_TOKENS);
            let scales = keys.add(scales + at);
            let keys = match S::SCALED {
                true => keys.cast::<u8>().add(at),
                false => keys.add(at).cast(),
            };
            let out = scores.add(strip);
            // Something for each element, over all strips the keys of the next block.
            let first = at * head_dim * S::WORDS / 32;
            let ahead = ahead[strip / PAGE_TOKENS].map(|part| (part.wrapping_add(first), words));
            if rows < panel_rows::<V>() {
                let args = Keys { from: keys, stride: PAGE_TOKENS, scales, ahead };
                if S::SCALED || rows > WIDE_ROWS {
                    each_rows!(row of rows, width, score, V, S, (row, queries, args, out));
                } else {
                    each_rows!(row of rows, width, score, L, S, (row, queries, args, out));
                }
            } else {
                for d in 0..head_dim {
                    ask(ahead, d);
                    for i in (0..width).step_by(V::LANES) {
                        let scale = scales_of::<V, S>(scales, d, i);
                        S::load(keys, d * PAGE_TOKENS + i, scale).store(panel.add(d * width + i));
                    }
                }
                let args = Keys { from: panel.cast_const().cast(), stride: width, scales, ahead: None };
                each_rows!(row of rows, width, score, V, Floats, (row, queries, args, out));
            }
        }
    }
    for row in 0..rows {
        let token = row / queries.group;
        let from = queries.first_key(token).clamp(base, base + BLOCK_KEYS) - base;
        let to = (queries.start + token + 1).clamp(base, base + BLOCK_KEYS) - base;
        let line = &mut scratch.scores[row * BLOCK_KEYS..][..BLOCK_KEYS];
        (scratch.block_greatest[row], scratch.block_sum[row]) = soften::<L>(line, from, to, queries.soft_cap);
    }
    let scores = scratch.scores.as_ptr();
    let result = scratch.block.as_mut_ptr();
    let own_scales = scratch.scales.as_mut_ptr();
    // SAFETY: as above; a page's values follow its keys.
    unsafe {
        let page = |key: usize| pages.keys((base + key.min(high - 1)) / PAGE_TOKENS).add(values).cast_const();
        let both = [page(low.min(PAGE_TOKENS - 1)), page(PAGE_TOKENS)];
        let width = if head_dim.is_multiple_of(32) { width } else { 16 };
        let ends = (low, high);
        for column in (0..head_dim).step_by(width) {
            let out = result.add(column);
            if S::SCALED {
                for (second, page) in both.into_iter().enumerate() {
                    for i in (0..PAGE_TOKENS).step_by(V::LANES) {
                        let scale = scales_of::<V, S>(page.add(scales), column, i);
                        scale.store(own_scales.add(second * PAGE_TOKENS + i));
                    }
                }
            }
            let starts = both.map(|page| match S::SCALED {
                true => page.cast::<u8>().add(column),
                false => page.add(column).cast(),
            });
            let scales = own_scales.cast_const();
            // Something for each value, over all columns the values of the next block.
            let first = values + column * 2 * S::WORDS;
            let ahead = ahead.map(|part| part.map(|part| (part.wrapping_add(first), words)));
            if rows < panel_rows::<V>() {
                let source = Values { pages: starts, stride: head_dim, scales, ahead };
                if S::SCALED || rows > WIDE_ROWS {
                    each_rows!(row of rows, width, mix, V, S, (row, source, scores, ends, out, head_dim));
                } else {
                    each_rows!(row of rows, width, mix, L, S, (row, source, scores, ends, out, head_dim));
                }
            } else {
                for key in low..high {
                    ask(ahead[key / PAGE_TOKENS], key % PAGE_TOKENS);
                    let (from, scale) = (starts[key / PAGE_TOKENS], V::splat(*scales.add(key)));
                    for i in (0..width).step_by(V::LANES) {
                        let value = S::load(from, key % PAGE_TOKENS * head_dim + i, scale);
                        value.store(panel.add(key * width + i));
                    }
                }
                let second = panel.add(PAGE_TOKENS * width).cast_const();
                let pages = [panel.cast_const().cast(), second.cast()];
                let source = Values { pages, stride: width, scales, ahead: [None; 2] };
                each_rows!(row of rows, width, mix, V, Floats, (row, source, scores, ends, out, head_dim));
            }
        }
    }
}

/// Asks for the words, of so many for each element or key, that lie ahead.
#[inline(always)]
fn ask(ahead: Option<(*const u16, usize)>, index: usize) {
    if let Some((at, words)) = ahead {
        prefetch(at.wrapping_add(index * words));
    }
}

/// The scales of a vector of keys or values from the page's `first` on, at element `element`; zeroes if there are none.
#[inline(always)]
unsafe fn scales_of<V: Vector, S: Stored>(scales: *const u16, element: usize, first: usize) -> V {
    match S::SCALED {
        // SAFETY: the callers stay within the page.
        true => unsafe { V::load_f16(scales.add(element / KV_BLOCK * PAGE_TOKENS + first)) },
        false => V::splat(0.0),
    }
}

/// Adds the products of `M` single values with the `W` vectors from `index` on. The registers hold it all if the shorter
/// side is kept while the longer one passes by.
#[inline(always)]
unsafe fn outer<V: Vector, const M: usize, const W: usize, S: Stored>(
    single: [*const f32; M],
    mut from: *const u8,
    index: usize,
    scale: [V; W],
    sums: &mut [[V; W]; M],
) {
    // SAFETY: the callers keep both sides within bounds.
    unsafe {
        if M < W {
            let single: [V; M] = single.map(|at| V::splat(*at));
            for w in 0..W {
                let many = S::load::<V>(from, index + V::LANES * w, scale[w]);
                for m in 0..M {
                    sums[m][w] = single[m].fma(many, sums[m][w]);
                    from = sums[m][w].before(from);
                }
            }
        } else {
            let many: [V; W] = std::array::from_fn(|w| S::load(from, index + V::LANES * w, scale[w]));
            for m in 0..M {
                let single = V::splat(*single[m]);
                for w in 0..W {
                    sums[m][w] = single.fma(many[w], sums[m][w]);
                }
            }
        }
    }
}

/// Where a strip's keys and their scales start, the elements from dimension to dimension, and what lies ahead.
#[derive(Clone, Copy)]
struct Keys {
    from: *const u8,
    stride: usize,
    scales: *const u16,
    ahead: Option<(*const u16, usize)>,
}

/// Scores of `M` rows with the keys of `W` vectors: for each the products of ascending elements, summed one by one.
#[inline(always)]
unsafe fn score<V: Vector, const M: usize, const W: usize, S: Stored>(
    row: usize,
    queries: &Queries,
    keys: Keys,
    out: *mut f32,
) {
    // SAFETY: the callers keep rows and keys within bounds.
    unsafe {
        let q: [*const f32; M] = std::array::from_fn(|m| queries.row(row + m));
        let mut sums = [[V::splat(0.0); W]; M];
        let mut scale = [V::splat(0.0); W];
        for d in 0..queries.head_dim {
            ask(keys.ahead, d);
            if S::SCALED && d.is_multiple_of(KV_BLOCK) {
                scale = std::array::from_fn(|w| scales_of::<V, S>(keys.scales, d, V::LANES * w));
            }
            let q: [*const f32; M] = std::array::from_fn(|m| q[m].add(d));
            outer::<V, M, W, S>(q, keys.from, d * keys.stride, scale, &mut sums);
        }
        for m in 0..M {
            for w in 0..W {
                sums[m][w].store(out.add((row + m) * BLOCK_KEYS + V::LANES * w));
            }
        }
    }
}

/// Where the values of a block's two pages start, the elements from key to key, the scale of each, and what lies ahead.
#[derive(Clone, Copy)]
struct Values {
    pages: [*const u8; 2],
    stride: usize,
    scales: *const f32,
    ahead: [Option<(*const u16, usize)>; 2],
}

/// `W` vectors of weighted values for `M` rows, keys ascending.
#[inline(always)]
unsafe fn mix<V: Vector, const M: usize, const W: usize, S: Stored>(
    row: usize,
    values: Values,
    scores: *const f32,
    (low, high): (usize, usize),
    out: *mut f32,
    head_dim: usize,
) {
    // SAFETY: the callers keep rows, keys and columns within bounds.
    unsafe {
        let scores = scores.add(row * BLOCK_KEYS);
        let mut sums = [[V::splat(0.0); W]; M];
        for page in 0..2 {
            let first = page * PAGE_TOKENS;
            for key in low.max(first)..high.min(first + PAGE_TOKENS) {
                ask(values.ahead[page], key - first);
                let at = (key - first) * values.stride;
                let scale = [V::splat(if S::SCALED { *values.scales.add(key) } else { 0.0 }); W];
                let weights: [*const f32; M] = std::array::from_fn(|m| scores.add(m * BLOCK_KEYS + key));
                outer::<V, M, W, S>(weights, values.pages[page], at, scale, &mut sums);
            }
        }
        for m in 0..M {
            for w in 0..W {
                sums[m][w].store(out.add((row + m) * head_dim + V::LANES * w));
            }
        }
    }
}

/// Turns the scores of keys `from..to` into exponentials relative to the greatest, all others into 0. Returns the
/// greatest and the sum.
#[inline(always)]
fn soften<L: Lanes>(line: &mut [f32], from: usize, to: usize, soft_cap: Option<f32>) -> (f32, f32) {
    if from >= to {
        line.fill(0.0);
        return (f32::NEG_INFINITY, UNSEEN);
    }
    // Whole groups of eight that hold a key to see.
    let (start, end) = (from / 8 * 8, to.next_multiple_of(8));
    line[..start].fill(0.0);
    line[end..].fill(0.0);
    // SAFETY: whole groups of eight within the line.
    unsafe {
        if let Some(cap) = soft_cap {
            let cap = L::splat(cap);
            for i in (start..end).step_by(8) {
                let at = line.as_mut_ptr().add(i);
                tanh(L::load(at).div(cap)).mul(cap).store(at);
            }
        }
        line[start..from].fill(f32::NEG_INFINITY);
        line[to..end].fill(f32::NEG_INFINITY);
        let at = line.as_mut_ptr();
        let mut greatest = L::splat(f32::NEG_INFINITY);
        for i in (start..end).step_by(8) {
            greatest = greatest.max(L::load(at.add(i)));
        }
        let greatest = greatest.greatest();
        let (shift, mut sum) = (L::splat(greatest), L::splat(0.0));
        for i in (start..end).step_by(8) {
            let value = exp(L::load(at.add(i)).sub(shift));
            sum = sum.add(value);
            value.store(at.add(i));
        }
        (greatest, sum.sum())
    }
}
