//! From metadata and tensors to bytes.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;

use orion_core::{Error, MetaArray, MetaValue, Result, TensorType};

use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, LONGEST_NAME, MAGIC, MOST_DIMS, is_alignment, value_type};
use crate::name::{check_tensor_name, shown};
use crate::shape;

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: TensorType,
}

impl TensorSpec {
    /// A tensor of that name, shape (outermost dimension first) and type.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<u64>>, ty: TensorType) -> Self {
        Self { name: name.into(), shape: shape.into(), ty }
    }
}

/// Writes a GGUF file of version 3 front to back, holding one tensor at a time.
///
/// The same input gives the same bytes. Metadata keys are written in order; `general.alignment` is obeyed.
///
/// ```
/// use orion_core::TensorType;
/// use orion_formats::gguf::{GgufWriter, TensorSpec, parse};
/// let specs = [TensorSpec::new("token_embd.weight", [2, 3], TensorType::F32)];
/// let mut writer = GgufWriter::start(Vec::new(), &Default::default(), &specs)?;
/// writer.tensor(&[0; 24])?;
/// let file = writer.finish()?;
/// assert_eq!(parse(&file, file.len() as u64)?.model.tensors[0].shape, [2, 3]);
/// # Ok::<_, orion_core::Error>(())
/// ```
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    alignment: u64,
    /// Name and length of the tensors still to come, the next one last.
    due: Vec<(String, u64)>,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for names, shapes or values the format cannot hold or a
    /// reader would refuse, and whatever `out` reports.
    pub fn start(out: W, metadata: &BTreeMap<String, MetaValue>, tensors: &[TensorSpec]) -> Result<Self> {
        let Header { bytes, alignment, due } = header(metadata, tensors)?;
        let mut writer = Self { out, alignment, due };
        writer.put(&bytes)?;
        Ok(writer)
    }

    /// Writes the data of the next tensor of the table.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if its length is wrong or no tensor is due, and whatever
    /// `out` reports.
    pub fn tensor(&mut self, data: &[u8]) -> Result<()> {
        let Some((name, bytes)) = self.due.pop() else {
            return Err(Error::invalid("more data than tensors"));
        };
        if data.len() as u64 != bytes {
            return Err(Error::invalid(format!("{} bytes of data for {bytes}", data.len()))
                .about(format!("tensor {}", shown(&name))));
        }
        self.put(data)?;
        let padding = bytes.next_multiple_of(self.alignment) - bytes;
        self.put(&vec![0; usize_of(padding)])
    }

    /// Flushes and returns the writer below.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if tensors are missing, and whatever `out` reports.
    pub fn finish(mut self) -> Result<W> {
        if let Some((name, _)) = self.due.pop() {
            return Err(Error::invalid("its data was not written").about(format!("tensor {}", shown(&name))));
        }
        self.out.flush().map_err(|error| Error::io(error, "GGUF file"))?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| Error::io(error, "GGUF file"))
    }
}

/// What a file begins with.
struct Header {
    bytes: Vec<u8>,
    alignment: u64,
    /// Name and length of the tensors to come, the next one last.
    due: Vec<(String, u64)>,
}

fn header(metadata: &BTreeMap<String, MetaValue>, tensors: &[TensorSpec]) -> Result<Header> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(&MetaValue::U32(value)) if is_alignment(value.into()) => value.into(),
        Some(_) => return Err(Error::invalid("must be a u32 and a power of two").about(ALIGNMENT_KEY)),
    };
    let mut header = Vec::new();
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&3u32.to_le_bytes());
    header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        if key.is_empty() || key.len() > usize::from(u16::MAX) || key.chars().any(char::is_control) {
            return Err(Error::invalid("not a metadata key").about(format!("key {}", shown(key))));
        }
        put_bytes(&mut header, key.as_bytes());
        put_value(&mut header, value).map_err(|error| error.about(format!("key {}", shown(key))))?;
    }
    let mut due = table(&mut header, tensors, alignment)?;
    due.reverse();
    header.resize(header.len().next_multiple_of(usize_of(alignment)), 0);
    Ok(Header { bytes: header, alignment, due })
}

/// Length of the file that a [`GgufWriter`] writes.
///
/// # Errors
/// As [`GgufWriter::start`].
pub fn file_bytes(metadata: &BTreeMap<String, MetaValue>, tensors: &[TensorSpec]) -> Result<u64> {
    let Header { bytes, alignment, due } = header(metadata, tensors)?;
    let data = due.iter().map(|(_, bytes)| bytes.next_multiple_of(alignment)).sum::<u64>();
    Ok(bytes.len() as u64 + data)
}

fn usize_of(small: u64) -> usize {
    usize::try_from(small).expect("an alignment is at most 2^20")
}

fn table(header: &mut Vec<u8>, tensors: &[TensorSpec], alignment: u64) -> Result<Vec<(String, u64)>> {
    let mut names = HashSet::new();
    let mut due = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        let subject = || format!("tensor {}", shown(&tensor.name));
        let invalid = |error: Error| Error::invalid(error.to_string()).with_source(error);
        check_tensor_name(&tensor.name, LONGEST_NAME).map_err(invalid)?;
        if !names.insert(tensor.name.as_str()) {
            return Err(Error::invalid("appears twice").about(subject()));
        }
        if tensor.shape.len() > MOST_DIMS {
            return Err(Error::invalid(format!("more than {MOST_DIMS} dimensions")).about(subject()));
        }
        let bytes = shape::bytes(tensor.ty, &tensor.shape)
            .map_err(invalid)
            .map_err(|error| error.about(subject()))?;
        put_bytes(header, tensor.name.as_bytes());
        header.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            header.extend_from_slice(&dim.to_le_bytes());
        }
        header.extend_from_slice(&tensor.ty.ggml_id().to_le_bytes());
        header.extend_from_slice(&offset.to_le_bytes());
        due.push((tensor.name.clone(), bytes));
        offset = offset
            .checked_add(bytes)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| Error::invalid("the file would exceed 2^64 bytes").about(subject()))?;
    }
    Ok(due)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &MetaValue) -> Result<()> {
    use value_type as t;
    let (ty, bytes): (u32, &[u8]) = match value {
        MetaValue::U8(v) => (t::U8, &v.to_le_bytes()),
        MetaValue::I8(v) => (t::I8, &v.to_le_bytes()),
        MetaValue::U16(v) => (t::U16, &v.to_le_bytes()),
        MetaValue::I16(v) => (t::I16, &v.to_le_bytes()),
        MetaValue::U32(v) => (t::U32, &v.to_le_bytes()),
        MetaValue::I32(v) => (t::I32, &v.to_le_bytes()),
        MetaValue::U64(v) => (t::U64, &v.to_le_bytes()),
        MetaValue::I64(v) => (t::I64, &v.to_le_bytes()),
        MetaValue::F32(v) => (t::F32, &v.to_le_bytes()),
        MetaValue::F64(v) => (t::F64, &v.to_le_bytes()),
        MetaValue::Bool(v) => (t::BOOL, &[u8::from(*v)]),
        MetaValue::Str(text) => {
            out.extend_from_slice(&t::STRING.to_le_bytes());
            put_bytes(out, text.as_bytes());
            return Ok(());
        }
        MetaValue::Array(array) => {
            out.extend_from_slice(&t::ARRAY.to_le_bytes());
            return put_array(out, array);
        }
        other => return Err(Error::invalid(format!("{other:?} cannot be written"))),
    };
    out.extend_from_slice(&ty.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_array(out: &mut Vec<u8>, array: &MetaArray) -> Result<()> {
    use value_type as t;
    fn numbers<T: Copy, const N: usize>(out: &mut Vec<u8>, ty: u32, values: &[T], encode: fn(T) -> [u8; N]) {
        out.extend_from_slice(&ty.to_le_bytes());
        out.extend_from_slice(&(values.len() as u64).to_le_bytes());
        values.iter().for_each(|&value| out.extend_from_slice(&encode(value)));
    }
    match array {
        MetaArray::U8(v) => numbers(out, t::U8, v, u8::to_le_bytes),
        MetaArray::I8(v) => numbers(out, t::I8, v, i8::to_le_bytes),
        MetaArray::U16(v) => numbers(out, t::U16, v, u16::to_le_bytes),
        MetaArray::I16(v) => numbers(out, t::I16, v, i16::to_le_bytes),
        MetaArray::U32(v) => numbers(out, t::U32, v, u32::to_le_bytes),
        MetaArray::I32(v) => numbers(out, t::I32, v, i32::to_le_bytes),
        MetaArray::U64(v) => numbers(out, t::U64, v, u64::to_le_bytes),
        MetaArray::I64(v) => numbers(out, t::I64, v, i64::to_le_bytes),
        MetaArray::F32(v) => numbers(out, t::F32, v, f32::to_le_bytes),
        MetaArray::F64(v) => numbers(out, t::F64, v, f64::to_le_bytes),
        MetaArray::Bool(v) => numbers(out, t::BOOL, v, |flag| [u8::from(flag)]),
        MetaArray::Str(table) => {
            out.extend_from_slice(&t::STRING.to_le_bytes());
            out.extend_from_slice(&(table.len() as u64).to_le_bytes());
            table.iter().for_each(|text| put_bytes(out, text));
        }
        MetaArray::Array(arrays) => {
            out.extend_from_slice(&t::ARRAY.to_le_bytes());
            out.extend_from_slice(&(arrays.len() as u64).to_le_bytes());
            arrays.iter().try_for_each(|array| put_array(out, array))?;
        }
        other => return Err(Error::invalid(format!("{other:?} cannot be written"))),
    }
    Ok(())
}
