//! The rules of the breaker: no locks, no clock, no code of a user.

use std::collections::VecDeque;
use std::time::Duration;

use orion_core::{Outcome, Refused, Timestamp};

use super::event::{BreakerSnapshot, BreakerState, BreakerStatistics, Cause};
use super::machine::{ThreeState, Tri};
use super::settings::{BreakerSettings, Judgement, WindowKind};
use super::window::{Sample, Totals, Window};

/// Who was permitted: results of an earlier generation do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) generation: u64,
}

/// What someone asks of the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Trip,
    ForceOpen,
    Disable,
    MetricsOnly,
    Reset,
}

/// A change of state that nobody has been told of yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) sequence: u64,
    pub(crate) at: Timestamp,
    pub(crate) from: BreakerState,
    pub(crate) to: BreakerState,
    pub(crate) cause: Cause,
    pub(crate) wait: Option<Duration>,
}

/// Whether the three states rule, or someone does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Automatic,
    ForcedOpen,
    Disabled,
    MetricsOnly,
}

/// Exactly `limit` calls in all are permitted in one half-open phase; one that says nothing gives its place back.
#[derive(Debug)]
struct Ledger {
    limit: u32,
    running: u32,
    ended: Totals,
}

impl Ledger {
    fn admit(&mut self) -> bool {
        let free = u64::from(self.running) + self.ended.calls < u64::from(self.limit);
        self.running += u32::from(free);
        free
    }

    fn is_complete(&self) -> bool {
        self.ended.calls == u64::from(self.limit)
    }

    fn clear(&mut self) {
        self.running = 0;
        self.ended = Totals::default();
    }
}

#[derive(Debug)]
pub(crate) struct Core<M> {
    settings: BreakerSettings,
    minimum: u64,
    machine: M,
    mode: Mode,
    generation: u64,
    window: Window,
    streak: u32,
    ledger: Ledger,
    open_until: Timestamp,
    half_open_since: Timestamp,
    trips: u32,
    jitter: fastrand::Rng,
    latest: Timestamp,
    sequence: u64,
    lifetime: Totals,
    ignored: u64,
    refused: u64,
    stale: u64,
    pub(crate) hook_panics: u64,
    pub(crate) changes: VecDeque<Change>,
    pub(crate) delivering: bool,
}

impl<M: ThreeState + Default> Core<M> {
    pub(crate) fn new(settings: BreakerSettings) -> Self {
        let minimum = match settings.window {
            WindowKind::Calls(size) => settings.minimum_calls.min(size as u64),
            WindowKind::Time(_) => settings.minimum_calls,
        };
        Self {
            minimum,
            machine: M::default(),
            mode: Mode::Automatic,
            generation: 0,
            window: Window::new(settings.window),
            streak: 0,
            ledger: Ledger { limit: settings.half_open_permits, running: 0, ended: Totals::default() },
            open_until: Timestamp::default(),
            half_open_since: Timestamp::default(),
            trips: 0,
            jitter: settings.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            latest: Timestamp::default(),
            sequence: 0,
            lifetime: Totals::default(),
            ignored: 0,
            refused: 0,
            stale: 0,
            hook_panics: 0,
            changes: VecDeque::new(),
            delivering: false,
            settings,
        }
    }
}

impl<M: ThreeState> Core<M> {
    fn current(&self) -> BreakerState {
        match (self.mode, self.machine.state()) {
            (Mode::ForcedOpen, _) => BreakerState::ForcedOpen,
            (Mode::Disabled, _) => BreakerState::Disabled,
            (Mode::MetricsOnly, _) => BreakerState::MetricsOnly,
            (Mode::Automatic, Tri::Closed) => BreakerState::Closed,
            (Mode::Automatic, Tri::Open) => BreakerState::Open,
            (Mode::Automatic, Tri::HalfOpen) => BreakerState::HalfOpen,
        }
    }

    /// The generation, and in the lowest bit whether everyone is permitted: what a caller needs to know to pass
    /// without taking the lock.
    pub(crate) fn passport(&self) -> u64 {
        let free = matches!(
            self.current(),
            BreakerState::Closed | BreakerState::Disabled | BreakerState::MetricsOnly
        );
        self.generation << 1 | u64::from(free)
    }

    pub(crate) fn state(&mut self, now: Timestamp) -> BreakerState {
        self.tick(now);
        self.current()
    }

    /// Time goes on; it is never let go back, whatever a clock says.
    fn tick(&mut self, now: Timestamp) {
        self.latest = self.latest.max(now);
        if let Some(limit) = self.settings.half_open_limit
            && self.current() == BreakerState::HalfOpen
            && self.latest.since(self.half_open_since) > limit
        {
            self.trip(Cause::HalfOpenTimedOut);
            // The wait counts from now on, when the lapse is first seen; but if nobody looked for a whole wait,
            // nobody has to wait for it again.
            let lapsed = self.half_open_since.after(limit).after(self.open_until.since(self.latest));
            if lapsed < self.latest {
                self.open_until = lapsed;
            }
        }
    }

    /// A new state: what was permitted before counts no more, and what was counted is forgotten.
    fn change(&mut self, from: BreakerState, cause: Cause) {
        self.generation += 1;
        self.window.clear();
        self.ledger.clear();
        self.sequence += 1;
        let to = self.current();
        let wait = (to == BreakerState::Open).then(|| self.open_until.since(self.latest));
        self.changes.push_back(Change { sequence: self.sequence, at: self.latest, from, to, cause, wait });
    }

    fn trip(&mut self, cause: Cause) {
        let from = self.current();
        self.machine.trip();
        let wait = self.settings.wait.wait(self.trips, self.jitter.f64());
        self.trips = self.trips.saturating_add(1);
        self.open_until = self.latest.after(wait);
        self.change(from, cause);
    }

    fn close(&mut self, cause: Cause) {
        let from = self.current();
        self.machine.close();
        self.trips = 0;
        self.streak = 0;
        self.change(from, cause);
    }

    pub(crate) fn ask(&mut self, now: Timestamp) -> Result<Claim, Refused> {
        self.tick(now);
        let permitted = match self.current() {
            BreakerState::Closed | BreakerState::Disabled | BreakerState::MetricsOnly => Ok(()),
            BreakerState::ForcedOpen => Err(None),
            BreakerState::Open if self.latest > self.open_until => {
                self.machine.probe();
                self.half_open_since = self.latest;
                self.change(BreakerState::Open, Cause::WaitOver);
                self.probe()
            }
            // A nanosecond more, because a call exactly at the end of the wait is still refused.
            BreakerState::Open => Err(Some(self.open_until.after(INSTANT).since(self.latest))),
            BreakerState::HalfOpen => self.probe(),
        };
        match permitted {
            Ok(()) => Ok(Claim { generation: self.generation }),
            Err(retry_after) => {
                self.refused = self.refused.saturating_add(1);
                Err(Refused { retry_after })
            }
        }
    }

    /// A place among the probes, or when to ask again: at the latest when half-open has lasted too long.
    fn probe(&mut self) -> Result<(), Option<Duration>> {
        if self.ledger.admit() {
            return Ok(());
        }
        let wait = self.settings.wait.ceiling(self.trips.saturating_sub(1));
        let left = self
            .settings
            .half_open_limit
            .map_or(wait, |limit| self.half_open_since.after(limit).after(INSTANT).since(self.latest));
        Err(Some(left.min(wait)))
    }

    pub(crate) fn settle(&mut self, now: Timestamp, claim: Claim, outcome: Outcome, elapsed: Duration) {
        self.tick(now);
        if claim.generation != self.generation {
            self.stale = self.stale.saturating_add(1);
            return;
        }
        let state = self.current();
        if state == BreakerState::HalfOpen {
            self.ledger.running -= 1;
        }
        if state == BreakerState::Disabled {
            return;
        }
        let failed = match outcome {
            Outcome::Success => false,
            Outcome::Failure => true,
            Outcome::Ignored => {
                self.ignored = self.ignored.saturating_add(1);
                return;
            }
        };
        let slow = self.settings.slow_calls.is_some_and(|slow| elapsed > slow.longer_than);
        let sample = Sample { failed, slow };
        self.lifetime.add(sample);
        self.streak = if failed { self.streak.saturating_add(1) } else { 0 };
        match state {
            BreakerState::HalfOpen => {
                self.ledger.ended.add(sample);
                self.judge_probes(failed);
            }
            _ => {
                let totals = self.window.record(self.latest, sample);
                if state == BreakerState::Closed {
                    self.judge(totals);
                }
            }
        }
    }

    /// After a call in closed, a success too: it may be the one that fills the minimum.
    fn judge(&mut self, totals: Totals) {
        if self.settings.consecutive_failures.is_some_and(|limit| self.streak >= limit) {
            self.trip(Cause::ConsecutiveFailures(self.streak));
        } else if totals.calls >= self.minimum
            && let Some(cause) = self.excess(totals)
        {
            self.trip(cause);
        }
    }

    fn judge_probes(&mut self, failed: bool) {
        let first_failure = self.settings.judgement == Judgement::FirstFailure;
        if failed && first_failure {
            self.trip(Cause::ProbeFailed);
        } else if self.ledger.is_complete() {
            match self.excess(self.ledger.ended) {
                Some(cause) => self.trip(cause),
                None => self.close(Cause::ProbesSucceeded),
            }
        }
    }

    /// The rate that is too high, if one is.
    fn excess(&self, totals: Totals) -> Option<Cause> {
        let failures = self.settings.failure_rate.filter(|&rate| totals.failure_rate() >= rate);
        if failures.is_some() {
            return Some(Cause::FailureRate(totals.failure_rate()));
        }
        let slow = self.settings.slow_calls.filter(|slow| totals.slow_rate() >= slow.rate);
        slow.map(|_| Cause::SlowCallRate(totals.slow_rate()))
    }

    pub(crate) fn command(&mut self, now: Timestamp, command: Command) {
        self.tick(now);
        let from = self.current();
        let mode = match command {
            Command::Trip => {
                self.mode = Mode::Automatic;
                // From here the wait begins anew, also if it was open already.
                self.trip(Cause::Command);
                if let Some(change) = self.changes.back_mut() {
                    change.from = from;
                }
                return;
            }
            Command::Reset => Mode::Automatic,
            Command::ForceOpen => Mode::ForcedOpen,
            Command::Disable => Mode::Disabled,
            Command::MetricsOnly => Mode::MetricsOnly,
        };
        self.machine.close();
        self.trips = 0;
        self.streak = 0;
        self.mode = mode;
        self.change(from, Cause::Command);
    }

    pub(crate) fn statistics(&mut self, now: Timestamp) -> BreakerStatistics {
        self.tick(now);
        let half_open = self.current() == BreakerState::HalfOpen;
        let totals = if half_open { self.ledger.ended } else { self.window.totals(self.latest) };
        let minimum = if half_open { u64::from(self.ledger.limit) } else { self.minimum };
        let enough = totals.calls >= minimum;
        BreakerStatistics {
            calls: totals.calls,
            failures: totals.failures,
            slow_calls: totals.slow,
            failure_rate: enough.then(|| totals.failure_rate()),
            slow_call_rate: enough.then(|| totals.slow_rate()),
            consecutive_failures: self.streak,
            probes_running: self.ledger.running,
            trips: self.trips,
            total_calls: self.lifetime.calls,
            total_failures: self.lifetime.failures,
            total_ignored: self.ignored,
            total_refused: self.refused,
            total_stale: self.stale,
            hook_panics: self.hook_panics,
        }
    }

    pub(crate) fn snapshot(&mut self, now: Timestamp, name: &str) -> BreakerSnapshot {
        let state = self.state(now);
        BreakerSnapshot {
            version: BreakerSnapshot::VERSION,
            name: name.to_owned(),
            state,
            remaining_wait: (state == BreakerState::Open).then(|| self.open_until.since(self.latest)),
            generation: self.generation,
            statistics: self.statistics(now),
        }
    }

    /// Takes over state, wait, trips and lifetime counts. Probes that ran then are lost: half-open comes back as
    /// open with nothing left to wait.
    pub(crate) fn restore(&mut self, now: Timestamp, snapshot: &BreakerSnapshot) {
        self.tick(now);
        let from = self.current();
        self.machine.close();
        self.mode = match snapshot.state {
            BreakerState::ForcedOpen => Mode::ForcedOpen,
            BreakerState::Disabled => Mode::Disabled,
            BreakerState::MetricsOnly => Mode::MetricsOnly,
            BreakerState::Closed => Mode::Automatic,
            BreakerState::Open | BreakerState::HalfOpen => {
                self.machine.trip();
                self.open_until = self.latest.after(snapshot.remaining_wait.unwrap_or_default());
                Mode::Automatic
            }
        };
        let statistics = &snapshot.statistics;
        self.trips = statistics.trips;
        self.streak = statistics.consecutive_failures;
        self.lifetime = Totals {
            calls: statistics.total_calls,
            failures: statistics.total_failures,
            ..Totals::default()
        };
        self.ignored = statistics.total_ignored;
        self.refused = statistics.total_refused;
        self.stale = statistics.total_stale;
        self.change(from, Cause::Restored);
    }
}

/// The shortest time there is.
const INSTANT: Duration = Duration::from_nanos(1);
