//! Time, injected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in monotonic time: the time since a clock's own start. Points of different clocks do not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub Duration);

impl Timestamp {
    /// The time from `earlier` to here, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This point moved on by `time`, at most to the end of time.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// Tells the time. Tests inject a [`ManualClock`] and never sleep.
pub trait Clock: Send + Sync {
    /// Monotonic time: never goes back.
    fn now(&self) -> Timestamp;

    /// Wall-clock time since the Unix epoch: may jump.
    fn wall(&self) -> Duration;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
    fn wall(&self) -> Duration {
        (**self).wall()
    }
}

/// The machine's clock.
#[derive(Debug, Clone)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.elapsed())
    }
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A clock that stands still until it is told to move. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ManualClock {
    nanos: Arc<AtomicU64>,
    wall_nanos: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves monotonic and wall-clock time on.
    pub fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::SeqCst);
        self.wall_nanos.fetch_add(nanos, Ordering::SeqCst);
    }

    /// Sets wall-clock time, forwards or back; monotonic time does not move.
    pub fn set_wall(&self, time: Duration) {
        self.wall_nanos.store(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(Duration::from_nanos(self.nanos.load(Ordering::SeqCst)))
    }
    fn wall(&self) -> Duration {
        Duration::from_nanos(self.wall_nanos.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new();
        let shared = clock.clone();
        shared.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), Timestamp(Duration::from_secs(2)));
        shared.set_wall(Duration::ZERO);
        assert_eq!(clock.now(), Timestamp(Duration::from_secs(2)));
        assert_eq!(clock.wall(), Duration::ZERO);
    }

    #[test]
    fn timestamps_saturate() {
        let (early, late) = (Timestamp(Duration::from_secs(1)), Timestamp(Duration::MAX));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.after(Duration::from_secs(1)), late);
    }

    #[test]
    fn the_system_clock_does_not_go_back() {
        let clock = SystemClock::new();
        let first = clock.now();
        assert!(clock.now() >= first && clock.wall() > Duration::from_secs(1_600_000_000));
    }
}
