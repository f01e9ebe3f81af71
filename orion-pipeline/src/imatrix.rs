//! Importance matrices: how much each column of a matrix matters, measured on activations.

use std::collections::BTreeMap;

use orion_core::{Error, MetaArray, MetaValue, Result, WeightSource};
use orion_kernels::dequantize;

use crate::shard::rows_of;

/// One importance per column of each tensor named.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Imatrix {
    of: BTreeMap<String, Vec<f32>>,
    /// What a quantised file records of it: key and value.
    recorded: Vec<(String, MetaValue)>,
}

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

impl Imatrix {
    /// Reads llama.cpp's GGUF form: for each tensor the sums of squared activations per column and how many there were.
    /// `name` is what files made with it record as its file name.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) if it is something else, [`Corrupt`](orion_core::ErrorKind::Corrupt)
    /// for sums without counts, of another shape, negative or not finite.
    pub fn read(source: &dyn WeightSource, name: &str) -> Result<Self> {
        let header = source.header();
        if header.metadata.get("general.type").and_then(MetaValue::as_str) != Some("imatrix") {
            return Err(Error::invalid("is no importance matrix; general.type must be imatrix"));
        }
        let floats = |index: usize| -> Result<Vec<f32>> {
            let tensor = &header.tensors[index];
            let mut out = vec![0.0; tensor.elements() as usize];
            dequantize(tensor.ty, &rows_of(source, index)?, &mut out)?;
            Ok(out)
        };
        let mut of = BTreeMap::new();
        for (index, tensor) in header.tensors.iter().enumerate() {
            let Some(target) = tensor.name.strip_suffix(SUMS) else { continue };
            let about = |error: Error| error.about(format!("tensor {}", tensor.name));
            let counts = header
                .position(&format!("{target}{COUNTS}"))
                .ok_or_else(|| about(Error::corrupt("has no counts beside it")))?;
            let (mut sums, counts) = (floats(index)?, floats(counts)?);
            let columns = tensor.shape.last().copied().unwrap_or(1) as usize;
            if columns == 0 || counts.len() * columns != sums.len() {
                return Err(about(Error::corrupt(format!(
                    "{} sums for {} counts",
                    sums.len(),
                    counts.len()
                ))));
            }
            for (sums, &count) in sums.chunks_mut(columns).zip(&counts) {
                // What was never used counts as much as the rest.
                sums.iter_mut().for_each(|sum| *sum = if count > 0.0 { *sum / count } else { 1.0 });
            }
            if sums.iter().any(|sum| !sum.is_finite() || *sum < 0.0) {
                return Err(about(Error::corrupt("holds a value that is negative or not finite")));
            }
            of.insert(target.to_owned(), sums);
        }
        if of.is_empty() {
            return Err(Error::invalid("the importance matrix names no tensor"));
        }
        let mut recorded = vec![
            ("quantize.imatrix.file".to_owned(), MetaValue::Str(name.to_owned())),
            ("quantize.imatrix.entries_count".to_owned(), MetaValue::U32(of.len() as u32)),
        ];
        if let Some(MetaValue::Array(MetaArray::Str(sets))) = header.metadata.get("imatrix.datasets")
            && let Some(first) = sets.get(0)
        {
            let first = String::from_utf8_lossy(first).into_owned();
            recorded.push(("quantize.imatrix.dataset".to_owned(), MetaValue::Str(first)));
        }
        if let Some(chunks) = header.metadata.get("imatrix.chunk_count").and_then(MetaValue::as_u64) {
            let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
            recorded.push(("quantize.imatrix.chunks_count".to_owned(), MetaValue::U32(chunks)));
        }
        Ok(Self { of, recorded })
    }

    /// Says what the columns of a tensor count; for stacked experts, of each expert in turn.
    pub fn insert(&mut self, tensor: impl Into<String>, importances: Vec<f32>) {
        self.of.insert(tensor.into(), importances);
    }

    /// Whether it says something of no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// What it says of a tensor.
    #[must_use]
    pub fn of(&self, tensor: &str) -> Option<&[f32]> {
        self.of.get(tensor).map(Vec::as_slice)
    }

    pub(crate) fn record(&self, metadata: &mut BTreeMap<String, MetaValue>) {
        metadata.extend(self.recorded.iter().cloned());
    }
}
