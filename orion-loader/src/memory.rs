//! Weights that are in memory already.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use orion_core::{
    Digest, Error, ErrorKind, MetaValue, ModelFormat, ModelHeader, Result, TensorBytes, TensorInfo,
    TensorType, TileLayout, WeightSource,
};

/// A model held in memory, for tests and for programs that make their weights.
pub struct MemorySource {
    header: ModelHeader,
    data: Vec<TensorBytes>,
}

impl MemorySource {
    /// A model without tensors.
    #[must_use]
    pub fn new(format: ModelFormat) -> Self {
        Self { header: ModelHeader::new(format, BTreeMap::new(), Vec::new()), data: Vec::new() }
    }

    /// Adds a metadata value.
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: MetaValue) -> Self {
        self.header.metadata.insert(key.into(), value);
        self
    }

    /// Adds a side file, such as `config.json`.
    #[must_use]
    pub fn side_file(mut self, name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        self.header.side_files.insert(name.into(), bytes.into());
        self
    }

    /// Says what the digest of the weights is.
    #[must_use]
    pub fn digest(mut self, digest: Digest) -> Self {
        self.header.digest = Some(digest);
        self
    }

    /// Adds a tensor, outermost dimension first.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if rows are no whole number of blocks or the data has another length.
    pub fn tensor(
        mut self,
        name: impl Into<String>,
        shape: impl Into<Vec<u64>>,
        ty: TensorType,
        data: impl Into<TensorBytes>,
    ) -> Result<Self> {
        let (name, shape, data) = (name.into(), shape.into(), data.into());
        let invalid = |message: String| Error::invalid(message).about(format!("tensor {name}"));
        let rows = shape.iter().rev().skip(1).try_fold(1u64, |rows, &dim| rows.checked_mul(dim));
        let bytes = ty
            .bytes_of(shape.last().copied().unwrap_or(1))
            .zip(rows)
            .and_then(|(row, rows)| row.checked_mul(rows));
        if bytes != Some(data.len() as u64) {
            return Err(invalid(format!("{} bytes of data do not fit shape {shape:?} of {ty}", data.len())));
        }
        let offset = self.header.tensors.last().map_or(0, |last| last.offset + last.bytes);
        let bytes = data.len() as u64;
        self.header.tensors.push(TensorInfo {
            name,
            shape,
            ty,
            layout: TileLayout::RowMajor,
            file: 0,
            offset,
            bytes,
        });
        self.data.push(data);
        Ok(self)
    }

    /// The source, shared.
    #[must_use]
    pub fn build(self) -> Arc<dyn WeightSource> {
        Arc::new(self)
    }
}

impl WeightSource for MemorySource {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        self.data.get(index).cloned().ok_or_else(|| no_tensor(index, &self.header))
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySource({} tensors)", self.data.len())
    }
}

pub(crate) fn no_tensor(index: usize, header: &ModelHeader) -> Error {
    Error::new(ErrorKind::NotFound, format!("tensor {index} of {}", header.tensors.len()))
}
