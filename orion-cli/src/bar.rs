//! A line on the terminal while files arrive.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use orion::loader::{Phase, Progress};

const WIDTH: usize = 24;
/// Side files come and go faster than a bar could be read.
const SMALLEST: u64 = 1 << 20;
const REDRAW: Duration = Duration::from_millis(100);

/// Shows all files that are being fetched as one.
#[derive(Debug, Default)]
pub(crate) struct Bar(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Seen>,
    began: Option<Instant>,
    drawn: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    bytes: u64,
    total: u64,
    fetched: u64,
    /// Its number from 1, and the number of files of the model.
    place: (usize, usize),
    ended: bool,
}

impl Bar {
    /// A bar, where somebody watches.
    pub(crate) fn on_terminal() -> Option<Self> {
        io::stderr().is_terminal().then(Self::default)
    }

    /// Takes a step of a fetch.
    pub(crate) fn show(&self, progress: &Progress) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = state.take(progress, Instant::now()) {
            // A terminal that is gone cannot be told.
            io::stderr().write_all(line.as_bytes()).ok();
        }
    }
}

impl State {
    /// What to write now, if anything.
    fn take(&mut self, progress: &Progress, now: Instant) -> Option<String> {
        let known = self.files.contains_key(&progress.url);
        let total = progress.total.unwrap_or(progress.bytes);
        if !known && (progress.phase != Phase::Fetching || total < SMALLEST) {
            return None;
        }
        let seen = self.files.entry(progress.url.clone()).or_default();
        seen.ended = progress.phase != Phase::Fetching;
        if progress.phase != Phase::Failed {
            seen.place = (progress.file + 1, progress.files);
            (seen.bytes, seen.total) = (progress.bytes, total);
            seen.fetched = seen.fetched.max(progress.fetched);
        }
        let began = *self.began.get_or_insert(now);
        let all_ended = self.files.values().all(|seen| seen.ended);
        if !all_ended && self.drawn.is_some_and(|drawn| now - drawn < REDRAW) {
            return None;
        }
        self.drawn = Some(now);
        let mut line = self.line(now - began);
        if all_ended {
            line.push('\n');
            *self = Self::default();
        }
        Some(line)
    }

    fn line(&self, elapsed: Duration) -> String {
        let sum = |part: fn(&Seen) -> u64| self.files.values().map(part).sum::<u64>();
        let (bytes, total) = (sum(|seen| seen.bytes), sum(|seen| seen.total).max(1));
        let filled = usize::try_from(u128::from(bytes) * WIDTH as u128 / u128::from(total))
            .map_or(WIDTH, |n| n.min(WIDTH));
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let mut line = format!(
            "\r[{}{}] {:.1} of {:.1} MB",
            "#".repeat(filled),
            " ".repeat(WIDTH - filled),
            megabytes(bytes),
            megabytes(total)
        );
        let rate = sum(|seen| seen.fetched) as f64 / elapsed.as_secs_f64();
        if rate.is_finite() && rate > 0.0 {
            let left = total.saturating_sub(bytes) as f64 / rate;
            write!(line, ", {:.1} MB/s, {left:.0} s left", rate / 1e6).expect("a string takes everything");
        }
        if let Some((number, count)) =
            self.files.values().map(|seen| seen.place).max().filter(|place| place.1 > 1)
        {
            write!(line, ", file {number} of {count}").expect("a string takes everything");
        }
        // What an earlier, longer line left.
        line.push_str("\x1b[K");
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_after(steps: &[(Phase, &str, u64, u64)]) -> Vec<Option<String>> {
        let (mut state, now) = (State::default(), Instant::now());
        let steps = steps.iter().enumerate();
        steps
            .map(|(second, &(phase, url, bytes, fetched))| {
                let progress = Progress::new(phase, url, bytes, Some(10_000_000), fetched);
                state.take(&progress, now + Duration::from_secs(second as u64))
            })
            .collect()
    }

    #[test]
    fn a_fetch_is_one_line_that_ends_when_all_is_there() {
        let lines = state_after(&[
            (Phase::Fetching, "a", 0, 0),
            (Phase::Fetching, "a", 5_000_000, 5_000_000),
            (Phase::Installed, "a", 10_000_000, 0),
        ]);
        let half = lines[1].as_deref().expect("a line");
        assert!(half.contains("############            ] 5.0 of 10.0 MB, 5.0 MB/s, 1 s left"), "{half:?}");
        assert!(lines[2].as_deref().expect("a line").ends_with('\n'));
    }

    #[test]
    fn what_is_cached_is_not_shown() {
        assert_eq!(state_after(&[(Phase::Installed, "a", 10_000_000, 0)]), [None]);
    }
}
