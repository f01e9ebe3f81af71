//! What a vocabulary costs: time and memory of loading it, and how fast it tokenises.
//!
//! `cargo run --release -p orion-runtime --example tokenizer_load -- FILE.gguf [TEXT-FILE]`
#![allow(clippy::print_stdout, reason = "it prints its figures")]

use std::error::Error;
use std::fs::{self, File};
use std::time::Instant;

use orion_runtime::{SpecialTokens, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("give the path of a GGUF")?;
    let text =
        arguments.next().map_or(Ok(include_str!("tokenizer_load.rs").repeat(200)), fs::read_to_string)?;
    let file = File::open(&path)?;
    let bytes = file.metadata()?.len();
    let header = orion_formats::gguf::read_header(file, bytes)?.model;
    let before = resident_kib();
    let mut times = Vec::new();
    let mut tokenizer = None;
    for _ in 0..9 {
        drop(tokenizer.take());
        let start = Instant::now();
        tokenizer = Some(Tokenizer::from_header(&header)?);
        times.push(start.elapsed());
    }
    times.sort();
    let tokenizer = tokenizer.ok_or("loaded above")?;
    println!(
        "{} entries: loaded in {:?} (median of 9, best {:?})",
        tokenizer.vocab_size(),
        times[4],
        times[0]
    );
    if let (Some(before), Some(after)) = (before, resident_kib()) {
        println!("{:.1} MiB resident more than before", (after - before) / 1024.0);
    }
    let start = Instant::now();
    let tokens = tokenizer.encode(&text, SpecialTokens::Parse)?.len();
    let rate = text.len() as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("{} bytes became {tokens} tokens at {rate:.1} MB/s", text.len());
    Ok(())
}

/// Resident memory of this process; `None` where `/proc` is not there.
fn resident_kib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
