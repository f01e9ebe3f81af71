//! Saying no early.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{Error, ErrorKind, Refused, Result};

use crate::service::{Context, Deadline, Service};

/// Rejects work that would wait too long: an answer at once is worth more than one that comes too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadShedder {
    limit: Duration,
}

impl LoadShedder {
    /// Rejects what would wait longer than `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit }
    }

    /// Whether to take work that would wait for `predicted`; unknown waits are taken.
    ///
    /// # Errors
    /// [`Rejected`](ErrorKind::Rejected) if that is beyond the limit (with how long to stay away as a [`Refused`])
    /// or beyond the deadline.
    pub fn check(&self, predicted: Option<Duration>, deadline: &Deadline) -> Result<()> {
        let Some(predicted) = predicted else { return Ok(()) };
        if predicted > self.limit {
            let (message, limit) = (format!("the wait would be {predicted:?}"), self.limit);
            let refused = Refused { retry_after: Some(predicted - limit) };
            return Err(Error::new(ErrorKind::Rejected, format!("{message}, more than {limit:?}"))
                .with_source(refused));
        }
        if let Some(left) = deadline.remaining()
            && predicted >= left
        {
            let message = format!("the wait would be {predicted:?}, and the deadline is in {left:?}");
            return Err(Error::new(ErrorKind::Rejected, message));
        }
        Ok(())
    }
}

/// Layer: rejects a call whose predicted wait is too long.
pub struct Shed<S> {
    inner: S,
    shedder: LoadShedder,
    predict: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
}

impl<S> Shed<S> {
    /// Sheds before `inner`; `predict` is asked how long a call would wait, such as
    /// [`RequestQueue::predicted_wait`](crate::RequestQueue::predicted_wait).
    pub fn new(
        inner: S,
        shedder: LoadShedder,
        predict: impl Fn() -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, shedder, predict: Arc::new(predict) }
    }
}

impl<Q: ?Sized, A, S: Service<Q, A>> Service<Q, A> for Shed<S> {
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        self.shedder.check((self.predict)(), context.deadline())?;
        self.inner.call(request, context)
    }
}

impl<S> fmt::Debug for Shed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shed").field("shedder", &self.shedder).finish_non_exhaustive()
    }
}
