//! Trying again: when, after what wait, and how often in all.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{Error, ErrorKind, Result};

use crate::backoff::Backoff;
use crate::service::{Context, Service, Sleep};
use crate::sync::{AtomicU64, Ordering};

/// Keeps retries a share of calls: every call pays in, every retry takes out. When a dependency is down for
/// everyone, retries end where the budget ends, and the load on it stays near what it was.
///
/// In any stretch of time, retries are at most `share × calls + reserve`. Share it among all callers of a dependency.
#[derive(Debug)]
pub struct RetryBudget {
    /// In thousandths of a retry.
    balance: AtomicU64,
    deposit: u64,
    reserve: u64,
}

const RETRY: u64 = 1000;

impl RetryBudget {
    /// A budget of one retry per `1 / share` calls, with `reserve` retries to begin with and at most.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if `share` is not between 0 and 1.
    pub fn new(share: f64, reserve: u32) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!("the share of a retry budget is {share}, expected 0 to 1")));
        }
        let deposit = (share * RETRY as f64) as u64;
        let reserve = u64::from(reserve) * RETRY;
        Ok(Self { balance: AtomicU64::new(reserve), deposit, reserve })
    }

    /// A call pays in.
    pub fn deposit(&self) {
        let pay = |balance: u64| Some((balance + self.deposit).min(self.reserve));
        let _ = self.balance.fetch_update(Ordering::AcqRel, Ordering::Acquire, pay);
    }

    /// Takes a retry out, if there is one.
    pub fn withdraw(&self) -> bool {
        let take = |balance: u64| balance.checked_sub(RETRY);
        self.balance.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    /// Retries that could be made now.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.balance.load(Ordering::Acquire) / RETRY
    }
}

impl Default for RetryBudget {
    /// One retry in ten calls, and at most ten at once.
    fn default() -> Self {
        let reserve = 10 * RETRY;
        Self { balance: AtomicU64::new(reserve), deposit: RETRY / 10, reserve }
    }
}

/// Whether and when to try again.
///
/// By default three attempts in all, 100 ms to 10 s apart with half of it at random, after a failed read, a failed
/// network and a refusal that says when to come back. A `Retry-After` is honoured: never sooner, and if it is beyond the
/// deadline or beyond [`longest_wait`](Self::longest_wait), not at all.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    attempts: u32,
    backoff: Backoff,
    longest_wait: Duration,
    retryable: fn(&Error) -> bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 3,
            backoff: Backoff::exponential(Duration::from_millis(100), Duration::from_secs(10)).jitter(0.5),
            longest_wait: Duration::from_secs(60),
            retryable,
        }
    }
}

/// Failed reads and networks may work the next time; so may a refusal that says when.
fn retryable(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Network => true,
        ErrorKind::Rejected => error.retry_after().is_some(),
        _ => false,
    }
}

impl RetryPolicy {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// At most this many attempts, the first included.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// How long to wait between attempts.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Gives up instead of waiting longer than this for a `Retry-After`.
    #[must_use]
    pub fn longest_wait(mut self, wait: Duration) -> Self {
        self.longest_wait = wait;
        self
    }

    /// Which errors are worth another attempt.
    #[must_use]
    pub fn retry_if(mut self, retryable: fn(&Error) -> bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// How long to wait before the next attempt after `attempts` have failed, the last with `error`; `None` to give up.
    /// `random` is at least 0 and below 1. Takes no retry out of a budget.
    ///
    /// Gives up once output has reached the caller, the call is cancelled, or the wait would outlast the deadline.
    #[must_use]
    pub fn next_wait(
        &self,
        attempts: u32,
        error: &Error,
        context: &Context,
        random: f64,
    ) -> Option<Duration> {
        let give_up = attempts >= self.attempts
            || context.has_started()
            || context.cancel().is_cancelled()
            || !(self.retryable)(error);
        if give_up {
            return None;
        }
        let own = self.backoff.wait(attempts.saturating_sub(1), random);
        let wait = match error.retry_after() {
            None => own,
            Some(asked) if asked > self.longest_wait => return None,
            Some(asked) => own.max(asked.saturating_add(self.backoff.spread(asked, random))),
        };
        let in_time = context.deadline().remaining().is_none_or(|left| wait < left);
        in_time.then_some(wait)
    }
}

/// Layer: tries again as its policy says and its budget allows.
pub struct Retry<S> {
    inner: S,
    policy: RetryPolicy,
    budget: Arc<RetryBudget>,
    sleep: Arc<dyn Sleep>,
    random: crate::sync::Mutex<fastrand::Rng>,
}

impl<S> Retry<S> {
    /// Retries `inner`.
    pub fn new(inner: S, policy: RetryPolicy, budget: Arc<RetryBudget>, sleep: Arc<dyn Sleep>) -> Self {
        Self { inner, policy, budget, sleep, random: crate::sync::Mutex::new(fastrand::Rng::new()) }
    }

    /// Makes jitter repeatable.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { random: crate::sync::Mutex::new(fastrand::Rng::with_seed(seed)), ..self }
    }
}

impl<Q: ?Sized, A, S: Service<Q, A>> Service<Q, A> for Retry<S> {
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        self.budget.deposit();
        let mut attempts = 0;
        loop {
            let error = match self.inner.call(request, context) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            attempts += 1;
            let random = crate::sync::lock(&self.random).f64();
            let note =
                |error: Error| if attempts > 1 { error.about(format!("attempt {attempts}")) } else { error };
            let Some(wait) = self.policy.next_wait(attempts, &error, context, random) else {
                return Err(note(error));
            };
            if !self.budget.withdraw() {
                return Err(note(error));
            }
            tracing::debug!(attempts, ?wait, %error, "trying again");
            self.sleep.sleep(wait, context.cancel());
            if context.check().is_err() {
                return Err(note(error));
            }
        }
    }
}

impl<S> fmt::Debug for Retry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("policy", &self.policy)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}
