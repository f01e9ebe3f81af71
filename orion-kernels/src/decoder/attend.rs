//! The attention phases of a block.
#![allow(unsafe_code, reason = "threads write disjoint parts of shared buffers, separated by barriers")]

use super::rotate::Rotate;
use super::step::Step;
use super::types::{Block, KV_BLOCK, KvType};
use super::workspace::{Local, QUERY_TOKENS, Segment};
use crate::activations::block_scale;
use crate::attention::{
    BLOCK_KEYS, NOTHING, PAGE_TOKENS, Pages, Queries, attend, attend_block, merge_blocks,
};
use crate::math::RmsNorm;
use crate::pool::{Region, Shares};
use crate::simd::{Kernel, Lanes, dispatch, f16_to_f32, f32_to_f16};

/// Attention of one block over the rows of a step.
pub(super) trait Attending {
    /// Rotates queries and keys, appends keys and values to their pages and attends. Ends with a barrier.
    fn attend(&self, region: &Region<'_>, local: &mut Local, block: &Block, layer: usize);
}

impl Attending for Step<'_> {
    fn attend(&self, region: &Region<'_>, local: &mut Local, block: &Block, layer: usize) {
        let kv_heads = self.shape.kv_heads;
        let single = self.segments.iter().all(|segment| segment.rows == 1);
        let blocks = |segment: &Segment| self.queries(block, segment, 0, 0, 1).blocks();
        let parts: usize = self.segments.iter().map(|segment| blocks(segment).len()).sum();
        if single && (region.threads() == 1 || parts < 2 * self.segments.len()) {
            // Each key-value head is one thread's from the rotation to the result.
            region.for_chunks(self.rows * kv_heads, 1, |range| {
                for task in range {
                    let (row, head) = (task / kv_heads, task % kv_heads);
                    self.append(local, block, layer, row, head);
                    self.whole(local, block, layer, &self.segments[row], head, 0);
                }
            });
            return;
        }
        region.for_chunks(self.rows * kv_heads, if single { 1 } else { 8 * kv_heads }, |range| {
            for task in range {
                self.append(local, block, layer, task / kv_heads, task % kv_heads);
            }
        });
        if single {
            self.split(region, local, block, layer, parts);
            return;
        }
        let tasks = |segment: &Segment| segment.rows.div_ceil(QUERY_TOKENS) * kv_heads;
        region.for_chunks(self.segments.iter().map(tasks).sum(), 1, |range| {
            for mut task in range {
                let mut segments = self.segments.iter();
                let segment = segments
                    .find(|segment| {
                        let here = tasks(segment);
                        let found = task < here;
                        task -= if found { 0 } else { here };
                        found
                    })
                    .expect("tasks were counted over the segments");
                // The last queries see most keys: they go first, so that no thread starts them when others are done.
                let from_back = segment.rows.div_ceil(QUERY_TOKENS) - 1 - task / kv_heads;
                self.whole(local, block, layer, segment, task % kv_heads, from_back * QUERY_TOKENS);
            }
        });
    }
}

impl Step<'_> {
    fn queries(&self, block: &Block, segment: &Segment, head: usize, first: usize, tokens: usize) -> Queries {
        let shape = self.shape;
        let group = shape.heads / shape.kv_heads;
        let at = (segment.row + first) * shape.q_width() + head * group * shape.head_dim;
        Queries {
            // SAFETY: rows and heads lie within the buffers.
            q: unsafe { self.buffers.q.add(at) },
            // SAFETY: as above.
            out: unsafe { self.buffers.attended.add(at) },
            stride: shape.q_width(),
            tokens,
            group,
            start: segment.start + first,
            head_dim: shape.head_dim,
            window: block.window,
            soft_cap: shape.attention_soft_cap,
        }
    }

    fn pages(&self, segment: &Segment, layer: usize, head: usize) -> Pages<'_> {
        let (table, offset) = (&self.pages[segment.pages.0..segment.pages.1], self.kv.offset(layer, head));
        Pages { table, offset, kv: self.shape.kv }
    }

    /// Up to [`QUERY_TOKENS`] tokens from `first` on, over all keys they see.
    fn whole(
        &self,
        local: &mut Local,
        block: &Block,
        layer: usize,
        segment: &Segment,
        head: usize,
        first: usize,
    ) {
        let tokens = QUERY_TOKENS.min(segment.rows - first);
        let queries = self.queries(block, segment, head, first, tokens);
        // SAFETY: the keys are complete since the last barrier, or this thread's own; the queries are this task's.
        unsafe { attend(self.isa, queries, self.pages(segment, layer, head), &mut local.attention) }
    }

    /// Single rows with long contexts: blocks are shared out, then merged in order.
    fn split(&self, region: &Region<'_>, local: &mut Local, block: &Block, layer: usize, parts: usize) {
        let (kv_heads, head_dim) = (self.shape.kv_heads, self.shape.head_dim);
        let group = self.shape.heads / kv_heads;
        let size = 2 + head_dim;
        let part = |index: usize, head: usize| {
            // SAFETY: `prepare` made room for every block of every single row.
            unsafe { self.buffers.partials.add((index * kv_heads + head) * group * size) }
        };
        // A block asks for the one that its thread does next.
        let items = parts * kv_heads;
        let shares = Shares { items, first: items / region.threads() / 2, grain: 2 };
        let place = |task: usize| {
            let (head, mut index) = (task / parts, task % parts);
            for segment in self.segments {
                let queries = self.queries(block, segment, head, 0, 1);
                let blocks = queries.blocks();
                if index < blocks.len() {
                    return (queries, self.pages(segment, layer, head), blocks.start + index);
                }
                index -= blocks.len();
            }
            unreachable!("blocks were counted over the segments")
        };
        let run = |task: usize, next: Option<usize>| {
            let at = part(task % parts, task / parts);
            let (queries, pages, number) = place(task);
            let next = next.map_or(NOTHING, |next| {
                let (_, pages, number) = place(next);
                pages.block(number)
            });
            // SAFETY: the keys are complete since the last barrier; the part is this task's.
            unsafe { attend_block(self.isa, queries, pages, number, next, &mut local.attention, at) };
        };
        region.share_foreseen(shares, run);
        region.for_chunks(self.rows * kv_heads * group, 1, |range| {
            for task in range {
                let (row, head, member) = (task / group / kv_heads, task / group % kv_heads, task % group);
                let blocks = |row: usize| self.queries(block, &self.segments[row], head, 0, 1).blocks().len();
                let before: usize = (0..row).map(blocks).sum();
                let queries = self.queries(block, &self.segments[row], head, 0, 1);
                // SAFETY: all parts are complete since the last barrier; the result is this task's.
                unsafe {
                    let first = part(before, head).add(member * size);
                    let stride = kv_heads * group * size;
                    let out = queries.out.add(member * head_dim);
                    merge_blocks(self.isa, first, stride, blocks(row), head_dim, out);
                }
            }
        });
    }

    /// Rotates a row's queries and key of one key-value head and appends key and value.
    fn append(&self, local: &mut Local, block: &Block, layer: usize, row: usize, head: usize) {
        let shape = self.shape;
        let (head_dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let segment =
            self.segments.iter().rfind(|segment| segment.row <= row).expect("rows belong to segments");
        let position = segment.start + row - segment.row;
        let angles = self.buffers.angles[segment.ropes[usize::from(block.local_rope)]];
        // SAFETY: row and heads lie within the buffers and are this thread's in this phase; the position's page exists,
        // and only this call writes the position's slots of this head.
        unsafe {
            let (cos, sin) = (angles.cos.add(row * angles.half), angles.sin.add(row * angles.half));
            let turn = |at: *mut f32, norm: Option<&Vec<f32>>, scale: f32| {
                if let Some(norm) = norm {
                    let (eps, weight) = (shape.norm_eps, norm.as_ptr());
                    dispatch(self.isa, RmsNorm { x: at, weight, eps, out: at, len: head_dim });
                }
                let (half, interleaved) = (angles.half, shape.rope_interleaved);
                Rotate { head: at, head_dim, cos, sin, half, interleaved, scale }.run(self.isa);
            };
            for member in 0..group {
                let at = self.buffers.q.add(row * shape.q_width() + (head * group + member) * head_dim);
                turn(at, block.q_norm.as_ref(), shape.attention_scale);
            }
            let at = row * shape.kv_width() + head * head_dim;
            let key = self.buffers.k.add(at);
            turn(key, block.k_norm.as_ref(), 1.0);
            let page = self.pages(segment, layer, head).keys(position / PAGE_TOKENS);
            let slot = position % PAGE_TOKENS;
            let (value, values) = (self.buffers.v.add(at), page.add(shape.kv.head_words(head_dim) / 2));
            let narrow = local.narrow.as_mut_ptr();
            match shape.kv {
                KvType::F16 => {
                    dispatch(self.isa, Narrow { from: key, to: narrow, len: head_dim });
                    (0..head_dim).for_each(|d| page.add(d * PAGE_TOKENS + slot).write(*narrow.add(d)));
                    let to = values.add(slot * head_dim);
                    dispatch(self.isa, Narrow { from: value, to, len: head_dim });
                }
                KvType::Q8 => {
                    let (bytes, scales) = (narrow.cast::<i8>(), head_dim * PAGE_TOKENS / 2 + slot);
                    let scale = page.add(scales);
                    dispatch(self.isa, ToBytes { from: key, to: bytes, scale, len: head_dim });
                    let keys = page.cast::<i8>();
                    (0..head_dim).for_each(|d| keys.add(d * PAGE_TOKENS + slot).write(*bytes.add(d)));
                    let (to, scale) = (values.cast::<i8>().add(slot * head_dim), values.add(scales));
                    dispatch(self.isa, ToBytes { from: value, to, scale, len: head_dim });
                }
            }
        }
        debug_assert!(BLOCK_KEYS.is_multiple_of(PAGE_TOKENS));
    }
}

/// To halves; `len` is a multiple of eight.
struct Narrow {
    from: *const f32,
    to: *mut u16,
    len: usize,
}

impl Kernel for Narrow {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for i in (0..self.len).step_by(8) {
            // SAFETY: whoever builds the value vouches for `len` values on both sides.
            unsafe { L::load(self.from.add(i)).store_f16(self.to.add(i)) };
        }
    }
}

/// To bytes with a half as the scale of every [`KV_BLOCK`], the scales a page's tokens apart. A block with an infinity or a NaN
/// gets the scale NaN.
struct ToBytes {
    from: *const f32,
    to: *mut i8,
    scale: *mut u16,
    len: usize,
}

impl Kernel for ToBytes {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for block in 0..self.len / KV_BLOCK {
            // SAFETY: whoever builds the value vouches for `len` values on both sides and for the scales.
            unsafe {
                let (from, to) = (self.from.add(block * KV_BLOCK), self.to.add(block * KV_BLOCK));
                let half = f32_to_f16(block_scale::<L>(std::slice::from_raw_parts(from, KV_BLOCK), 127.0));
                self.scale.add(block * PAGE_TOKENS).write(half);
                // By the scale as it is kept; where that has lost much, values may lie beyond.
                let scale = f16_to_f32(half);
                let inverse = if scale > 0.0 && scale.is_finite() { 1.0 / scale } else { 0.0 };
                for i in (0..KV_BLOCK).step_by(8) {
                    let value = L::load(from.add(i)).mul(L::splat(inverse));
                    value.min(L::splat(127.0)).max(L::splat(-127.0)).store_i8(to.add(i));
                }
            }
        }
    }
}
