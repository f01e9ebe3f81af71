//! What a fetch tells about itself.

use std::time::Duration;

/// Where a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Bytes arrive.
    Fetching,
    /// All bytes are there and have the right digest.
    Installed,
    /// It failed; the error goes to who waits for it.
    Failed,
}

/// A step of a fetch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Where the file stands.
    pub phase: Phase,
    /// Its URL, without query.
    pub url: String,
    /// Its number among the files of the model, from 0.
    pub file: usize,
    /// Number of files of the model.
    pub files: usize,
    /// Bytes of the file that are there.
    pub bytes: u64,
    /// Bytes of the file in all, once known.
    pub total: Option<u64>,
    /// Bytes of this file fetched since the fetch began; what was there before is not counted.
    pub fetched: u64,
    /// Time since the fetch of this file began.
    pub elapsed: Duration,
}

impl Progress {
    /// A step of the only file of a model, at its beginning.
    #[must_use]
    pub fn new(phase: Phase, url: impl Into<String>, bytes: u64, total: Option<u64>, fetched: u64) -> Self {
        Self { phase, url: url.into(), file: 0, files: 1, bytes, total, fetched, elapsed: Duration::ZERO }
    }

    /// Mean rate of this file.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (seconds > 0.0 && self.fetched > 0).then(|| self.fetched as f64 / seconds)
    }

    /// Time until the file is there at that rate.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.bytes) as f64;
        Duration::try_from_secs_f64(left / self.bytes_per_second()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_follow_from_what_was_fetched() {
        let mut progress = Progress {
            phase: Phase::Fetching,
            url: String::new(),
            file: 0,
            files: 1,
            bytes: 600,
            total: Some(1000),
            fetched: 200,
            elapsed: Duration::from_secs(2),
        };
        assert_eq!(progress.bytes_per_second(), Some(100.0));
        assert_eq!(progress.time_left(), Some(Duration::from_secs(4)));
        progress.fetched = 0;
        assert_eq!(progress.time_left(), None);
    }
}
