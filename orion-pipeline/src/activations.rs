//! Importance matrices in the making: squares of what goes into a model's matrices, summed per column.

use std::collections::BTreeMap;
use std::path::Path;

use orion_core::{Error, MetaArray, MetaValue, Result, StringTable, TensorType};
use orion_formats::gguf::{GgufWriter, TensorSpec, file_bytes};
use serde_json::json;

use crate::output::Output;
use crate::provenance;

/// Sums of squared activations of a model at work, from which an [`Imatrix`](crate::Imatrix) is made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Activations {
    of: BTreeMap<String, Columns>,
}

/// The inputs of one matrix.
#[derive(Debug, Clone, PartialEq)]
struct Columns {
    /// Of the squares, per column. Wide: a long text adds millions of them.
    sums: Vec<f64>,
    rows: u64,
}

/// What activations were measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImatrixOrigin {
    /// Name of the text.
    pub dataset: String,
    /// Chunks of it that were run.
    pub chunks: u32,
    /// Tokens of each.
    pub chunk_tokens: u32,
}

impl ImatrixOrigin {
    /// So many chunks of that text.
    #[must_use]
    pub fn new(dataset: impl Into<String>, chunks: u32, chunk_tokens: u32) -> Self {
        Self { dataset: dataset.into(), chunks, chunk_tokens }
    }
}

impl Activations {
    /// Adds inputs of the matrix of that name. `inputs: [rows, columns]`
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) for no whole number of rows, or another number of columns than
    /// before; [`Corrupt`](orion_core::ErrorKind::Corrupt) for a value that is not finite.
    pub fn add(&mut self, tensor: &str, columns: usize, inputs: &[f32]) -> Result<()> {
        let about = |error: Error| error.about(format!("tensor {tensor}"));
        if columns == 0 || !inputs.len().is_multiple_of(columns) {
            return Err(about(Error::invalid(format!("{} inputs for {columns} columns", inputs.len()))));
        }
        if !self.of.contains_key(tensor) {
            self.of.insert(tensor.to_owned(), Columns { sums: vec![0.0; columns], rows: 0 });
        }
        let entry = self.of.get_mut(tensor).expect("it was put there");
        if entry.sums.len() != columns {
            let before = entry.sums.len();
            return Err(about(Error::invalid(format!("{columns} columns, {before} before"))));
        }
        if inputs.iter().any(|x| !x.is_finite()) {
            return Err(about(Error::corrupt("is multiplied with values that are not finite")));
        }
        for row in inputs.chunks_exact(columns) {
            for (sum, x) in entry.sums.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        entry.rows += (inputs.len() / columns) as u64;
        Ok(())
    }

    /// Number of matrices seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Writes llama.cpp's GGUF form: `NAME.in_sum2` with the sums and `NAME.counts` with the number of rows.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if the file exists and is not to be replaced, or nothing was
    /// seen; what the file system reports. Nothing is left at `path` then.
    pub fn write(&self, path: &Path, overwrite: bool, origin: &ImatrixOrigin) -> Result<()> {
        if self.is_empty() {
            return Err(Error::invalid("no matrix was seen at work"));
        }
        let datasets: StringTable = [origin.dataset.as_bytes()].into_iter().collect();
        let mut metadata = BTreeMap::from([
            ("general.type".to_owned(), MetaValue::Str("imatrix".to_owned())),
            ("imatrix.datasets".to_owned(), MetaValue::Array(MetaArray::Str(datasets))),
            ("imatrix.chunk_count".to_owned(), MetaValue::U32(origin.chunks)),
            ("imatrix.chunk_size".to_owned(), MetaValue::U32(origin.chunk_tokens)),
        ]);
        provenance::record(&mut metadata, json!({ "step": "imatrix" }));
        let specs: Vec<TensorSpec> = self
            .of
            .iter()
            .flat_map(|(name, columns)| {
                let sums = vec![columns.sums.len() as u64];
                [
                    TensorSpec::new(format!("{name}.in_sum2"), sums, TensorType::F32),
                    TensorSpec::new(format!("{name}.counts"), vec![1], TensorType::F32),
                ]
            })
            .collect();
        let out = Output::create(path, overwrite, file_bytes(&metadata, &specs)?)?;
        let mut writer = GgufWriter::start(out, &metadata, &specs)?;
        for columns in self.of.values() {
            let sums: Vec<u8> = columns.sums.iter().flat_map(|&sum| (sum as f32).to_le_bytes()).collect();
            writer.tensor(&sums)?;
            writer.tensor(&(columns.rows as f32).to_le_bytes())?;
        }
        writer.finish()?.publish()
    }
}
