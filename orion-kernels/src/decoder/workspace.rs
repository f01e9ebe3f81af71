//! Everything a forward pass writes to, allocated once.
#![allow(unsafe_code, reason = "page pointers are kept between steps")]

use std::fmt;
use std::sync::Mutex;

use orion_core::{Error, Result, TensorType};

use super::kv::KvStore;
use super::types::{Block, DecoderShape, Embedding, Head, Rope};
use crate::activations::QuantRows;
use crate::aligned::AlignedBuf;
use crate::attention::{BLOCK_KEYS, PAGE_TOKENS, Scratch};
use crate::isa::Isa;
use crate::pool::ComputePool;
use crate::tiles::{PackedMatrix, Panel, TILE_ROWS};

/// Different rotary embeddings of one model: within and beyond the original context, global and local.
pub(super) const MAX_ROPES: usize = 4;
/// Rows up to which every thread normalises and quantises for itself.
pub(super) const REPLICATED_ROWS: usize = 2;
/// Tokens of one sequence that a thread attends for at a time.
pub(super) const QUERY_TOKENS: usize = 16;

/// Which part of a forward pass to run, in one parallel region. The rows stay in the workspace between calls, so a
/// pass may be cut anywhere between blocks: to wait for weights, or to look whether it was cancelled.
#[derive(Clone, Copy)]
pub struct Stages<'a> {
    /// Start by looking the tokens up.
    pub embedding: Option<&'a Embedding>,
    /// Number of the first block.
    pub first: usize,
    /// Blocks to run, consecutive.
    pub blocks: &'a [Block],
    /// End with the logits of the rows that were asked for.
    pub head: Option<&'a Head>,
}

impl fmt::Debug for Stages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stages({} blocks from {})", self.blocks.len(), self.first)
    }
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) row: usize,
    pub(super) rows: usize,
    /// Position of the first row.
    pub(super) start: usize,
    /// Its pages, as a range of the page list.
    pub(super) pages: (usize, usize),
    /// Rotary embeddings: of global and of local blocks.
    pub(super) ropes: [usize; 2],
}

/// What one thread needs for itself.
pub(super) struct Local {
    pub(super) panel: Panel,
    /// Results of a tile, `[rows][16]`, twice for gate and up.
    pub(super) tiles: [AlignedBuf<f32>; 2],
    pub(super) quantised: [QuantRows; 2],
    /// Normalised rows, `[2][width]`, and a residual row.
    pub(super) rows: AlignedBuf<f32>,
    pub(super) residual: AlignedBuf<f32>,
    pub(super) attention: Scratch,
    pub(super) narrow: AlignedBuf<u16>,
}

/// The page pointers of the current segments.
#[derive(Default)]
pub(super) struct PageList(pub(super) Vec<*mut u16>);
// SAFETY: they are only followed while the store they come from is borrowed exclusively.
unsafe impl Send for PageList {}
// SAFETY: as above.
unsafe impl Sync for PageList {}

/// Buffers for steps of up to a fixed number of rows, and the rows of the current step.
pub struct Workspace {
    pub(super) pool: ComputePool,
    pub(super) isa: Isa,
    pub(super) shape: DecoderShape,
    pub(super) max_rows: usize,
    pub(super) ropes: Vec<Rope>,
    /// Cosines and sines, `[rope][row][pairs]`.
    pub(super) angles: Vec<[AlignedBuf<f32>; 2]>,
    /// Two residual streams: norms after a block read one and write the other.
    pub(super) x: [AlignedBuf<f32>; 2],
    pub(super) current: usize,
    /// The last block's result has not been normalised and added yet.
    pub(super) pending: bool,
    pub(super) pending_norm: Vec<f32>,
    pub(super) q: AlignedBuf<f32>,
    pub(super) k: AlignedBuf<f32>,
    pub(super) v: AlignedBuf<f32>,
    pub(super) attended: AlignedBuf<f32>,
    pub(super) y: AlignedBuf<f32>,
    pub(super) h: AlignedBuf<f32>,
    pub(super) normed: AlignedBuf<f32>,
    /// In blocks of 32 and of 256.
    pub(super) quantised: [QuantRows; 2],
    pub(super) partials: AlignedBuf<f32>,
    pub(super) locals: Vec<Mutex<Local>>,
    pub(super) segments: Vec<Segment>,
    pub(super) pages: PageList,
    pub(super) page_ids: Vec<u32>,
    pub(super) tokens: Vec<u32>,
    pub(super) wanted: Vec<usize>,
}

impl Workspace {
    /// Room for steps of up to `max_rows` rows.
    ///
    /// # Errors
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) for widths the kernels cannot do,
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for contradictions in shape or rotary embeddings.
    pub fn new(
        pool: ComputePool,
        isa: Isa,
        shape: DecoderShape,
        ropes: Vec<Rope>,
        max_rows: usize,
    ) -> Result<Self> {
        shape.check()?;
        if max_rows == 0
            || ropes.len() > MAX_ROPES
            || ropes.iter().any(|rope| 2 * rope.frequencies.len() > shape.head_dim)
        {
            return Err(Error::invalid(
                "no rows, too many rotary embeddings, or more rotated elements than a head has",
            ));
        }
        let widest = shape.hidden.max(shape.ffn).max(shape.q_width());
        let group = shape.heads / shape.kv_heads;
        let buffer = |width: usize| AlignedBuf::zeroed(max_rows * width);
        let local = |_| {
            Mutex::new(Local {
                panel: Panel::default(),
                tiles: [buffer(TILE_ROWS), buffer(TILE_ROWS)],
                quantised: [QuantRows::new(REPLICATED_ROWS, widest), QuantRows::new(REPLICATED_ROWS, widest)],
                rows: AlignedBuf::zeroed(REPLICATED_ROWS * widest),
                residual: AlignedBuf::zeroed(shape.hidden),
                attention: Scratch::new(QUERY_TOKENS.min(max_rows) * group, shape.head_dim),
                narrow: AlignedBuf::zeroed(shape.head_dim),
            })
        };
        Ok(Self {
            isa,
            max_rows,
            angles: ropes
                .iter()
                .map(|rope| [buffer(rope.frequencies.len()), buffer(rope.frequencies.len())])
                .collect(),
            ropes,
            x: [buffer(shape.hidden), buffer(shape.hidden)],
            current: 0,
            pending: false,
            pending_norm: vec![0.0; shape.hidden],
            q: buffer(shape.q_width()),
            k: buffer(shape.kv_width()),
            v: buffer(shape.kv_width()),
            attended: buffer(shape.q_width()),
            y: buffer(shape.hidden),
            h: buffer(shape.ffn),
            normed: buffer(shape.hidden),
            quantised: [QuantRows::new(max_rows, widest), QuantRows::new(max_rows, widest)],
            partials: AlignedBuf::zeroed(0),
            locals: (0..pool.threads()).map(local).collect(),
            segments: Vec::new(),
            pages: PageList::default(),
            page_ids: Vec::new(),
            tokens: Vec::with_capacity(max_rows),
            wanted: Vec::with_capacity(max_rows),
            shape,
            pool,
        })
    }

    /// The pool it computes on.
    #[must_use]
    pub fn pool(&self) -> &ComputePool {
        &self.pool
    }

    /// The instruction set it computes with.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows that a step can have.
    #[must_use]
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Whether matrices of that type can be used.
    #[must_use]
    pub fn supports(ty: TensorType) -> bool {
        PackedMatrix::supports(ty)
    }

    /// Starts a new step.
    pub fn begin(&mut self) {
        self.segments.clear();
        self.page_ids.clear();
        self.tokens.clear();
        self.wanted.clear();
        self.current = 0;
        self.pending = false;
    }

    /// Adds consecutive tokens of one sequence, the first at position `start`; the logits of the last `wanted` of them
    /// are asked for. `pages` hold all positions up to the last token's; `ropes` are the indices of the rotary
    /// embeddings of global and local blocks.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if there is no room, or something does not exist.
    pub fn push(
        &mut self,
        tokens: impl ExactSizeIterator<Item = u32>,
        start: usize,
        pages: &[u32],
        ropes: [usize; 2],
        wanted: usize,
    ) -> Result<()> {
        let (row, rows) = (self.tokens.len(), tokens.len());
        let end = row + rows;
        let needed = (start + rows).div_ceil(PAGE_TOKENS);
        if rows == 0 || end > self.max_rows || wanted > rows || needed > pages.len() {
            return Err(Error::invalid(format!(
                "{rows} tokens from position {start} with {} pages, in a step of {row} of {} rows",
                pages.len(),
                self.max_rows
            )));
        }
        if ropes.iter().any(|&rope| rope >= self.ropes.len()) {
            return Err(Error::invalid("a rotary embedding that does not exist"));
        }
        for token in tokens {
            if token as usize >= self.shape.vocab {
                self.tokens.truncate(row);
                return Err(Error::invalid(format!("token {token} of a vocabulary of {}", self.shape.vocab)));
            }
            self.tokens.push(token);
        }
        let first = self.page_ids.len();
        self.page_ids.extend_from_slice(&pages[..needed]);
        self.segments.push(Segment { row, rows, start, pages: (first, first + needed), ropes });
        self.wanted.extend(end - wanted..end);
        Ok(())
    }

    /// Rows whose logits are asked for.
    #[must_use]
    pub fn wanted_rows(&self) -> usize {
        self.wanted.len()
    }

    /// Checks a step against the store and makes room for what depends on its length.
    pub(super) fn prepare(&mut self, kv: &KvStore) -> Result<()> {
        self.pages.0.clear();
        for &page in &self.page_ids {
            let start =
                kv.start(page).ok_or_else(|| Error::invalid(format!("page {page} is not reserved")))?;
            self.pages.0.push(start);
        }
        // What one segment writes, no other may touch, nor the same one twice: threads would meet there.
        for (index, segment) in self.segments.iter().enumerate() {
            let own = &self.page_ids[segment.pages.0..segment.pages.1];
            for page in &own[segment.start / PAGE_TOKENS..] {
                let elsewhere = |other: &Segment| self.page_ids[other.pages.0..other.pages.1].contains(page);
                let others = self.segments.iter().enumerate().filter(|(other, _)| *other != index);
                if own.iter().filter(|&id| id == page).count() > 1 || others.map(|(_, s)| s).any(elsewhere) {
                    return Err(Error::invalid(format!(
                        "page {page} is written by one sequence and used by another"
                    )));
                }
            }
        }
        let group = self.shape.heads / self.shape.kv_heads;
        let partials: usize = self
            .segments
            .iter()
            .filter(|segment| segment.rows == 1)
            .map(|segment| {
                (segment.start + 1).div_ceil(BLOCK_KEYS)
                    * self.shape.kv_heads
                    * group
                    * (2 + self.shape.head_dim)
            })
            .sum();
        if self.partials.len() < partials {
            self.partials = AlignedBuf::zeroed(partials.next_power_of_two());
        }
        Ok(())
    }
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workspace({} rows, {}, {:?})", self.max_rows, self.isa, self.pool)
    }
}
