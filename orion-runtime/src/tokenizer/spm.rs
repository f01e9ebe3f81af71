//! SentencePiece: the neighbours that form the entry with the highest score are joined first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use orion_core::{Error, Result, TokenId};

use super::vocab::{ESCAPED_SPACE, Vocab};

const END: u32 = u32::MAX;

/// What a SentencePiece vocabulary needs besides its entries.
pub(crate) struct Spm {
    /// A text, and what follows a special token, begins with a space.
    pub(crate) add_space_prefix: bool,
    /// The entry of each byte: `<0xHH>`, the byte itself, or the unknown token.
    bytes: Box<[Option<u32>; 256]>,
}

#[derive(Clone, Copy)]
struct Symbol {
    prev: u32,
    next: u32,
    start: u32,
    /// 0 once it was merged into the symbol before it.
    len: u32,
}

/// Two neighbours that form an entry: highest score first, leftmost first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    score: i32,
    left: Reverse<u32>,
    right: u32,
    len: u32,
}

impl Spm {
    pub(crate) fn new(vocab: &Vocab, add_space_prefix: bool, unk: Option<TokenId>) -> Result<Self> {
        for id in 0..vocab.len() as u32 {
            if vocab.score(id).is_nan() {
                let what = format!("the score of entry {id} is not a number");
                return Err(Error::corrupt(what).about("tokenizer.ggml.scores"));
            }
        }
        let bytes = Box::new(std::array::from_fn(|byte| {
            let byte = u8::try_from(byte).expect("256 bytes");
            vocab.byte_id(byte).or_else(|| vocab.id(&[byte])).or(unk.map(|unk| unk.0))
        }));
        Ok(Self { add_space_prefix, bytes })
    }

    /// Appends the ids of a text without special tokens. `first`: nothing but a special token stands before it.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, first: bool, out: &mut Vec<TokenId>) {
        let prefix = if self.add_space_prefix && first { ESCAPED_SPACE } else { "" };
        let text = format!("{prefix}{}", text.replace(' ', ESCAPED_SPACE));
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (at, letter) in (0u32..).zip(text.char_indices()) {
            let (start, letter) = letter;
            let len = letter.len_utf8() as u32;
            symbols.push(Symbol { prev: at.wrapping_sub(1), next: at + 1, start: start as u32, len });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = END;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() as u32 {
            offer(vocab, &text, &symbols, &mut queue, right - 1, right);
        }
        while let Some(best) = queue.pop() {
            let Reverse(left_at) = best.left;
            let (left, right) = (symbols[left_at as usize], symbols[best.right as usize]);
            let current = left.len > 0 && right.len > 0 && left.len + right.len == best.len;
            if !current {
                continue;
            }
            symbols[left_at as usize] = Symbol { next: right.next, len: best.len, ..left };
            symbols[best.right as usize].len = 0;
            if right.next != END {
                symbols[right.next as usize].prev = left_at;
                offer(vocab, &text, &symbols, &mut queue, left_at, right.next);
            }
            if left.prev != END {
                offer(vocab, &text, &symbols, &mut queue, left.prev, left_at);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text.as_bytes()[symbol.start as usize..][..symbol.len as usize];
            match vocab.id(piece) {
                Some(id) => out.push(TokenId(id)),
                None => {
                    out.extend(piece.iter().filter_map(|&byte| self.bytes[usize::from(byte)]).map(TokenId))
                }
            }
        }
    }
}

fn offer(
    vocab: &Vocab,
    text: &str,
    symbols: &[Symbol],
    queue: &mut BinaryHeap<Candidate>,
    left: u32,
    right: u32,
) {
    let start = symbols[left as usize].start as usize;
    let len = symbols[left as usize].len + symbols[right as usize].len;
    if let Some(id) = vocab.id(&text.as_bytes()[start..start + len as usize]) {
        queue.push(Candidate { score: ordered(vocab.score(id)), left: Reverse(left), right, len });
    }
}

/// An integer that orders as the score does; 0 and -0 are equal.
fn ordered(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_their_order_as_integers() {
        let scores = [f32::NEG_INFINITY, -1e30, -2.5, -1.0, 0.0, 1e-20, 3.0, f32::INFINITY];
        assert!(scores.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
        assert_eq!(ordered(0.0), ordered(-0.0));
    }
}
