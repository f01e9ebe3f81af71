//! What the tests of tokenizers and templates share.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orion_core::{MetaArray, MetaValue, ModelFormat, ModelHeader, TokenId};
use serde_json::Value;

/// A vocabulary that `scripts/vocabs.py` fetches. Fails with what to run if it is not there.
pub(crate) fn vocab(name: &str) -> PathBuf {
    let path = orion_testkit::models::cache().join("vocabs").join(format!("ggml-vocab-{name}.gguf"));
    assert!(path.exists(), "{} is not there; `scripts/vocabs.py` fetches it", path.display());
    path
}

/// The header of a GGUF.
pub(crate) fn gguf(path: &Path) -> ModelHeader {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    orion_formats::gguf::read_header(file, len).unwrap().model
}

/// A header with these side files.
pub(crate) fn with_files(files: &[(&str, &str)]) -> ModelHeader {
    let mut header = ModelHeader::new(ModelFormat::Safetensors, BTreeMap::new(), Vec::new());
    for (name, text) in files {
        header.side_files.insert((*name).to_owned(), Arc::from(text.as_bytes()));
    }
    header
}

/// A header of a GGUF with this metadata.
pub(crate) fn with_metadata(entries: Vec<(&str, MetaValue)>) -> ModelHeader {
    let metadata = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    ModelHeader::new(ModelFormat::Gguf, metadata, Vec::new())
}

pub(crate) fn string(text: &str) -> MetaValue {
    MetaValue::Str(text.to_owned())
}

pub(crate) fn strings<T: AsRef<[u8]>>(texts: &[T]) -> MetaValue {
    MetaValue::Array(MetaArray::Str(texts.iter().map(AsRef::as_ref).collect()))
}

/// A row of the goldens that `scripts/goldens/tokenizer.py` writes.
pub(crate) struct Row {
    pub(crate) text: String,
    pub(crate) plain: Vec<TokenId>,
    pub(crate) parsed: Vec<TokenId>,
}

pub(crate) struct Golden {
    pub(crate) vocab: usize,
    pub(crate) end_of_generation: Vec<TokenId>,
    pub(crate) rows: Vec<Row>,
}

pub(crate) fn golden(text: &str) -> Golden {
    let ids = |value: &Value| -> Vec<TokenId> {
        value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
    };
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let head = lines.next().unwrap();
    let rows = lines.map(|row| Row {
        text: row[0].as_str().unwrap().to_owned(),
        plain: ids(&row[1]),
        parsed: ids(row.get(2).unwrap_or(&row[1])),
    });
    Golden {
        vocab: head["vocab"].as_u64().unwrap() as usize,
        end_of_generation: ids(&head["end_of_generation"]),
        rows: rows.collect(),
    }
}

/// Compares a tokenizer with a golden; all differences in one message.
pub(crate) fn check(name: &str, tokenizer: &orion_runtime::Tokenizer, golden: &Golden) {
    use orion_runtime::SpecialTokens::{Parse, Plain};
    assert_eq!(tokenizer.vocab_size(), golden.vocab, "{name}");
    assert_eq!(tokenizer.end_of_generation(), golden.end_of_generation, "{name}: end of generation");
    assert!(golden.rows.len() >= 200, "{name} has {} rows", golden.rows.len());
    let mut wrong = Vec::new();
    for row in &golden.rows {
        for (special, expected) in [(Plain, &row.plain), (Parse, &row.parsed)] {
            let got = tokenizer.encode(&row.text, special).unwrap();
            if got != *expected {
                let ids = |ids: &[TokenId]| {
                    let texts =
                        ids.iter().map(|&id| tokenizer.token_text(id).unwrap_or_default().into_owned());
                    texts.collect::<Vec<_>>().join("|")
                };
                wrong.push(format!(
                    "{:?} {special:?}\n  got      {}\n  expected {}",
                    row.text,
                    ids(&got),
                    ids(expected)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{name}: {} differences\n{}", wrong.len(), wrong.join("\n"));
}
