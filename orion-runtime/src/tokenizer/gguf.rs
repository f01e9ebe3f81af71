//! The vocabulary in the metadata of a GGUF.

use orion_core::{Error, MetaArray, MetaValue, ModelHeader, Result, StringTable, TokenId};

use super::bpe::Bpe;
use super::pre::PreTokenizer;
use super::roles::{self, Named};
use super::special::SpecialIndex;
use super::spm::Spm;
use super::ugm::Ugm;
use super::vocab::{Attr, Roles, Spelling, Vocab};
use super::wpm::Wpm;
use super::{Kind, Tokenizer};

/// The key that says which kind of vocabulary it is.
pub(super) const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const CHARS_MAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// Longest entry of a WordPiece or unigram vocabulary; real ones have up to about 100 bytes.
const MAX_PIECE: usize = 512;

/// What a kind of vocabulary assumes where the file is silent.
#[derive(Default)]
struct Defaults {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    sep: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    add_sep: bool,
    add_space_prefix: bool,
}

pub(super) fn load(header: &ModelHeader) -> Result<Tokenizer> {
    let meta = Meta(header);
    let model = meta.string(MODEL)?.unwrap_or_default();
    let pre_name = if model == "gemma4" { "gemma4" } else { meta.string(PRE)?.unwrap_or_default() };
    let pre = PreTokenizer::named(pre_name);
    let defaults = match model {
        "gpt2" | "gemma4" => {
            let pre = pre.ok_or_else(|| {
                Error::unsupported(format!("the pre-tokenizer {pre_name:?} is not known")).about(PRE)
            })?;
            let add_sep = matches!(pre_name, "jina-v1-en" | "jina-v2-code" | "roberta-bpe");
            Defaults { add_bos: pre.add_bos, add_sep, ..Defaults::default() }
        }
        "llama" => Defaults {
            bos: Some(1),
            eos: Some(2),
            unk: Some(0),
            add_bos: true,
            add_space_prefix: true,
            ..Defaults::default()
        },
        "bert" => Defaults {
            bos: Some(101),
            unk: Some(100),
            sep: Some(102),
            add_bos: true,
            add_sep: true,
            ..Defaults::default()
        },
        "t5" => Defaults { eos: Some(1), unk: Some(2), add_eos: true, ..Defaults::default() },
        other => {
            let what = format!(
                "tokenizers of the kind {other:?} are not supported (gpt2, gemma4, llama, bert and t5 are)"
            );
            return Err(Error::unsupported(what).about(MODEL));
        }
    };
    let mut vocab = entries(&meta)?;
    vocab.check_bytes(TOKENS)?;
    // These two try every length at every place of a text.
    if matches!(model, "bert" | "t5") && vocab.max_len() > MAX_PIECE {
        let what = format!("has an entry of {} bytes, at most {MAX_PIECE} are allowed", vocab.max_len());
        return Err(Error::corrupt(what).about(TOKENS));
    }
    let id = |key: &str, default: Option<u32>| meta.id(key, default, vocab.len());
    let bos = id("tokenizer.ggml.bos_token_id", defaults.bos)?;
    let unk = id("tokenizer.ggml.unknown_token_id", defaults.unk)?;
    let sep = id("tokenizer.ggml.seperator_token_id", defaults.sep)?;
    let named = Named {
        eos: id("tokenizer.ggml.eos_token_id", defaults.eos)?,
        eot: id("tokenizer.ggml.eot_token_id", None)?,
        eom: id("tokenizer.ggml.eom_token_id", None)?,
        fill_in: [
            id("tokenizer.ggml.fim_pre_token_id", None)?.or(id("tokenizer.ggml.prefix_token_id", None)?),
            id("tokenizer.ggml.fim_suf_token_id", None)?.or(id("tokenizer.ggml.suffix_token_id", None)?),
            id("tokenizer.ggml.fim_mid_token_id", None)?.or(id("tokenizer.ggml.middle_token_id", None)?),
        ],
        fill_in_ends: [
            id("tokenizer.ggml.fim_pad_token_id", None)?,
            id("tokenizer.ggml.fim_rep_token_id", None)?,
            id("tokenizer.ggml.fim_sep_token_id", None)?,
        ],
    };
    let end_of_generation = roles::settle(&mut vocab, named);
    strip_attributes(&meta, pre_name, &mut vocab)?;

    let escaped = pre.is_some_and(|pre| pre.escaped);
    let gemma4 = escaped && pre.is_some_and(|pre| pre.whole_newlines);
    let add_bos = meta.flag("tokenizer.ggml.add_bos_token", defaults.add_bos)? || gemma4;
    let add_eos = meta.flag("tokenizer.ggml.add_eos_token", defaults.add_eos)?;
    let add_sep = meta.flag("tokenizer.ggml.add_sep_token", defaults.add_sep)?;
    let add_space_prefix = meta.flag("tokenizer.ggml.add_space_prefix", defaults.add_space_prefix)?;

    // BERT is framed by its own rule, whatever the flags say.
    let bert = model == "bert";
    let prefix: Vec<TokenId> = bos.filter(|_| add_bos || bert).into_iter().collect();
    let last = if bert || (add_sep && model == "gpt2") { sep } else { named.eos.filter(|_| add_eos) };
    let suffix: Vec<TokenId> = last.into_iter().collect();
    let (kind, spelling, space_first) = match model {
        "gpt2" | "gemma4" => {
            let pre = pre.expect("checked above");
            let merges = meta.strings(MERGES)?;
            let spelling = if escaped { Spelling::Escaped } else { Spelling::ByteLevel };
            (Kind::Bpe(Bpe::new(&vocab, merges, pre)?), spelling, add_space_prefix)
        }
        "llama" => {
            let spm = Spm::new(&vocab, add_space_prefix, unk)?;
            (Kind::Spm(spm), Spelling::Escaped, add_space_prefix)
        }
        "bert" => {
            let lowercase = meta.flag("tokenizer.ggml.normalizer.lowercase", true)?;
            let strip_accents = meta.flag("tokenizer.ggml.normalizer.strip_accents", lowercase)?;
            let unk = unk.ok_or_else(|| {
                Error::corrupt("a wordpiece vocabulary needs it").about("tokenizer.ggml.unknown_token_id")
            })?;
            (Kind::Wpm(Wpm { lowercase, strip_accents, unk }), Spelling::Escaped, true)
        }
        _ => {
            let merge_spaces = meta.flag("tokenizer.ggml.remove_extra_whitespaces", false)?;
            let ugm = Ugm::new(&vocab, &meta.bytes(CHARS_MAP)?, add_space_prefix, merge_spaces, unk)?;
            (Kind::Ugm(Box::new(ugm)), Spelling::Escaped, add_space_prefix)
        }
    };
    let specials = SpecialIndex::new(&vocab);
    let roles = Roles {
        bos,
        eos: named.eos.or(sep),
        unk,
        add_bos: !prefix.is_empty(),
        add_eos: !suffix.is_empty(),
        end_of_generation,
    };
    Ok(Tokenizer { kind, vocab, specials, roles, prefix, suffix, spelling, space_first })
}

fn entries(meta: &Meta<'_>) -> Result<Vocab> {
    let texts = meta.strings(TOKENS)?;
    let count = texts.len();
    let enough = |key: &str, got: usize| {
        if got < count {
            return Err(Error::corrupt(format!("has {got} entries, but there are {count} tokens")).about(key));
        }
        Ok(())
    };
    let scores = match meta.array(SCORES)? {
        None => Vec::new(),
        Some(MetaArray::F32(scores)) => scores.clone(),
        #[allow(clippy::cast_precision_loss, reason = "whole scores are small")]
        Some(MetaArray::I32(scores)) => scores.iter().map(|&score| score as f32).collect(),
        Some(_) => return Err(Error::corrupt("is no array of numbers of 32 bits").about(SCORES)),
    };
    if !scores.is_empty() || meta.array(SCORES)?.is_some() {
        enough(SCORES, scores.len())?;
    }
    let attrs = match meta.array(TYPES)? {
        None => vec![Attr::NORMAL; count],
        Some(MetaArray::I32(types)) => {
            enough(TYPES, types.len())?;
            types[..count].iter().map(|&kind| attr_of(kind.into())).collect()
        }
        Some(MetaArray::U32(types)) => {
            enough(TYPES, types.len())?;
            types[..count].iter().map(|&kind| attr_of(kind.into())).collect()
        }
        Some(_) => return Err(Error::corrupt("is no array of integers of 32 bits").about(TYPES)),
    };
    Vocab::new(texts.clone(), attrs, scores, TOKENS)
}

/// A token type as files number it. Unknown ones stand for nothing.
fn attr_of(kind: i64) -> Attr {
    match kind {
        1 => Attr::NORMAL,
        2 => Attr::UNKNOWN,
        3 => Attr::CONTROL,
        4 => Attr::USER_DEFINED,
        5 => Attr::UNUSED,
        6 => Attr::BYTE,
        _ => Attr::NONE,
    }
}

/// Which tokens swallow the whitespace around them. Files do not say, so this goes by the names llama.cpp knows.
fn strip_attributes(meta: &Meta<'_>, pre: &str, vocab: &mut Vocab) -> Result<()> {
    let name = meta.string("general.name")?.unwrap_or_default().to_lowercase();
    let architecture = meta.string("general.architecture")?.unwrap_or_default();
    let mut change = |text: &str, change: fn(Attr) -> Attr| {
        if let Some(id) = vocab.id(text.as_bytes()) {
            let attr = change(vocab.attr(id));
            vocab.set_attr(id, attr);
        }
    };
    let jina = ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|known| pre.contains(known));
    let multilingual = ["nomic-bert-moe", "jina-bert-v3"].iter().any(|known| architecture.contains(known));
    if jina || multilingual {
        change("<mask>", |attr| attr.with(Attr::LSTRIP));
    } else if name.contains("phi-3") || name.contains("phi3") {
        let special = Attr::CONTROL.with(Attr::USER_DEFINED).with(Attr::UNKNOWN);
        for id in 0..vocab.len() as u32 {
            let attr = vocab.attr(id);
            if attr.any(special) {
                vocab.set_attr(id, attr.with(Attr::RSTRIP));
            }
        }
        let mut change = |text: &str, change: fn(Attr) -> Attr| {
            if let Some(id) = vocab.id(text.as_bytes()) {
                let attr = change(vocab.attr(id));
                vocab.set_attr(id, attr);
            }
        };
        change("</s>", |attr| attr.with(Attr::RSTRIP));
        for text in ["<unk>", "<s>", "<|endoftext|>"] {
            change(text, |attr| attr.without(Attr::RSTRIP));
        }
    } else if name.contains("modern-bert") {
        change("[MASK]", |attr| attr.with(Attr::LSTRIP));
    }
    Ok(())
}

/// Typed access to the metadata; a value of the wrong type is an error that names its key.
struct Meta<'a>(&'a ModelHeader);

impl<'a> Meta<'a> {
    fn get(&self, key: &str) -> Option<&'a MetaValue> {
        self.0.metadata.get(key)
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>> {
        let wrong = || Error::corrupt("is no string").about(key);
        self.get(key).map(|value| value.as_str().ok_or_else(wrong)).transpose()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let wrong = || Error::corrupt("is neither true nor false").about(key);
        self.get(key).map_or(Ok(default), |value| value.as_bool().ok_or_else(wrong))
    }

    fn array(&self, key: &str) -> Result<Option<&'a MetaArray>> {
        let wrong = || Error::corrupt("is no array").about(key);
        self.get(key).map(|value| value.as_array().ok_or_else(wrong)).transpose()
    }

    fn strings(&self, key: &str) -> Result<&'a StringTable> {
        let value = self.get(key).ok_or_else(|| Error::corrupt("is missing").about(key))?;
        value.as_strings().ok_or_else(|| Error::corrupt("is no array of strings").about(key))
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>> {
        match self.array(key)? {
            None => Ok(Vec::new()),
            Some(MetaArray::U8(bytes)) => Ok(bytes.clone()),
            Some(MetaArray::I8(bytes)) => Ok(bytes.iter().map(|byte| byte.cast_unsigned()).collect()),
            Some(_) => Err(Error::corrupt("is no array of bytes").about(key)),
        }
    }

    /// A token id. A default that the vocabulary is too short for is dropped; a value in the file is refused.
    fn id(&self, key: &str, default: Option<u32>, entries: usize) -> Result<Option<TokenId>> {
        let fits = |id: &u32| (*id as usize) < entries;
        let Some(value) = self.get(key) else {
            return Ok(default.filter(fits).map(TokenId));
        };
        let id = value.as_u64().ok_or_else(|| Error::corrupt("is no token id").about(key))?;
        let known = u32::try_from(id).ok().filter(fits);
        known.map(TokenId).map(Some).ok_or_else(|| {
            Error::corrupt(format!("is {id}, but the vocabulary has {entries} entries")).about(key)
        })
    }
}
