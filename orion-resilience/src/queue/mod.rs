//! The queue: who waits, for how long at most, and who is next.

mod bell;
mod list;
mod order;
mod slot;
mod ticket;
mod work;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orion_core::{CancelToken, Clock, Error, ErrorKind, Refused, Result, Timestamp};
use serde::Serialize;

use crate::sync::{Condvar, Mutex, MutexGuard, lock, shielded, wait};

use self::bell::Bell;
use self::order::{Key, Left, Meta, Order};
use self::slot::Slot;

pub use self::ticket::Ticket;
pub use self::work::{Receipt, Work};

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum Priority {
    /// When nothing else is to do.
    Low,
    /// As it comes.
    #[default]
    Normal,
    /// Someone is waiting.
    High,
}

/// Whose request it is; within a class of priority callers are served in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Caller(pub u64);

impl From<&str> for Caller {
    /// A 64-bit hash of the name: two names that share one would share a turn.
    fn from(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Bounds and pace of a [`RequestQueue`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSettings {
    max_requests: u32,
    max_tokens: u64,
    ageing: Duration,
    servers: u32,
}

impl Default for QueueSettings {
    /// 1,024 requests, 4 million tokens, a class up every ten seconds, one request at a time.
    fn default() -> Self {
        Self { max_requests: 1024, max_tokens: 4_000_000, ageing: Duration::from_secs(10), servers: 1 }
    }
}

impl QueueSettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// At most this many requests wait.
    #[must_use]
    pub fn max_requests(mut self, requests: u32) -> Self {
        self.max_requests = requests;
        self
    }

    /// Requests of at most this many tokens in all wait.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u64) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// A request that has waited this long moves up a class, and again after as long. So nothing that comes more than
    /// twice this later is served before a request only because of its priority.
    #[must_use]
    pub fn ageing(mut self, ageing: Duration) -> Self {
        self.ageing = ageing;
        self
    }

    /// How many requests run at once; estimates of waits depend on it.
    #[must_use]
    pub fn servers(mut self, servers: u32) -> Self {
        self.servers = servers.max(1);
        self
    }
}

/// A request on its way into the queue.
#[derive(Debug)]
pub struct Submission<T> {
    request: T,
    caller: Caller,
    priority: Priority,
    tokens: u32,
    deadline: Option<Timestamp>,
    cancel: Option<CancelToken>,
}

impl<T> Submission<T> {
    /// A request of normal priority without deadline that counts as one token.
    pub fn new(request: T) -> Self {
        Self {
            request,
            caller: Caller::default(),
            priority: Priority::Normal,
            tokens: 1,
            deadline: None,
            cancel: None,
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn caller(mut self, caller: impl Into<Caller>) -> Self {
        self.caller = caller.into();
        self
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// How much work it is.
    #[must_use]
    pub fn tokens(mut self, tokens: u32) -> Self {
        self.tokens = tokens;
        self
    }

    /// From when on it need not run any more, by the queue's clock.
    #[must_use]
    pub fn deadline(mut self, deadline: impl Into<Option<Timestamp>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// The flag that ends it, queued or running.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: CancelToken) -> Self {
        self.cancel = Some(cancel);
        self
    }
}

/// A submission that was not taken, and why.
pub struct NotQueued<T> {
    /// The request, given back.
    pub request: T,
    /// Why it was not taken.
    pub error: Error,
}

impl<T> fmt::Debug for NotQueued<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotQueued").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> From<NotQueued<T>> for Error {
    fn from(not: NotQueued<T>) -> Self {
        not.error
    }
}

/// Whether the queue takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum QueuePhase {
    /// It takes requests and gives them to workers.
    Open,
    /// It takes requests, and gives none.
    Paused,
    /// It takes none, and gives those it has.
    Draining,
    /// It takes and gives none; everyone has an answer.
    Stopped,
}

/// What a queue holds and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueStatistics {
    /// Whether it takes and gives.
    pub phase: QueuePhase,
    /// Requests that wait.
    pub queued: usize,
    /// Their tokens.
    pub queued_tokens: u64,
    /// Requests that run.
    pub running: usize,
    /// Requests taken in.
    pub accepted: u64,
    /// Requests refused at the door.
    pub rejected: u64,
    /// Requests that ran and were answered.
    pub finished: u64,
    /// Requests whose deadline passed while they waited.
    pub expired: u64,
    /// Requests cancelled while they waited.
    pub cancelled: u64,
    /// Requests answered by shutting down.
    pub turned_away: u64,
    /// Hooks that panicked.
    pub hook_panics: u64,
}

struct Item<T, R> {
    request: T,
    slot: Arc<Slot<R>>,
    cancel: Option<CancelToken>,
}

struct State<T, R> {
    order: Order<Item<T, R>>,
    running_tokens: u64,
    /// Smoothed seconds of work per token.
    pace: Option<f64>,
    statistics: QueueStatistics,
    /// Someone waits for the queue to be idle.
    idle_awaited: bool,
}

type Dropped<T> = Box<dyn Fn(T, &Error) + Send + Sync>;

struct Shared<T, R> {
    settings: QueueSettings,
    clock: Arc<dyn Clock>,
    state: Mutex<State<T, R>>,
    bell: Bell,
    idle: Condvar,
    dropped: Option<Dropped<T>>,
}

/// A queue of requests `T` that are answered with `R`. Clones share it.
///
/// It is bounded by requests and by tokens. Who is next: the highest class of [`Priority`]; within it the callers in
/// turn; of one caller the oldest. Waiting raises the class. Requests whose deadline has passed or whose token is set are
/// dropped when they would be handed over, and never reach a worker. Every request that was taken in is answered exactly
/// once: by the worker, by the queue, or because both have gone.
///
/// ```
/// use std::sync::Arc;
/// use orion_core::SystemClock;
/// use orion_resilience::{Priority, QueueSettings, RequestQueue, Submission};
///
/// let queue = RequestQueue::new(QueueSettings::new(), Arc::new(SystemClock::new()));
/// let worker = std::thread::spawn({
///     let queue = queue.clone();
///     move || queue.serve(|text: String, _cancel| Ok(text.len()))
/// });
/// let ticket = queue.submit(Submission::new("hello".to_owned()).caller("me").priority(Priority::High)).unwrap();
/// assert_eq!(ticket.wait()?, 5);
/// queue.shutdown();
/// worker.join().unwrap();
/// # Ok::<(), orion_core::Error>(())
/// ```
pub struct RequestQueue<T, R = ()> {
    shared: Arc<Shared<T, R>>,
}

impl<T, R> Clone for RequestQueue<T, R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// What a worker finds.
enum Found<T, R> {
    Work(Work<T, R>),
    Nothing,
    Closed,
}

impl<T, R> RequestQueue<T, R> {
    /// An empty queue.
    #[must_use]
    pub fn new(settings: QueueSettings, clock: Arc<dyn Clock>) -> Self {
        Self::build(settings, clock, None)
    }

    /// An empty queue that gives every request it drops (expired, cancelled, turned away) to `dropped`, with the error it
    /// was answered with. Runs outside the lock; a panic in it is counted and otherwise without consequence.
    #[must_use]
    pub fn with_hook(
        settings: QueueSettings,
        clock: Arc<dyn Clock>,
        dropped: impl Fn(T, &Error) + Send + Sync + 'static,
    ) -> Self {
        Self::build(settings, clock, Some(Box::new(dropped)))
    }

    fn build(settings: QueueSettings, clock: Arc<dyn Clock>, dropped: Option<Dropped<T>>) -> Self {
        let statistics = QueueStatistics {
            phase: QueuePhase::Open,
            queued: 0,
            queued_tokens: 0,
            running: 0,
            accepted: 0,
            rejected: 0,
            finished: 0,
            expired: 0,
            cancelled: 0,
            turned_away: 0,
            hook_panics: 0,
        };
        let order = Order::new(settings.ageing);
        let state = State { order, running_tokens: 0, pace: None, statistics, idle_awaited: false };
        let (state, bell, idle) = (Mutex::new(state), Bell::new(), Condvar::new());
        Self { shared: Arc::new(Shared { settings, clock, state, bell, idle, dropped }) }
    }

    /// Takes a request in, or gives it back at once. Never blocks.
    ///
    /// # Errors
    /// [`Rejected`](ErrorKind::Rejected) if the queue is full, draining or stopped (with a
    /// [`Retry-After`](Error::retry_after) where a wait can be predicted), [`InvalidInput`](ErrorKind::InvalidInput) if
    /// the request alone is more than the queue may hold, [`Cancelled`](ErrorKind::Cancelled) and
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if it is over before it began.
    pub fn submit(&self, submission: Submission<T>) -> Result<Ticket<T, R>, NotQueued<T>> {
        let now = self.shared.clock.now();
        let slot = Arc::new(Slot::new());
        let mut state = lock(&self.shared.state);
        let mut swept = Vec::new();
        if state.is_full(&self.shared.settings, submission.tokens) {
            // What is dead already must not keep the living out.
            swept = state.order.expire(now);
            state.statistics.expired += swept.len() as u64;
        }
        if let Err(error) = self.shared.admits(&state, &submission, now) {
            state.statistics.rejected += 1;
            drop(state);
            self.shared.answer(swept, &expired);
            return Err(NotQueued { request: submission.request, error });
        }
        state.statistics.accepted += 1;
        let meta = Meta {
            caller: submission.caller.0,
            priority: submission.priority,
            tokens: submission.tokens,
            submitted: now,
            deadline: submission.deadline,
        };
        let item = Item { request: submission.request, slot: Arc::clone(&slot), cancel: submission.cancel };
        let key = state.order.insert(meta, item);
        drop(state);
        self.shared.bell.ring();
        self.shared.answer(swept, &expired);
        Ok(Ticket::new(Arc::downgrade(&self.shared), slot, key))
    }

    /// The next request, as soon as there is one; `None` once the queue has been stopped, or drained and is empty.
    #[must_use]
    pub fn next(&self) -> Option<Work<T, R>> {
        self.wait_for_work(None)
    }

    /// The next request if there is one within `time`, in real time.
    #[must_use]
    pub fn next_timeout(&self, time: Duration) -> Option<Work<T, R>> {
        // Further than the clock reaches is as good as for ever.
        self.wait_for_work(Instant::now().checked_add(time))
    }

    /// The next request if there is one now.
    #[must_use]
    pub fn try_next(&self) -> Option<Work<T, R>> {
        match self.poll() {
            Found::Work(work) => Some(work),
            Found::Nothing | Found::Closed => None,
        }
    }

    fn wait_for_work(&self, until: Option<Instant>) -> Option<Work<T, R>> {
        loop {
            match self.poll() {
                Found::Work(work) => return Some(work),
                Found::Closed => {
                    self.shared.bell.ring();
                    return None;
                }
                Found::Nothing => {
                    if !self.shared.bell.wait(until) {
                        return None;
                    }
                }
            }
        }
    }

    fn poll(&self) -> Found<T, R> {
        let now = self.shared.clock.now();
        let mut state = lock(&self.shared.state);
        let (mut late, mut cancelled) = (Vec::new(), Vec::new());
        let found = loop {
            match state.statistics.phase {
                QueuePhase::Stopped => break Found::Closed,
                QueuePhase::Paused => break Found::Nothing,
                QueuePhase::Open | QueuePhase::Draining => {}
            }
            let Some(left) = state.order.pop(now) else {
                let draining = state.statistics.phase == QueuePhase::Draining;
                break if draining { Found::Closed } else { Found::Nothing };
            };
            if left.payload.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
                state.statistics.cancelled += 1;
                cancelled.push(left);
            } else if left.deadline.is_some_and(|deadline| deadline <= now) {
                state.statistics.expired += 1;
                late.push(left);
            } else {
                state.statistics.running += 1;
                state.running_tokens += u64::from(left.tokens);
                break Found::Work(Work::start(&self.shared, left, now));
            }
        };
        let more = state.order.len() > 0 || state.statistics.phase == QueuePhase::Draining;
        self.shared.note_idle(&state);
        drop(state);
        if more && matches!(found, Found::Work(_)) {
            self.shared.bell.ring();
        }
        self.shared.answer(late, &expired);
        self.shared.answer(cancelled, &cancelled_while_queued);
        found
    }

    /// Works until the queue closes: gives each request to `handler` and answers it with what comes back. A panic in the
    /// handler fails that request alone.
    pub fn serve(&self, mut handler: impl FnMut(T, &CancelToken) -> Result<R>) {
        while let Some(work) = self.next() {
            let (request, receipt) = work.split();
            let cancel = receipt.cancel_token().clone();
            match catch_unwind(AssertUnwindSafe(|| handler(request, &cancel))) {
                Ok(Ok(answer)) => receipt.complete(answer),
                Ok(Err(error)) => receipt.fail(error),
                Err(_) => receipt.fail(Error::new(ErrorKind::Internal, "the worker panicked")),
            };
        }
    }

    /// Drops what has expired without waiting for a worker to come by. Answers how many that were.
    #[allow(clippy::must_use_candidate, reason = "done for what it does, not for what it says")]
    pub fn expire(&self) -> usize {
        let now = self.shared.clock.now();
        let mut state = lock(&self.shared.state);
        let late = state.order.expire(now);
        state.statistics.expired += late.len() as u64;
        self.shared.note_idle(&state);
        drop(state);
        let number = late.len();
        self.shared.answer(late, &expired);
        number
    }

    /// How long a request of normal priority that came now would wait; `None` before the first has been finished.
    #[must_use]
    pub fn predicted_wait(&self) -> Option<Duration> {
        let state = lock(&self.shared.state);
        state.predict(&self.shared.settings, state.order.tokens())
    }

    /// Hands out nothing until [`resume`](Self::resume). Does nothing once the queue drains or has stopped.
    pub fn pause(&self) {
        self.shared.enter(QueuePhase::Paused, |phase| phase == QueuePhase::Open);
    }

    /// Hands out again.
    pub fn resume(&self) {
        self.shared.enter(QueuePhase::Open, |phase| phase == QueuePhase::Paused);
    }

    /// Takes nothing more and hands out what is there, also if it was paused; then workers get `None`.
    pub fn drain(&self) {
        self.shared.enter(QueuePhase::Draining, |phase| phase != QueuePhase::Stopped);
    }

    /// Takes and hands out nothing more, and answers everyone who waits with [`Rejected`](ErrorKind::Rejected). What runs
    /// may finish. Answers how many were turned away.
    #[allow(clippy::must_use_candidate, reason = "done for what it does, not for what it says")]
    pub fn shutdown(&self) -> usize {
        self.shared.shutdown()
    }

    /// Waits until nothing is queued and nothing runs, at most for `time` in real time. Answers whether it came to
    /// that.
    #[cfg(not(any(loom, shuttle)))]
    pub fn wait_idle(&self, time: Duration) -> bool {
        let mut state = lock(&self.shared.state);
        state.idle_awaited = true;
        let busy = |state: &mut State<T, R>| !state.is_idle();
        let waited = self.shared.idle.wait_timeout_while(state, time, busy);
        let (state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.is_idle()
    }

    /// Waits until nothing is queued and nothing runs.
    pub fn join(&self) {
        let mut state = lock(&self.shared.state);
        while !state.is_idle() {
            state.idle_awaited = true;
            state = wait(&self.shared.idle, state);
        }
    }

    /// What it holds and has done.
    #[must_use]
    pub fn statistics(&self) -> QueueStatistics {
        let state = lock(&self.shared.state);
        QueueStatistics { queued: state.order.len(), queued_tokens: state.order.tokens(), ..state.statistics }
    }
}

impl<T, R> fmt::Debug for RequestQueue<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl<T, R> State<T, R> {
    fn is_full(&self, settings: &QueueSettings, tokens: u32) -> bool {
        self.order.len() >= settings.max_requests as usize
            || self.order.tokens() + u64::from(tokens) > settings.max_tokens
    }

    fn is_idle(&self) -> bool {
        self.order.len() == 0 && self.statistics.running == 0
    }

    /// The time until `ahead` tokens and, on average, half of what runs are done.
    fn predict(&self, settings: &QueueSettings, ahead: u64) -> Option<Duration> {
        let pace = self.pace?;
        if ahead == 0 && self.statistics.running < settings.servers as usize {
            return Some(Duration::ZERO);
        }
        let tokens = ahead as f64 + self.running_tokens as f64 / 2.0;
        Duration::try_from_secs_f64(pace * tokens / f64::from(settings.servers)).ok()
    }

    /// The wait of the request at `position`: its share of all that waits.
    fn estimate(&self, settings: &QueueSettings, position: usize) -> Option<Duration> {
        let share = position as f64 / self.order.len().max(1) as f64;
        self.predict(settings, (self.order.tokens() as f64 * share) as u64)
    }
}

impl<T, R> Shared<T, R> {
    fn admits(&self, state: &State<T, R>, submission: &Submission<T>, now: Timestamp) -> Result<()> {
        let settings = &self.settings;
        match state.statistics.phase {
            QueuePhase::Draining => return Err(rejected("the queue is draining", self.whole_wait(state))),
            QueuePhase::Stopped => return Err(rejected("the queue has been shut down", None)),
            QueuePhase::Open | QueuePhase::Paused => {}
        }
        if u64::from(submission.tokens) > settings.max_tokens {
            let (tokens, most) = (submission.tokens, settings.max_tokens);
            return Err(Error::invalid(format!(
                "a request of {tokens} tokens, the queue holds at most {most}"
            )));
        }
        if submission.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Error::new(ErrorKind::Cancelled, "cancelled before it was queued"));
        }
        if submission.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::new(ErrorKind::DeadlineExceeded, "the deadline passed before it was queued"));
        }
        if state.is_full(settings, submission.tokens) {
            let (queued, tokens) = (state.order.len(), state.order.tokens());
            let message = format!("the queue is full: {queued} requests of {tokens} tokens wait");
            return Err(rejected(&message, self.whole_wait(state)));
        }
        Ok(())
    }

    fn whole_wait(&self, state: &State<T, R>) -> Option<Duration> {
        state.predict(&self.settings, state.order.tokens())
    }

    fn enter(&self, phase: QueuePhase, from: impl Fn(QueuePhase) -> bool) {
        let mut state = lock(&self.state);
        if from(state.statistics.phase) {
            state.statistics.phase = phase;
        }
        drop(state);
        self.bell.ring();
    }

    fn shutdown(&self) -> usize {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        state.statistics.phase = QueuePhase::Stopped;
        let all: Vec<_> = std::iter::from_fn(|| state.order.pop(now)).collect();
        state.statistics.turned_away += all.len() as u64;
        self.note_idle(&state);
        drop(state);
        self.bell.ring();
        let number = all.len();
        self.answer(all, &|| rejected("the queue was shut down", None));
        number
    }

    /// Takes a queued request out for its ticket. Answers whether it was still there.
    fn cancel(&self, key: Key) -> bool {
        let mut state = lock(&self.state);
        let Some(left) = state.order.remove(key) else { return false };
        state.statistics.cancelled += 1;
        self.note_idle(&state);
        drop(state);
        self.answer(vec![left], &cancelled_while_queued);
        true
    }

    /// A request that ran has been answered.
    fn finished(&self, tokens: u32, elapsed: Duration, completed: bool) {
        let mut state = lock(&self.state);
        state.statistics.running -= 1;
        state.statistics.finished += 1;
        state.running_tokens -= u64::from(tokens);
        if completed {
            let seconds = elapsed.as_secs_f64() / f64::from(tokens.max(1));
            state.pace = Some(state.pace.map_or(seconds, |pace| pace + SMOOTHING * (seconds - pace)));
        }
        self.note_idle(&state);
    }

    fn note_idle(&self, state: &MutexGuard<'_, State<T, R>>) {
        if state.idle_awaited && state.is_idle() {
            self.idle.notify_all();
        }
    }

    /// Answers what the queue itself has dropped. Not under the lock: hooks and the requests' own `drop` run here.
    fn answer(&self, dropped: Vec<Left<Item<T, R>>>, error: &dyn Fn() -> Error) {
        let mut panics = 0;
        for left in dropped {
            let Item { request, slot, .. } = left.payload;
            slot.answer(Err(error()));
            let given = shielded(|| match &self.dropped {
                Some(hook) => hook(request, &error()),
                None => drop(request),
            });
            panics += u64::from(!given);
        }
        if panics > 0 {
            lock(&self.state).statistics.hook_panics += panics;
        }
    }
}

/// When the last handle has gone nobody will serve those who wait: they are told.
impl<T, R> Drop for Shared<T, R> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Weight of the latest request in the smoothed pace.
const SMOOTHING: f64 = 0.2;

fn rejected(message: &str, retry_after: Option<Duration>) -> Error {
    let error = Error::new(ErrorKind::Rejected, message);
    if retry_after.is_some() { error.with_source(Refused { retry_after }) } else { error }
}

fn expired() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the deadline passed in the queue")
}

fn cancelled_while_queued() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled in the queue")
}
