//! From tensors to bytes.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;

use ::safetensors::Dtype;
use orion_core::{Error, Result};
use serde_json::json;

use super::{LONGEST_NAME, METADATA_KEY, MOST_DIMS};
use crate::name::{check_tensor_name, shown};
use crate::shape;

/// Where data begins is a multiple of this: a cache line, and what mapped tiles need.
const ALIGNMENT: usize = 64;

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: Dtype,
}

impl TensorSpec {
    /// A tensor of that name, shape (outermost dimension first) and type.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<u64>>, dtype: Dtype) -> Self {
        Self { name: name.into(), shape: shape.into(), dtype }
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for shapes that no reader accepts.
    pub fn bytes(&self) -> Result<u64> {
        let invalid =
            |message: String| Error::invalid(message).about(format!("tensor {}", shown(&self.name)));
        if self.shape.len() > MOST_DIMS {
            return Err(invalid(format!("more than {MOST_DIMS} dimensions")));
        }
        let elements = shape::elements(&self.shape).map_err(|error| invalid(error.to_string()))?;
        let bits = elements * self.dtype.bitsize() as u64;
        bits.is_multiple_of(8).then_some(bits / 8).ok_or_else(|| invalid("no whole number of bytes".into()))
    }
}

/// Writes a safetensors file front to back, holding one tensor at a time.
///
/// The same input gives the same bytes; tensors stand in the order given and data begins at a multiple of 64.
///
/// ```
/// use orion_formats::safetensors::{Dtype, SafetensorsWriter, TensorSpec, parse};
/// let specs = [TensorSpec::new("weight", [2, 3], Dtype::F16)];
/// let mut writer = SafetensorsWriter::start(Vec::new(), &Default::default(), &specs)?;
/// writer.tensor(&[0; 12])?;
/// let file = writer.finish()?;
/// assert_eq!(parse(&file, file.len() as u64)?.tensors[0].shape, [2, 3]);
/// # Ok::<_, orion_core::Error>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsWriter<W> {
    out: W,
    /// Name and length of the tensors still to come, the next one last.
    due: Vec<(String, u64)>,
}

impl<W: Write> SafetensorsWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for names or shapes a reader would refuse, and whatever
    /// `out` reports.
    pub fn start(out: W, metadata: &BTreeMap<String, String>, tensors: &[TensorSpec]) -> Result<Self> {
        let (header, due) = header(metadata, tensors)?;
        let mut writer = Self { out, due };
        writer.put(&header)?;
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
        self.put(data)
    }

    /// Flushes and returns the writer below.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if tensors are missing, and whatever `out` reports.
    pub fn finish(mut self) -> Result<W> {
        if let Some((name, _)) = self.due.pop() {
            return Err(Error::invalid("its data was not written").about(format!("tensor {}", shown(&name))));
        }
        self.out.flush().map_err(|error| Error::io(error, "safetensors file"))?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| Error::io(error, "safetensors file"))
    }
}

/// Bytes before the first tensor's data: what a file of these tensors begins with.
///
/// # Errors
/// As [`SafetensorsWriter::start`].
pub fn data_offset(metadata: &BTreeMap<String, String>, tensors: &[TensorSpec]) -> Result<u64> {
    header(metadata, tensors).map(|(header, _)| header.len() as u64)
}

/// Name and length of tensors still to come, the next one last.
type Due = Vec<(String, u64)>;

/// Length and JSON, padded, and what is to follow.
fn header(metadata: &BTreeMap<String, String>, tensors: &[TensorSpec]) -> Result<(Vec<u8>, Due)> {
    let mut entries = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        entries.push(format!("\"{METADATA_KEY}\":{}", json!(metadata)));
    }
    let mut names = HashSet::new();
    let mut due = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        check_tensor_name(&tensor.name, LONGEST_NAME)
            .map_err(|error| Error::invalid(error.to_string()).with_source(error))?;
        if !names.insert(tensor.name.as_str()) || tensor.name == METADATA_KEY {
            return Err(Error::invalid("appears twice or is reserved")
                .about(format!("tensor {}", shown(&tensor.name))));
        }
        let bytes = tensor.bytes()?;
        let end =
            offset.checked_add(bytes).ok_or_else(|| Error::invalid("the file would exceed 2^64 bytes"))?;
        entries.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{offset},{end}]}}",
            json!(tensor.name),
            tensor.dtype,
            json!(tensor.shape),
        ));
        due.push((tensor.name.clone(), bytes));
        offset = end;
    }
    due.reverse();
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    header.resize((8 + header.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    header.splice(0..0, (header.len() as u64).to_le_bytes());
    Ok((header, due))
}
