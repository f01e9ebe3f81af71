//! What Gemma's vocabulary of 262,144 entries costs to load. A test of its own, so that nothing else allocates; it needs
//! Gemma's file: `make test-references`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]
#![allow(clippy::print_stdout, reason = "the figures are what it is run for")]

mod support;

use std::time::Instant;

use orion_runtime::Tokenizer;
use peak_alloc::PeakAlloc;
use support::gguf;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes, of the vocabulary beyond the header it is read from.
const MOST: usize = 40_000_000;

#[test]
fn gemma_loads_in_little_memory() {
    let path = orion_testkit::models::gemma();
    let mut times = Vec::new();
    for _ in 0..5 {
        let header = gguf(&path);
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let start = Instant::now();
        let tokenizer = Tokenizer::from_header(&header).unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let peak = ALLOCATOR.peak_usage() - before;
        assert_eq!(tokenizer.vocab_size(), 262_144);
        assert!(peak <= MOST, "{peak} bytes");
        println!("at most {:.1} MB at once", peak as f64 / 1e6);
    }
    times.sort_by(f64::total_cmp);
    println!("loads in {:.1} ms (median of 5, {:.1} to {:.1})", times[2], times[0], times[4]);
}
