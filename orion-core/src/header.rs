//! What a model file says of itself before any weight is read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::Digest;
use crate::tensor::TensorInfo;

/// The kind of file a header came from; the names of metadata keys and tensors follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModelFormat {
    /// GGUF: metadata and vocabulary in the file, llama.cpp's tensor names.
    Gguf,
    /// safetensors with side files (`config.json`, `tokenizer.json`), Hugging Face's tensor names.
    Safetensors,
}

/// A list of strings in two allocations: 262,144 vocabulary entries must not become 262,144 of them.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct StringTable {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl StringTable {
    /// An empty table with room for `entries` strings of `bytes` bytes in all.
    #[must_use]
    pub fn with_capacity(entries: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(entries) }
    }

    /// Appends one string. Vocabularies may hold bytes that are no UTF-8, so bytes are what is kept.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) once the table exceeds 4 GiB.
    pub fn push(&mut self, text: &[u8]) -> Result<()> {
        let end = u32::try_from(self.bytes.len() + text.len())
            .map_err(|_| Error::corrupt("string array exceeds 4 GiB"))?;
        self.bytes.extend_from_slice(text);
        self.ends.push(end);
        Ok(())
    }

    /// Number of strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of string `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// All strings in order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index).expect("index is below len"))
    }
}

impl fmt::Debug for StringTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StringTable({} strings, {} bytes)", self.len(), self.bytes.len())
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for StringTable {
    /// # Panics
    /// If the strings exceed 4 GiB in all.
    fn from_iter<I: IntoIterator<Item = T>>(strings: I) -> Self {
        let mut table = Self::default();
        for text in strings {
            table.push(text.as_ref()).expect("below 4 GiB");
        }
        table
    }
}

/// A homogeneous metadata array, stored at its own width.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant is named after its element type")]
pub enum MetaArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Str(StringTable),
    Array(Vec<MetaArray>),
}

impl MetaArray {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(list) => list.len(),
            Self::I8(list) => list.len(),
            Self::U16(list) => list.len(),
            Self::I16(list) => list.len(),
            Self::U32(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::U64(list) => list.len(),
            Self::I64(list) => list.len(),
            Self::F32(list) => list.len(),
            Self::F64(list) => list.len(),
            Self::Bool(list) => list.len(),
            Self::Str(list) => list.len(),
            Self::Array(list) => list.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant is named after its type")]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Array(MetaArray),
}

impl MetaValue {
    /// Any non-negative integer, whatever its width.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A float of either width.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "hyper-parameters are f32 in every runtime")]
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(v) => Some(v),
            Self::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// A boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// A string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(v) => Some(v),
            _ => None,
        }
    }

    /// An array.
    #[must_use]
    pub fn as_array(&self) -> Option<&MetaArray> {
        match self {
            Self::Array(v) => Some(v),
            _ => None,
        }
    }

    /// An array of strings.
    #[must_use]
    pub fn as_strings(&self) -> Option<&StringTable> {
        match self {
            Self::Array(MetaArray::Str(v)) => Some(v),
            _ => None,
        }
    }

    /// An array of 32-bit floats.
    #[must_use]
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::Array(MetaArray::F32(v)) => Some(v),
            _ => None,
        }
    }

    /// An array of 32-bit signed integers.
    #[must_use]
    pub fn as_i32s(&self) -> Option<&[i32]> {
        match self {
            Self::Array(MetaArray::I32(v)) => Some(v),
            _ => None,
        }
    }
}

/// Everything a model's files say before their weights: metadata, tensor table, side files.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelHeader {
    /// Kind of file.
    pub format: ModelFormat,
    /// GGUF key-value pairs, or the `__metadata__` of safetensors.
    pub metadata: BTreeMap<String, MetaValue>,
    /// The tensor table, in file order.
    pub tensors: Vec<TensorInfo>,
    /// Files that stand beside the weights, by name: `config.json`, `tokenizer.json`, …
    pub side_files: BTreeMap<String, Arc<[u8]>>,
    /// Digest of the weights, where known without reading them all.
    pub digest: Option<Digest>,
}

impl ModelHeader {
    /// A header without side files or digest.
    #[must_use]
    pub fn new(format: ModelFormat, metadata: BTreeMap<String, MetaValue>, tensors: Vec<TensorInfo>) -> Self {
        Self { format, metadata, tensors, side_files: BTreeMap::new(), digest: None }
    }

    /// Index of the tensor of that name. Linear: callers that look up many keep a map.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|tensor| tensor.name == name)
    }

    /// A side file as text.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if it is not UTF-8.
    pub fn side_text(&self, name: &str) -> Result<Option<&str>> {
        let bytes = self.side_files.get(name);
        bytes
            .map(|bytes| {
                std::str::from_utf8(bytes)
                    .map_err(|error| Error::corrupt("not UTF-8").about(name).with_source(error))
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_table_returns_what_was_pushed() {
        let table: StringTable = ["", "a", "", "bcd"].iter().collect();
        assert_eq!(table.len(), 4);
        assert_eq!(table.iter().collect::<Vec<_>>(), [&b""[..], b"a", b"", b"bcd"]);
        assert_eq!(table.get(4), None);
    }

    #[test]
    fn integers_read_at_any_width_but_never_wrap() {
        assert_eq!(MetaValue::U8(7).as_u64(), Some(7));
        assert_eq!(MetaValue::I64(7).as_u64(), Some(7));
        assert_eq!(MetaValue::I32(-1).as_u64(), None);
        assert_eq!(MetaValue::F32(7.0).as_u64(), None);
    }
}
