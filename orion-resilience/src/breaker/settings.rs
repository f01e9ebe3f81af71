//! When a breaker opens, how long it stays open, and what closes it again.

use std::time::Duration;

use orion_core::{Error, Result};

use crate::backoff::Backoff;

/// Which calls the rates are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowKind {
    /// The last so many calls.
    Calls(usize),
    /// The calls of the last so long. A call as old as the window is no longer in it.
    Time(Duration),
}

/// Which calls are slow, and how many of them are too many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowCalls {
    /// A call that takes longer than this is slow, whether it succeeds or fails.
    pub longer_than: Duration,
    /// Share of slow calls, above 0 and up to 1, at which the breaker opens.
    pub rate: f64,
}

/// How the calls permitted in half-open are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The first failure opens the breaker again; it closes once every permitted call has succeeded.
    FirstFailure,
    /// When every permitted call has ended, their rates are held against the thresholds of the closed state.
    Rate,
}

/// Settings of a [`CircuitBreaker`](crate::CircuitBreaker).
///
/// The defaults are made for a model that is called now and then, where a rule such as "half of at least a
/// thousand calls a minute" would never fire: the breaker opens at **five failures in a row**, however far apart, or
/// when **half of at least ten calls of the last minute** failed. It waits a second, then two, up to a minute, of
/// which up to a fifth is left out at random, and asks with one call; that one must end within five minutes. No
/// call counts as slow: how long a generation may take only its caller knows.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    pub(crate) window: WindowKind,
    pub(crate) minimum_calls: u64,
    pub(crate) failure_rate: Option<f64>,
    pub(crate) slow_calls: Option<SlowCalls>,
    pub(crate) consecutive_failures: Option<u32>,
    pub(crate) wait: Backoff,
    pub(crate) half_open_permits: u32,
    pub(crate) judgement: Judgement,
    pub(crate) half_open_limit: Option<Duration>,
    pub(crate) seed: Option<u64>,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            window: WindowKind::Time(Duration::from_secs(60)),
            minimum_calls: 10,
            failure_rate: Some(0.5),
            slow_calls: None,
            consecutive_failures: Some(5),
            wait: Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60)).jitter(0.2),
            half_open_permits: 1,
            judgement: Judgement::FirstFailure,
            half_open_limit: Some(Duration::from_secs(300)),
            seed: None,
        }
    }
}

impl BreakerSettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Which calls the rates are taken over.
    #[must_use]
    pub fn window(mut self, window: WindowKind) -> Self {
        self.window = window;
        self
    }

    /// Rates are not looked at below this many calls in the window (or the whole window, if that is less).
    #[must_use]
    pub fn minimum_calls(mut self, calls: u64) -> Self {
        self.minimum_calls = calls;
        self
    }

    /// Share of failures, above 0 and up to 1, at which the breaker opens; `None` for any.
    #[must_use]
    pub fn failure_rate(mut self, rate: impl Into<Option<f64>>) -> Self {
        self.failure_rate = rate.into();
        self
    }

    /// Which calls are slow and how many are too many; `None` for no call is slow.
    #[must_use]
    pub fn slow_calls(mut self, slow: impl Into<Option<SlowCalls>>) -> Self {
        self.slow_calls = slow.into();
        self
    }

    /// Number of failures in a row at which the breaker opens; `None` for any.
    #[must_use]
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.consecutive_failures = failures.into();
        self
    }

    /// How long the breaker stays open; the wait grows while probes fail and starts again once it has closed.
    #[must_use]
    pub fn wait(mut self, wait: Backoff) -> Self {
        self.wait = wait;
        self
    }

    /// How many calls are permitted in half-open, and how they are judged.
    #[must_use]
    pub fn half_open(mut self, permits: u32, judgement: Judgement) -> Self {
        self.half_open_permits = permits;
        self.judgement = judgement;
        self
    }

    /// How long half-open may last before the breaker opens again; `None` waits for the probes for ever.
    #[must_use]
    pub fn half_open_limit(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.half_open_limit = limit.into();
        self
    }

    /// Makes jitter repeatable. By default each breaker draws its own seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) naming the setting.
    pub fn validate(&self) -> Result<()> {
        let share = |name: &str, rate: f64| {
            let ok = rate > 0.0 && rate <= 1.0;
            if ok {
                Ok(())
            } else {
                Err(Error::invalid(format!("{name} is {rate}, expected above 0, up to 1")))
            }
        };
        let positive = |name: &str, ok: bool| {
            if ok { Ok(()) } else { Err(Error::invalid(format!("{name} is 0, expected more"))) }
        };
        self.failure_rate.map_or(Ok(()), |rate| share("failure_rate", rate))?;
        self.slow_calls.map_or(Ok(()), |slow| share("the rate of slow_calls", slow.rate))?;
        positive(
            "window",
            match self.window {
                WindowKind::Calls(calls) => calls > 0,
                WindowKind::Time(time) => !time.is_zero(),
            },
        )?;
        positive("minimum_calls", self.minimum_calls > 0)?;
        positive("consecutive_failures", self.consecutive_failures != Some(0))?;
        positive("half_open permits", self.half_open_permits > 0)?;
        positive("half_open_limit", self.half_open_limit != Some(Duration::ZERO))?;
        self.wait.validate()?;
        if self.failure_rate.is_none() && self.slow_calls.is_none() {
            if self.consecutive_failures.is_none() {
                return Err(Error::invalid(
                    "the breaker would never open: set failure_rate, slow_calls or consecutive_failures",
                ));
            }
            if self.judgement == Judgement::Rate {
                return Err(Error::invalid("half_open is judged by rate: set failure_rate or slow_calls"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_limits_are_inclusive() {
        BreakerSettings::new().validate().unwrap();
        let slow = SlowCalls { longer_than: Duration::from_secs(1), rate: 1.0 };
        let edge = BreakerSettings::new().failure_rate(1.0).slow_calls(slow).minimum_calls(1);
        edge.window(WindowKind::Calls(1)).consecutive_failures(1).validate().unwrap();
        let by_rate = BreakerSettings::new().half_open(1, Judgement::Rate);
        by_rate.clone().failure_rate(None).slow_calls(slow).validate().unwrap();
        by_rate.consecutive_failures(None).validate().unwrap();
    }

    #[test]
    fn each_setting_out_of_range_is_named() {
        let base = BreakerSettings::new;
        let slow = |rate| SlowCalls { longer_than: Duration::from_secs(1), rate };
        let cases = [
            ("failure_rate is 0", base().failure_rate(0.0)),
            ("failure_rate is 1.1", base().failure_rate(1.1)),
            ("failure_rate is NaN", base().failure_rate(f64::NAN)),
            ("the rate of slow_calls", base().slow_calls(slow(0.0))),
            ("window", base().window(WindowKind::Calls(0))),
            ("window", base().window(WindowKind::Time(Duration::ZERO))),
            ("minimum_calls", base().minimum_calls(0)),
            ("consecutive_failures", base().consecutive_failures(0)),
            ("half_open permits", base().half_open(0, Judgement::Rate)),
            ("half_open_limit", base().half_open_limit(Duration::ZERO)),
            ("backoff", base().wait(Backoff::constant(Duration::ZERO))),
            ("the breaker would never open", base().failure_rate(None).consecutive_failures(None)),
            ("half_open is judged by rate", base().failure_rate(None).half_open(1, Judgement::Rate)),
        ];
        for (name, settings) in cases {
            let message = settings.validate().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }
}
