//! WordPiece as BERT uses it: words are cut greedily into the longest entries.

use orion_core::TokenId;
use unicode_normalization::char::decompose_canonical;

use super::chars::Char;
use super::vocab::{ESCAPED_SPACE, Vocab};

/// What BERT's normaliser does before words are cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wpm {
    pub(crate) lowercase: bool,
    pub(crate) strip_accents: bool,
    pub(crate) unk: TokenId,
}

impl Wpm {
    /// Appends the ids of a text without special tokens.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<TokenId>) {
        for word in self.words(text) {
            self.encode_word(vocab, &word, out);
        }
    }

    /// Entries that begin a word are spelled with `▁`. A word that cannot be cut is the unknown token.
    fn encode_word(&self, vocab: &Vocab, word: &str, out: &mut Vec<TokenId>) {
        let word = format!("{ESCAPED_SPACE}{word}");
        let (before, mut at) = (out.len(), 0);
        while at < word.len() {
            let longest = word.len().min(at + vocab.max_len());
            let hit = (at + 1..=longest).rev().find_map(|end| {
                let id = vocab.id(&word.as_bytes()[at..end])?;
                Some((id, end))
            });
            let Some((id, end)) = hit else {
                out.truncate(before);
                break;
            };
            out.push(TokenId(id));
            at = end;
        }
        if out.len() == before {
            out.push(self.unk);
        }
    }

    fn words(&self, text: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let finish = |words: &mut Vec<String>| {
            if words.last().is_some_and(|word| !word.is_empty()) {
                words.push(String::new());
            }
        };
        for letter in text.chars() {
            let letter = if self.strip_accents { base(letter) } else { letter };
            let class = Char::new(letter);
            if class.is_space() {
                finish(&mut words);
                continue;
            }
            let dropped = matches!(letter, '\0' | char::REPLACEMENT_CHARACTER)
                || class.is_control()
                || (self.strip_accents && class.is_mark());
            if dropped {
                continue;
            }
            let alone = class.is_punctuation() || (letter.is_ascii() && class.is_symbol()) || is_han(letter);
            if alone {
                finish(&mut words);
            }
            if let Some(word) = words.last_mut() {
                word.push(if self.lowercase { lower(letter) } else { letter });
            }
            if alone {
                finish(&mut words);
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }
}

/// The first character of the canonical decomposition: the letter without its accent.
fn base(letter: char) -> char {
    let mut first = None;
    decompose_canonical(letter, |part| {
        first.get_or_insert(part);
    });
    first.unwrap_or(letter)
}

/// The first character of the lower-case form.
fn lower(letter: char) -> char {
    letter.to_lowercase().next().unwrap_or(letter)
}

/// The ranges BERT's tokeniser treats as Chinese, its slip in extension E (`2B920` for `2B820`) included.
fn is_han(letter: char) -> bool {
    matches!(u32::from(letter), 0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F
        | 0x2B740..=0x2B81F | 0x2B920..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}
