//! The calls that rates are taken over.

use std::collections::VecDeque;
use std::time::Duration;

use orion_core::Timestamp;

use super::settings::WindowKind;

/// How one call went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

/// Calls counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, sample: Sample) {
        // Saturating: lifetime counts may come from a stored snapshot.
        self.calls = self.calls.saturating_add(1);
        self.failures = self.failures.saturating_add(u64::from(sample.failed));
        self.slow = self.slow.saturating_add(u64::from(sample.slow));
    }

    fn take_out(&mut self, other: Self) {
        self.calls -= other.calls;
        self.failures -= other.failures;
        self.slow -= other.slow;
    }

    pub(crate) fn failure_rate(self) -> f64 {
        self.failures as f64 / self.calls as f64
    }

    pub(crate) fn slow_rate(self) -> f64 {
        self.slow as f64 / self.calls as f64
    }
}

/// A sliding window. Recording costs constant time on average, and memory is bounded.
#[derive(Debug)]
pub(crate) enum Window {
    Calls { size: usize, samples: VecDeque<Sample>, totals: Totals },
    Time { span: Duration, slots: VecDeque<Slot>, totals: Totals },
}

/// Calls that leave a time window together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    at: Timestamp,
    totals: Totals,
}

/// A time window keeps every call's own time up to this many distinct times. Beyond, a call joins the one before if that
/// is at most a grain older (the window divided by as much), and so may leave early by a grain. As later slots are more
/// than a grain apart, there are never more than twice as many.
const EXACT: usize = 256;

impl Window {
    pub(crate) fn new(kind: WindowKind) -> Self {
        let totals = Totals::default();
        match kind {
            WindowKind::Calls(size) => Self::Calls { size, samples: VecDeque::new(), totals },
            WindowKind::Time(span) => Self::Time { span, slots: VecDeque::new(), totals },
        }
    }

    pub(crate) fn clear(&mut self) {
        match self {
            Self::Calls { samples, totals, .. } => {
                samples.clear();
                *totals = Totals::default();
            }
            Self::Time { slots, totals, .. } => {
                slots.clear();
                *totals = Totals::default();
            }
        }
    }

    /// Records a call that ended at `now`; `now` must not go back.
    pub(crate) fn record(&mut self, now: Timestamp, sample: Sample) -> Totals {
        match self {
            Self::Calls { size, samples, totals } => {
                if samples.len() == *size
                    && let Some(oldest) = samples.pop_front()
                {
                    let mut gone = Totals::default();
                    gone.add(oldest);
                    totals.take_out(gone);
                }
                samples.push_back(sample);
                totals.add(sample);
                *totals
            }
            Self::Time { span, slots, totals } => {
                expire(*span, slots, totals, now);
                let grain = if slots.len() < EXACT { Duration::ZERO } else { *span / EXACT as u32 };
                if slots.back().is_none_or(|slot| now.since(slot.at) > grain) {
                    slots.push_back(Slot { at: now, totals: Totals::default() });
                }
                if let Some(slot) = slots.back_mut() {
                    slot.totals.add(sample);
                }
                totals.add(sample);
                *totals
            }
        }
    }

    /// The calls in the window at `now`.
    pub(crate) fn totals(&mut self, now: Timestamp) -> Totals {
        match self {
            Self::Calls { totals, .. } => *totals,
            Self::Time { span, slots, totals } => {
                expire(*span, slots, totals, now);
                *totals
            }
        }
    }
}

fn expire(span: Duration, slots: &mut VecDeque<Slot>, totals: &mut Totals, now: Timestamp) {
    while let Some(oldest) = slots.front()
        && now.since(oldest.at) >= span
    {
        totals.take_out(oldest.totals);
        slots.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp(Duration::from_millis(millis))
    }

    const FAILED: Sample = Sample { failed: true, slow: false };
    const SLOW: Sample = Sample { failed: false, slow: true };

    #[test]
    fn a_count_window_keeps_the_last_calls() {
        let mut window = Window::new(WindowKind::Calls(3));
        window.record(at(0), FAILED);
        window.record(at(0), SLOW);
        assert_eq!(window.record(at(0), FAILED), Totals { calls: 3, failures: 2, slow: 1 });
        assert_eq!(window.record(at(9), Sample::default()), Totals { calls: 3, failures: 1, slow: 1 });
        assert_eq!(window.record(at(9), Sample::default()), Totals { calls: 3, failures: 1, slow: 0 });
        window.clear();
        assert_eq!(window.totals(at(9)), Totals::default());
        assert_eq!(window.record(at(9), FAILED), Totals { calls: 1, failures: 1, slow: 0 });
    }

    #[test]
    fn a_time_window_drops_a_call_as_old_as_itself() {
        let mut window = Window::new(WindowKind::Time(Duration::from_secs(20)));
        window.record(at(10), FAILED);
        window.record(at(10), SLOW);
        window.record(at(11), FAILED);
        assert_eq!(window.totals(at(20_009)), Totals { calls: 3, failures: 2, slow: 1 });
        assert_eq!(window.totals(at(20_010)), Totals { calls: 1, failures: 1, slow: 0 });
        assert_eq!(window.record(at(20_011), SLOW), Totals { calls: 1, failures: 0, slow: 1 });
        window.clear();
        assert_eq!(window.totals(at(20_011)), Totals::default());
    }

    #[test]
    fn a_crowded_time_window_stays_small_and_nearly_exact() {
        let span = Duration::from_secs(20);
        let mut window = Window::new(WindowKind::Time(span));
        // One call a millisecond for a minute: 20,000 in the window.
        for millis in 0..60_000 {
            let totals = window.record(at(millis), FAILED);
            let exact = (millis + 1).min(20_000);
            assert!(
                totals.calls <= exact && exact - totals.calls <= 20_000 / 256 + 1,
                "{totals:?} at {millis}"
            );
            assert_eq!(totals.failures, totals.calls);
        }
        let Window::Time { slots, .. } = &window else { unreachable!("it was made a time window") };
        assert!(slots.len() <= 2 * EXACT, "{}", slots.len());
        // Up to 256 distinct times are kept as they are.
        let mut exact = Window::new(WindowKind::Time(span));
        for millis in 0..256 {
            exact.record(at(millis), FAILED);
        }
        for gone in 0..256 {
            assert_eq!(exact.totals(at(20_000 + gone)).calls, 255 - gone);
        }
    }

    #[test]
    fn calls_that_join_are_at_most_a_grain_apart() {
        // 256 grains of 100 ms; the first 256 calls a millisecond apart, so that there is no room for more times.
        let mut window = Window::new(WindowKind::Time(Duration::from_millis(25_600)));
        for millis in 0..256 {
            window.record(at(millis), FAILED);
        }
        // The last time is 255: one call joins it soon, one a whole grain later, and one comes too late for that.
        for millis in [256, 355, 356] {
            window.record(at(millis), FAILED);
        }
        assert_eq!(window.totals(at(25_600 + 254)).calls, 4);
        assert_eq!(window.totals(at(25_600 + 255)).calls, 1);
        assert_eq!(window.totals(at(25_600 + 356)).calls, 0);
    }
}
