//! Byte-pair encoding: the pair that was merged first in training is merged first here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;
use orion_core::{Error, Result, StringTable, TokenId};

use super::byte_level;
use super::pre::PreTokenizer;
use super::vocab::{ESCAPED_SPACE, Vocab};

const MERGES: &str = "tokenizer.ggml.merges";

/// A symbol that is no entry of the vocabulary.
const ABSENT: u32 = u32::MAX;
const END: u32 = u32::MAX;

/// Rank and result of a merge.
#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// Merges and the pre-tokenizer in front of them.
pub(crate) struct Bpe {
    pre: PreTokenizer,
    merges: HashMap<(u32, u32), Merge>,
    /// The entry that stands for a byte; in GPT-2's alphabet, or `<0xHH>` where that is not used.
    bytes: Box<[u32; 256]>,
}

/// Buffers of one text, used again for each word.
#[derive(Default)]
struct Work {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
    spelled: String,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    prev: u32,
    next: u32,
    /// Bytes of the word it covers; 0 once it was merged into the symbol before it.
    start: u32,
    len: u32,
}

/// A merge that may be done: lowest rank first, leftmost first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    pair: (u32, u32),
    id: u32,
}

impl Bpe {
    /// Reads the merges as pairs of ids.
    pub(crate) fn new(vocab: &Vocab, merges: &StringTable, pre: PreTokenizer) -> Result<Self> {
        let mut map = HashMap::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, merge) in (0u32..).zip(merges.iter()) {
            let fail = |what: &str| {
                let text = String::from_utf8_lossy(merge);
                Error::corrupt(format!("merge {rank} {text:?} {what}")).about(MERGES)
            };
            let gap =
                merge.iter().skip(1).position(|&byte| byte == b' ').ok_or_else(|| fail("is no pair"))?;
            let (left, right) = (&merge[..=gap], &merge[gap + 2..]);
            joined.clear();
            joined.extend_from_slice(left);
            joined.extend_from_slice(right);
            let id = |text: &[u8]| vocab.id(text).ok_or_else(|| fail("names an entry that does not exist"));
            let (left, right, id) = (id(left)?, id(right)?, id(&joined)?);
            map.entry((left, right)).or_insert(Merge { rank, id });
        }
        let bytes = Box::new(std::array::from_fn(|byte| {
            let byte = u8::try_from(byte).expect("256 bytes");
            let id = if pre.escaped {
                vocab.byte_id(byte)
            } else {
                let letter = byte_level::ALPHABET[usize::from(byte)];
                vocab.id(letter.encode_utf8(&mut [0; 4]).as_bytes())
            };
            id.unwrap_or(ABSENT)
        }));
        Ok(Self { pre, merges: map, bytes })
    }

    pub(crate) fn is_escaped(&self) -> bool {
        self.pre.escaped
    }

    /// Appends the ids of a text without special tokens.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<TokenId>) {
        let mut work = Work::default();
        if self.pre.escaped {
            let text = text.replace(' ', ESCAPED_SPACE);
            self.pre.words(&text, |word| self.raw_word(vocab, word, &mut work, out));
        } else {
            self.pre.words(text, |word| self.byte_word(vocab, word, &mut work, out));
        }
    }

    /// A word whose bytes are written in GPT-2's alphabet. Bytes without an entry are dropped, as llama.cpp does.
    fn byte_word(&self, vocab: &Vocab, word: &str, work: &mut Work, out: &mut Vec<TokenId>) {
        if self.pre.ignore_merges {
            work.spelled.clear();
            byte_level::encode(word.as_bytes(), &mut work.spelled);
            if let Some(id) = vocab.id(work.spelled.as_bytes()) {
                out.push(TokenId(id));
                return;
            }
        }
        work.symbols.clear();
        for (start, &byte) in (0u32..).zip(word.as_bytes()) {
            work.push(self.bytes[usize::from(byte)], start, 1);
        }
        self.merge(work);
        out.extend(work.symbols.iter().filter(|s| s.len > 0 && s.id != ABSENT).map(|s| TokenId(s.id)));
    }

    /// A word merged as UTF-8; characters without an entry become bytes.
    fn raw_word(&self, vocab: &Vocab, word: &str, work: &mut Work, out: &mut Vec<TokenId>) {
        let newlines = self.pre.whole_newlines && word.bytes().all(|byte| byte == b'\n');
        if newlines && let Some(id) = vocab.id(word.as_bytes()) {
            out.push(TokenId(id));
            return;
        }
        work.symbols.clear();
        let mut start = 0;
        for letter in word.chars() {
            let id = vocab.id(letter.encode_utf8(&mut [0; 4]).as_bytes()).unwrap_or(ABSENT);
            work.push(id, start, letter.len_utf8() as u32);
            start += letter.len_utf8() as u32;
        }
        self.merge(work);
        for symbol in work.symbols.iter().filter(|symbol| symbol.len > 0) {
            if symbol.id == ABSENT {
                let bytes = &word.as_bytes()[symbol.start as usize..][..symbol.len as usize];
                let ids = bytes.iter().map(|&byte| self.bytes[usize::from(byte)]);
                out.extend(ids.filter(|&id| id != ABSENT).map(TokenId));
            } else {
                out.push(TokenId(symbol.id));
            }
        }
    }

    fn merge(&self, work: &mut Work) {
        let Work { symbols, queue, .. } = work;
        if let Some(last) = symbols.last_mut() {
            last.next = END;
        }
        queue.clear();
        for right in 1..symbols.len() as u32 {
            self.offer(symbols, queue, right - 1, right);
        }
        while let Some(Reverse(best)) = queue.pop() {
            let (left, right) = (symbols[best.left as usize], symbols[best.right as usize]);
            let current = left.len > 0 && left.next == best.right && (left.id, right.id) == best.pair;
            if !current {
                continue;
            }
            symbols[best.left as usize] =
                Symbol { id: best.id, next: right.next, len: left.len + right.len, ..left };
            symbols[best.right as usize].len = 0;
            if right.next != END {
                symbols[right.next as usize].prev = best.left;
                self.offer(symbols, queue, best.left, right.next);
            }
            if left.prev != END {
                self.offer(symbols, queue, left.prev, best.left);
            }
        }
    }

    fn offer(&self, symbols: &[Symbol], queue: &mut BinaryHeap<Reverse<Candidate>>, left: u32, right: u32) {
        let pair = (symbols[left as usize].id, symbols[right as usize].id);
        if let Some(&Merge { rank, id }) = self.merges.get(&pair) {
            queue.push(Reverse(Candidate { rank, left, right, pair, id }));
        }
    }
}

impl Work {
    fn push(&mut self, id: u32, start: u32, len: u32) {
        let at = self.symbols.len() as u32;
        self.symbols.push(Symbol { id, prev: at.wrapping_sub(1), next: at + 1, start, len });
    }
}
