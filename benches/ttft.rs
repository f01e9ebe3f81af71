//! Time to the first token while weights still arrive: predicted against measured.
//!
//! `cargo bench --bench ttft -- [--model FILE] [--seconds N] [--responder]`
//!
//! A pipeline whose layer i runs while layer i+1 arrives is done after
//! `t0 + max(bytes / rate + last layer + head, first layer's bytes / rate + prefill)`; `t0` is what has to happen before
//! the first byte is asked for and after the header is there: configuration, vocabulary, template. Each measurement is a
//! process of its own, so that nothing is warm that should not be and the resident set is that of one model.

#![allow(clippy::print_stdout, reason = "a bench prints")]
#![allow(clippy::unwrap_used, reason = "a bench that fails shall say where")]

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orion::loader::{Loader, LoaderOptions};
use orion::pipeline::{ShardOptions, ShardSize};
use orion::runtime::{LocalModel, LocalRuntime, Positions};
use orion::{
    FirstResponder, Generation, GenerationEvent, Model, ModelExt, Prompt, RelayEvent, SamplingParams,
    Speaker, TokenId,
};
use orion_testkit::server::{Link, Server};
use serde_json::{Value, json};

const PROMPT_TOKENS: usize = 64;
/// Processes of which the median counts, where one takes less than a second.
const RUNS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, location, cache, watched] = &arguments[..]
        && (mode == "read" || mode == "map")
    {
        println!("{}", child(location, Path::new(cache), mode == "map", watched == "watched"));
        return;
    }
    let value = |name: &str| {
        arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let model = value("--model").map_or_else(orion_testkit::models::smollm2, PathBuf::from);
    let seconds: f64 = value("--seconds").map_or(10.0, |text| text.parse().unwrap());
    let costs = Costs::measure(&model);
    costs.print();
    over_a_link(&model, &costs, seconds);
    from_cold_disk(&model, &costs);
    warm("warm file", "read", &model, &costs);
    let folder = tempfile::TempDir::new().unwrap();
    let set = folder.path().join("set");
    let mut options = ShardOptions::new(ShardSize::Count(NonZero::new(4).unwrap()));
    options.pack = true;
    orion::pipeline::shard(&*orion::loader::open(&model).unwrap(), &set, &options).unwrap();
    warm("warm packed shard set, read", "read", &set, &costs);
    warm("warm packed shard set, mapped", "map", &set, &costs);
    if arguments.iter().any(|argument| argument == "--responder") {
        first_responder(&model);
    }
}

fn prompt(vocab: usize) -> Vec<TokenId> {
    let mut state = 7u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        TokenId(u32::try_from((state >> 33) % vocab as u64).unwrap())
    };
    std::iter::repeat_with(next).take(PROMPT_TOKENS).collect()
}

fn generation(vocab: usize) -> Generation {
    let prompt = Prompt::Tokens(prompt(vocab));
    let mut generation = Generation::new(prompt).sampling(SamplingParams::greedy()).max_tokens(1);
    generation.ignore_eos = true;
    generation
}

/// What the parts of the pipeline cost, measured on the loaded model.
struct Costs {
    bytes: u64,
    first_layer_bytes: u64,
    kv_bytes: u64,
    /// Configuration, vocabulary, template.
    t0: Duration,
    prefill: Duration,
    last_layer: Duration,
    head: Duration,
}

impl Costs {
    fn measure(path: &Path) -> Self {
        let source = orion::loader::open(path).unwrap();
        let header = source.header().clone();
        let bytes_of = |part: &str| -> u64 {
            header.tensors.iter().filter(|info| info.name.starts_with(part)).map(|info| info.bytes).sum()
        };
        let began = Instant::now();
        let model = LocalRuntime::default().open(source).unwrap();
        let t0 = began.elapsed();
        model.wait_loaded().unwrap();
        let tokens = prompt(model.config().vocab_size);
        let best = |tokens: &[TokenId]| {
            let run = || {
                let began = Instant::now();
                model.evaluate(tokens, Positions::Last, |_, _| {}).unwrap();
                began.elapsed()
            };
            (0..5).map(|_| run()).min().unwrap()
        };
        let (prefill, one) = (best(&tokens), best(&tokens[..1]));
        let layers = u32::try_from(model.config().layers.len()).unwrap();
        let first_layer_bytes = bytes_of("blk.0.") + bytes_of("model.layers.0.");
        let head_bytes = match bytes_of("output.") + bytes_of("lm_head.") {
            0 => bytes_of("token_embd.") + bytes_of("model.embed_tokens."),
            bytes => bytes,
        };
        // One token reads every weight once, so the head's share of that time is its share of the bytes.
        let head =
            one.mul_f64(head_bytes as f64 / header.tensors.iter().map(|info| info.bytes).sum::<u64>() as f64);
        let last_layer = prefill.saturating_sub(head) / layers;
        let pages = (PROMPT_TOKENS as u64 + 1).next_multiple_of(64);
        let kv_bytes = pages * model.info().kv_bytes_per_token;
        let bytes = std::fs::metadata(path).unwrap().len();
        Self { bytes, first_layer_bytes, kv_bytes, t0, prefill, last_layer, head }
    }

    fn print(&self) {
        println!(
            "{:.1} MB; set-up {:.0?}, prefill of {PROMPT_TOKENS} tokens {:.0?}, last layer {:.1?}, head {:.1?}\n",
            self.bytes as f64 / 1e6,
            self.t0,
            self.prefill,
            self.last_layer,
            self.head
        );
    }

    fn predict(&self, bytes_per_second: f64) -> Duration {
        let transfer = |bytes: u64| Duration::from_secs_f64(bytes as f64 / bytes_per_second);
        let transfer_bound = transfer(self.bytes) + self.last_layer + self.head;
        let compute_bound = transfer(self.first_layer_bytes) + self.prefill;
        self.t0 + transfer_bound.max(compute_bound)
    }
}

/// Opens a model in a fresh process and waits for its first token.
fn child(location: &str, cache: &Path, map: bool, watched: bool) -> Value {
    let began = Instant::now();
    let options = LoaderOptions::new().cache_directory(cache).offline(false).map_shard_sets(map);
    let loader = Loader::new(options).unwrap();
    let model = LocalRuntime::default().open(loader.open(location).unwrap()).unwrap();
    let opened = began.elapsed();
    let mut stream = model.stream(generation(model.config().vocab_size)).unwrap();
    let calls = if watched { watch(&model, began) } else { [0.0; 4] };
    let first =
        stream.find(|event| matches!(event, GenerationEvent::Token { .. } | GenerationEvent::Failed(_)));
    let ttft = began.elapsed();
    assert!(matches!(first, Some(GenerationEvent::Token { .. })), "{first:?}");
    json!({
        "ttft_s": ttft.as_secs_f64(),
        "open_s": opened.as_secs_f64(),
        "peak_rss_mb": peak_rss_mb(),
        "calls_us": calls,
    })
}

/// How long calls take that must not block, while weights arrive and a prompt runs: p50, p99, p99.9 and the longest, in
/// microseconds.
fn watch(model: &LocalModel, began: Instant) -> [f64; 4] {
    let vocab = model.config().vocab_size;
    let until = began + Duration::from_secs(2);
    let mut times = Vec::new();
    while Instant::now() < until && model.load_time().is_none() {
        let called = Instant::now();
        std::hint::black_box((model.load_progress(), model.info()));
        let stream = model.stream(generation(vocab));
        drop(stream);
        times.push(called.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    times.sort();
    let at = |share: f64| {
        let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    [at(0.5), at(0.99), at(0.999), at(1.0)]
}

fn peak_rss_mb() -> f64 {
    let memory = orion::logging::memory_use().expect("this bench needs a system that tells its memory");
    memory.peak as f64 / f64::from(1 << 20)
}

/// So many processes that only wait for their token, of which the one in the middle counts, and one that calls all the time.
fn run(alone: usize, mut process: impl FnMut(&str) -> Value) -> Value {
    let mut runs: Vec<Value> = (0..alone).map(|_| process("alone")).collect();
    runs.sort_by(|a, b| a["ttft_s"].as_f64().unwrap().total_cmp(&b["ttft_s"].as_f64().unwrap()));
    let mut median = runs.swap_remove(alone / 2);
    median["calls_us"] = process("watched")["calls_us"].take();
    median
}

/// A process with an empty cache.
fn fresh(location: &str, watched: &str) -> Value {
    process("read", location, tempfile::TempDir::new().unwrap().path(), watched)
}

fn process(mode: &str, location: &str, cache: &Path, watched: &str) -> Value {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([mode, location, cache.to_str().unwrap(), watched])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn report(what: &str, report: &Value, costs: &Costs, predicted: Duration, bound: Duration) {
    let measured = report["ttft_s"].as_f64().unwrap();
    let within = if measured <= bound.as_secs_f64() { "within" } else { "BEYOND" };
    println!("{what}");
    println!(
        "  first token: predicted {:.3} s, measured {measured:.3} s, {within} {:.3} s",
        predicted.as_secs_f64(),
        bound.as_secs_f64()
    );
    let rss = report["peak_rss_mb"].as_f64().unwrap();
    let most = (costs.bytes + costs.kv_bytes) as f64 / (1 << 20) as f64 + 60.0;
    let within = if rss <= most { "within" } else { "BEYOND" };
    println!("  peak resident set: {rss:.0} MiB, {within} {most:.0} (weights + KV + 60)");
    let calls: Vec<f64> = report["calls_us"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    println!(
        "  calls that must not block: p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, longest {:.0} us\n",
        calls[0], calls[1], calls[2], calls[3]
    );
}

fn serve(path: &Path, rate: f64) -> Server {
    let (link, body) = (Link::new(rate), std::fs::read(path).unwrap());
    Server::start(move |request, _, stream| link.good(request, stream, &body))
}

fn over_a_link(path: &Path, costs: &Costs, seconds: f64) {
    let rate = costs.bytes as f64 / seconds;
    let server = serve(path, rate);
    let measured = run(1, |watched| fresh(&format!("{}/m.gguf", server.url), watched));
    let predicted = costs.predict(rate);
    let bound = predicted.mul_f64(1.05) + Duration::from_millis(300);
    report(
        &format!("over a link that takes {seconds} s for all, cold cache"),
        &measured,
        costs,
        predicted,
        bound,
    );
}

/// Has the system forget what it holds of a file, and measures how fast it comes back.
fn cold_rate(path: &Path) -> f64 {
    forget(path);
    let began = Instant::now();
    let mut file = std::fs::File::open(path).unwrap();
    let (mut piece, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        match std::io::Read::read(&mut file, &mut piece).unwrap() {
            0 => return bytes as f64 / began.elapsed().as_secs_f64(),
            read => bytes += read,
        }
    }
}

fn forget(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn from_cold_disk(path: &Path, costs: &Costs) {
    let mut rates = [(); 3].map(|()| cold_rate(path));
    rates.sort_by(f64::total_cmp);
    let rate = rates[1];
    println!("(cold reads: {:.0} MB/s)", rate / 1e6);
    let measured = run(RUNS, |watched| {
        forget(path);
        fresh(path.to_str().unwrap(), watched)
    });
    let bound = Duration::from_secs_f64(1.1 * costs.bytes as f64 / rate)
        + costs.last_layer
        + Duration::from_millis(100);
    report("local file, cold page cache", &measured, costs, costs.predict(rate), bound);
}

fn warm(what: &str, mode: &str, path: &Path, costs: &Costs) {
    // The first run has the system read the files, and notes in the cache what it has verified.
    let cache = tempfile::TempDir::new().unwrap();
    let again = |watched: &str| process(mode, path.to_str().unwrap(), cache.path(), watched);
    again("alone");
    let measured = run(RUNS, again);
    let predicted = costs.t0 + costs.prefill;
    report(what, &measured, costs, predicted, predicted + Duration::from_millis(30));
}

/// A link on which the large model takes 30 s, and a small one that is there.
fn first_responder(path: &Path) {
    let bytes = std::fs::metadata(path).unwrap().len();
    let server = serve(path, bytes as f64 / 30.0);
    let cache = tempfile::TempDir::new().unwrap();
    let options = LoaderOptions::new().cache_directory(cache.path()).offline(false);
    let url = format!("{}/m.gguf", server.url);
    let began = Instant::now();
    let small = orion::open(path).unwrap();
    let both = FirstResponder::new(small, move || {
        let main = LocalRuntime::default().open(Loader::new(options)?.open(&url)?)?;
        main.wait_loaded()?;
        Ok(main)
    })
    .unwrap();
    println!("first responder, on a link that takes 30 s for the large model");
    let ask = |both: &FirstResponder| {
        let generation = Generation::user("Explain at length why the sea is salty.").max_tokens(2000);
        let mut speaker = Speaker::First;
        for event in both.stream(generation).unwrap() {
            match event {
                RelayEvent::Speaks(who) => {
                    speaker = who;
                    println!("  {:6.2} s  {who:?} begins", began.elapsed().as_secs_f64());
                }
                RelayEvent::Event(_, GenerationEvent::Token { .. }) => {
                    if speaker == Speaker::Main {
                        println!("  {:6.2} s  first token of {speaker:?}", began.elapsed().as_secs_f64());
                        return true;
                    }
                    if !FIRST.swap(true, std::sync::atomic::Ordering::Relaxed) {
                        println!("  {:6.2} s  first token of {speaker:?}", began.elapsed().as_secs_f64());
                    }
                }
                RelayEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        false
    };
    while !ask(&both) {}
}

static FIRST: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
