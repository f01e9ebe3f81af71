//! The entries of a vocabulary: texts, attributes, scores, and the way back from a text to its id.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use orion_core::{Error, Result, StringTable, TokenId};

/// What a token is, as bits: a token may be several things at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attr(u8);

impl Attr {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const NORMAL: Self = Self(1);
    pub(crate) const UNKNOWN: Self = Self(1 << 1);
    /// Steers the model and never stands for text.
    pub(crate) const CONTROL: Self = Self(1 << 2);
    /// Stands for its own text, which is cut out before anything else is tokenised.
    pub(crate) const USER_DEFINED: Self = Self(1 << 3);
    pub(crate) const UNUSED: Self = Self(1 << 4);
    /// One byte, written `<0xHH>`.
    pub(crate) const BYTE: Self = Self(1 << 5);
    /// Swallows the whitespace before it.
    pub(crate) const LSTRIP: Self = Self(1 << 6);
    /// Swallows the whitespace after it.
    pub(crate) const RSTRIP: Self = Self(1 << 7);

    /// Whether any of these bits is set.
    pub(crate) fn any(self, bits: Self) -> bool {
        self.0 & bits.0 != 0
    }

    pub(crate) fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    pub(crate) fn without(self, bits: Self) -> Self {
        Self(self.0 & !bits.0)
    }

    /// Control and unknown tokens: read as such only where special tokens are parsed.
    pub(crate) fn is_special(self) -> bool {
        self.any(Self::CONTROL.with(Self::UNKNOWN))
    }
}

/// How the text of an entry becomes bytes of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// GPT-2's alphabet: every byte is written as one printable character.
    ByteLevel,
    /// `▁` is a space.
    Escaped,
    /// `##` continues a word, everything else begins one.
    WordPiece,
    /// As it stands.
    Verbatim,
}

/// Texts, attributes and scores by id, and ids by text. A few bytes per entry on top of the texts.
#[derive(Debug, Clone)]
pub(crate) struct Vocab {
    texts: StringTable,
    attrs: Vec<Attr>,
    scores: Vec<f32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    max_len: usize,
}

impl Vocab {
    /// Indexes `texts`. `scores` may be empty: all 0 then. `field` is what errors name.
    pub(crate) fn new(texts: StringTable, attrs: Vec<Attr>, scores: Vec<f32>, field: &str) -> Result<Self> {
        if texts.is_empty() {
            return Err(Error::corrupt("the vocabulary is empty").about(field));
        }
        if i32::try_from(texts.len()).is_err() {
            return Err(Error::corrupt(format!("{} entries are more than ids", texts.len())).about(field));
        }
        let texts = name_empty_entries(texts)?;
        let hasher = DefaultHashBuilder::default();
        let mut index: HashTable<u32> = HashTable::with_capacity(texts.len());
        let text = |id: u32| texts.get(id as usize).expect("only ids of the table are indexed");
        let mut max_len = 0;
        for (id, entry) in (0u32..).zip(texts.iter()) {
            max_len = max_len.max(entry.len());
            let hash = hasher.hash_one(entry);
            if let Some(&first) = index.find(hash, |&other| text(other) == entry) {
                let what = format!("entries {first} and {id} are both {:?}", String::from_utf8_lossy(entry));
                return Err(Error::corrupt(what).about(field));
            }
            index.insert_unique(hash, id, |&other| hasher.hash_one(text(other)));
        }
        Ok(Self { texts, attrs, scores, index, hasher, max_len })
    }

    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Bytes of the longest entry.
    pub(crate) fn max_len(&self) -> usize {
        self.max_len
    }

    pub(crate) fn text(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize).unwrap_or_default()
    }

    pub(crate) fn attr(&self, id: u32) -> Attr {
        self.attrs.get(id as usize).copied().unwrap_or(Attr::NONE)
    }

    pub(crate) fn set_attr(&mut self, id: u32, attr: Attr) {
        self.attrs[id as usize] = attr;
    }

    pub(crate) fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or(0.0)
    }

    pub(crate) fn id(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.max_len {
            return None;
        }
        self.index.find(self.hasher.hash_one(text), |&id| self.text(id) == text).copied()
    }

    /// The id of the token `<0xHH>` of a byte.
    pub(crate) fn byte_id(&self, byte: u8) -> Option<u32> {
        self.id(format!("<0x{byte:02X}>").as_bytes())
    }

    /// Refuses entries of type byte that are not spelled `<0xHH>`.
    pub(crate) fn check_bytes(&self, field: &str) -> Result<()> {
        for (id, text) in self.texts.iter().enumerate() {
            if self.attrs[id].any(Attr::BYTE) && byte_of(text).is_none() {
                let what =
                    format!("entry {id} is of type byte but reads {:?}", String::from_utf8_lossy(text));
                return Err(Error::corrupt(what).about(field));
            }
        }
        Ok(())
    }

    /// Appends the bytes that a token stands for.
    pub(crate) fn write_bytes(&self, id: u32, spelling: Spelling, out: &mut Vec<u8>) {
        let (text, attr) = (self.text(id), self.attr(id));
        if attr.any(Attr::BYTE) {
            out.extend(byte_of(text));
        } else if attr.is_special() || attr.any(Attr::USER_DEFINED) {
            out.extend_from_slice(text);
        } else if attr.any(Attr::NORMAL) {
            match spelling {
                Spelling::ByteLevel => super::byte_level::decode(text, out),
                Spelling::Escaped => unescape(text, out),
                Spelling::WordPiece => match text.strip_prefix(b"##") {
                    Some(rest) => out.extend_from_slice(rest),
                    None => {
                        out.push(b' ');
                        out.extend_from_slice(text);
                    }
                },
                Spelling::Verbatim => out.extend_from_slice(text),
            }
        }
    }
}

/// `▁`, the visible space of SentencePiece.
pub(crate) const ESCAPED_SPACE: &str = "\u{2581}";

/// The value of `<0xHH>`.
fn byte_of(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.len() == 2 && !hex.starts_with('+'))?;
    u8::from_str_radix(hex, 16).ok()
}

fn unescape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, ESCAPED_SPACE.as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.push(b' ');
        rest = &rest[at + ESCAPED_SPACE.len()..];
    }
    out.extend_from_slice(rest);
}

/// Entries without text get a name of their own, so that texts stay unique.
fn name_empty_entries(texts: StringTable) -> Result<StringTable> {
    if texts.iter().all(|text| !text.is_empty()) {
        return Ok(texts);
    }
    let mut named = StringTable::with_capacity(texts.len(), 0);
    for (id, text) in texts.iter().enumerate() {
        if text.is_empty() {
            named.push(format!("[EMPTY_{id}]").as_bytes())?;
        } else {
            named.push(text)?;
        }
    }
    Ok(named)
}

/// The ids that play a role, by what they do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roles {
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Option<TokenId>,
    pub(crate) unk: Option<TokenId>,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
    /// Ids at which generation ends, ascending.
    pub(crate) end_of_generation: Vec<TokenId>,
}
