//! What a breaker tells about itself.

use std::sync::Arc;
use std::time::Duration;

use orion_core::Timestamp;
use serde::{Deserialize, Serialize};

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls are permitted and watched.
    Closed,
    /// Calls are refused until the wait is over.
    Open,
    /// A few calls are permitted, to see whether it works again.
    HalfOpen,
    /// Calls are refused until someone says otherwise.
    ForcedOpen,
    /// Calls are permitted and not watched.
    Disabled,
    /// Calls are permitted and watched, without consequence.
    MetricsOnly,
}

impl std::fmt::Display for BreakerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
            Self::MetricsOnly => "metrics_only",
        })
    }
}

/// Why a breaker changed its state.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// So many calls failed in a row.
    ConsecutiveFailures(u32),
    /// This share of the calls in the window failed.
    FailureRate(f64),
    /// This share of the calls in the window was slow.
    SlowCallRate(f64),
    /// The wait is over: probes are permitted.
    WaitOver,
    /// A probe failed.
    ProbeFailed,
    /// The probes succeeded.
    ProbesSucceeded,
    /// The probes did not end in time.
    HalfOpenTimedOut,
    /// Someone asked for it.
    Command,
    /// A snapshot was restored.
    Restored,
}

/// A breaker changed its state, or was reset.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BreakerEvent {
    /// The breaker's name.
    pub breaker: Arc<str>,
    /// Counts the breaker's events from 1; hooks see them in this order, without gaps.
    pub sequence: u64,
    /// When it happened.
    pub at: Timestamp,
    /// The state before.
    pub from: BreakerState,
    /// The state after.
    pub to: BreakerState,
    /// Why.
    pub cause: Cause,
    /// Until calls are permitted again, where the state after is [`Open`](BreakerState::Open).
    pub wait: Option<Duration>,
}

/// What a breaker has counted.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BreakerStatistics {
    /// Calls in the window; in half-open, probes that have ended.
    pub calls: u64,
    /// Failures among them.
    pub failures: u64,
    /// Slow calls among them.
    pub slow_calls: u64,
    /// Share of failures; `None` below the minimum number of calls.
    pub failure_rate: Option<f64>,
    /// Share of slow calls; `None` below the minimum number of calls.
    pub slow_call_rate: Option<f64>,
    /// Failures in a row up to now.
    pub consecutive_failures: u32,
    /// Probes that run now.
    pub probes_running: u32,
    /// How often the breaker has opened since it was last closed.
    pub trips: u32,
    /// Calls recorded in the breaker's whole life.
    pub total_calls: u64,
    /// Failures among them.
    pub total_failures: u64,
    /// Calls that ended as [`Ignored`](orion_core::Outcome::Ignored).
    pub total_ignored: u64,
    /// Calls refused.
    pub total_refused: u64,
    /// Results that came after the state they were permitted in had ended, and did not count.
    pub total_stale: u64,
    /// Hooks that panicked.
    pub hook_panics: u64,
}

/// A breaker as it can be stored and brought back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// Version of this form.
    pub version: u32,
    /// The breaker's name.
    pub name: String,
    /// Its state.
    pub state: BreakerState,
    /// What is left of the wait, if it is open.
    pub remaining_wait: Option<Duration>,
    /// Results of earlier generations do not count.
    pub generation: u64,
    /// What it has counted.
    pub statistics: BreakerStatistics,
}

impl BreakerSnapshot {
    /// The version written now, and the only one read.
    pub const VERSION: u32 = 1;
}
