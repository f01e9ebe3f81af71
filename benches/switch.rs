//! A switch to a model that is not in memory, with its file in the page cache: from a request with a prompt of 64 tokens to
//! its first token, while the budget has room for one model and the other one is there. Beside it llama.cpp, which only
//! loads the same file and runs as long a prompt; the two take turns.
//! `make bench-switch`, with MORE=--gemma between SmolLM2 and Gemma 3, otherwise between SmolLM2 and a copy of it.

#![allow(clippy::print_stdout, reason = "a bench talks to the person who runs it")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use orion::{Engine, EngineEvent, Error, Request, Result, SamplingParams, registry::Hardware};

const ROUNDS: usize = 7;
const PROMPT: u32 = 64;
/// What keys and values may take besides the weights.
const KV_BYTES: u64 = 64 << 20;

/// llama.cpp in a process of its own that has loaded its libraries.
struct Peer {
    process: Child,
    asks: ChildStdin,
    tells: BufReader<ChildStdout>,
}

impl Peer {
    fn start(model: &Path, repack: bool) -> Result<Self> {
        let about = |error| Error::io(error, "scripts/peer.py");
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let mut process = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/peer.py"))
            .arg("switch")
            .arg(model)
            .args(["-p", &PROMPT.to_string(), "-t", &threads().to_string()])
            .args((!repack).then_some("--no-repack"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(about)?;
        let (asks, tells) = (process.stdin.take(), process.stdout.take());
        let (Some(asks), Some(tells)) = (asks, tells) else {
            return Err(Error::unsupported("a process without pipes"));
        };
        let mut peer = Self { process, asks, tells: BufReader::new(tells) };
        match peer.line()?.as_str() {
            "ready" => Ok(peer),
            other => Err(Error::unsupported(format!("llama.cpp: {other}"))),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.tells.read_line(&mut line).map_err(|error| Error::io(error, "scripts/peer.py"))?;
        Ok(line.trim_end().to_owned())
    }

    /// Seconds of a load and a prompt.
    fn switch(&mut self) -> Result<f64> {
        writeln!(self.asks).map_err(|error| Error::io(error, "scripts/peer.py"))?;
        let line = self.line()?;
        let seconds = line.split(' ').next().and_then(|word| word.parse().ok());
        seconds.ok_or_else(|| Error::unsupported(format!("llama.cpp: {line}")))
    }

    /// What it calls itself.
    fn end(mut self) -> Result<String> {
        drop(self.asks);
        let mut last = String::new();
        self.tells.read_line(&mut last).map_err(|error| Error::io(error, "scripts/peer.py"))?;
        self.process.wait().map_err(|error| Error::io(error, "scripts/peer.py"))?;
        let told: serde_json::Value =
            serde_json::from_str(&last).map_err(|error| Error::corrupt(format!("{error}: {last}")))?;
        Ok(told["peer"].as_str().unwrap_or_default().to_owned())
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A prompt of so many words that begins like no other.
fn words(count: usize, round: usize) -> String {
    const WORDS: [&str; 8] = ["water", "stone", "light", "paper", "music", "house", "river", "cloud"];
    (0..count)
        .map(|at| format!(" {}", WORDS[(round + at + at * at / 8 + round * at) % WORDS.len()]))
        .collect()
}

fn request(model: &str, text: String) -> Request {
    Request::completion(text).model(model).sampling(SamplingParams::greedy()).max_tokens(1)
}

/// Seconds from here to the first token.
fn first_token(engine: &Engine, request: Request) -> Result<(f64, u32)> {
    let start = Instant::now();
    let mut first = None;
    for event in engine.stream(request) {
        match event {
            EngineEvent::Token { .. } => first = first.or(Some(start.elapsed().as_secs_f64())),
            EngineEvent::Failed { error, .. } => return Err(error),
            EngineEvent::Done(answer) if answer.usage.cached_tokens == 0 => {
                let first = first.ok_or_else(|| Error::unsupported("an answer without a token"))?;
                return Ok((first, answer.usage.prompt_tokens));
            }
            _ => {}
        }
    }
    Err(Error::unsupported("part of the prompt was known already"))
}

/// Switches between the two models, and what llama.cpp needs for either, in turns.
fn switches(models: [&Path; 2]) -> Result<()> {
    let mut bytes = 0;
    for model in models {
        let metadata = std::fs::metadata(model).map_err(|error| Error::io(error, "a model"))?;
        bytes = metadata.len().max(bytes);
        // Into the page cache.
        std::fs::read(model).map_err(|error| Error::io(error, "a model"))?;
    }
    let engine = Engine::builder()
        .model("0", models[0].to_string_lossy())
        .model("1", models[1].to_string_lossy())
        .memory(bytes + KV_BYTES)
        .build()?;
    let names = ["0", "1"];
    let mut counts = [PROMPT as usize; 2];
    let mut peers = Vec::new();
    for (model, (name, count)) in models.iter().zip(names.iter().zip(&mut counts)) {
        let (_, tokens) = first_token(&engine, request(name, words(*count, 0)))?;
        *count = (*count + PROMPT as usize).saturating_sub(tokens as usize);
        peers.push([Peer::start(model, true)?, Peer::start(model, false)?]);
    }
    let mut times = [(); 2].map(|()| [(); 3].map(|()| Vec::new()));
    for round in 1..=ROUNDS + 1 {
        for (at, name) in names.iter().enumerate() {
            let loads = engine.stats()?.evictions;
            let (ours, tokens) = first_token(&engine, request(name, words(counts[at], round)))?;
            if tokens != PROMPT || engine.stats()?.evictions != loads + 1 {
                return Err(Error::unsupported(format!("no switch with {PROMPT} tokens, but {tokens}")));
            }
            // Weights move to huge pages after a while: that is not to slow what comes next.
            std::thread::sleep(Duration::from_secs(3));
            let [repacked, plain] = &mut peers[at];
            let theirs = [repacked.switch()?, plain.switch()?];
            // The first of each is for warming up.
            if round > 1 {
                for (list, time) in times[at].iter_mut().zip([ours, theirs[0], theirs[1]]) {
                    list.push(time);
                }
            }
        }
    }
    for (model, [ours, repacked, plain]) in models.iter().zip(times) {
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        let [ours, repacked, plain] = [ours, repacked, plain].map(median);
        println!(
            "  {name}: {ours:.3} s; llama.cpp repacking its weights {repacked:.3} s, not {plain:.3} s; {:.2} x the better",
            ours / repacked.min(plain),
        );
    }
    let mut version = String::new();
    for peer in peers.into_iter().flatten() {
        version = peer.end()?;
    }
    println!("  of {version}");
    Ok(())
}

fn main() -> Result<()> {
    let smollm2 = orion_testkit::models::smollm2();
    let hardware = Hardware::detect();
    let (arch, isa) = (hardware.arch, hardware.isa.join(" "));
    println!("{arch} ({isa}), {} threads, ORION {}", threads(), env!("CARGO_PKG_VERSION"));
    println!(
        "to the first token of a model that is not in memory, {PROMPT} tokens of prompt, medians of {ROUNDS}:"
    );
    if std::env::args().any(|argument| argument == "--gemma") {
        return switches([&smollm2, &orion_testkit::models::gemma()]);
    }
    let folder = tempfile::tempdir().map_err(|error| Error::io(error, "a scratch directory"))?;
    let twin: PathBuf = folder.path().join("copy of it");
    std::fs::copy(&smollm2, &twin).map_err(|error| Error::io(error, "a copy"))?;
    switches([&smollm2, &twin])
}
