//! What the tests share: where models stand, and how to read a GGUF's metadata.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orion_core::{MetaArray, MetaValue, ModelFormat, ModelHeader, StringTable, TokenId};
use serde_json::Value;

/// A file or folder of the model cache. Fails with what to run if it is not there.
pub(crate) fn model(name: &str, make: &str) -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("ORION_MODELS").unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        cache.expect("a home directory").join("orion/models")
    });
    let path = cache.join(name);
    assert!(path.exists(), "{} is missing: run `{make}`", path.display());
    path
}

/// The metadata of a GGUF. The formats crate has the reader for files one does not trust.
pub(crate) fn gguf(path: &Path) -> ModelHeader {
    let bytes = std::fs::read(path).unwrap();
    let mut reader = Reader(&bytes);
    assert_eq!(reader.take(4), b"GGUF");
    reader.u32();
    reader.u64();
    let entries = reader.u64();
    let metadata = (0..entries)
        .map(|_| {
            let key = String::from_utf8(reader.string().to_vec()).unwrap();
            let kind = reader.u32();
            (key, reader.value(kind))
        })
        .collect();
    ModelHeader::new(ModelFormat::Gguf, metadata, Vec::new())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        head
    }
    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap()
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
    fn string(&mut self) -> &'a [u8] {
        let len = self.u64() as usize;
        self.take(len)
    }
    fn value(&mut self, kind: u32) -> MetaValue {
        match kind {
            0 => MetaValue::U8(self.array::<1>()[0]),
            1 => MetaValue::I8(i8::from_le_bytes(self.array())),
            2 => MetaValue::U16(u16::from_le_bytes(self.array())),
            3 => MetaValue::I16(i16::from_le_bytes(self.array())),
            4 => MetaValue::U32(self.u32()),
            5 => MetaValue::I32(i32::from_le_bytes(self.array())),
            6 => MetaValue::F32(f32::from_le_bytes(self.array())),
            7 => MetaValue::Bool(self.take(1)[0] != 0),
            8 => MetaValue::Str(String::from_utf8_lossy(self.string()).into_owned()),
            9 => {
                let (kind, count) = (self.u32(), self.u64() as usize);
                MetaValue::Array(match kind {
                    0 => MetaArray::U8(self.take(count).to_vec()),
                    1 => MetaArray::I8(self.take(count).iter().map(|&byte| byte.cast_signed()).collect()),
                    4 => MetaArray::U32((0..count).map(|_| self.u32()).collect()),
                    5 => MetaArray::I32((0..count).map(|_| i32::from_le_bytes(self.array())).collect()),
                    6 => MetaArray::F32((0..count).map(|_| f32::from_le_bytes(self.array())).collect()),
                    7 => MetaArray::Bool((0..count).map(|_| self.take(1)[0] != 0).collect()),
                    8 => MetaArray::Str((0..count).map(|_| self.string()).collect::<StringTable>()),
                    other => panic!("array of type {other}"),
                })
            }
            10 => MetaValue::U64(self.u64()),
            11 => MetaValue::I64(i64::from_le_bytes(self.array())),
            12 => MetaValue::F64(f64::from_le_bytes(self.array())),
            other => panic!("value of type {other}"),
        }
    }
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
