//! From bytes to a tensor table.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;

use ::safetensors::Dtype;
use orion_core::{MetaValue, ModelFormat, ModelHeader, Result, TensorInfo, TensorType, TileLayout};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{LONGEST_NAME, METADATA_KEY, MOST_DIMS};
use crate::looks_like::looks_like;
use crate::name::{check_tensor_name, shown};
use crate::reader::Reader;
use crate::reason::Reason;
use crate::shape;

/// Longest header. The format allows 100 MB, the Hugging Face hub 25 MB; 92,000 tensors take 11 MB.
const LONGEST_HEADER: u64 = 32 << 20;
/// Most tensors of a file.
const MOST_TENSORS: usize = 1 << 18;

/// What stands before the data of a safetensors file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SafetensorsHeader {
    /// Where the data begins, counted from the start of the file.
    pub data_start: u64,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in file order.
    pub tensors: Vec<TensorEntry>,
}

/// A tensor of a safetensors file, of whatever type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorEntry {
    /// The line of the tensor table, or `None` for integers and booleans: buffers such as `position_ids`, which
    /// models carry and do not use.
    ///
    /// # Errors
    /// [`Reason::UnsupportedDtype`] for floats that are not read.
    pub fn info(&self) -> Result<Option<TensorInfo>> {
        let ty = match self.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::BF16 => TensorType::BF16,
            Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::U16
            | Dtype::I16
            | Dtype::U32
            | Dtype::I32
            | Dtype::U64
            | Dtype::I64 => return Ok(None),
            other => {
                return Err(Reason::UnsupportedDtype
                    .error(format!("type {other} is not supported"))
                    .about(format!("tensor {}", shown(&self.name))));
            }
        };
        Ok(Some(TensorInfo {
            name: self.name.clone(),
            shape: self.shape.clone(),
            ty,
            layout: TileLayout::RowMajor,
            file: 0,
            offset: self.offset,
            bytes: self.bytes,
        }))
    }
}

impl SafetensorsHeader {
    /// The header as a model's. Integer buffers are left out, see [`TensorEntry::info`].
    ///
    /// # Errors
    /// [`Reason::UnsupportedDtype`] for floats that are not read.
    pub fn model(&self) -> Result<ModelHeader> {
        let tensors =
            self.tensors.iter().filter_map(|entry| entry.info().transpose()).collect::<Result<_>>()?;
        Ok(ModelHeader::new(ModelFormat::Safetensors, self.model_metadata().collect(), tensors))
    }

    pub(crate) fn model_metadata(&self) -> impl Iterator<Item = (String, MetaValue)> {
        self.metadata.iter().map(|(key, value)| (key.clone(), MetaValue::Str(value.clone())))
    }
}

/// Parses a header from the start of a file of `file_len` bytes.
///
/// `start` need not be the whole file, but must hold the whole header.
///
/// # Errors
/// [`Corrupt`](orion_core::ErrorKind::Corrupt) or [`Unsupported`](orion_core::ErrorKind::Unsupported), with tensor
/// and offset, and the [`Reason`] as source.
pub fn parse(start: &[u8], file_len: u64) -> Result<SafetensorsHeader> {
    read_header(start, file_len)
}

/// Reads a header from a reader that stands at the start of a file of `file_len` bytes. Buffers by itself and reads
/// less than 64 KiB beyond the header.
///
/// # Errors
/// As [`parse`], and whatever `reader` reports.
pub fn read_header(reader: impl Read, file_len: u64) -> Result<SafetensorsHeader> {
    let mut reader = Reader::new(reader, file_len);
    let mut header = Vec::new();
    let mut prefix = [0; 8];
    let wrong_length = if file_len < 8 {
        reader.bytes(&mut header, file_len, "header")?;
        Some(format!("the file has {file_len} bytes"))
    } else {
        prefix = reader.array("header length")?;
        let len = u64::from_le_bytes(prefix);
        let fits = len > 0 && len <= LONGEST_HEADER && len <= reader.remaining();
        let take = if fits { len } else { reader.remaining().min(504) };
        reader.bytes(&mut header, take, "header")?;
        (!fits).then(|| {
            format!("a header of {len} bytes in a file of {file_len}, at most {LONGEST_HEADER} are read")
        })
    };
    let first = header.trim_ascii_start().first();
    if wrong_length.is_some() || first != Some(&b'{') {
        let start = [if file_len < 8 { &[][..] } else { &prefix }, &header[..header.len().min(504)]].concat();
        if let Some(kind) = looks_like(&start) {
            return Err(Reason::NotAModel(kind).error(format!("not a safetensors file, looks like {kind}")));
        }
    }
    if let Some(message) = wrong_length {
        return Err(Reason::HeaderLength.error(message));
    }
    let raw: RawHeader = serde_json::from_slice(&header).map_err(|error| {
        Reason::BadHeader.error(format!("the header is not the JSON it must be: {error}"))
    })?;
    let data_start = reader.offset();
    raw.check(data_start, reader.remaining())
}

/// The header as it stands, with what JSON lets pass noted for [`RawHeader::check`].
#[derive(Default)]
struct RawHeader {
    metadata: Option<RawMetadata>,
    tensors: Vec<(String, RawInfo)>,
    too_many: bool,
    metadata_twice: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInfo {
    #[serde(deserialize_with = "dtype")]
    dtype: Result<Dtype, String>,
    shape: RawShape,
    data_offsets: (u64, u64),
}

/// The dimensions, at most one more than allowed.
struct RawShape(Vec<u64>);

#[derive(Default)]
struct RawMetadata {
    pairs: BTreeMap<String, String>,
    twice: Option<String>,
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Result<Dtype, String>, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    let known = Dtype::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(&text));
    Ok(known.map_err(|_| text.into_owned()))
}

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = RawShape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawShape, A::Error> {
                let mut dims = Vec::new();
                while dims.len() <= MOST_DIMS {
                    match list.next_element()? {
                        Some(dim) => dims.push(dim),
                        None => return Ok(RawShape(dims)),
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RawShape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

impl<'de> Deserialize<'de> for RawMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawMetadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from strings to strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawMetadata, A::Error> {
                let mut metadata = RawMetadata::default();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    match metadata.pairs.entry(key) {
                        Entry::Vacant(free) => _ = free.insert(value),
                        Entry::Occupied(taken) => {
                            _ = metadata.twice.get_or_insert_with(|| taken.key().clone())
                        }
                    }
                }
                Ok(metadata)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        let metadata = map.next_value()?;
                        header.metadata_twice |= header.metadata.replace(metadata).is_some();
                    } else if header.tensors.len() < MOST_TENSORS {
                        header.tensors.push((name, map.next_value()?));
                    } else {
                        header.too_many = true;
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl RawHeader {
    fn check(self, data_start: u64, data_len: u64) -> Result<SafetensorsHeader> {
        if self.too_many {
            return Err(Reason::CountTooLarge.error(format!("more than {MOST_TENSORS} tensors")));
        }
        let metadata = self.metadata.unwrap_or_default();
        if self.metadata_twice || metadata.twice.is_some() {
            let key = metadata.twice.as_deref().unwrap_or(METADATA_KEY);
            return Err(Reason::DuplicateKey.error("appears twice").about(format!("key {}", shown(key))));
        }
        let mut names = HashSet::with_capacity(self.tensors.len());
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (name, raw) in &self.tensors {
            check_tensor_name(name, LONGEST_NAME)?;
            let subject = || format!("tensor {}", shown(name));
            if !names.insert(name.as_str()) {
                return Err(Reason::DuplicateTensor.error("appears twice in the header").about(subject()));
            }
            let (dtype, bytes) = raw.check(data_len).map_err(|error| error.about(subject()))?;
            tensors.push((dtype, bytes));
        }
        drop(names);
        let mut tensors: Vec<_> = self
            .tensors
            .into_iter()
            .zip(tensors)
            .map(|((name, raw), (dtype, bytes))| TensorEntry {
                name,
                dtype,
                shape: raw.shape.0,
                offset: raw.data_offsets.0,
                bytes,
            })
            .collect();
        tensors.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
        let end = contiguous(&tensors)?;
        if end != data_len {
            return Err(Reason::IncompleteBuffer
                .error(format!("the tensors take {end} bytes, the file holds {data_len}")));
        }
        tensors.iter_mut().for_each(|tensor| tensor.offset += data_start);
        Ok(SafetensorsHeader { data_start, metadata: metadata.pairs, tensors })
    }
}

impl RawInfo {
    fn check(&self, data_len: u64) -> Result<(Dtype, u64)> {
        let shape = &self.shape.0;
        if shape.len() > MOST_DIMS {
            return Err(Reason::TooManyDims.error(format!("more than {MOST_DIMS} dimensions")));
        }
        let dtype = match &self.dtype {
            Ok(dtype) => *dtype,
            Err(text) => return Err(Reason::UnsupportedDtype.error(format!("unknown type {}", shown(text)))),
        };
        // At most 2^40 elements of at most 64 bits.
        let bits = shape::elements(shape)? * dtype.bitsize() as u64;
        let (begin, end) = self.data_offsets;
        if !bits.is_multiple_of(8) || end.checked_sub(begin) != Some(bits / 8) {
            return Err(Reason::BadInfo.error(format!(
                "shape {shape:?} of {dtype} takes {bits} bits, the range is {begin}..{end}"
            )));
        }
        if end > data_len {
            return Err(
                Reason::IncompleteBuffer.error(format!("its data ends at {end}, the file holds {data_len}"))
            );
        }
        Ok((dtype, bits / 8))
    }
}

/// The end of tensors in file order that must follow each other without hole.
fn contiguous(tensors: &[TensorEntry]) -> Result<u64> {
    let mut next = 0;
    for tensor in tensors {
        if tensor.offset != next {
            let (reason, message) = match tensor.offset < next {
                true => (Reason::Overlap, "its data overlaps another tensor's"),
                false => (Reason::BadOffset, "there is a hole before its data"),
            };
            return Err(reason
                .error(format!("{message}: begins at {}, expected at {next}", tensor.offset))
                .about(format!("tensor {}", shown(&tensor.name))));
        }
        next += tensor.bytes;
    }
    Ok(next)
}
