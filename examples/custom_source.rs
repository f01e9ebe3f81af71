//! Weights that are no file: a model in a buffer of this program, as it would be after decrypting it or taking it off a
//! queue. `cargo run --release --example custom_source`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::ops::Range;
use std::sync::Arc;

use orion::formats::gguf;
use orion::{Engine, Error, ModelHeader, Request, Result, TensorBytes, WeightSource};

/// A GGUF file that lies in memory. Tensors are windows into it: nothing is copied.
pub(crate) struct Buffer {
    header: ModelHeader,
    tensors: Vec<Range<usize>>,
    bytes: Arc<Vec<u8>>,
}

impl Buffer {
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self> {
        // The parser takes hostile input; what passes it lies within the buffer.
        let header = gguf::join(vec![gguf::parse(&bytes, bytes.len() as u64)?])?;
        let tensors = header.tensors.iter().map(|tensor| tensor.range()).collect::<Result<_>>()?;
        Ok(Self { header, tensors, bytes: Arc::new(bytes) })
    }
}

impl WeightSource for Buffer {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let range = self.tensors.get(index).cloned();
        let range = range.ok_or_else(|| Error::invalid(format!("there is no tensor {index}")))?;
        Ok(TensorBytes::shared(self.bytes.clone(), range))
    }
}

fn main() -> Result<()> {
    let path = orion_testkit::models::smollm2();
    let bytes = std::fs::read(&path).map_err(|error| Error::io(error, path.display().to_string()))?;
    println!("the model is {} bytes in this program's memory", bytes.len());
    let weights: Arc<dyn WeightSource> = Arc::new(Buffer::new(bytes)?);

    let engine = Engine::builder()
        .model("in memory", "buffer:smollm2") // any name: only `sources` reads it
        .sources(move |spec| {
            println!("opening {}", spec.files[0].location);
            Ok(weights.clone())
        })
        .build()?;
    let question = Request::new("Explain in one sentence why the sky is blue.").max_tokens(60);
    let answer = engine.infer_with(question)?;
    println!("{}\n[{}]", answer.text, answer.report);
    Ok(())
}
