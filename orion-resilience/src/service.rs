//! The trait all layers share, and what flows through them with a call.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orion_core::{CancelToken, Clock, Error, ErrorKind, Result, Timestamp};

/// Something that answers a request. Every closure `Fn(&Q, &Context) -> Result<A>` is one, and so is every layer of
/// this crate around one.
pub trait Service<Q: ?Sized, A>: Send + Sync {
    /// Answers `request` within the bounds of `context`.
    ///
    /// # Errors
    /// The service's own.
    fn call(&self, request: &Q, context: &Context) -> Result<A>;
}

impl<Q: ?Sized, A, F> Service<Q, A> for F
where
    F: Fn(&Q, &Context) -> Result<A> + Send + Sync,
{
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        self(request, context)
    }
}

/// A service behind a pointer, to keep services of different types in one list.
pub type BoxService<Q, A> = Box<dyn Service<Q, A>>;

impl<Q: ?Sized, A> Service<Q, A> for BoxService<Q, A> {
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        (**self).call(request, context)
    }
}

/// When a request must be done. One deadline flows through a whole chain; parts of it can be given less, never more.
#[derive(Clone)]
pub struct Deadline {
    clock: Arc<dyn Clock>,
    at: Option<Timestamp>,
}

impl Deadline {
    /// No deadline, by this clock.
    #[must_use]
    pub fn never(clock: Arc<dyn Clock>) -> Self {
        Self { clock, at: None }
    }

    /// A deadline `time` from now.
    #[must_use]
    pub fn after(clock: Arc<dyn Clock>, time: Duration) -> Self {
        Self::never(clock).within(time)
    }

    /// This deadline, or `time` from now if that is earlier.
    #[must_use]
    pub fn within(&self, time: Duration) -> Self {
        let at = self.clock.now().after(time);
        Self { clock: Arc::clone(&self.clock), at: Some(self.at.map_or(at, |own| own.min(at))) }
    }

    /// When it is; `None` for never.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        self.at
    }

    /// Time left: zero when it has passed, `None` if there is no deadline.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.at.map(|at| at.since(self.clock.now()))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }

    /// The clock it is told by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// An error once it has passed.
    ///
    /// # Errors
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded).
    pub fn check(&self) -> Result<()> {
        if self.is_over() {
            return Err(Error::new(ErrorKind::DeadlineExceeded, "the deadline passed"));
        }
        Ok(())
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.at).finish()
    }
}

/// What flows with a call through every layer.
#[derive(Debug, Clone)]
pub struct Context {
    deadline: Deadline,
    cancel: CancelToken,
    started: Arc<AtomicBool>,
}

impl Context {
    /// A call that must be done by `deadline`.
    #[must_use]
    pub fn new(deadline: Deadline) -> Self {
        Self { deadline, cancel: CancelToken::new(), started: Arc::default() }
    }

    /// Replaces the cancel token.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// The same call with less time.
    #[must_use]
    pub fn within(&self, time: Duration) -> Self {
        Self { deadline: self.deadline.within(time), ..self.clone() }
    }

    /// When it must be done.
    #[must_use]
    pub fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    /// What ends it.
    #[must_use]
    pub fn cancel(&self) -> &CancelToken {
        &self.cancel
    }

    /// Says that output has reached the caller. From here on nothing is retried and nothing falls back: the caller would
    /// see the beginning twice.
    pub fn mark_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Whether output has reached the caller.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// An error once the call has been cancelled or its deadline has passed.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled) or [`DeadlineExceeded`](ErrorKind::DeadlineExceeded).
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "the call was cancelled"));
        }
        self.deadline.check()
    }
}

/// Lets time pass between attempts.
pub trait Sleep: Send + Sync {
    /// Returns after `time`, or soon after `cancel` is set.
    fn sleep(&self, time: Duration, cancel: &CancelToken);
}

/// Sleeps the thread, and looks up every 20 ms.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadSleep;

impl Sleep for ThreadSleep {
    fn sleep(&self, time: Duration, cancel: &CancelToken) {
        let start = std::time::Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed())
            && !left.is_zero()
            && !cancel.is_cancelled()
        {
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

/// Time that stands still passes by being moved on: a sleep in a simulation.
impl Sleep for orion_core::ManualClock {
    fn sleep(&self, time: Duration, _: &CancelToken) {
        self.advance(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orion_core::ManualClock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_part_never_gets_more_time_than_the_whole() {
        let clock = ManualClock::new();
        let whole = Deadline::after(Arc::new(clock.clone()), 10 * SECOND);
        assert_eq!(whole.within(3 * SECOND).remaining(), Some(3 * SECOND));
        assert_eq!(whole.within(30 * SECOND).at(), whole.at());
        clock.advance(9 * SECOND);
        assert_eq!(whole.within(3 * SECOND).remaining(), Some(SECOND));
        whole.check().unwrap();
        clock.advance(SECOND);
        assert_eq!(whole.check().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        clock.advance(SECOND);
        assert_eq!(whole.remaining(), Some(Duration::ZERO));
    }

    #[test]
    fn without_a_deadline_time_is_never_over() {
        let clock = ManualClock::new();
        let never = Deadline::never(Arc::new(clock.clone()));
        clock.advance(1000 * SECOND);
        assert_eq!((never.remaining(), never.is_over()), (None, false));
        assert_eq!(never.within(SECOND).remaining(), Some(SECOND));
        assert_eq!(format!("{never:?}"), "Deadline(None)");
    }

    #[test]
    fn a_context_shares_cancel_and_start_with_its_parts() {
        let clock = Arc::new(ManualClock::new());
        let cancel = CancelToken::new();
        let whole = Context::new(Deadline::never(clock)).cancelled_by(cancel.clone());
        let part = whole.within(SECOND);
        assert!(!whole.has_started());
        part.mark_started();
        assert!(whole.has_started());
        part.check().unwrap();
        cancel.cancel();
        assert_eq!(part.check().unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(part.cancel().is_cancelled());
    }

    #[test]
    fn a_cancelled_sleep_ends() {
        let cancel = CancelToken::new();
        cancel.cancel();
        // Would outlast every test run if it slept.
        ThreadSleep.sleep(Duration::MAX, &cancel);
        let start = std::time::Instant::now();
        ThreadSleep.sleep(Duration::from_millis(30), &CancelToken::new());
        assert!(start.elapsed() >= Duration::from_millis(30), "a sleep is never shorter than asked");
    }
}
