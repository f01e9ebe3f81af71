//! What the engine costs besides the model: per request and per token, over a model that takes no time.
//! `cargo bench --bench engine`

#![allow(clippy::print_stdout, reason = "a bench talks to the person who runs it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use orion::{
    Completion, Engine, Error, FileSpec, FinishReason, Flow, Generation, GenerationEvent, Job, Model,
    ModelFormat, ModelInfo, ModelSpec, Prompt, Request, Result, Runtime, Timings, TokenId, Usage,
    WeightSource, loader::MemorySource,
};

const REQUESTS: usize = 5_000;
const TOKENS: u32 = 200_000;

/// A model on a thread of its own that says as many tokens as it is asked for, at once.
struct Instantly(ModelInfo, Sender<Job>);

impl Model for Instantly {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn submit(&self, job: Job) -> Result<()> {
        self.1.send(job).map_err(|_| Error::unsupported("the thread has ended"))
    }

    fn count_tokens(&self, _: &Generation) -> Result<usize> {
        Ok(1)
    }
}

fn talk(mut job: Job) {
    let tokens = job.generation.max_tokens.unwrap_or(1);
    job.sink.event(GenerationEvent::Started { prompt_tokens: 1, cached_tokens: 0 });
    for n in 0..tokens {
        let event = GenerationEvent::Token { id: TokenId(n), text: "word ".into(), logprobs: None };
        if job.sink.event(event) == Flow::Pause {
            while !job.sink.ready() {
                std::hint::spin_loop();
            }
        }
    }
    let usage = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: tokens };
    let done = Completion::new(FinishReason::Stop, String::new(), Vec::new(), usage, Timings::default());
    job.sink.event(GenerationEvent::Done(done));
}

struct InstantRuntime;

impl Runtime for InstantRuntime {
    fn load(&self, _: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        let (to, jobs) = unbounded();
        std::thread::spawn(move || jobs.into_iter().for_each(talk));
        Ok(Arc::new(Instantly(ModelInfo::new("instant"), to)))
    }
}

fn engine() -> Result<Engine> {
    let builder = Engine::builder()
        .runtime(Arc::new(InstantRuntime))
        .sources(|_| Ok(MemorySource::new(ModelFormat::Gguf).build()));
    let agents = [("code", "function"), ("poet", "poem"), ("cook", "recipe"), ("doctor", "headache")];
    let agents = agents.map(|(id, word)| {
        let mut spec = ModelSpec::new(id.into(), vec![FileSpec::new("memory")]);
        spec.keywords = vec![word.to_owned()];
        spec
    });
    agents.into_iter().fold(builder, orion::EngineBuilder::spec).default_model("cook").build()
}

fn percentile(times: &[Duration], share: f64) -> f64 {
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
}

fn main() -> Result<()> {
    let engine = engine()?;
    engine.infer("warm up the poem")?;
    let mut times = Vec::with_capacity(REQUESTS);
    for n in 0..REQUESTS {
        let start = Instant::now();
        engine.infer(format!("Please write a poem about the number {n}"))?;
        times.push(start.elapsed());
    }
    times.sort();
    println!(
        "per request, keyword routing, one at a time: p50 {:.0} us, p99 {:.0} us ({REQUESTS} requests)",
        percentile(&times, 0.5),
        percentile(&times, 0.99),
    );

    let start = Instant::now();
    let stream = engine.stream(Request::of(Prompt::Text("a poem".into())).max_tokens(TOKENS));
    let events = stream.count();
    let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(TOKENS);
    println!("per token: {each:.2} us, model and reading included ({events} events)");
    Ok(())
}
