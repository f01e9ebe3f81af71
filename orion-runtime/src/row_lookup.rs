//! The rows of a prompt's tokens, before the embedding is there: it comes last.

use std::sync::Arc;

use crossbeam_channel::{RecvTimeoutError, bounded};
use orion_core::{Error, ErrorKind, Result, TileLayout, WeightSource};
use orion_kernels::{ComputePool, Embedding, Projection};

use crate::cpu::pack_bytes;
use crate::load::Weights;
use crate::slot::POLL;
use crate::weights::MatrixRef;

/// Looks rows of an embedding up in its source.
pub(crate) struct RowLookup {
    source: Arc<dyn WeightSource>,
    pool: ComputePool,
    tensor: usize,
    cols: usize,
    scale: f32,
}

impl RowLookup {
    /// `None` if the embedding is not stored row by row.
    pub(crate) fn new(
        embedding: &MatrixRef,
        source: &Arc<dyn WeightSource>,
        pool: &ComputePool,
        scale: f32,
    ) -> Option<Self> {
        let (tensor, cols) = (embedding.tensor, embedding.cols);
        let info = &source.header().tensors[tensor];
        (info.layout == TileLayout::RowMajor).then(|| Self {
            source: Arc::clone(source),
            pool: pool.clone(),
            tensor,
            cols,
            scale,
        })
    }

    /// The rows of these tokens; `None` if meanwhile the whole has come. Others than the caller's thread wait for the
    /// bytes, so that `stop` is heard.
    pub(crate) fn wait(
        &self,
        tokens: impl Iterator<Item = u32>,
        weights: &Weights<Projection, Vec<f32>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Embedding>> {
        let mut tokens: Vec<u32> = tokens.collect();
        tokens.sort_unstable();
        tokens.dedup();
        let (reply, answer) = bounded(1);
        let (source, pool) = (Arc::clone(&self.source), self.pool.clone());
        let (tensor, cols, scale) = (self.tensor, self.cols, self.scale);
        let work = move || {
            let look = || {
                let bytes = source.rows(tensor, &tokens)?;
                let table =
                    pack_bytes(&pool, source.header().tensors[tensor].ty, [tokens.len(), cols], &bytes)?;
                Ok(Embedding { table, tokens: Some(tokens), scale })
            };
            // Nobody waits any more if this fails.
            reply.send(look()).ok();
        };
        std::thread::Builder::new()
            .name("orion-rows".into())
            .spawn(work)
            .map_err(|error| Error::io(error, "a thread that looks rows up"))?;
        loop {
            match answer.recv_timeout(POLL) {
                Ok(found) => return found.map(Some),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::Internal, "looking rows up panicked"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if weights.embedding.get().is_some() {
                return Ok(None);
            }
            if let Some(error) = weights.arrivals.failure() {
                return Err(error);
            }
            if stop() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled while its weights were loading"));
            }
        }
    }
}
