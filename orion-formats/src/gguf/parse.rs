//! From bytes to a [`ModelHeader`].

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use orion_core::{
    MetaArray, MetaValue, ModelFormat, ModelHeader, Result, StringTable, TensorInfo, TensorType, TileLayout,
};

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, LONGEST_NAME, MAGIC, MOST_DIMS, hyperparameters, is_alignment,
    value_type,
};
use crate::looks_like::looks_like;
use crate::name::{check_tensor_name, shown, shown_bytes};
use crate::reader::Reader;
use crate::reason::Reason;
use crate::shape;

/// Most tensors of a file; the largest known mixture of experts has 92,000 before merging.
const MOST_TENSORS: u64 = 1 << 18;
/// Most metadata keys; real files have fewer than a hundred.
const MOST_KEYS: u64 = 1 << 16;
/// Longest key.
const LONGEST_KEY: u64 = u16::MAX as u64;
/// Longest string, as Ollama caps it.
const LONGEST_STRING: u64 = 16 << 20;
/// Most elements of an array, as Ollama caps it.
const LONGEST_ARRAY: u64 = 64 << 20;
/// Most strings of an array: four times the largest vocabulary known.
const MOST_STRINGS: u64 = 1 << 20;
/// Deepest array in an array, and how many of them in all.
const DEEPEST: usize = 64;
const MOST_NESTED: usize = 1 << 16;
/// Longest header in all.
const LONGEST_HEADER: u64 = 256 << 20;

/// What stands before the data of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GgufHeader {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// Alignment of the data in bytes.
    pub alignment: u64,
    /// Where the data begins, counted from the start of the file.
    pub data_start: u64,
    /// Metadata and tensor table.
    pub model: ModelHeader,
}

/// Parses a header from the start of a file of `file_len` bytes.
///
/// `start` need not be the whole file, but must hold the whole header.
///
/// # Errors
/// [`Corrupt`](orion_core::ErrorKind::Corrupt) or [`Unsupported`](orion_core::ErrorKind::Unsupported), with key,
/// tensor and offset, and the [`Reason`] as source.
pub fn parse(start: &[u8], file_len: u64) -> Result<GgufHeader> {
    read_header(start, file_len)
}

/// Reads a header from a reader that stands at the start of a file of `file_len` bytes. Buffers by itself and reads
/// less than 64 KiB beyond the header.
///
/// # Errors
/// As [`parse`], and whatever `reader` reports.
pub fn read_header(reader: impl Read, file_len: u64) -> Result<GgufHeader> {
    Parser { reader: Reader::new(reader, file_len), scratch: Vec::new(), nested: 0 }.file()
}

struct Parser<R> {
    reader: Reader<R>,
    scratch: Vec<u8>,
    nested: usize,
}

struct Entry {
    name: String,
    shape: Vec<u64>,
    ty: TensorType,
    offset: u64,
}

impl<R: Read> Parser<R> {
    fn file(mut self) -> Result<GgufHeader> {
        self.magic()?;
        let version = self.version()?;
        let tensors = self.reader.u64("tensor count")?;
        let keys = self.reader.u64("key count")?;
        self.check_counts(tensors, keys)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let offset = self.reader.offset();
            let key = self.key()?;
            let value = self.value().map_err(|error| error.about(format!("key {}", shown(&key))))?;
            if metadata.contains_key(&key) {
                return Err(Reason::DuplicateKey
                    .error(format!("appears again at offset {offset}"))
                    .about(format!("key {}", shown(&key))));
            }
            metadata.insert(key, value);
        }
        let alignment = alignment(&metadata)?;

        // The count was checked against a cap, not against the file: grow as entries really come.
        let mut entries = Vec::new();
        for _ in 0..tensors {
            entries.push(self.entry()?);
        }
        self.check_header_len(0)?;
        let data_start = self.reader.offset().next_multiple_of(alignment);
        let tensors = place(entries, data_start, alignment, self.reader.offset() + self.reader.remaining())?;
        hyperparameters::check(&metadata)?;
        let model = ModelHeader::new(ModelFormat::Gguf, metadata, tensors);
        Ok(GgufHeader { version, alignment, data_start, model })
    }

    fn magic(&mut self) -> Result<()> {
        let len = usize::try_from(self.reader.remaining().min(4)).expect("at most 4");
        let mut magic = [0; 4];
        self.reader.fill(&mut magic[..len], "magic")?;
        if magic == *MAGIC {
            return Ok(());
        }
        if len < 4 && MAGIC.starts_with(&magic[..len]) {
            return Err(Reason::Truncated.error(format!("the file has {len} bytes")));
        }
        // Read on only to say what the file is.
        let mut start = magic[..len].to_vec();
        let more = self.reader.remaining().min(508);
        self.reader.bytes(&mut self.scratch, more, "magic")?;
        start.extend_from_slice(&self.scratch);
        Err(match looks_like(&start) {
            Some(kind) => Reason::NotAModel(kind).error(format!("not a GGUF file, looks like {kind}")),
            None => Reason::BadMagic
                .error(format!("not a GGUF file, it begins with \"{}\"", magic.escape_ascii())),
        })
    }

    fn version(&mut self) -> Result<u32> {
        let version = self.reader.u32("version")?;
        match version {
            2 | 3 => Ok(version),
            _ if version & 0xffff == 0 && version != 0 => {
                Err(Reason::UnsupportedVersion
                    .error("big-endian GGUF is not read; convert it to little-endian"))
            }
            _ => {
                Err(Reason::UnsupportedVersion
                    .error(format!("GGUF version {version} is not read, only 2 and 3")))
            }
        }
    }

    fn check_counts(&self, tensors: u64, keys: u64) -> Result<()> {
        for (what, count, most) in [("tensors", tensors, MOST_TENSORS), ("metadata keys", keys, MOST_KEYS)] {
            if count > most {
                return Err(
                    Reason::CountTooLarge.error(format!("{count} {what} announced, at most {most} are read"))
                );
            }
        }
        // The least an entry takes. Key: length, type, one byte. Tensor: length, dimensions, type, offset.
        self.reader.expect(keys * 13 + tensors * 24, "metadata and tensor table")
    }

    fn check_header_len(&self, more: u64) -> Result<()> {
        if self.reader.offset().saturating_add(more) > LONGEST_HEADER {
            return Err(Reason::HeaderLength.error(format!("the header exceeds {LONGEST_HEADER} bytes")));
        }
        Ok(())
    }

    /// Reads a length-prefixed string into the scratch buffer.
    fn raw_string(&mut self, longest: u64, what: &str) -> Result<()> {
        let offset = self.reader.offset();
        let len = self.reader.u64(what)?;
        if len > longest {
            return Err(Reason::LengthTooLarge
                .error(format!("{what} of {len} bytes at offset {offset}, at most {longest} are read")));
        }
        self.check_header_len(len)?;
        self.reader.bytes(&mut self.scratch, len, what)
    }

    fn key(&mut self) -> Result<String> {
        let offset = self.reader.offset();
        self.raw_string(LONGEST_KEY, "key")?;
        match std::str::from_utf8(&self.scratch) {
            Ok(key) if !key.is_empty() && !key.chars().any(char::is_control) => Ok(key.to_owned()),
            _ => Err(Reason::BadKey
                .error(format!("bad key \"{}\" at offset {offset}", shown_bytes(&self.scratch)))),
        }
    }

    fn value(&mut self) -> Result<MetaValue> {
        use value_type as t;
        let offset = self.reader.offset();
        let what = "value";
        Ok(match self.reader.u32("value type")? {
            t::U8 => MetaValue::U8(u8::from_le_bytes(self.reader.array(what)?)),
            t::I8 => MetaValue::I8(i8::from_le_bytes(self.reader.array(what)?)),
            t::U16 => MetaValue::U16(u16::from_le_bytes(self.reader.array(what)?)),
            t::I16 => MetaValue::I16(i16::from_le_bytes(self.reader.array(what)?)),
            t::U32 => MetaValue::U32(self.reader.u32(what)?),
            t::I32 => MetaValue::I32(i32::from_le_bytes(self.reader.array(what)?)),
            t::F32 => MetaValue::F32(f32::from_le_bytes(self.reader.array(what)?)),
            t::BOOL => MetaValue::Bool(boolean(self.reader.array(what)?)?),
            t::U64 => MetaValue::U64(self.reader.u64(what)?),
            t::I64 => MetaValue::I64(i64::from_le_bytes(self.reader.array(what)?)),
            t::F64 => MetaValue::F64(f64::from_le_bytes(self.reader.array(what)?)),
            t::STRING => {
                self.raw_string(LONGEST_STRING, "string")?;
                let text = std::str::from_utf8(&self.scratch)
                    .map_err(|_| Reason::BadText.error(format!("string at offset {offset} is not UTF-8")))?;
                MetaValue::Str(text.to_owned())
            }
            t::ARRAY => MetaValue::Array(self.meta_array(1)?),
            other => return Err(Reason::BadType.error(format!("value type {other} at offset {offset}"))),
        })
    }

    fn meta_array(&mut self, depth: usize) -> Result<MetaArray> {
        use value_type as t;
        let offset = self.reader.offset();
        if depth > DEEPEST {
            return Err(
                Reason::TooDeep.error(format!("arrays are nested deeper than {DEEPEST} at offset {offset}"))
            );
        }
        let ty = self.reader.u32("array type")?;
        let count = self.reader.u64("array length")?;
        let width = match ty {
            t::U8 | t::I8 | t::BOOL => 1,
            t::U16 | t::I16 => 2,
            t::U32 | t::I32 | t::F32 => 4,
            t::U64 | t::I64 | t::F64 | t::STRING => 8,
            t::ARRAY => 12,
            other => return Err(Reason::BadType.error(format!("array of type {other} at offset {offset}"))),
        };
        let most = if ty == t::STRING { MOST_STRINGS } else { LONGEST_ARRAY };
        if count > most {
            return Err(Reason::LengthTooLarge
                .error(format!("array of {count} elements at offset {offset}, at most {most} are read")));
        }
        self.check_header_len(count * width)?;
        self.reader.expect(count * width, "array")?;
        let reader = &mut self.reader;
        Ok(match ty {
            t::U8 => MetaArray::U8(reader.numbers(count, u8::from_le_bytes)?),
            t::I8 => MetaArray::I8(reader.numbers(count, i8::from_le_bytes)?),
            t::U16 => MetaArray::U16(reader.numbers(count, u16::from_le_bytes)?),
            t::I16 => MetaArray::I16(reader.numbers(count, i16::from_le_bytes)?),
            t::U32 => MetaArray::U32(reader.numbers(count, u32::from_le_bytes)?),
            t::I32 => MetaArray::I32(reader.numbers(count, i32::from_le_bytes)?),
            t::F32 => MetaArray::F32(reader.numbers(count, f32::from_le_bytes)?),
            t::U64 => MetaArray::U64(reader.numbers(count, u64::from_le_bytes)?),
            t::I64 => MetaArray::I64(reader.numbers(count, i64::from_le_bytes)?),
            t::F64 => MetaArray::F64(reader.numbers(count, f64::from_le_bytes)?),
            t::BOOL => {
                let bytes: Vec<[u8; 1]> = reader.numbers(count, |byte| byte)?;
                MetaArray::Bool(bytes.into_iter().map(boolean).collect::<Result<_>>()?)
            }
            t::STRING => {
                let mut table = StringTable::default();
                for _ in 0..count {
                    self.raw_string(LONGEST_STRING, "string")?;
                    table.push(&self.scratch)?;
                }
                MetaArray::Str(table)
            }
            _ => MetaArray::Array(self.nested_arrays(count, depth)?),
        })
    }

    fn nested_arrays(&mut self, count: u64, depth: usize) -> Result<Vec<MetaArray>> {
        let mut arrays = Vec::new();
        for _ in 0..count {
            self.nested += 1;
            if self.nested > MOST_NESTED {
                return Err(Reason::CountTooLarge.error(format!("more than {MOST_NESTED} arrays in arrays")));
            }
            arrays.push(self.meta_array(depth + 1)?);
        }
        Ok(arrays)
    }

    fn entry(&mut self) -> Result<Entry> {
        let start = self.reader.offset();
        self.raw_string(LONGEST_KEY, "tensor name")?;
        let Ok(name) = std::str::from_utf8(&self.scratch) else {
            return Err(Reason::BadName.error(format!(
                "tensor name \"{}\" at offset {start} is not UTF-8",
                shown_bytes(&self.scratch)
            )));
        };
        check_tensor_name(name, LONGEST_NAME)?;
        let name = name.to_owned();
        self.entry_after_name(name.clone()).map_err(|error| error.about(format!("tensor {}", shown(&name))))
    }

    fn entry_after_name(&mut self, name: String) -> Result<Entry> {
        let dims = self.reader.u32("number of dimensions")?;
        if dims as usize > MOST_DIMS {
            return Err(
                Reason::TooManyDims.error(format!("{dims} dimensions, at most {MOST_DIMS} are possible"))
            );
        }
        let mut shape = (0..dims).map(|_| self.reader.u64("dimension")).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let id = self.reader.u32("element type")?;
        let offset = self.reader.u64("tensor offset")?;
        let ty = TensorType::from_ggml_id(id).ok_or_else(|| {
            Reason::UnsupportedDtype.error(match unread_type(id) {
                Some(known) => format!("type {known} is not supported"),
                None => format!("unknown type {id}"),
            })
        })?;
        Ok(Entry { name, shape, ty, offset })
    }
}

fn boolean([byte]: [u8; 1]) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Reason::BadType.error(format!("boolean with value {other}"))),
    }
}

fn alignment(metadata: &BTreeMap<String, MetaValue>) -> Result<u64> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&MetaValue::U32(value)) if is_alignment(value.into()) => Ok(value.into()),
        Some(MetaValue::U32(value)) => Err(Reason::BadAlignment
            .error(format!("{value} is no power of two up to 2^20"))
            .about(format!("key {ALIGNMENT_KEY}"))),
        Some(_) => Err(Reason::BadAlignment.error("must be a u32").about(format!("key {ALIGNMENT_KEY}"))),
    }
}

/// Checks names, sizes and offsets of the table against each other and against the file.
fn place(entries: Vec<Entry>, data_start: u64, alignment: u64, file_len: u64) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::with_capacity(entries.len());
    let mut tensors = Vec::with_capacity(entries.len());
    let mut next = 0u64;
    for entry in &entries {
        let subject = || format!("tensor {}", shown(&entry.name));
        if !names.insert(entry.name.as_str()) {
            return Err(Reason::DuplicateTensor.error("appears twice in the tensor table").about(subject()));
        }
        let bytes = shape::bytes(entry.ty, &entry.shape).map_err(|error| error.about(subject()))?;
        let end = data_start.checked_add(entry.offset).and_then(|start| start.checked_add(bytes));
        let inside = end.is_some_and(|end| end <= file_len);
        let fault = if inside && entry.offset == next {
            None
        } else if entry.offset == next {
            Some((Reason::Truncated, "the file ends before its data"))
        } else if !inside {
            Some((Reason::OutOfBounds, "its data lies outside the file"))
        } else if entry.offset < next {
            Some((Reason::Overlap, "its data overlaps another tensor's"))
        } else {
            Some((Reason::BadOffset, "its data does not follow the tensor before it"))
        };
        if let Some((reason, message)) = fault {
            return Err(reason
                .error(format!(
                    "{message}: {bytes} bytes at offset {} of the data, expected at {next}, file of {file_len} bytes",
                    entry.offset
                ))
                .about(subject()));
        }
        next = (entry.offset + bytes).next_multiple_of(alignment);
        tensors.push((entry.offset, bytes));
    }
    check_last_padding(&tensors, data_start, next, file_len)?;
    drop(names);
    Ok(entries
        .into_iter()
        .zip(tensors)
        .map(|(entry, (offset, bytes))| TensorInfo {
            name: entry.name,
            shape: entry.shape,
            ty: entry.ty,
            layout: TileLayout::RowMajor,
            file: 0,
            offset: data_start + offset,
            bytes,
        })
        .collect())
}

/// The padding after the last tensor is there or it is not; half of it means that the file was cut.
fn check_last_padding(tensors: &[(u64, u64)], data_start: u64, next: u64, file_len: u64) -> Result<()> {
    let Some(&(offset, bytes)) = tensors.last() else { return Ok(()) };
    let (end, padded) = (data_start + offset + bytes, data_start + next);
    if file_len > end && file_len < padded {
        return Err(Reason::Truncated
            .error(format!("the file ends inside the padding, at {file_len} of {padded} bytes")));
    }
    Ok(())
}

/// Names of ggml's types that are not read.
fn unread_type(id: u32) -> Option<&'static str> {
    Some(match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return None,
    })
}
