//! Unigram: of all ways to cut a text into entries, the one with the highest sum of scores.

use orion_core::{Error, Result, TokenId};

use super::vocab::{Attr, ESCAPED_SPACE, Vocab};

const CHARS_MAP: &str = "tokenizer.ggml.precompiled_charsmap";
/// How much worse than the worst entry an unknown character is.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What a unigram vocabulary needs besides its entries.
pub(crate) struct Ugm {
    chars_map: CharsMap,
    add_space_prefix: bool,
    merge_spaces: bool,
    unk: TokenId,
    unknown_score: f64,
    /// Lengths of user-defined entries, longest first; these are never normalised.
    user_defined: Vec<usize>,
}

/// The best way to arrive at a place of the text.
#[derive(Clone, Copy)]
struct Step {
    id: u32,
    from: usize,
    score: f64,
}

impl Ugm {
    pub(crate) fn new(
        vocab: &Vocab,
        chars_map: &[u8],
        add_space_prefix: bool,
        merge_spaces: bool,
        unk: Option<TokenId>,
    ) -> Result<Self> {
        let unk = unk.ok_or_else(|| {
            Error::corrupt("a unigram vocabulary needs it").about("tokenizer.ggml.unknown_token_id")
        })?;
        let ids = 0..vocab.len() as u32;
        let lowest = ids.clone().filter(|&id| vocab.attr(id).any(Attr::NORMAL)).map(|id| vocab.score(id));
        let lowest = lowest.fold(f32::MAX, f32::min);
        let user = ids.filter(|&id| vocab.attr(id).any(Attr::USER_DEFINED));
        let mut user_defined: Vec<usize> = user.map(|id| vocab.text(id).len()).collect();
        user_defined.sort_unstable_by(|a, b| b.cmp(a));
        user_defined.dedup();
        Ok(Self {
            chars_map: CharsMap::new(chars_map)?,
            add_space_prefix,
            merge_spaces,
            unk,
            unknown_score: f64::from(lowest - UNKNOWN_PENALTY),
            user_defined,
        })
    }

    /// Appends the ids of a text without special tokens.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<TokenId>) -> Result<()> {
        let text = self.normalise(vocab, text)?;
        if text.is_empty() {
            return Ok(());
        }
        let usable = Attr::NORMAL.with(Attr::USER_DEFINED).with(Attr::UNUSED);
        let nowhere = Step { id: self.unk.0, from: 0, score: f64::MIN };
        let mut steps = vec![nowhere; text.len() + 1];
        steps[0].score = 0.0;
        let mut at = 0;
        while at < text.len() {
            let first = utf8_len(text[at]).min(text.len() - at);
            let here = steps[at].score;
            let mut first_known = false;
            for end in at + 1..=text.len().min(at + vocab.max_len()) {
                let Some(id) = vocab.id(&text[at..end]).filter(|&id| vocab.attr(id).any(usable)) else {
                    continue;
                };
                first_known |= end - at == first;
                let user = vocab.attr(id).any(Attr::USER_DEFINED);
                let score = here + if user { 0.0 } else { f64::from(vocab.score(id)) };
                if score > steps[end].score {
                    steps[end] = Step { id, from: at, score };
                }
            }
            if !first_known {
                let score = here + self.unknown_score;
                if score > steps[at + first].score {
                    steps[at + first] = Step { id: self.unk.0, from: at, score };
                }
            }
            at += first;
        }
        let start = out.len();
        let (mut at, mut after_unknown) = (text.len(), false);
        while at > 0 {
            let step = steps[at];
            let unknown = step.id == self.unk.0;
            if !(unknown && after_unknown) {
                out.push(TokenId(step.id));
            }
            (at, after_unknown) = (step.from, unknown);
        }
        out[start..].reverse();
        Ok(())
    }

    /// Maps characters as the file says, escapes spaces, merges and prepends them where it is asked for.
    fn normalise(&self, vocab: &Vocab, text: &str) -> Result<Vec<u8>> {
        let mut normal = Vec::with_capacity(text.len() * 3);
        let (mut prepended, mut in_word) = (false, false);
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (mapped, consumed) = self.normalise_prefix(vocab, rest)?;
            for &byte in mapped {
                if byte != b' ' {
                    if !in_word {
                        in_word = true;
                        if (self.add_space_prefix && !prepended) || self.merge_spaces {
                            normal.extend_from_slice(ESCAPED_SPACE.as_bytes());
                            prepended = true;
                        }
                    }
                    normal.push(byte);
                } else {
                    in_word = false;
                    if !self.merge_spaces {
                        normal.extend_from_slice(ESCAPED_SPACE.as_bytes());
                    }
                }
            }
            rest = &rest[consumed..];
        }
        Ok(normal)
    }

    /// What stands for the beginning of `rest`, and how much of it that is.
    fn normalise_prefix<'t>(&'t self, vocab: &Vocab, rest: &'t [u8]) -> Result<(&'t [u8], usize)> {
        let user_defined = self
            .user_defined
            .iter()
            .filter_map(|&len| rest.get(..len))
            .find(|text| vocab.id(text).is_some_and(|id| vocab.attr(id).any(Attr::USER_DEFINED)));
        if let Some(text) = user_defined {
            return Ok((text, text.len()));
        }
        if let Some(hit) = self.chars_map.longest(rest)? {
            return Ok(hit);
        }
        let len = utf8_len(rest[0]).min(rest.len());
        Ok((&rest[..len], len))
    }
}

fn utf8_len(first: u8) -> usize {
    match first {
        0x00..=0xBF => 1,
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xFF => 4,
    }
}

/// SentencePiece's precompiled normalisation: a double array (Kanda 2018) from prefixes to replacements.
struct CharsMap {
    nodes: Vec<u32>,
    replacements: Vec<u8>,
}

impl CharsMap {
    fn new(blob: &[u8]) -> Result<Self> {
        if blob.is_empty() {
            return Ok(Self { nodes: Vec::new(), replacements: Vec::new() });
        }
        let short = || Error::corrupt("is shorter than it says").about(CHARS_MAP);
        let (size, rest) = blob.split_first_chunk::<4>().ok_or_else(short)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (nodes, replacements) = rest.split_at_checked(size).ok_or_else(short)?;
        let nodes = nodes.as_chunks::<4>().0.iter().map(|node| u32::from_le_bytes(*node)).collect();
        Ok(Self { nodes, replacements: replacements.to_vec() })
    }

    /// The replacement of the longest prefix of `rest` that has one, and the length of that prefix.
    fn longest(&self, rest: &[u8]) -> Result<Option<(&[u8], usize)>> {
        if self.nodes.is_empty() {
            return Ok(None);
        }
        let corrupt = || Error::corrupt("points outside itself").about(CHARS_MAP);
        let node = |at: u32| self.nodes.get(at as usize).copied().ok_or_else(corrupt);
        let base = |packed: u32| (packed >> 10) << ((packed & (1 << 9)) >> 6);
        let mut at = base(node(0)?);
        let mut longest = None;
        for (seen, &byte) in (1..).zip(rest) {
            if byte == 0 {
                break;
            }
            at ^= u32::from(byte);
            let packed = node(at)?;
            if packed & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            at ^= base(packed);
            if packed & (1 << 8) != 0 {
                longest = Some((node(at)? & !(1 << 31), seen));
            }
        }
        let Some((start, len)) = longest else { return Ok(None) };
        let text = self.replacements.get(start as usize..).ok_or_else(corrupt)?;
        let end = text.iter().position(|&byte| byte == 0).ok_or_else(corrupt)?;
        Ok(Some((&text[..end], len)))
    }
}
