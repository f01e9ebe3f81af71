//! Where keys and values live.
#![allow(unsafe_code, reason = "threads write disjoint slots of shared pages")]

use orion_core::Result;

use super::types::{DecoderShape, KvType};
use crate::aligned::AlignedBuf;
use crate::arena::Arena;

/// Pages of keys and values, each for 64 positions of one sequence and all layers. Who holds which page is
/// the caller's business.
#[derive(Debug)]
pub struct KvStore {
    kind: KvType,
    /// 16-bit words per layer and head: keys, then values.
    head_words: usize,
    kv_heads: usize,
    page_words: usize,
    pages: Vec<AlignedBuf<u16>>,
    /// Where the pages lie: a long context is read whole for every token.
    arena: Arena,
    starts: Starts,
}

/// The first element of every page.
#[derive(Debug, Default)]
struct Starts(Vec<*mut u16>);

// SAFETY: the pointers go to buffers that the same `KvStore` owns.
unsafe impl Send for Starts {}
// SAFETY: as above; writing through them needs the store's exclusive borrow.
unsafe impl Sync for Starts {}

impl KvStore {
    /// An empty store for decoders of that shape.
    ///
    /// # Errors
    /// As for [`Workspace::new`](super::Workspace::new).
    pub fn new(shape: &DecoderShape) -> Result<Self> {
        shape.check()?;
        let head_words = shape.kv.head_words(shape.head_dim);
        let page_words = shape.layers * shape.kv_heads * head_words;
        Ok(Self {
            kind: shape.kv,
            head_words,
            kv_heads: shape.kv_heads,
            page_words,
            pages: Vec::new(),
            arena: Arena::huge(),
            starts: Starts::default(),
        })
    }

    /// Makes pages `0..count` usable.
    pub fn reserve(&mut self, count: usize) {
        while self.pages.len() < count {
            let mut page = self.arena.zeroed::<u16>(self.page_words);
            self.starts.0.push(page.as_mut_ptr());
            self.pages.push(page);
        }
    }

    /// Number of usable pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Bytes of one page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_words * size_of::<u16>()
    }

    /// All keys and values of a page; which is whose is this crate's business, for as long as its version.
    #[must_use]
    pub fn page(&self, page: u32) -> Option<&[u16]> {
        let start = self.start(page)?;
        // SAFETY: the pointer goes to the start of a buffer of `page_words` elements that `self` owns, and whoever could
        // write to it needs `self` exclusively.
        Some(unsafe { std::slice::from_raw_parts(start, self.page_words) })
    }

    /// The same, to be replaced.
    pub fn page_mut(&mut self, page: u32) -> Option<&mut [u16]> {
        let start = self.start(page)?;
        // SAFETY: as above, and `self` is borrowed exclusively.
        Some(unsafe { std::slice::from_raw_parts_mut(start, self.page_words) })
    }

    pub(super) fn fits(&self, shape: &DecoderShape) -> bool {
        let head_words = shape.kv.head_words(shape.head_dim);
        let page_words = shape.layers * shape.kv_heads * head_words;
        (self.kind, self.kv_heads, self.head_words, self.page_words)
            == (shape.kv, shape.kv_heads, head_words, page_words)
    }

    pub(super) fn start(&self, page: u32) -> Option<*mut u16> {
        self.starts.0.get(page as usize).copied()
    }

    pub(super) fn offset(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * self.head_words
    }
}
