//! Waits that grow.

use std::time::Duration;

use orion_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// How long to wait after the first, second, … failure in a row: `base × factor^n`, at most `cap`, and of that a
/// random share left out so that those who failed together do not come back together.
///
/// ```
/// use std::time::Duration;
/// use orion_resilience::Backoff;
/// let backoff = Backoff::exponential(Duration::from_millis(200), Duration::from_secs(1));
/// let waits: Vec<_> = (0..4).map(|attempt| backoff.ceiling(attempt).as_millis()).collect();
/// assert_eq!(waits, [200, 400, 800, 1000]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    base: Duration,
    factor: f64,
    cap: Duration,
    jitter: f64,
}

impl Backoff {
    /// Always the same wait.
    #[must_use]
    pub fn constant(wait: Duration) -> Self {
        Self { base: wait, factor: 1.0, cap: wait, jitter: 0.0 }
    }

    /// Doubles from `base` up to `cap`.
    #[must_use]
    pub fn exponential(base: Duration, cap: Duration) -> Self {
        Self { base, factor: 2.0, cap, jitter: 0.0 }
    }

    /// Multiplies by this after every failure instead of by two.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Leaves out a random part of up to this share: 0 is no jitter, 0.5 the "equal" jitter of the literature, 1
    /// the "full" one (which may wait next to nothing).
    #[must_use]
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// The longest wait after `attempt` failures before this one.
    #[must_use]
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let growth = self.factor.powi(i32::try_from(attempt).unwrap_or(i32::MAX));
        let wait = Duration::try_from_secs_f64(self.base.as_secs_f64() * growth).unwrap_or(self.cap);
        wait.min(self.cap)
    }

    /// The wait after `attempt` failures before this one, for a `random` number of at least 0 and below 1.
    #[must_use]
    pub fn wait(&self, attempt: u32, random: f64) -> Duration {
        let ceiling = self.ceiling(attempt);
        if self.jitter == 0.0 {
            return ceiling;
        }
        Duration::try_from_secs_f64(ceiling.as_secs_f64() * (1.0 - self.jitter * random)).unwrap_or(ceiling)
    }

    /// What to add to a wait that others were told, too, so that they do not come back at once: up to the jitter's
    /// share of it, but up to the first own wait at least.
    pub(crate) fn spread(&self, told: Duration, random: f64) -> Duration {
        let widest = told.as_secs_f64() * self.jitter;
        Duration::try_from_secs_f64(widest.max(self.ceiling(0).as_secs_f64()) * random).unwrap_or(told)
    }

    /// Checks that waits are positive and jitter is a share.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        if self.base.is_zero() || self.cap < self.base {
            let (base, cap) = (self.base, self.cap);
            return Err(Error::invalid(format!(
                "backoff from {base:?} to {cap:?}, expected 0 < base <= cap"
            )));
        }
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Err(Error::invalid(format!("backoff factor is {}, expected at least 1", self.factor)));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(Error::invalid(format!("backoff jitter is {}, expected 0 to 1", self.jitter)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_below_a_second_and_stop_at_the_cap() {
        let backoff = Backoff::exponential(Duration::from_millis(300), SECOND);
        let waits = [0, 1, 2, 40, u32::MAX].map(|attempt| backoff.wait(attempt, 0.7).as_millis());
        assert_eq!(waits, [300, 600, 1000, 1000, 1000]);
        assert_eq!(backoff.factor(3.0).ceiling(1), Duration::from_millis(900));
        assert_eq!(Backoff::constant(SECOND).ceiling(9), SECOND);
    }

    #[test]
    fn jitter_leaves_out_up_to_its_share() {
        let half = Backoff::exponential(SECOND, 8 * SECOND).jitter(0.5);
        assert_eq!(half.wait(1, 0.0), 2 * SECOND);
        assert_eq!(half.wait(1, 0.5), Duration::from_millis(1500));
        assert_eq!(half.jitter(1.0).wait(0, 0.75), Duration::from_millis(250));
    }

    #[test]
    fn a_wait_that_was_told_is_spread_by_a_share_of_it_or_the_first_wait() {
        let half = Backoff::exponential(SECOND, 8 * SECOND).jitter(0.5);
        assert_eq!(half.spread(10 * SECOND, 0.5), Duration::from_millis(2500));
        assert_eq!(half.spread(SECOND, 0.5), Duration::from_millis(500));
        assert_eq!(half.spread(Duration::MAX, 0.0), Duration::ZERO);
    }

    #[test]
    fn the_longest_wait_does_not_overflow() {
        let longest = Backoff::exponential(SECOND, Duration::MAX).jitter(0.5);
        assert_eq!(longest.ceiling(5000), Duration::MAX);
        assert_eq!(longest.wait(5000, 0.0), Duration::MAX);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = Backoff::exponential(SECOND, SECOND);
        good.validate().unwrap();
        good.jitter(1.0).validate().unwrap();
        for bad in [
            Backoff::constant(Duration::ZERO),
            Backoff::exponential(SECOND, SECOND / 2),
            good.factor(0.9),
            good.factor(f64::NAN),
            good.factor(f64::INFINITY),
            good.jitter(-0.1),
            good.jitter(1.1),
            good.jitter(f64::NAN),
        ] {
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.starts_with("backoff"), "{message}");
        }
    }
}
