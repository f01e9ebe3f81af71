//! `tokenizer.json`, run by the `tokenizers` crate.
//!
//! That crate panics on some malformed files and, with some files, on some texts. Panics are caught here and become
//! errors; none of its types leaves this module.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock};

use orion_core::{Error, ErrorKind, ModelHeader, Result, StringTable, TokenId};
use serde_json::Value;

use super::special::{Fragment, Scope, SpecialIndex};
use super::vocab::{Attr, Roles, Spelling, Vocab};
use super::{Kind, SpecialTokens, Tokenizer};

/// Name of the file.
pub(super) const FILE: &str = "tokenizer.json";

pub(crate) struct HuggingFace {
    /// Behind a lock because whether special tokens are parsed is a property of the tokenizer, not of a call.
    inner: RwLock<tokenizers::Tokenizer>,
    /// Some special token is looked for after normalisation, so a look at the text does not tell if it has one.
    hidden_specials: bool,
}

impl HuggingFace {
    /// Appends the ids of `text`.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        specials: &SpecialIndex,
        text: &str,
        scope: Scope<'_>,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        let spelled = || specials.occurrences(vocab, text).any(|(_, id)| vocab.attr(id).is_special());
        match scope {
            Scope::AllBut([]) => self.run(text, SpecialTokens::Parse, out),
            Scope::UserDefined if !self.hidden_specials && !spelled() => {
                self.run(text, SpecialTokens::Parse, out)
            }
            Scope::UserDefined => self.run(text, SpecialTokens::Plain, out),
            Scope::AllBut(_) => {
                specials.cut(vocab, text, scope).into_iter().try_for_each(|part| match part {
                    Fragment::Token(id) => {
                        out.push(id);
                        Ok(())
                    }
                    Fragment::Text(range) => self.run(&text[range], SpecialTokens::Plain, out),
                })
            }
        }
    }

    fn run(&self, text: &str, special: SpecialTokens, out: &mut Vec<TokenId>) -> Result<()> {
        let ids = caught("encoding", || match special {
            SpecialTokens::Parse => {
                let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
                ids(&inner, text, false)
            }
            SpecialTokens::Plain => {
                let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                inner.set_encode_special_tokens(true);
                let reset = Reset(&mut inner);
                ids(reset.0, text, false)
            }
        })?;
        out.extend(ids);
        Ok(())
    }
}

/// Parses special tokens again when it goes out of scope, by a panic too.
struct Reset<'a>(&'a mut tokenizers::Tokenizer);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        self.0.set_encode_special_tokens(false);
    }
}

fn ids(inner: &tokenizers::Tokenizer, text: &str, framed: bool) -> Result<Vec<TokenId>> {
    let encoding = inner.encode_fast(text, framed).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("cannot encode the text: {error}")).about(FILE)
    })?;
    Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
}

/// Runs `work`; a panic in it is an error of the file.
fn caught<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let what = what.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Error::corrupt(format!("the file is malformed: {doing} failed: {what}")).about(FILE))
    })
}

/// Builds a tokenizer from `tokenizer.json` and the files beside it.
pub(super) fn load(header: &ModelHeader) -> Result<Option<Tokenizer>> {
    let Some(text) = header.side_text(FILE)? else { return Ok(None) };
    let json: Value = serde_json::from_str(text)
        .map_err(|error| Error::corrupt(error.to_string()).about(FILE).with_source(error))?;
    let mut inner = caught("loading", || {
        tokenizers::Tokenizer::from_bytes(text.as_bytes())
            .map_err(|error| Error::corrupt(error.to_string()).about(FILE))
    })?;
    // Truncation and padding are for training batches; here they would change the ids of a text.
    caught("loading", || {
        inner.with_truncation(None).map_err(|error| Error::corrupt(error.to_string()).about(FILE))?;
        inner.with_padding(None);
        Ok(())
    })?;
    let decoder = DecoderFacts::of(&json["decoder"]);
    let vocab = vocabulary(&inner, &decoder)?;
    vocab.check_bytes(FILE)?;
    let specials = SpecialIndex::new(&vocab);
    let added = inner.get_added_tokens_decoder();
    let hidden_specials = added.values().any(|token| token.special && token.normalized);
    let (prefix, suffix) = frame(&inner)?;
    let mut roles = roles(header, &vocab)?;
    roles.add_bos = !prefix.is_empty();
    roles.add_eos = !suffix.is_empty();
    roles.bos = roles.bos.or(prefix.first().copied());
    roles.eos = roles.eos.or(suffix.last().copied());
    let kind = Kind::HuggingFace(Box::new(HuggingFace { inner: RwLock::new(inner), hidden_specials }));
    Ok(Some(Tokenizer {
        kind,
        vocab,
        specials,
        roles,
        prefix,
        suffix,
        spelling: decoder.spelling,
        space_first: decoder.space_first,
    }))
}

/// What `decoder` of the file says about the way entries are spelled.
struct DecoderFacts {
    spelling: Spelling,
    byte_fallback: bool,
    space_first: bool,
}

impl DecoderFacts {
    fn of(decoder: &Value) -> Self {
        let mut facts = Self { spelling: Spelling::Verbatim, byte_fallback: false, space_first: false };
        facts.read(decoder);
        facts
    }

    fn read(&mut self, decoder: &Value) {
        match decoder["type"].as_str().unwrap_or_default() {
            "ByteLevel" => self.spelling = Spelling::ByteLevel,
            "Metaspace" => {
                self.spelling = Spelling::Escaped;
                let never = decoder["prepend_scheme"].as_str() == Some("never");
                self.space_first = !never && decoder["add_prefix_space"].as_bool() != Some(false);
            }
            "WordPiece" => {
                self.spelling = Spelling::WordPiece;
                self.space_first = true;
            }
            "Replace" if decoder["pattern"]["String"].as_str() == Some("\u{2581}") => {
                self.spelling = Spelling::Escaped;
            }
            "ByteFallback" => self.byte_fallback = true,
            "Strip" => self.space_first |= decoder["start"].as_u64().is_some_and(|start| start > 0),
            "Sequence" => {
                decoder["decoders"].as_array().into_iter().flatten().for_each(|inner| self.read(inner));
            }
            _ => {}
        }
    }
}

fn vocabulary(inner: &tokenizers::Tokenizer, decoder: &DecoderFacts) -> Result<Vocab> {
    let by_id: BTreeMap<u32, String> =
        inner.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    let count = by_id.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
    if count > by_id.len().saturating_mul(2).saturating_add(1 << 16) {
        let what = format!("the highest id is {} but there are {} entries", count - 1, by_id.len());
        return Err(Error::corrupt(what).about(FILE));
    }
    let added = inner.get_added_tokens_decoder();
    let mut texts = StringTable::with_capacity(count, count * 8);
    let mut attrs = Vec::with_capacity(count);
    for id in 0..count as u32 {
        // A gap in the ids becomes an entry without text, which gets a name of its own.
        let text = by_id.get(&id).map_or("", String::as_str);
        texts.push(text.as_bytes())?;
        let byte = decoder.byte_fallback
            && text.len() == 6
            && text.starts_with("<0x")
            && text.ends_with('>')
            && u8::from_str_radix(text.get(3..5).unwrap_or_default(), 16).is_ok();
        attrs.push(match added.get(&id) {
            Some(token) => {
                let attr = if token.special { Attr::CONTROL } else { Attr::USER_DEFINED };
                let left = if token.lstrip { Attr::LSTRIP } else { Attr::NONE };
                let right = if token.rstrip { Attr::RSTRIP } else { Attr::NONE };
                attr.with(left).with(right)
            }
            None if byte => Attr::BYTE,
            None if text.is_empty() => Attr::UNUSED,
            None => Attr::NORMAL,
        });
    }
    Vocab::new(texts, attrs, Vec::new(), FILE)
}

/// The ids that the post-processor puts before and after every text.
fn frame(inner: &tokenizers::Tokenizer) -> Result<(Vec<TokenId>, Vec<TokenId>)> {
    caught("probing", || {
        let (bare, framed) = (ids(inner, "a", false)?, ids(inner, "a", true)?);
        let at = framed.windows(bare.len().max(1)).position(|window| window == bare);
        Ok(at.map_or_else(Default::default, |at| (framed[..at].to_vec(), framed[at + bare.len()..].to_vec())))
    })
}

/// BOS, EOS and where generation ends, from `tokenizer_config.json`, `generation_config.json` and `config.json`.
fn roles(header: &ModelHeader, vocab: &Vocab) -> Result<Roles> {
    let json = |name: &str| -> Result<Value> {
        let text = header.side_text(name)?.unwrap_or("null");
        serde_json::from_str(text)
            .map_err(|error| Error::corrupt(error.to_string()).about(name).with_source(error))
    };
    let config = json("tokenizer_config.json")?;
    let named = |key: &str| -> Result<Option<TokenId>> {
        let token = &config[key];
        let Some(text) = token.as_str().or_else(|| token["content"].as_str()) else { return Ok(None) };
        let id = vocab.id(text.as_bytes()).ok_or_else(|| {
            Error::corrupt(format!("{key} is {text:?}, which is no entry of {FILE}"))
                .about("tokenizer_config.json")
        })?;
        Ok(Some(TokenId(id)))
    };
    let (bos, eos, unk) = (named("bos_token")?, named("eos_token")?, named("unk_token")?);
    let mut roles = Roles { bos, eos, unk, ..Roles::default() };
    let mut ends: Vec<TokenId> = roles.eos.into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        let eos = &json(name)?["eos_token_id"];
        let listed = eos.as_array().map_or(std::slice::from_ref(eos), Vec::as_slice);
        for id in listed.iter().filter_map(Value::as_u64) {
            let known = u32::try_from(id).ok().filter(|&id| (id as usize) < vocab.len());
            let id = known.ok_or_else(|| {
                let what = format!("eos_token_id is {id}, but the vocabulary has {} entries", vocab.len());
                Error::corrupt(what).about(name)
            })?;
            roles.eos = roles.eos.or(Some(TokenId(id)));
            ends.push(TokenId(id));
        }
    }
    ends.extend(super::roles::end_names().filter_map(|name| vocab.id(name.as_bytes())).map(TokenId));
    roles.end_of_generation = super::roles::settle_ends(vocab, ends);
    Ok(roles)
}
