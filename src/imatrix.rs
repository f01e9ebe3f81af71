//! Measuring importances: a model of the runtime at work, watched for the pipeline.

use std::num::NonZero;
use std::sync::{Arc, Mutex};

use orion_core::{Error, ErrorKind, Result, WeightSource};
use orion_pipeline::{Activations, as_gguf};
use orion_runtime::{ExecutorKind, InputObserver, LocalRuntime, Positions, RuntimeOptions};

/// How importances are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImatrixOptions {
    /// Tokens of a chunk, each run from an empty context. Default 512, as llama.cpp's.
    pub context: usize,
    /// Chunks of the text that are run at most. Default: all.
    pub chunks: Option<NonZero<usize>>,
    /// Whether the matrix that makes logits is measured too, which takes longer. Default: no, as llama.cpp's.
    pub process_output: bool,
}

impl Default for ImatrixOptions {
    fn default() -> Self {
        Self { context: 512, chunks: None, process_output: false }
    }
}

/// Sums what it sees.
#[derive(Debug)]
struct Sums {
    seen: Mutex<Result<Activations>>,
    process_output: bool,
}

impl InputObserver for Sums {
    fn inputs(&self, tensor: &str, columns: usize, inputs: &[f32]) {
        if !self.process_output && !tensor.starts_with("blk.") {
            return;
        }
        let mut seen = self.seen.lock().expect("no holder panics");
        if let Ok(activations) = &mut *seen
            && let Err(error) = activations.add(tensor, columns, inputs)
        {
            *seen = Err(error);
        }
    }
}

impl Sums {
    /// What was seen so far, or why it is of no use.
    fn take(&self) -> Result<Activations> {
        std::mem::replace(&mut *self.seen.lock().expect("no holder panics"), Ok(Activations::default()))
    }
}

/// Runs a text through a model, in 32-bit floats, and sums the squares of what goes into its matrices, under the names they
/// have in GGUF. Returns the sums and the number of chunks run. `progress` is called before each chunk with the chunks
/// done and the chunks to do, and stops the work by returning an error.
///
/// Takes four bytes of memory per parameter.
///
/// # Errors
/// A model that cannot be run or that GGUF cannot express, a text shorter than one chunk, activations that are not finite,
/// what `progress` returns.
pub fn measure_imatrix(
    model: Arc<dyn WeightSource>,
    text: &str,
    options: &ImatrixOptions,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<(Activations, usize)> {
    let sums = Arc::new(Sums {
        seen: Mutex::new(Ok(Activations::default())),
        process_output: options.process_output,
    });
    let mut running = RuntimeOptions::default();
    running.executor = ExecutorKind::Portable;
    running.input_observer = Some(sums.clone());
    let model = LocalRuntime::new(running).open(as_gguf(model)?)?;
    let mut chunks = model.text_chunks(text, options.context)?.chunks;
    chunks.truncate(options.chunks.map_or(usize::MAX, NonZero::get));
    // Only the last row goes through the head unless all are asked for.
    let positions = if options.process_output { Positions::All } else { Positions::Last };
    for (done, chunk) in chunks.iter().enumerate() {
        progress(done, chunks.len())?;
        model.evaluate(chunk, positions, |_, _| {})?;
    }
    let seen = sums.take()?;
    if seen.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, "the model has no matrix that could be measured"));
    }
    progress(chunks.len(), chunks.len())?;
    Ok((seen, chunks.len()))
}
