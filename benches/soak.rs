//! Four clients, two real models in memory for one, and faults all the time: nobody may wait for ever, every request ends in
//! exactly one way, and memory does not grow. `cargo bench --bench soak`; SECONDS=1800 for half an hour (default 60).

#![allow(clippy::print_stdout, reason = "a bench talks to the person who runs it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orion::resilience::{Backoff, BreakerSettings};
use orion::{Engine, Error, ErrorKind, FileSpec, ModelSpec, Request, Result};

/// Draws that are the same in every run: a linear congruential generator.
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn engine(folder: &std::path::Path) -> Result<Engine> {
    let twin = folder.join("twin.gguf");
    std::fs::copy(orion_testkit::models::smollm2(), &twin).map_err(|error| Error::io(error, "a copy"))?;
    let files = [orion_testkit::models::smollm2(), twin];
    let spec = |id: &str, file: usize, next: &str| {
        let mut spec =
            ModelSpec::new(id.into(), vec![FileSpec::new(files[file].to_string_lossy().into_owned())]);
        spec.fallback = vec![next.into()];
        spec
    };
    let opened = AtomicU64::new(0);
    Engine::builder()
        .spec(spec("a", 0, "b"))
        .spec(spec("b", 1, "a"))
        .memory(200_000_000)
        .kv_tokens(2048)
        .patience(Duration::from_millis(200))
        .queued_requests(6)
        .breaker(BreakerSettings::new().wait(Backoff::constant(Duration::from_millis(500))))
        // Every fifth time the disk fails.
        .sources(move |spec| match opened.fetch_add(1, Ordering::SeqCst) % 5 {
            4 => Err(Error::new(ErrorKind::Corrupt, "the disk returned another digest")),
            _ => orion::loader::open(&spec.files[0].location),
        })
        .build()
}

fn client(engine: &Engine, seed: u64, stop: &AtomicBool, asked: &AtomicU64) {
    let mut draws = Draws(seed);
    while !stop.load(Ordering::Acquire) {
        let model = ["a", "a", "a", "b"][draws.below(4) as usize];
        let words = "word ".repeat(draws.below(200) as usize);
        let mut request = Request::new(format!("{words}Say something about {}.", draws.below(100)))
            .model(model)
            .max_tokens(1 + draws.below(24) as u32)
            .caller(&*seed.to_string());
        if draws.below(6) == 0 {
            request = request.timeout(Duration::from_millis(1 + draws.below(400)));
        }
        asked.fetch_add(1, Ordering::AcqRel);
        let mut stream = engine.stream(request);
        match draws.below(6) {
            0 => drop(stream),
            1 => {
                stream.by_ref().take(draws.below(12) as usize).for_each(drop);
                stream.cancel();
                stream.for_each(drop);
            }
            _ => stream.for_each(drop),
        }
    }
}

/// Models come and go in less than a second, so memory is looked at more often.
const SAMPLE: Duration = Duration::from_millis(250);
/// By how much the averages of a run may differ: those of a short one depend on how long each model happened to stay.
const MOST_GROWTH: [f64; 2] = [1.5, 1.2];
const SHORT_SECONDS: u64 = 600;

/// The averages of the second and the last third. The first is for filling caches.
fn thirds(seen: &[f64]) -> [f64; 2] {
    let third = (seen.len() / 3).max(1);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    let tail = |count: usize| &seen[seen.len().saturating_sub(count)..];
    [mean(&tail(2 * third)[..third.min(seen.len())]), mean(tail(third))]
}

/// MiB an hour by which memory grew after the first third of the time: the line of least squares.
fn slope(seen: &[f64]) -> f64 {
    let settled = &seen[seen.len() / 3..];
    let middle = settled.len().saturating_sub(1) as f64 / 2.0;
    let mean = settled.iter().sum::<f64>() / settled.len().max(1) as f64;
    let (mut together, mut alone) = (0.0, 0.0);
    for (at, value) in settled.iter().enumerate() {
        together += (at as f64 - middle) * (value - mean);
        alone += (at as f64 - middle).powi(2);
    }
    together / alone.max(1.0) * 3600.0 / SAMPLE.as_secs_f64()
}

fn main() -> Result<()> {
    let seconds = std::env::var("SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let folder = tempfile::tempdir().map_err(|error| Error::io(error, "a scratch directory"))?;
    let engine = engine(folder.path())?;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (1..=4)
        .map(|seed| {
            let (engine, stop, asked) = (engine.clone(), stop.clone(), asked.clone());
            std::thread::spawn(move || client(&engine, seed, &stop, &asked))
        })
        .collect();
    let start = Instant::now();
    let resident = || orion::logging::memory_use().map_or(0, |it| it.resident) / (1 << 20);
    let mut seen = Vec::new();
    let mut told = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(SAMPLE);
        seen.push(resident() as f64);
        if start.elapsed() >= told + Duration::from_secs((seconds / 8).max(1)) {
            told = start.elapsed();
            let asked = asked.load(Ordering::Acquire);
            println!("{:4} s: {asked} asked, {} MiB", told.as_secs(), resident());
        }
    }
    stop.store(true, Ordering::Release);
    let stuck = clients.into_iter().filter_map(|client| client.join().err()).count();
    let waiting = Instant::now();
    let ended = || {
        let it = engine.stats().map(|stats| stats.outcomes).unwrap_or_default();
        it.done + it.cancelled + it.failed + it.rejected
    };
    while ended() < asked.load(Ordering::Acquire) && waiting.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let stats = engine.stats()?;
    println!("{stats:#?}");
    let (asked, ended) = (asked.load(Ordering::Acquire), ended());
    let [middle, last] = thirds(&seen);
    println!(
        "{asked} asked, {ended} ended, {stuck} clients panicked, {} wait; resident {middle:.0} MiB on average in the second third of \
         the time, {last:.0} in the last, {:+.1} MiB an hour by least squares over both",
        stats.waiting,
        slope(&seen)
    );
    let drained = engine.shutdown(Duration::from_secs(5));
    println!("{drained:?}");
    let most = middle * MOST_GROWTH[usize::from(seconds >= SHORT_SECONDS)];
    let wrong = |message: &str| Err(Error::new(ErrorKind::Internal, message));
    match (asked == ended && stuck == 0 && stats.waiting == 0, last <= most) {
        (true, true) => Ok(()),
        (false, _) => wrong("a request was lost"),
        (_, false) => wrong("memory grows"),
    }
}
