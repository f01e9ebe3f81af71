//! Values of the metadata that later code divides by, allocates by or indexes with.

use std::collections::BTreeMap;

use orion_core::{MetaArray, MetaValue, Result, StringTable};

use crate::name::{shown, shown_bytes};
use crate::reason::Reason;

type Metadata = BTreeMap<String, MetaValue>;

/// Most layers, as llama.cpp caps them.
const MOST_LAYERS: u64 = 512;
/// `LLAMA_TOKEN_TYPE_BYTE`.
const BYTE_TOKEN: i64 = 6;

/// Refuses values no model can have. What an architecture requires is the runtime's to check.
pub(super) fn check(metadata: &Metadata) -> Result<()> {
    if let Some(MetaValue::Str(architecture)) = metadata.get("general.architecture") {
        check_architecture(metadata, architecture)?;
    }
    check_vocabulary(metadata)
}

fn check_architecture(metadata: &Metadata, architecture: &str) -> Result<()> {
    let get = |name: &str| {
        let key = format!("{architecture}.{name}");
        let value = metadata.get(&key);
        (key, value)
    };
    let within = |name: &str, most: u64| {
        let (key, value) = get(name);
        match value {
            None => Ok(None),
            // One value per layer, zero where the layer has none of it.
            Some(MetaValue::Array(_)) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if (1..=most).contains(&number) => Ok(Some(number)),
                Some(number) => Err(bad(&key, &format!("{number} lies outside 1..={most}"))),
                None => Err(bad(&key, "must be a positive integer")),
            },
        }
    };
    within("block_count", MOST_LAYERS)?;
    within("context_length", 1 << 40)?;
    let embedding = within("embedding_length", 1 << 24)?;
    within("rope.dimension_count", 1 << 20)?;
    within("attention.key_length", 1 << 20)?;
    within("attention.value_length", 1 << 20)?;

    // Architectures without attention write zero heads.
    let recurrent = format!("{architecture}.ssm.");
    let recurrent = metadata.keys().any(|key| key.starts_with(&recurrent))
        || metadata.contains_key(&format!("{architecture}.wkv.head_size"));
    if recurrent {
        return Ok(());
    }
    let heads = within("attention.head_count", 1 << 16)?;
    let kv_heads = within("attention.head_count_kv", 1 << 16)?;
    if let (Some(heads), Some(embedding)) = (heads, embedding)
        && heads > embedding
    {
        return Err(bad(
            &get("attention.head_count").0,
            &format!("{heads} heads share {embedding} channels"),
        ));
    }
    if let (Some(heads), Some(kv_heads)) = (heads, kv_heads)
        && !heads.is_multiple_of(kv_heads)
    {
        return Err(bad(
            &get("attention.head_count_kv").0,
            &format!("{kv_heads} does not divide the {heads} query heads"),
        ));
    }
    Ok(())
}

fn bad(key: &str, message: &str) -> orion_core::Error {
    Reason::BadHyperparam.error(message).about(format!("key {}", shown(key)))
}

fn check_vocabulary(metadata: &Metadata) -> Result<()> {
    let vocab = |message: String, key: &str| Err(Reason::BadVocab.error(message).about(format!("key {key}")));
    let key = "tokenizer.ggml.tokens";
    let tokens = match metadata.get(key) {
        None => return Ok(()),
        Some(MetaValue::Array(MetaArray::Str(tokens))) => tokens,
        Some(_) => return vocab("must be an array of strings".into(), key),
    };
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        if let Some(value) = metadata.get(key) {
            let len = match value {
                MetaValue::Array(MetaArray::F32(values)) if key.ends_with("scores") => values.len(),
                MetaValue::Array(MetaArray::I32(values)) if key.ends_with("type") => values.len(),
                MetaValue::Array(MetaArray::U32(values)) if key.ends_with("type") => values.len(),
                _ => return vocab("has the wrong type".into(), key),
            };
            if len != tokens.len() {
                return vocab(format!("{len} values for {} tokens", tokens.len()), key);
            }
        }
    }
    for name in ["bos", "eos", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        if let Some(value) = metadata.get(&key)
            && value.as_u64().is_none_or(|id| id >= tokens.len() as u64)
        {
            return vocab(format!("{value:?} lies outside the vocabulary of {}", tokens.len()), &key);
        }
    }
    check_byte_tokens(tokens, metadata)
}

/// A token of type byte must name its byte: other readers turn `<0x-1>` into a write outside a table.
fn check_byte_tokens(tokens: &StringTable, metadata: &Metadata) -> Result<()> {
    let is_byte = |index: usize| match metadata.get("tokenizer.ggml.token_type") {
        Some(MetaValue::Array(MetaArray::I32(types))) => i64::from(types[index]) == BYTE_TOKEN,
        Some(MetaValue::Array(MetaArray::U32(types))) => i64::from(types[index]) == BYTE_TOKEN,
        _ => false,
    };
    for (index, token) in tokens.iter().enumerate() {
        let named = matches!(token, [b'<', b'0', b'x', high, low, b'>'] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit());
        // Some vocabularies hold the raw byte.
        if is_byte(index) && !named && token.len() != 1 {
            return Err(Reason::BadVocab
                .error(format!("byte token {index} is \"{}\", expected <0xHH>", shown_bytes(token)))
                .about("key tokenizer.ggml.tokens"));
        }
    }
    Ok(())
}
