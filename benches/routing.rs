//! How long a decision takes by the committed head: over the English prompts of 20 to 60 words among the agents' examples,
//! alone and beside a stream that decodes, and with the vector remembered. `cargo bench --bench routing`.

#![allow(clippy::print_stdout, reason = "a bench talks to the person who runs it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use orion::router::{
    CachedEmbedder, EmbeddingOptions, EmbeddingRouter, Head, KeywordRouter, KeywordRule, agent_examples,
    language,
};
use orion::{
    Candidate, Embedder, Generation, GenerationEvent, ModelExt, ModelSpec, Query, Result, Router,
    SamplingParams, open_encoder_of_head,
};

const AGENTS: [&str; 6] = ["code", "conversation", "creative", "reasoning", "summary", "translation"];
const WORDS: std::ops::RangeInclusive<usize> = 20..=60;
/// How often a decision is asked for by who does not ask all the time.
const EVERY: Duration = Duration::from_millis(20);

/// Milliseconds of one decision for each prompt.
fn times(router: &dyn Router, prompts: &[String], every: Duration) -> Result<Vec<f64>> {
    let specs = AGENTS.map(|id| ModelSpec::new(id.into(), vec![]));
    let candidates: Vec<_> = specs.iter().map(Candidate::new).collect();
    let mut times = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let start = Instant::now();
        std::hint::black_box(router.route(&Query::new(prompt), &candidates)?);
        let took = start.elapsed();
        times.push(took.as_secs_f64() * 1e3);
        std::thread::sleep(every.saturating_sub(took));
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn print(what: &str, times: &[f64]) {
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: p50 {:.3} ms, p95 {:.3} ms, p99 {:.3} ms, {} decisions",
        at(0.5),
        at(0.95),
        at(0.99),
        times.len()
    );
}

fn main() -> Result<()> {
    let english = |text: &str| language(text) == Some("en");
    let mut prompts: Vec<String> = agent_examples()
        .into_iter()
        .map(|example| example.text)
        .filter(|text| WORDS.contains(&text.split_whitespace().count()) && english(text))
        .collect();
    let words: usize = prompts.iter().map(|prompt| prompt.split_whitespace().count()).sum();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models.head.safetensors");
    let open = || open_encoder_of_head(&orion_testkit::models::minilm(), &path);
    let encoder = open()?;
    let tokens = prompts.iter().map(|prompt| Ok(encoder.tokenize(prompt)?.len())).sum::<Result<usize>>()?;
    println!(
        "{} prompts of {} words and {} tokens on average; encoder {}",
        prompts.len(),
        words / prompts.len(),
        tokens / prompts.len(),
        encoder.fingerprint()
    );
    let by_head = |embedder: Arc<dyn Embedder>| {
        let head = Head::load(&path, &*embedder)?;
        EmbeddingRouter::with_head(embedder, head, &BTreeMap::new(), EmbeddingOptions::default())
    };
    let router = by_head(Arc::new(encoder))?;
    times(&router, &prompts[..20], Duration::ZERO)?;
    print("alone", &times(&router, &prompts, Duration::ZERO)?);
    print("alone, one in 20 ms", &times(&router, &prompts, EVERY)?);

    let cached = by_head(Arc::new(CachedEmbedder::new(open()?, 1024)))?;
    times(&cached, &prompts, Duration::ZERO)?;
    print("remembered", &times(&cached, &prompts, Duration::ZERO)?);
    let words = |agent: &str| (0..20).map(|at| format!("{agent}{at}")).collect::<Vec<_>>();
    let rules = AGENTS.iter().map(|&agent| KeywordRule::new(agent, words(agent))).collect();
    print("by 120 keywords", &times(&KeywordRouter::new(rules)?, &prompts, Duration::ZERO)?);

    let model = orion::open(orion_testkit::models::smollm2())?;
    model.wait_loaded()?;
    let (over, said) = (AtomicBool::new(false), AtomicUsize::new(0));
    prompts.truncate(200);
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                let mut endless =
                    Generation::user("Tell me a story.").sampling(SamplingParams::greedy()).max_tokens(1000);
                endless.ignore_eos = true;
                for event in model.stream(endless)? {
                    if matches!(event, GenerationEvent::Token { .. }) {
                        said.fetch_add(1, Ordering::Relaxed);
                    }
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
            Ok(())
        });
        let rate = |seconds: f64, before: usize| (said.load(Ordering::Relaxed) - before) as f64 / seconds;
        let result = (|| {
            while said.load(Ordering::Relaxed) < 20 {
                std::thread::sleep(Duration::from_millis(10));
            }
            let (start, before) = (Instant::now(), said.load(Ordering::Relaxed));
            std::thread::sleep(EVERY * 100);
            let alone = rate(start.elapsed().as_secs_f64(), before);
            print("beside a stream", &times(&router, &prompts, Duration::ZERO)?);
            let (start, before) = (Instant::now(), said.load(Ordering::Relaxed));
            let times = times(&router, &prompts, EVERY)?;
            let beside = rate(start.elapsed().as_secs_f64(), before);
            print("beside a stream, one in 20 ms", &times);
            println!("the stream: {alone:.0} tokens/s alone, {beside:.0} beside the decisions");
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        stream.join().expect("the stream does not panic")?;
        result
    })
}
