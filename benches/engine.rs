//! What the engine costs besides the model, over a model that takes no time, and what loading ahead saves; then with a
//! real one: prompts that begin alike, now and after a restart, streams together, a switch between two models, answers
//! that follow a schema or a grammar, requests that are cancelled.
//! `cargo bench --bench engine -- [PART …]`; without a part all of them.

#![allow(clippy::print_stdout, reason = "a bench talks to the person who runs it")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use orion::{
    CancelToken, Completion, Constraint, Engine, EngineEvent, Error, FileSpec, FinishReason, Flow,
    Generation, GenerationEvent, Job, Model, ModelExt, ModelFormat, ModelInfo, ModelSpec, Prompt, Request,
    Result, Runtime, SamplingParams, TensorType, Timings, TokenId, Usage, WeightSource, loader::MemorySource,
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

/// Its models take so long to load.
struct InstantRuntime(Duration);

impl Runtime for InstantRuntime {
    fn load(&self, _: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        std::thread::sleep(self.0);
        let (to, jobs) = unbounded();
        std::thread::spawn(move || jobs.into_iter().for_each(talk));
        Ok(Arc::new(Instantly(ModelInfo::new("instant"), to)))
    }
}

fn engine() -> Result<Engine> {
    let builder = Engine::builder()
        .runtime(Arc::new(InstantRuntime(Duration::ZERO)))
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

fn overhead() -> Result<()> {
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
    refusals()
}

/// Takes work and never does it.
#[derive(Default)]
struct Deaf(Mutex<Vec<Receiver<Job>>>);

impl Runtime for Deaf {
    fn load(&self, _: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        let (to, jobs) = unbounded();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(jobs);
        Ok(Arc::new(Instantly(ModelInfo::new("deaf"), to)))
    }
}

fn refusals() -> Result<()> {
    let engine = Engine::builder()
        .runtime(Arc::new(Deaf::default()))
        .sources(|_| Ok(MemorySource::new(ModelFormat::Gguf).build()))
        .model("deaf", "memory")
        .parallel(1)
        .queued_requests(8)
        .build()?;
    engine.preload("deaf")?;
    let running = engine.stream("have the only place");
    while engine.stats()?.waiting > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let waiting: Vec<_> = (0..8).map(|_| engine.stream("wait")).collect();
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let start = Instant::now();
        let refused = engine.infer("one too many").is_err_and(|error| error.retry_after().is_some());
        times.push(start.elapsed());
        assert!(refused, "the queue is full");
    }
    times.sort();
    println!(
        "refused by a full queue: p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us",
        percentile(&times, 0.5),
        percentile(&times, 0.99),
        percentile(&times, 0.999),
    );
    drop((running, waiting));
    Ok(())
}

/// From the caller's flag to the last event, while a long prompt is computed and while an answer comes.
fn cancelling() -> Result<()> {
    let engine = local(None).build()?;
    engine.preload("a")?;
    let prompt = |n: usize| format!("{n} {}", "Boats and gulls by the grey sea. ".repeat(150));
    let whole = ask(&engine, "a", 33, prompt(0))?;
    let (step, tokens) = (whole.timings.decode.as_secs_f64() * 1e3 / 32.0, whole.usage.prompt_tokens);
    let prefill = whole.timings.prefill.as_secs_f64();
    // SmolLM2's 30 layers take chunks of 512 tokens.
    let layer = prefill * 1e3 / (30.0 * f64::from(tokens) / 512.0);
    println!(
        "a prompt of {tokens} tokens takes {prefill:.2} s, a layer of one of its chunks {layer:.0} ms, a step of decoding \
         {step:.1} ms"
    );
    for (what, tokens_first) in [("a prompt", false), ("an answer", true)] {
        let mut times = Vec::new();
        for n in 1..=40 {
            let text = if tokens_first { format!("Count to {n}.") } else { prompt(n) };
            let request = Request::new(text).model("a").sampling(SamplingParams::greedy()).max_tokens(400);
            let cancel = CancelToken::new();
            let mut stream = engine.stream(request.cancelled_by(cancel.clone()));
            if tokens_first {
                stream.by_ref().find(|event| matches!(event, EngineEvent::Token { .. }));
            } else {
                std::thread::sleep(Duration::from_secs_f64(prefill * (0.2 + 0.01 * f64::from(n as u32))));
            }
            let start = Instant::now();
            cancel.cancel();
            stream.for_each(drop);
            times.push(start.elapsed());
        }
        times.sort();
        let [p50, p95] = [0.5, 0.95].map(|share| percentile(&times, share) / 1e3);
        println!("{what} is cancelled: over after p50 {p50:.1} ms, p95 {p95:.1} ms");
    }
    Ok(())
}

/// How the next model gets into memory before it is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Ahead {
    Never,
    /// As the engine foretells.
    Foretold,
    /// By one who knows.
    Known,
}

const LOAD: Duration = Duration::from_millis(10);
const THINK: Duration = Duration::from_millis(30);
const WEIGHTS: u64 = 4000;

/// Seconds to first tokens over a trace, requests that waited for their model, and whether loading ahead is on at the end.
fn walk(trace: &[&str], ahead: Ahead) -> Result<(f64, usize, bool)> {
    let weights = |_: &ModelSpec| {
        let data = vec![0_u8; WEIGHTS as usize];
        Ok(MemorySource::new(ModelFormat::Gguf).tensor("t", [WEIGHTS / 4], TensorType::F32, data)?.build())
    };
    let mut builder =
        Engine::builder().runtime(Arc::new(InstantRuntime(LOAD))).sources(weights).memory(2 * WEIGHTS);
    let models: BTreeSet<&str> = trace.iter().copied().collect();
    for id in models {
        let mut spec = ModelSpec::new(id.into(), vec![FileSpec::new(id)]);
        spec.weight_bytes = WEIGHTS;
        builder = builder.spec(spec);
    }
    let engine = if ahead == Ahead::Foretold { builder.predictive() } else { builder }.build()?;
    let (mut seconds, mut waited) = (0.0, 0);
    for (at, model) in trace.iter().enumerate() {
        let answer = engine.infer_with(Request::new("next").model(*model).max_tokens(1))?;
        let ttft = answer.report.ttft().unwrap_or_default();
        seconds += ttft.as_secs_f64();
        waited += usize::from(ttft >= LOAD / 2);
        let thinking = Instant::now();
        if let (Ahead::Known, Some(next)) = (ahead, trace.get(at + 1)) {
            engine.preload(*next)?;
        }
        std::thread::sleep(THINK.saturating_sub(thinking.elapsed()));
    }
    let on = engine.stats()?.foresight.is_some_and(|foresight| foresight.on);
    Ok((seconds, waited, on))
}

fn foresight() -> Result<()> {
    println!("500 requests for four models, room for two, {LOAD:?} to load one, {THINK:?} between requests:");
    for (name, text) in [
        ("order2", include_str!("data/traces/order2.txt")),
        ("recorded", include_str!("data/traces/recorded.txt")),
        ("uniform", include_str!("data/traces/uniform.txt")),
        ("history", include_str!("data/traces/history.txt")),
    ] {
        let trace: Vec<&str> = text.lines().collect();
        let [never, foretold, known] =
            [Ahead::Never, Ahead::Foretold, Ahead::Known].map(|ahead| walk(&trace, ahead));
        let ((never, waited, _), (with, still, on), (known, _, _)) = (never?, foretold?, known?);
        println!(
            "  {name}: first tokens took {never:.2} s in all, with loading ahead {with:.2} s ({:+.1} %), with an oracle \
             {known:.2} s: {:.0} % of what it saves; {waited} requests waited for their model, with loading ahead {still}; \
             at the end it is {}",
            100.0 * (with / never - 1.0),
            100.0 * (never - with) / (never - known),
            if on { "on" } else { "off" },
        );
    }
    Ok(())
}

fn local(kv: Option<&std::path::Path>) -> orion::EngineBuilder {
    let model = orion_testkit::models::smollm2();
    let builder = Engine::builder().model("a", model.to_string_lossy());
    match kv {
        Some(folder) => builder.kv_directory(folder, 1 << 30),
        None => builder,
    }
}

fn ask(engine: &Engine, model: &str, tokens: u32, text: String) -> Result<orion::Answer> {
    let request = Request::new(text).model(model).sampling(SamplingParams::greedy()).max_tokens(tokens);
    engine.infer_with(request)
}

/// A prompt of about a thousand tokens that begins like every other.
fn long(question: &str) -> String {
    format!("{}{question}", "Always answer in one short sentence and never use lists. ".repeat(80))
}

fn prefixes() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::io(error, "a scratch directory"))?;
    let run = |engine: &Engine, question: &str| -> Result<(f64, u32, u32)> {
        let answer = ask(engine, "a", 4, long(question))?;
        let usage = answer.usage;
        Ok((answer.timings.ttft.as_secs_f64(), usage.cached_tokens, usage.prompt_tokens))
    };
    let engine = local(Some(folder.path())).build()?;
    engine.preload("a")?;
    let (first, _, tokens) = run(&engine, "What is water?")?;
    let (second, cached, _) = run(&engine, "What is fire?")?;
    engine.shutdown(Duration::from_secs(10));
    // The pages are on their way to the disk.
    std::thread::sleep(Duration::from_secs(2));
    let engine = local(Some(folder.path())).build()?;
    engine.preload("a")?;
    let (restarted, kept, _) = run(&engine, "What is earth?")?;
    println!(
        "TTFT of a prompt of {tokens} tokens: {first:.3} s; again, {cached} cached: {second:.3} s ({:.2} x); \
         after a restart, {kept} from disk: {restarted:.3} s ({:.2} x)",
        second / first,
        restarted / first,
    );
    Ok(())
}

fn together() -> Result<()> {
    const TOKENS: u32 = 128;
    let prompt = |n: usize| format!("Tell me a long story about the number {n}.");
    let generation =
        |n: usize| Generation::user(prompt(n)).sampling(SamplingParams::greedy()).max_tokens(TOKENS);
    let rate = |seconds: f64, tokens: u32| f64::from(tokens) / seconds;
    let model = orion::open(orion_testkit::models::smollm2())?;
    model.wait_loaded()?;
    let start = Instant::now();
    let streams = (0..8).map(|n| model.stream(generation(n))).collect::<Result<Vec<_>>>()?;
    let mut tokens = 0;
    for stream in streams {
        tokens += stream.completion()?.usage.completion_tokens;
    }
    let alone = rate(start.elapsed().as_secs_f64(), tokens);
    drop(model);
    let engine = local(None).build()?;
    engine.preload("a")?;
    let start = Instant::now();
    let request = |n: usize| Request::new(prompt(n)).sampling(SamplingParams::greedy()).max_tokens(TOKENS);
    let streams: Vec<_> = (0..8).map(|n| engine.stream(request(n))).collect();
    let (mut tokens, mut rates) = (0, Vec::new());
    for stream in streams {
        let answer = stream.answer()?;
        tokens += answer.usage.completion_tokens;
        rates.push(rate(answer.timings.decode.as_secs_f64(), answer.usage.completion_tokens));
    }
    let through = rate(start.elapsed().as_secs_f64(), tokens);
    rates.sort_by(f64::total_cmp);
    println!(
        "8 streams: {through:.0} tokens/s through the engine, {alone:.0} of the runtime alone ({:.2} x); \
         fastest stream / slowest {:.2}",
        through / alone,
        rates[7] / rates[0],
    );
    Ok(())
}

fn switching() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::io(error, "a scratch directory"))?;
    let twin = folder.path().join("twin.gguf");
    std::fs::copy(orion_testkit::models::smollm2(), &twin).map_err(|error| Error::io(error, "a copy"))?;
    let engine = local(None).model("b", twin.to_string_lossy()).build()?;
    engine.preload("a")?;
    engine.preload("b")?;
    let run = |models: [&str; 2]| -> Result<f64> {
        let mut times = Vec::new();
        for n in 0..20 {
            let start = Instant::now();
            ask(&engine, models[n % 2], 1, "Hi".into())?;
            times.push(start.elapsed());
        }
        times.sort();
        Ok(percentile(&times, 0.5) / 1e3)
    };
    let (same, other) = (run(["a", "a"])?, run(["a", "b"])?);
    println!("one token from the same model: {same:.1} ms; from two in turns: {other:.1} ms");
    Ok(())
}

fn constraints() -> Result<()> {
    const TOKENS: u32 = 96;
    const ROUNDS: usize = 15;
    let schema = r#"{"type": "array", "minItems": 40, "items": {"type": "object", "additionalProperties": false,
        "required": ["name", "legs", "kind"], "properties": {"name": {"type": "string", "minLength": 3, "maxLength": 40},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8}, "kind": {"enum": ["wild", "tame"]}}}}"#;
    let grammar = "root ::= item{60}\nitem ::= \"- \" [a-zA-Z ]{3,40} \"\\n\"";
    let kinds = [
        ("free", None),
        ("JSON schema", Some(Constraint::JsonSchema(schema.to_owned()))),
        ("grammar", Some(Constraint::Grammar(grammar.to_owned()))),
        ("regular expression", Some(Constraint::Regex("([a-z]{2,9} ){400}".to_owned()))),
    ];
    let model = orion::open(orion_testkit::models::smollm2())?;
    model.wait_loaded()?;
    let mut times = vec![Vec::new(); kinds.len()];
    for round in 0..=ROUNDS {
        for ((name, constraint), times) in kinds.iter().zip(&mut times) {
            let mut generation =
                Generation::user("List animals.").sampling(SamplingParams::greedy()).max_tokens(TOKENS);
            (generation.constraint, generation.ignore_eos) = (constraint.clone(), constraint.is_none());
            let done = model.generate(generation)?;
            if done.usage.completion_tokens != TOKENS {
                return Err(Error::invalid(format!("{name} ended early: {}", done.text)));
            }
            // The first round prepares what a vocabulary needs, once.
            if round > 0 {
                times.push((done.timings.decode / (TOKENS - 1), done.timings.ttft));
            }
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        percentile(&times, 0.5) / 1e3
    };
    let medians: Vec<(f64, f64)> = times
        .into_iter()
        .map(|times| times.into_iter().unzip())
        .map(|(each, first): (Vec<_>, Vec<_>)| (median(each), median(first)))
        .collect();
    for ((name, _), (each, first)) in kinds.iter().zip(&medians) {
        println!(
            "{name}: {each:.2} ms a token ({:+.1} %), the first after {first:.1} ms ({TOKENS} tokens, {ROUNDS} rounds)",
            100.0 * (each / medians[0].0 - 1.0)
        );
    }
    Ok(())
}

type Part = fn() -> Result<()>;

fn main() -> Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let parts: [(&str, Part); 7] = [
        ("overhead", overhead),
        ("foresight", foresight),
        ("prefixes", prefixes),
        ("together", together),
        ("switching", switching),
        ("constraints", constraints),
        ("cancelling", cancelling),
    ];
    let mut ran = parts.iter().filter(|(name, _)| asked.is_empty() || asked.iter().any(|part| part == name));
    ran.try_for_each(|(_, run)| run())
}
