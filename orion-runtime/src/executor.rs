//! What runs a decoder: the seam between the model's worker and the arithmetic.

use orion_core::{Result, TokenId};

/// Which logits of a chunk are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    None,
    Last,
    All,
}

/// Consecutive tokens of one sequence. Their keys and values go into `pages`, which hold those of every earlier
/// position: position `p` lives in page `pages[p / PAGE_TOKENS]`, slot `p % PAGE_TOKENS`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk<'a> {
    pub(crate) tokens: &'a [TokenId],
    /// Position of the first token.
    pub(crate) start: usize,
    pub(crate) pages: &'a [u32],
    /// The sequence outgrows the original context: longrope takes its long factors.
    pub(crate) long: bool,
    pub(crate) rows: Rows,
}

impl Chunk<'_> {
    pub(crate) fn wanted_rows(&self) -> usize {
        match self.rows {
            Rows::None => 0,
            Rows::Last => 1,
            Rows::All => self.tokens.len(),
        }
    }
}

/// Runs chunks of sequences through a decoder. Running a chunk again from the same position gives the same result.
pub(crate) trait Executor: Send {
    /// Makes pages `0..count` usable.
    fn reserve_pages(&mut self, count: usize) -> Result<()>;

    /// Bytes of one page as [`read_page`](Self::read_page) gives them; 0 if pages cannot be read.
    fn page_bytes(&self) -> usize {
        0
    }

    /// The content of a page, to be written back by the same executor over the same weights.
    fn read_page(&self, page: u32) -> Vec<u8> {
        let _ = page;
        Vec::new()
    }

    /// Puts the content of a page back.
    fn write_page(&mut self, page: u32, content: &[u8]) {
        let _ = (page, content);
    }

    /// Runs the chunks and appends the wanted logits to `logits`, row after row in order of chunks, each of
    /// `vocab_size`. Reads `stop` at every layer and returns [`Cancelled`](orion_core::ErrorKind::Cancelled) once it is true.
    fn forward(&mut self, chunks: &[Chunk<'_>], stop: &dyn Fn() -> bool, logits: &mut Vec<f32>)
    -> Result<()>;
}
