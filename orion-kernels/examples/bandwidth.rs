//! How fast threads read memory: `bandwidth BYTES [THREADS]` prints GB/s, the median of nine passes over a buffer of that size.
#![allow(clippy::print_stdout, reason = "an example")]

use std::hint::black_box;
use std::thread;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let bytes: usize = arguments.next().ok_or("usage: bandwidth BYTES [THREADS]")?.parse()?;
    let threads: usize = arguments.next().map_or(Ok(2), |number| number.parse())?;
    let buffer: Vec<u64> = (0..(bytes / 8).max(threads) as u64).collect();
    let share = buffer.len().div_ceil(threads.max(1));
    let mut rates: Vec<f64> = (0..10)
        .map(|_| {
            let began = Instant::now();
            thread::scope(|scope| {
                for part in buffer.chunks(share) {
                    scope.spawn(move || black_box(sum(part)));
                }
            });
            size_of_val(&buffer[..]) as f64 / began.elapsed().as_secs_f64() / 1e9
        })
        .skip(1)
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{:.2}", rates[rates.len() / 2]);
    Ok(())
}

/// In sixteen sums, so that loads do not wait for additions.
fn sum(part: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    let (chunks, rest) = part.as_chunks::<16>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.into_iter().chain(rest.iter().copied()).fold(0, u64::wrapping_add)
}
