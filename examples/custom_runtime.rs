//! A runtime of one's own in the place of ORION's: it answers without weights or arithmetic, and the engine cannot tell.
//! `cargo run --release --example custom_runtime`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;
use std::time::Duration;

use orion::{
    Completion, Engine, EngineEvent, Error, FinishReason, Flow, Generation, GenerationEvent, Job, Model,
    ModelFormat, ModelHeader, ModelInfo, Prompt, Request, Result, Runtime, TensorBytes, Timings, TokenId,
    Usage, WeightSource,
};

/// Says back, word by word, what it was told.
struct Echo(ModelInfo);

impl Model for Echo {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn submit(&self, job: Job) -> Result<()> {
        job.generation.sampling.validate()?;
        let words = words(&job.generation.prompt)?;
        std::thread::spawn(move || speak(job, &words));
        Ok(())
    }

    fn count_tokens(&self, generation: &Generation) -> Result<usize> {
        Ok(words(&generation.prompt)?.len())
    }
}

/// The words of the last thing that was said.
fn words(prompt: &Prompt) -> Result<Vec<String>> {
    let text = match prompt {
        Prompt::Chat(messages) => messages.last().map_or("", |message| &message.content),
        Prompt::Text(text) => text,
        _ => return Err(Error::unsupported("prompts of tokens")),
    };
    Ok(text.split_inclusive(' ').map(str::to_owned).collect())
}

/// Tells the sink everything there is to tell, and ends in exactly one way.
fn speak(mut job: Job, words: &[String]) {
    let count = u32::try_from(words.len()).unwrap_or(u32::MAX);
    let most = job.generation.max_tokens.unwrap_or(count);
    job.sink.event(GenerationEvent::Started { prompt_tokens: count, cached_tokens: 0 });
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut reason = if most < count { FinishReason::Length } else { FinishReason::Stop };
    for (id, word) in (0..most).map(TokenId).zip(words) {
        let mut flow = Flow::Stop;
        if !job.cancel.is_cancelled() {
            text += word;
            tokens.push(id);
            flow = job.sink.event(GenerationEvent::Token { id, text: word.clone(), logprobs: None });
        }
        while flow == Flow::Pause && !job.sink.ready() && !job.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if flow == Flow::Stop {
            reason = FinishReason::Cancelled;
            break;
        }
    }
    let said = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    let usage = Usage { prompt_tokens: count, cached_tokens: 0, completion_tokens: said };
    job.sink.event(GenerationEvent::Done(Completion::new(reason, text, tokens, usage, Timings::default())));
}

/// Makes an [`Echo`] of any weights.
pub(crate) struct EchoRuntime;

impl Runtime for EchoRuntime {
    fn load(&self, weights: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        println!("loading {} tensors", weights.header().tensors.len());
        Ok(Arc::new(Echo(ModelInfo::new("echo"))))
    }
}

/// A source of no weights at all.
pub(crate) struct NoWeights(pub(crate) ModelHeader);

impl WeightSource for NoWeights {
    fn header(&self) -> &ModelHeader {
        &self.0
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        Err(Error::invalid(format!("there is no tensor {index}")))
    }
}

fn main() -> Result<()> {
    let engine = Engine::builder()
        .model("echo", "nowhere")
        .sources(|_| Ok(Arc::new(NoWeights(ModelHeader::new(ModelFormat::Gguf, Default::default(), vec![])))))
        .runtime(Arc::new(EchoRuntime))
        .build()?;
    for event in engine.stream(Request::new("any runtime can stand here")) {
        match event {
            EngineEvent::Token { text, .. } => println!("token: {text:?}"),
            EngineEvent::Done(answer) => println!("{}", answer.report),
            EngineEvent::Failed { error, .. } => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
