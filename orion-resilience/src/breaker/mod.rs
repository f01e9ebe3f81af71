//! The circuit breaker.

mod core;
mod event;
mod machine;
mod settings;
mod window;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{Clock, Error, ErrorKind, Outcome, Refused, Result};

use crate::sync::{AtomicU64, Mutex, Ordering, lock, shielded};

pub use self::event::{BreakerEvent, BreakerSnapshot, BreakerState, BreakerStatistics, Cause};
pub use self::settings::{BreakerSettings, Judgement, SlowCalls, WindowKind};

use self::core::{Claim, Command, Core};
use self::machine::Machine;

type Hook = Arc<dyn Fn(&BreakerEvent) + Send + Sync>;

/// Watches calls of one dependency and refuses them while it is down.
///
/// Ask with [`call`](Self::call), or [`acquire`](Self::acquire) a permit and settle it. While the breaker is closed
/// asking is one atomic load; a result takes one short lock. No code of a user (hooks, predicates, the clock) runs
/// under that lock.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use orion_core::{Error, ErrorKind, ManualClock};
/// use orion_resilience::{BreakerSettings, BreakerState, CircuitBreaker};
///
/// let clock = ManualClock::new();
/// let breaker = CircuitBreaker::new("llama", BreakerSettings::new(), Arc::new(clock.clone()))?;
/// for _ in 0..5 {
///     let failed: Result<(), _> = breaker.call(|| Err(Error::new(ErrorKind::Io, "disk gone")));
///     assert!(failed.is_err());
/// }
/// assert_eq!(breaker.state(), BreakerState::Open);
/// let refused = breaker.call(|| Ok("never runs")).unwrap_err();
/// assert_eq!(refused.kind(), ErrorKind::Rejected);
/// clock.advance(refused.retry_after().unwrap());
/// assert_eq!(breaker.call(|| Ok("works again"))?, "works again");
/// assert_eq!(breaker.state(), BreakerState::Closed);
/// # Ok::<(), Error>(())
/// ```
pub struct CircuitBreaker {
    name: Arc<str>,
    clock: Arc<dyn Clock>,
    /// [`Core::passport`], readable without the lock.
    passport: AtomicU64,
    /// Calls are only timed if some are slow: reading the clock is half of what a guarded call costs.
    timed: bool,
    core: Mutex<Core<Machine>>,
    hooks: Mutex<Vec<Hook>>,
}

/// Why a guarded call of someone else's error type has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// It was not made.
    #[error(transparent)]
    Refused(Refused),
    /// It was made and failed.
    #[error(transparent)]
    Failed(E),
}

/// What an error says about the dependency: the default predicate of [`CircuitBreaker::call`] and
/// [`Guard`](crate::Guard).
///
/// The caller's own mistakes (invalid input, a prompt too long, a template), cancellation and refusals of other parts
/// say nothing; everything else, an exceeded deadline included, is a failure.
#[must_use]
pub fn classify(error: &Error) -> Outcome {
    use ErrorKind as K;
    match error.kind() {
        K::InvalidInput | K::ContextOverflow | K::Template | K::Cancelled | K::Rejected => Outcome::Ignored,
        _ => Outcome::Failure,
    }
}

impl CircuitBreaker {
    /// A closed breaker.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) naming the setting that is out of range.
    pub fn new(name: impl Into<Arc<str>>, settings: BreakerSettings, clock: Arc<dyn Clock>) -> Result<Self> {
        let name = name.into();
        settings.validate().map_err(|error| error.about(format!("breaker {name}")))?;
        let timed = settings.slow_calls.is_some();
        let core = Core::new(settings);
        let passport = AtomicU64::new(core.passport());
        Ok(Self { name, clock, passport, timed, core: Mutex::new(core), hooks: Mutex::new(Vec::new()) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls `hook` after every change of state, outside the lock, in order, one at a time. A hook may use the
    /// breaker; a hook that panics is counted and otherwise without consequence.
    pub fn on_event(&self, hook: impl Fn(&BreakerEvent) + Send + Sync + 'static) {
        lock(&self.hooks).push(Arc::new(hook));
    }

    /// Runs a call if it is permitted; [`classify`] says what its error means. A panic is a failure and goes on.
    ///
    /// # Errors
    /// [`Rejected`](ErrorKind::Rejected) with a [`Refused`] as source if it was not permitted, or the call's own.
    pub fn call<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.call_with(classify, call).map_err(|error| match error {
            CallError::Refused(refused) => Error::from(refused).about(format!("breaker {}", self.name)),
            CallError::Failed(error) => error,
        })
    }

    /// Runs a call if it is permitted; the predicate says what its error means.
    ///
    /// # Errors
    /// [`CallError::Refused`] if it was not permitted, [`CallError::Failed`] with the call's own.
    pub fn call_with<T, E>(
        &self,
        classify: impl FnOnce(&E) -> Outcome,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        let permit = self.acquire().map_err(CallError::Refused)?;
        let start = self.timed.then(|| self.clock.now());
        let result = call();
        let outcome = result.as_ref().map_or_else(classify, |_| Outcome::Success);
        let end = self.clock.now();
        permit.0.finish(end, outcome, start.map_or(Duration::ZERO, |start| end.since(start)));
        result.map_err(CallError::Failed)
    }

    /// A permit for one call, or how long to wait.
    ///
    /// # Errors
    /// [`Refused`] while calls are not permitted.
    pub fn acquire(&self) -> Result<BreakerPermit<'_>, Refused> {
        Ok(BreakerPermit(RawPermit::new(self, self.claim()?)))
    }

    /// The same, for a permit that outlives the borrow.
    ///
    /// # Errors
    /// [`Refused`] while calls are not permitted.
    pub fn acquire_owned(this: &Arc<Self>) -> Result<OwnedPermit, Refused> {
        Ok(OwnedPermit(RawPermit::new(Arc::clone(this), this.claim()?)))
    }

    fn claim(&self) -> Result<Claim, Refused> {
        let passport = self.passport.load(Ordering::Acquire);
        if passport & 1 == 1 {
            return Ok(Claim { generation: passport >> 1 });
        }
        let now = self.clock.now();
        self.with(|core| core.ask(now))
    }

    /// The state now. Open stays open until someone asks for a permit after the wait.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        let now = self.clock.now();
        self.with(|core| core.state(now))
    }

    /// What it has counted up to now.
    #[must_use]
    pub fn statistics(&self) -> BreakerStatistics {
        let now = self.clock.now();
        self.with(|core| core.statistics(now))
    }

    /// The breaker as it can be stored.
    #[must_use]
    pub fn snapshot(&self) -> BreakerSnapshot {
        let now = self.clock.now();
        self.with(|core| core.snapshot(now, &self.name))
    }

    /// Takes over the state, wait, trips and lifetime counts of a snapshot; the window starts empty, and permits given
    /// out before do not count.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the snapshot is of another version.
    pub fn restore(&self, snapshot: &BreakerSnapshot) -> Result<()> {
        if snapshot.version != BreakerSnapshot::VERSION {
            let (found, known) = (snapshot.version, BreakerSnapshot::VERSION);
            let message = format!("snapshot of version {found}, this build reads version {known}");
            return Err(Error::unsupported(message).about(format!("breaker {}", self.name)));
        }
        let now = self.clock.now();
        self.with(|core| core.restore(now, snapshot));
        Ok(())
    }

    /// Opens it as if it had tripped: the wait begins now.
    pub fn trip(&self) {
        self.command(Command::Trip);
    }

    /// Refuses every call until told otherwise.
    pub fn force_open(&self) {
        self.command(Command::ForceOpen);
    }

    /// Permits every call and watches none.
    pub fn disable(&self) {
        self.command(Command::Disable);
    }

    /// Permits every call, watches them, and never opens.
    pub fn metrics_only(&self) {
        self.command(Command::MetricsOnly);
    }

    /// Closes it and forgets the window, the streak and the growth of the wait, whatever state it was in.
    pub fn reset(&self) {
        self.command(Command::Reset);
    }

    fn command(&self, command: Command) {
        let now = self.clock.now();
        self.with(|core| core.command(now, command));
    }

    /// Does something under the lock, then publishes the state and tells what changed.
    fn with<T>(&self, act: impl FnOnce(&mut Core<Machine>) -> T) -> T {
        let mut core = lock(&self.core);
        let result = act(&mut core);
        if core.changes.is_empty() {
            return result;
        }
        self.passport.store(core.passport(), Ordering::Release);
        // Whoever is telling already tells this, too: that keeps the order, and hooks may come back here.
        let tell = !core.delivering;
        core.delivering = true;
        drop(core);
        if tell {
            self.deliver();
        }
        result
    }

    fn deliver(&self) {
        loop {
            let change = {
                let mut core = lock(&self.core);
                let Some(change) = core.changes.pop_front() else {
                    core.delivering = false;
                    return;
                };
                change
            };
            let event = BreakerEvent {
                breaker: Arc::clone(&self.name),
                sequence: change.sequence,
                at: change.at,
                from: change.from,
                to: change.to,
                cause: change.cause,
                wait: change.wait,
            };
            let hooks = lock(&self.hooks).clone();
            let log = shielded(|| {
                tracing::info!(breaker = %event.breaker, from = %event.from, to = %event.to, cause = ?event.cause,
                    wait = ?event.wait, "circuit breaker changed state");
            });
            let panics = hooks.iter().filter(|hook| !shielded(|| hook(&event))).count() + usize::from(!log);
            lock(&self.core).hook_panics += panics as u64;
        }
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A permit before it is known who holds it.
struct RawPermit<B: std::ops::Deref<Target = CircuitBreaker>> {
    breaker: B,
    claim: Option<Claim>,
    was_panicking: bool,
}

impl<B: std::ops::Deref<Target = CircuitBreaker>> RawPermit<B> {
    fn new(breaker: B, claim: Claim) -> Self {
        Self { breaker, claim: Some(claim), was_panicking: std::thread::panicking() }
    }

    fn settle(self, outcome: Outcome, elapsed: Duration) {
        let now = self.breaker.clock.now();
        self.finish(now, outcome, elapsed);
    }

    fn finish(mut self, now: orion_core::Timestamp, outcome: Outcome, elapsed: Duration) {
        if let Some(claim) = self.claim.take() {
            self.breaker.with(|core| core.settle(now, claim, outcome, elapsed));
        }
    }
}

impl<B: std::ops::Deref<Target = CircuitBreaker>> Drop for RawPermit<B> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            let failed = std::thread::panicking() && !self.was_panicking;
            let outcome = if failed { Outcome::Failure } else { Outcome::Ignored };
            let now = self.breaker.clock.now();
            self.breaker.with(|core| core.settle(now, claim, outcome, Duration::ZERO));
        }
    }
}

macro_rules! permit {
    ($(#[$doc:meta])* $name:ident $(<$life:lifetime>)?, $holder:ty) => {
        $(#[$doc])*
        ///
        /// Settle it with how the call went and how long it took. Dropped without being settled it counts as a
        /// failure while the thread panics, and otherwise as ignored: its place is given back.
        #[must_use = "a permit that is dropped at once permits nothing"]
        pub struct $name $(<$life>)? (RawPermit<$holder>);

        impl $(<$life>)? $name $(<$life>)? {
            /// The call succeeded.
            pub fn success(self, elapsed: Duration) {
                self.0.settle(Outcome::Success, elapsed);
            }

            /// The call failed, and the dependency is to blame.
            pub fn failure(self, elapsed: Duration) {
                self.0.settle(Outcome::Failure, elapsed);
            }

            /// The call says nothing about the dependency.
            pub fn ignore(self) {
                self.0.settle(Outcome::Ignored, Duration::ZERO);
            }
        }

        impl $(<$life>)? fmt::Debug for $name $(<$life>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("breaker", &self.0.breaker.name).finish_non_exhaustive()
            }
        }
    };
}

permit! {
    /// Permission for one call, borrowed from its breaker.
    BreakerPermit<'a>, &'a CircuitBreaker
}
permit! {
    /// Permission for one call that keeps its breaker alive.
    OwnedPermit, Arc<CircuitBreaker>
}

impl orion_core::Permit for OwnedPermit {
    fn settle(self: Box<Self>, outcome: Outcome, elapsed: Duration) {
        self.0.settle(outcome, elapsed);
    }
}
