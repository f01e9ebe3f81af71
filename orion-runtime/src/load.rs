//! The loading thread: fills a decoder's weights in the order the forward pass needs them.

use std::sync::Arc;

use orion_core::{Error, ErrorKind, Result, TensorType, WeightSource};
use orion_kernels::{dequantize, row_major};

use crate::slot::{Arrivals, Slot};
use crate::weights::{Layer, MatrixRef, VectorRef, WeightTable};

/// A decoder's weights as an executor holds them: matrices `M`, vectors `V`.
#[derive(Debug)]
pub(crate) struct Weights<M, V> {
    pub(crate) arrivals: Arc<Arrivals>,
    pub(crate) embedding: Slot<M>,
    pub(crate) layers: Vec<Slot<Layer<M, V>>>,
    pub(crate) output_norm: Slot<V>,
    /// Empty when the head is the embedding.
    pub(crate) head: Slot<M>,
}

impl<M, V> Weights<M, V> {
    pub(crate) fn new(layers: usize, arrivals: Arc<Arrivals>) -> Self {
        Self {
            arrivals,
            embedding: Slot::new(),
            layers: (0..layers).map(|_| Slot::new()).collect(),
            output_norm: Slot::new(),
            head: Slot::new(),
        }
    }

    /// Fills every slot, in the order the source has been told to [expect](WeightSource::expect). A failure or panic is told to whoever waits.
    pub(crate) fn load(
        &self,
        table: &WeightTable,
        (source, first): (&dyn WeightSource, EmbeddingFirst),
        matrix: impl Fn(&MatrixRef) -> Result<M>,
        vector: impl Fn(&VectorRef) -> Result<V>,
    ) -> Result<()> {
        let first = first == EmbeddingFirst::Yes;
        let fill = || -> Result<()> {
            let go_on = || match self.arrivals.is_abandoned() {
                true => Err(Error::new(ErrorKind::Cancelled, "the model was dropped while it loaded")),
                false => Ok(()),
            };
            if first {
                self.arrivals.fill(&self.embedding, matrix(&table.embedding)?);
            }
            for (slot, layer) in self.layers.iter().zip(&table.layers) {
                go_on()?;
                self.arrivals.fill(slot, layer.load(&matrix, &vector)?);
                layer.tensors().into_iter().for_each(|tensor| source.release(tensor));
            }
            go_on()?;
            self.arrivals.fill(&self.output_norm, vector(&table.output_norm)?);
            if let Some(head) = &table.head {
                self.arrivals.fill(&self.head, matrix(head)?);
                source.release(head.tensor);
            }
            if !first {
                go_on()?;
                self.arrivals.fill(&self.embedding, matrix(&table.embedding)?);
            }
            source.release(table.embedding.tensor);
            Ok(())
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(fill))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "loading the weights panicked")));
        if let Err(error) = &result {
            self.arrivals.fail(error);
        }
        result
    }
}

/// Whether the whole embedding is loaded before the layers. Who looks rows up one by one needs it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EmbeddingFirst {
    Yes,
    No,
}

/// The stored bytes of consecutive rows of a matrix, and their type.
pub(crate) fn row_bytes(
    source: &dyn WeightSource,
    reference: &MatrixRef,
) -> Result<(TensorType, orion_core::TensorBytes, std::ops::Range<usize>)> {
    let info = &source.header().tensors[reference.tensor];
    let about = |error: Error| error.about(format!("tensor {}", info.name));
    let row = usize::try_from(info.ty.bytes_of(reference.cols as u64).unwrap_or(u64::MAX))
        .map_err(|_| about(Error::corrupt("rows are no whole number of blocks")))?;
    let bytes = source.tensor(reference.tensor).and_then(|bytes| row_major(info, &bytes)).map_err(about)?;
    let range = (reference.first_row * row)..((reference.first_row + reference.rows) * row);
    if range.end > bytes.len() {
        return Err(about(Error::corrupt(format!("{} bytes, rows end at {}", bytes.len(), range.end))));
    }
    Ok((info.ty, bytes, range))
}

/// A matrix as 32-bit floats, `[rows, cols]`.
pub(crate) fn matrix_f32(source: &dyn WeightSource, reference: &MatrixRef) -> Result<Vec<f32>> {
    let (ty, bytes, range) = row_bytes(source, reference)?;
    let mut out = vec![0.0; reference.rows * reference.cols];
    dequantize(ty, &bytes[range], &mut out)?;
    Ok(out)
}

/// A vector as 32-bit floats.
pub(crate) fn vector_f32(source: &dyn WeightSource, reference: &VectorRef) -> Result<Vec<f32>> {
    let info = &source.header().tensors[reference.tensor];
    let about = |error: Error| error.about(format!("tensor {}", info.name));
    let bytes = source.tensor(reference.tensor).and_then(|bytes| row_major(info, &bytes)).map_err(about)?;
    let width = info.ty.block_bytes();
    let range = (reference.first * width)..((reference.first + reference.len) * width);
    let stored = bytes.get(range).ok_or_else(|| Error::corrupt("is too short").about(info.name.clone()))?;
    let mut out = vec![0.0; reference.len];
    dequantize(info.ty, stored, &mut out)?;
    if reference.offset != 0.0 {
        out.iter_mut().for_each(|value| *value += reference.offset);
    }
    Ok(out)
}

/// Starts the loading thread; it ends by itself when everything is there, failed or abandoned.
pub(crate) fn spawn<M: Send + Sync + 'static, V: Send + Sync + 'static>(
    weights: &Arc<Weights<M, V>>,
    work: impl FnOnce(&Weights<M, V>) -> Result<()> + Send + 'static,
) -> Result<()> {
    let weights = weights.clone();
    std::thread::Builder::new()
        .name("orion-load".into())
        .spawn(move || {
            if let Err(error) = work(&weights) {
                tracing::warn!(%error, "loading failed");
            }
        })
        .map(drop)
        .map_err(|error| Error::io(error, "starting the loading thread"))
}
