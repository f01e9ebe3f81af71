//! Events about time and memory.

use std::time::{Duration, Instant};

/// Bytes of memory this process holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUse {
    /// Resident now.
    pub resident: u64,
    /// Resident at most so far.
    pub peak: u64,
}

/// What the system says of this process's memory; `None` where it does not say (it does on Linux).
#[must_use]
pub fn memory_use() -> Option<MemoryUse> {
    parse_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_status(status: &str) -> Option<MemoryUse> {
    let read = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(MemoryUse { resident: read("VmRSS:")?, peak: read("VmHWM:")? })
}

/// Logs how much memory the process holds, at `when`.
pub fn log_memory(when: &str) {
    match memory_use() {
        Some(it) => {
            tracing::info!(target: "orion::memory", when, rss_bytes = it.resident, peak_rss_bytes = it.peak, "memory");
        }
        None => tracing::debug!(target: "orion::memory", when, "memory use is not known on this system"),
    }
}

/// Measures one piece of work and logs duration, tokens and memory. The macro [`perf!`](macro@crate::perf) is shorter.
#[derive(Debug)]
pub struct Perf {
    name: &'static str,
    start: Instant,
    tokens: Option<u64>,
}

impl Perf {
    /// Begins now.
    #[must_use]
    pub fn start(name: &'static str) -> Self {
        Self { name, start: Instant::now(), tokens: None }
    }

    /// Says how many tokens the work was about.
    #[must_use]
    pub fn tokens(mut self, tokens: u64) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Logs it, and says how long it took.
    pub fn finish(self) -> Duration {
        let took = self.start.elapsed();
        // Memory is read from a file: only if someone wants to know.
        if !tracing::enabled!(target: "orion::perf", tracing::Level::INFO) {
            return took;
        }
        let rss_bytes = memory_use().map(|it| it.resident);
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let rate = self.tokens.map(|tokens| tokens as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE));
        tracing::info!(
            target: "orion::perf",
            perf = self.name,
            duration_ms = took.as_secs_f64() * 1e3,
            tokens = self.tokens,
            tokens_per_second = rate,
            rss_bytes,
            "perf"
        );
        took
    }
}

/// Runs a piece of work and logs its duration and the memory after it; with `tokens = n` tokens and rate, too.
///
/// ```
/// let sum = orion_logging::perf!("prefill", tokens = 512, (0..512u64).sum::<u64>());
/// let text = orion_logging::perf!("render", format!("{sum}"));
/// assert_eq!(text, "130816");
/// ```
#[macro_export]
macro_rules! perf {
    ($name:expr, tokens = $tokens:expr, $work:expr $(,)?) => {{
        let perf = $crate::Perf::start($name);
        let result = $work;
        perf.tokens($tokens).finish();
        result
    }};
    ($name:expr, $work:expr $(,)?) => {{
        let perf = $crate::Perf::start($name);
        let result = $work;
        perf.finish();
        result
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_file_is_read() {
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status), Some(MemoryUse { resident: 1 << 20, peak: 2 << 20 }));
        assert_eq!(parse_status("VmRSS: many kB"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_holds_memory() {
        let it = memory_use().unwrap();
        assert!(it.resident > 100_000 && it.peak >= it.resident);
    }
}
