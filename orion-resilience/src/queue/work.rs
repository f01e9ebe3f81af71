//! What a worker holds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{CancelToken, Error, ErrorKind, Result, Timestamp};

use super::order::Left;
use super::slot::Slot;
use super::{Item, Shared};

/// A request that has been handed over: the request, and the receipt that answers it.
pub struct Work<T, R = ()> {
    request: T,
    receipt: Receipt<T, R>,
}

impl<T, R> Work<T, R> {
    pub(super) fn start(queue: &Arc<Shared<T, R>>, left: Left<Item<T, R>>, now: Timestamp) -> Self {
        let Item { request, slot, cancel } = left.payload;
        let cancel = cancel.unwrap_or_default();
        slot.start(cancel.clone());
        let receipt = Receipt {
            queue: Arc::clone(queue),
            slot,
            cancel,
            tokens: left.tokens,
            waited: now.since(left.submitted),
            started: now,
            open: true,
            was_panicking: std::thread::panicking(),
        };
        Self { request, receipt }
    }

    /// The request.
    pub fn request(&self) -> &T {
        &self.request
    }

    /// The request and its receipt, to go different ways.
    pub fn split(self) -> (T, Receipt<T, R>) {
        (self.request, self.receipt)
    }

    /// Answers it; as [`Receipt::complete`].
    pub fn complete(self, answer: R) {
        self.receipt.complete(answer);
    }

    /// Answers it with an error; as [`Receipt::fail`].
    pub fn fail(self, error: Error) {
        self.receipt.fail(error);
    }
}

impl<T, R> fmt::Debug for Work<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("receipt", &self.receipt).finish_non_exhaustive()
    }
}

/// Owes a request its answer. Dropped without one, it answers that the worker panicked or gave up.
#[must_use = "dropping it answers the request with an error"]
pub struct Receipt<T, R = ()> {
    queue: Arc<Shared<T, R>>,
    slot: Arc<Slot<R>>,
    cancel: CancelToken,
    tokens: u32,
    waited: Duration,
    started: Timestamp,
    open: bool,
    was_panicking: bool,
}

impl<T, R> Receipt<T, R> {
    /// The request is done.
    pub fn complete(mut self, answer: R) {
        self.finish(Ok(answer));
    }

    /// The request failed.
    pub fn fail(mut self, error: Error) {
        self.finish(Err(error));
    }

    /// The flag that ends the request; look at it between steps.
    #[must_use]
    pub fn cancel_token(&self) -> &CancelToken {
        &self.cancel
    }

    /// How long the request waited.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn finish(&mut self, answer: Result<R>) {
        self.open = false;
        let elapsed = self.queue.clock.now().since(self.started);
        let completed = answer.is_ok();
        // First the answer, then the books: when the queue says that nothing runs, everyone has an answer.
        self.slot.answer(answer);
        self.queue.finished(self.tokens, elapsed, completed);
    }
}

impl<T, R> Drop for Receipt<T, R> {
    fn drop(&mut self) {
        if self.open {
            let panicked = std::thread::panicking() && !self.was_panicking;
            let message = if panicked { "the worker panicked" } else { "the worker dropped the request" };
            self.finish(Err(Error::new(ErrorKind::Internal, message)));
        }
    }
}

impl<T, R> fmt::Debug for Receipt<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("waited", &self.waited).finish_non_exhaustive()
    }
}
