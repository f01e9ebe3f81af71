//! A program with a runtime of its own: everything that works on `Model` works on it, too.
//! `cargo run --release --example custom_runtime`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;

use orion::{
    Completion, FinishReason, Flow, Generation, GenerationEvent, Job, Model, ModelExt, ModelFormat,
    ModelHeader, ModelInfo, Prompt, Result, Runtime, TensorBytes, Timings, TokenId, Usage, WeightSource,
};

/// Says back, word by word, what it was told.
struct Echo(ModelInfo);

impl Model for Echo {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn submit(&self, mut job: Job) -> Result<()> {
        let text = match job.generation.prompt {
            Prompt::Chat(messages) => {
                messages.last().map(|message| message.content.clone()).unwrap_or_default()
            }
            Prompt::Text(text) => text,
            _ => return Err(orion::Error::unsupported("token prompts")),
        };
        std::thread::spawn(move || {
            let mut reason = FinishReason::Stop;
            for (id, word) in (0..).map(TokenId).zip(text.split_inclusive(' ')) {
                let event = GenerationEvent::Token { id, text: word.to_owned(), logprobs: None };
                if job.cancel.is_cancelled() || job.sink.event(event) == Flow::Stop {
                    reason = FinishReason::Cancelled;
                    break;
                }
            }
            let done = Completion::new(reason, text, Vec::new(), Usage::default(), Timings::default());
            job.sink.event(GenerationEvent::Done(done));
        });
        Ok(())
    }

    fn count_tokens(&self, _: &Generation) -> Result<usize> {
        Ok(0)
    }
}

/// Makes an [`Echo`] of any weights.
struct EchoRuntime;

impl Runtime for EchoRuntime {
    fn load(&self, weights: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        println!("loading {} tensors", weights.header().tensors.len());
        Ok(Arc::new(Echo(ModelInfo::new("echo"))))
    }
}

/// A source of no weights at all.
struct NoWeights(ModelHeader);

impl WeightSource for NoWeights {
    fn header(&self) -> &ModelHeader {
        &self.0
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        Err(orion::Error::invalid(format!("tensor {index} does not exist")))
    }
}

fn main() -> Result<()> {
    let runtime: Box<dyn Runtime> = Box::new(EchoRuntime);
    let header = ModelHeader::new(ModelFormat::Gguf, Default::default(), Vec::new());
    let model = runtime.load(Arc::new(NoWeights(header)))?;
    for event in model.stream(Generation::user("any runtime can stand here"))? {
        if let GenerationEvent::Token { text, .. } = event {
            println!("token: {text:?}");
        }
    }
    Ok(())
}
