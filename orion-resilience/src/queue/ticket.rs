//! What the caller holds.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use orion_core::Result;

use super::Shared;
use super::order::Key;
use super::slot::Slot;
use crate::sync::lock;

/// A request that was taken in. Dropping the ticket lets the request go on without an audience.
pub struct Ticket<T, R = ()> {
    queue: Weak<Shared<T, R>>,
    slot: Arc<Slot<R>>,
    key: Key,
}

impl<T, R> Ticket<T, R> {
    pub(super) fn new(queue: Weak<Shared<T, R>>, slot: Arc<Slot<R>>, key: Key) -> Self {
        Self { queue, slot, key }
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// What the worker failed with; [`Cancelled`](orion_core::ErrorKind::Cancelled),
    /// [`DeadlineExceeded`](orion_core::ErrorKind::DeadlineExceeded) or [`Rejected`](orion_core::ErrorKind::Rejected)
    /// from the queue; [`Internal`](orion_core::ErrorKind::Internal) if the worker gave up without a word.
    pub fn wait(self) -> Result<R> {
        self.slot.wait()
    }

    /// Waits for the answer at most for `time` in real time.
    ///
    /// # Errors
    /// The ticket again if there was none; inside, as [`wait`](Self::wait).
    #[cfg(not(any(loom, shuttle)))]
    pub fn wait_timeout(self, time: Duration) -> Result<Result<R>, Self> {
        self.slot.wait_timeout(time).ok_or(self)
    }

    /// The answer if it is there.
    ///
    /// # Errors
    /// The ticket again if there is none; inside, as [`wait`](Self::wait).
    pub fn try_answer(self) -> Result<Result<R>, Self> {
        self.slot.take().ok_or(self)
    }

    /// Ends the request: one that waits leaves the queue at once, one that runs has its token set. Answers whether it was
    /// either.
    #[allow(clippy::must_use_candidate, reason = "done for what it does, not for what it says")]
    pub fn cancel(&self) -> bool {
        let left = self.queue.upgrade().is_some_and(|queue| queue.cancel(self.key));
        left || self.slot.cancel()
    }

    /// How many will be served before it, if nothing comes, leaves or ages meanwhile; `None` once it has left the queue.
    #[must_use]
    pub fn position(&self) -> Option<usize> {
        let queue = self.queue.upgrade()?;
        lock(&queue.state).order.position(self.key)
    }

    /// How long it will wait from now on, by the pace of late; `None` once it has left the queue, and before the queue
    /// has finished its first request.
    #[must_use]
    pub fn estimated_wait(&self) -> Option<Duration> {
        let queue = self.queue.upgrade()?;
        let state = lock(&queue.state);
        let position = state.order.position(self.key)?;
        state.estimate(&queue.settings, position)
    }
}

impl<T, R> fmt::Debug for Ticket<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("key", &self.key).finish_non_exhaustive()
    }
}
