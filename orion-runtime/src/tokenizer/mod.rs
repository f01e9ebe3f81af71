//! Text to token ids and back.
//!
//! A GGUF carries its vocabulary in the header; it is run here, by llama.cpp's rules, so the ids are llama.cpp's.
//! A `tokenizer.json` is run by the `tokenizers` crate.

mod bpe;
mod byte_level;
mod chars;
mod detokenizer;
mod gguf;
mod hugging_face;
mod pre;
mod roles;
mod special;
mod spm;
mod ugm;
mod vocab;
mod wpm;

use std::borrow::Cow;
use std::fmt;

use orion_core::{Error, ModelFormat, ModelHeader, Result, TokenId};

use crate::template::RenderedPrompt;
pub use detokenizer::Detokenizer;
use special::{Fragment, Scope, SpecialIndex};
use vocab::{Roles, Spelling, Vocab};

/// Whether a text may spell special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// `<|im_end|>` in the text is ten characters of text. For anything a person or a tool wrote.
    Plain,
    /// `<|im_end|>` in the text is the token. For text that a template wrote.
    Parse,
}

/// The vocabulary of a model. Immutable and shareable; encoding needs no lock except for `tokenizer.json` files
/// with special tokens in the text.
pub struct Tokenizer {
    kind: Kind,
    vocab: Vocab,
    specials: SpecialIndex,
    roles: Roles,
    prefix: Vec<TokenId>,
    suffix: Vec<TokenId>,
    spelling: Spelling,
    space_first: bool,
}

enum Kind {
    Bpe(bpe::Bpe),
    Spm(spm::Spm),
    Wpm(wpm::Wpm),
    Ugm(Box<ugm::Ugm>),
    HuggingFace(Box<hugging_face::HuggingFace>),
}

impl Tokenizer {
    /// Reads the vocabulary of a model: `tokenizer.ggml.*` of a GGUF, else the side file `tokenizer.json`.
    ///
    /// # Errors
    /// [`NotFound`](orion_core::ErrorKind::NotFound) if there is none,
    /// [`Unsupported`](orion_core::ErrorKind::Unsupported) with the name of a family that is not known,
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) with the key that is wrong.
    pub fn from_header(header: &ModelHeader) -> Result<Self> {
        let kind = header.metadata.get(gguf::MODEL);
        let own = kind.is_some_and(|kind| !matches!(kind.as_str(), Some("no_vocab" | "none")));
        if header.format == ModelFormat::Gguf && own {
            return gguf::load(header);
        }
        let missing = if header.format == ModelFormat::Gguf { gguf::MODEL } else { hugging_face::FILE };
        hugging_face::load(header)?.ok_or_else(|| {
            let what = format!("the model has no tokenizer: {missing} is missing");
            Error::new(orion_core::ErrorKind::NotFound, what)
        })
    }

    /// The ids of exactly this text: neither BOS nor EOS is added.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for a text of more than 1 GiB;
    /// [`Corrupt`](orion_core::ErrorKind::Corrupt) if `tokenizer.json` turns out to be malformed.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        match special {
            SpecialTokens::Plain => self.encode_scope(text, Scope::UserDefined),
            SpecialTokens::Parse => self.encode_scope(text, Scope::AllBut(&[])),
        }
    }

    /// The ids of a text with what the vocabulary wants around it: BOS, EOS, or `[CLS]` and `[SEP]`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_framed(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        let mut ids = self.prefix.clone();
        ids.extend(self.encode(text, special)?);
        ids.extend(&self.suffix);
        Ok(ids)
    }

    /// The ids of a rendered conversation: special tokens of the template are tokens, those spelled in messages
    /// are text. BOS is put first if the vocabulary asks for it and the template has not done so.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, prompt: &RenderedPrompt) -> Result<Vec<TokenId>> {
        let mut ids = self.encode_scope(prompt.text(), Scope::AllBut(prompt.plain()))?;
        if let Some(bos) = self.bos().filter(|bos| self.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn encode_scope(&self, text: &str, scope: Scope<'_>) -> Result<Vec<TokenId>> {
        if text.len() > MAX_TEXT {
            return Err(Error::invalid(format!("a text of {} bytes is too long to tokenise", text.len())));
        }
        let mut ids = Vec::with_capacity(text.len() / 4);
        if let Kind::HuggingFace(inner) = &self.kind {
            inner.encode(&self.vocab, &self.specials, text, scope, &mut ids)?;
            return Ok(ids);
        }
        let mut after_special = true;
        for fragment in self.specials.cut(&self.vocab, text, scope) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(ref range) => {
                    let text = &text[range.clone()];
                    match &self.kind {
                        Kind::Bpe(bpe) => bpe.encode(&self.vocab, text, &mut ids),
                        Kind::Spm(spm) => spm.encode(&self.vocab, text, after_special, &mut ids),
                        Kind::Wpm(wpm) => wpm.encode(&self.vocab, text, &mut ids),
                        Kind::Ugm(ugm) => ugm.encode(&self.vocab, text, &mut ids)?,
                        Kind::HuggingFace(_) => {}
                    }
                }
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        Ok(ids)
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.roles.bos
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        self.roles.eos
    }

    /// The token for what the vocabulary cannot spell.
    #[must_use]
    pub fn unknown(&self) -> Option<TokenId> {
        self.roles.unk
    }

    /// Whether the vocabulary asks for BOS before a text.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.roles.add_bos
    }

    /// Whether the vocabulary asks for EOS (or a separator) after a text.
    #[must_use]
    pub fn add_eos(&self) -> bool {
        self.roles.add_eos
    }

    /// Whether generation ends at this token: EOS, end of turn, and the tokens known to mean the same.
    #[must_use]
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        self.roles.end_of_generation.binary_search(&token).is_ok()
    }

    /// The tokens at which generation ends, ascending.
    #[must_use]
    pub fn end_of_generation(&self) -> &[TokenId] {
        &self.roles.end_of_generation
    }

    /// Whether the token steers the model and never stands for text.
    #[must_use]
    pub fn is_control(&self, token: TokenId) -> bool {
        self.vocab.attr(token.0).is_special()
    }

    /// Number of entries.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes a token stands for; of a control token its name. `None` if there is no such token.
    #[must_use]
    pub fn token_bytes(&self, token: TokenId) -> Option<Cow<'_, [u8]>> {
        if token.0 as usize >= self.vocab.len() {
            return None;
        }
        let mut bytes = Vec::new();
        self.vocab.write_bytes(token.0, self.spelling, &mut bytes);
        Some(Cow::Owned(bytes))
    }

    /// The entry as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`). `None` if there is no such token.
    #[must_use]
    pub fn token_text(&self, token: TokenId) -> Option<Cow<'_, str>> {
        let known = (token.0 as usize) < self.vocab.len();
        known.then(|| String::from_utf8_lossy(self.vocab.text(token.0)))
    }

    /// The id of the entry spelled like this.
    #[must_use]
    pub fn id_of(&self, text: &str) -> Option<TokenId> {
        self.vocab.id(text.as_bytes()).map(TokenId)
    }

    /// The text of these tokens, control tokens left out; bytes that are no UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let mut detokenizer = Detokenizer::new(self);
        let mut text: String = tokens.iter().map(|&token| detokenizer.push(self, token)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// Whether decoding a text begins with a space that was not in it.
    pub(crate) fn puts_space_first(&self) -> bool {
        self.space_first
    }

    /// Every place in `text` at which a control token is spelled.
    pub(crate) fn control_tokens_in(&self, text: &str) -> Vec<(usize, TokenId)> {
        let found = self.specials.occurrences(&self.vocab, text);
        found.map(|(at, id)| (at, TokenId(id))).filter(|&(_, id)| self.is_control(id)).collect()
    }
}

/// Offsets are kept in 32 bits, and a space may grow to three bytes.
const MAX_TEXT: usize = 1 << 30;

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Bpe(bpe) if bpe.is_escaped() => "escaped byte pairs",
            Kind::Bpe(_) => "byte pairs",
            Kind::Spm(_) => "sentencepiece",
            Kind::Wpm(_) => "wordpiece",
            Kind::Ugm(_) => "unigram",
            Kind::HuggingFace(_) => "tokenizer.json",
        };
        f.debug_struct("Tokenizer")
            .field("kind", &kind)
            .field("entries", &self.vocab.len())
            .finish_non_exhaustive()
    }
}
