//! A call that runs elsewhere, and may hang there.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use orion_core::{CancelToken, Error, ErrorKind, Result};

use crate::service::{Context, Service};

type Task = Box<dyn FnOnce() + Send>;
type Executor = Arc<dyn Fn(Task) -> std::io::Result<()> + Send + Sync>;

/// Layer: runs a call on another thread and waits no longer than a limit and the deadline allow.
///
/// When time is up the caller gets [`DeadlineExceeded`](ErrorKind::DeadlineExceeded), the attempt's own cancel token is
/// set (not the caller's: another attempt or another model may follow), and its late result is dropped. A call that
/// never looks at its token keeps its thread: no library can take that back. The limit is waited out in real time,
/// whatever clock the deadline is told by.
pub struct Timeout<S> {
    inner: Arc<S>,
    limit: Duration,
    executor: Executor,
}

impl<S> Timeout<S> {
    /// At most `limit` for each call of `inner`, each on a thread of its own.
    pub fn new(inner: S, limit: Duration) -> Self {
        let spawn = |task: Task| {
            std::thread::Builder::new().name("orion-timeout".to_owned()).spawn(task).map(|_detached| ())
        };
        Self { inner: Arc::new(inner), limit, executor: Arc::new(spawn) }
    }

    /// Runs calls with `executor` (a pool, say) instead of on threads of their own.
    #[must_use]
    pub fn on(mut self, executor: impl Fn(Task) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        self.executor = Arc::new(executor);
        self
    }
}

impl<Q, A, S> Service<Q, A> for Timeout<S>
where
    Q: Clone + Send + 'static,
    A: Send + 'static,
    S: Service<Q, A> + 'static,
{
    fn call(&self, request: &Q, context: &Context) -> Result<A> {
        context.check()?;
        let limit = context.deadline().remaining().map_or(self.limit, |left| left.min(self.limit));
        let (answer, answered) = bounded(1);
        let attempt = CancelToken::new();
        let inside = context.within(limit).cancelled_by(attempt.clone());
        let (inner, request) = (Arc::clone(&self.inner), request.clone());
        let task = move || {
            let result = catch_unwind(AssertUnwindSafe(|| inner.call(&request, &inside)));
            // Nobody listens any more if the caller's time is up.
            let _ = answer.send(result);
        };
        (self.executor)(Box::new(task)).map_err(|error| Error::io(error, "thread for a call"))?;
        // Further than the clock reaches is as good as for ever.
        let end = Instant::now().checked_add(limit);
        loop {
            let left = end.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()));
            match answered.recv_timeout(left.min(LOOK)) {
                Ok(Ok(result)) => return result,
                // The panic goes on where the call was made, so that a breaker outside sees it.
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    attempt.cancel();
                    return Err(Error::new(
                        ErrorKind::DeadlineExceeded,
                        format!("no answer within {limit:?}"),
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {
                    if context.cancel().is_cancelled() {
                        attempt.cancel();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::Internal, "the executor dropped the call"));
                }
            }
        }
    }
}

/// How often the caller's token is looked at.
const LOOK: Duration = Duration::from_millis(20);

impl<S> fmt::Debug for Timeout<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout").field("limit", &self.limit).finish_non_exhaustive()
    }
}
