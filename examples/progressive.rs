//! A model computes while it arrives over a slow link, and shows how far it is.
//! `cargo run --release --example progressive`

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orion::loader::{Loader, LoaderOptions, MANIFEST, Phase, Progress};
use orion::pipeline::{ShardOptions, ShardSize};
use orion::{Engine, EngineEvent, Error, Request, Result, SamplingParams};
use orion_testkit::server::{Link, Server, status};

const BYTES_PER_SECOND: f64 = 16e6;
const WIDTH: u64 = 24;
const REPORT: &str = "The lighthouse keeper writes in his log that the storm came from the west at noon. \
    Two fishing boats had left the harbour in the morning. The first came back before the rain, with her sail torn \
    and her crew unharmed. The second was seen from the gallery at four, far out, without a mast. The keeper lit \
    the lamp three hours early and rang the bell. The lifeboat went out with six men, found the boat at dusk behind \
    the long reef, and towed her home at midnight. Nobody was lost. The keeper asks for new glass for the lamp, for \
    oil, and for a day of rest. ";

/// What the loader has told so far.
#[derive(Default)]
struct Arriving {
    files: BTreeMap<usize, Progress>,
    latest: usize,
    last_byte: Option<Instant>,
}

impl Arriving {
    fn note(&mut self, progress: &Progress) {
        // Before the shards comes the list of them, alone.
        if progress.files == 1 {
            return;
        }
        self.latest = progress.file;
        self.files.insert(progress.file, progress.clone());
        let all = self.files.len() == progress.files;
        if all && self.files.values().all(|file| file.phase == Phase::Installed) {
            self.last_byte.get_or_insert_with(Instant::now);
        }
    }

    /// A line for a person.
    fn line(&self, passed: Duration, total: u64, in_place: u64) -> Option<String> {
        let latest = self.files.get(&self.latest)?;
        let here: u64 = self.files.values().map(|file| file.bytes).sum();
        let mark = |at: u64| match total.max(1) * at / WIDTH {
            end if end < in_place => '#',
            end if end < here => '=',
            _ => '.',
        };
        let bar: String = (0..WIDTH).map(mark).collect();
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let line = format!("{:4.1} s [{bar}] {:3.0} MB", passed.as_secs_f64(), megabytes(here));
        if self.last_byte.is_some() {
            return Some(format!("{line}, all {} shards are here", latest.files));
        }
        let rate = here as f64 / passed.as_secs_f64();
        let left = total.saturating_sub(here) as f64 / rate;
        let phase = format!("{:?}", latest.phase).to_lowercase();
        Some(format!(
            "{line}, {phase} shard {} of {}, {:.1} MB/s, {left:.1} s left",
            latest.file + 1,
            latest.files,
            rate / 1e6,
        ))
    }
}

/// A model in four shards behind a slow link.
fn serve() -> Result<(Server, u64)> {
    let unreadable = |error| Error::io(error, "a scratch directory");
    let folder = tempfile::tempdir().map_err(unreadable)?;
    let set = folder.path().join("set");
    let mut options = ShardOptions::new(ShardSize::Count(NonZero::<usize>::MIN.saturating_add(3)));
    // Small pieces, so that the few rows of the embedding that a prompt needs do not bring much with them.
    options.chunk_bytes = 64 << 10;
    orion::pipeline::shard(&*orion::loader::open(orion_testkit::models::smollm2())?, &set, &options)?;
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&set).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = format!("/{}", entry.file_name().to_string_lossy());
        files.insert(name, std::fs::read(entry.path()).map_err(unreadable)?);
    }
    let bytes = files.values().map(|body| body.len() as u64).sum();
    let link = Link::new(BYTES_PER_SECOND);
    let server = Server::start(move |request, _, stream| match files.get(&request.path) {
        Some(body) => link.good(request, stream, body),
        None => status(stream, "404 Not Found", ""),
    });
    Ok((server, bytes))
}

fn main() -> Result<()> {
    let (server, bytes) = serve()?;
    println!(
        "a model of {:.0} MB in four shards, on a link of {:.0} MB/s; nothing of it is here",
        bytes as f64 / 1e6,
        BYTES_PER_SECOND / 1e6
    );
    println!("= has arrived, # is in the model already\n");

    let arriving = Arc::new(Mutex::new(Arriving::default()));
    let noted = arriving.clone();
    let cache = tempfile::tempdir().map_err(|error| Error::io(error, "a scratch directory"))?;
    let options =
        LoaderOptions::new().cache_directory(cache.path()).offline(false).on_progress(move |step| {
            noted.lock().unwrap_or_else(PoisonError::into_inner).note(step);
        });
    let loader = Loader::new(options)?;
    let url = format!("{}/{MANIFEST}", server.url);
    let from = url.clone();
    let engine = Engine::builder().model("smollm2", url).sources(move |_| loader.open(&from)).build()?;

    let question = format!("{REPORT}Summarise this report in one sentence.");
    let request = Request::new(question).sampling(SamplingParams::greedy()).max_tokens(40);
    let start = Instant::now();
    let mut stream = engine.stream(request.clone());
    let (mut in_place, mut total, mut first, mut drawn) = (0, bytes, None, Instant::now());
    let answer = 'answer: loop {
        while let Some(event) = stream.try_next() {
            match event {
                EngineEvent::Loading { done, total: all, .. } if all > 0 => (in_place, total) = (done, all),
                EngineEvent::Token { text, .. } => {
                    if first.is_none() {
                        first = Some(start.elapsed());
                        print!("\n{:4.1} s ", start.elapsed().as_secs_f64());
                    }
                    print!("{text}");
                    std::io::stdout().flush().map_err(|error| Error::io(error, "standard output"))?;
                }
                EngineEvent::Done(answer) => break 'answer answer,
                EngineEvent::Failed { error, .. } => return Err(error),
                _ => {}
            }
        }
        if first.is_none() && drawn.elapsed() >= Duration::from_millis(500) {
            drawn = Instant::now();
            let arriving = arriving.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(line) = arriving.line(start.elapsed(), total, in_place) {
                println!("{line}");
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    };

    // The shards are in the cache now: what a program does that begins only then.
    engine.unload("smollm2")?;
    let later = engine.infer_with(request)?;
    let last_byte = arriving.lock().unwrap_or_else(PoisonError::into_inner).last_byte;
    let download = last_byte.map_or(Duration::ZERO, |at| at - start);
    let (first, after) = (first.unwrap_or_default(), later.report.ttft().unwrap_or_default());
    println!("\n\nlast byte after {download:.2?}; {} tokens of prompt", answer.usage.prompt_tokens);
    println!("download all, then open and answer: {download:.2?} + {after:.2?} = {:.2?}", download + after);
    println!("what happened:                      {first:.2?}");
    println!("the same words both times: {}", answer.tokens == later.tokens);
    Ok(())
}
