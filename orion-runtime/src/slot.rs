//! Weights that arrive while the model already computes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use orion_core::{Error, ErrorKind, Result};

/// A place for something that is still being loaded.
pub(crate) type Slot<T> = OnceLock<T>;

/// How often a waiting computation looks whether it was cancelled.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Where computation waits for the loading thread.
#[derive(Debug)]
pub(crate) struct Arrivals {
    failure: Mutex<Option<(ErrorKind, String)>>,
    changed: Condvar,
    abandoned: AtomicBool,
    filled: AtomicUsize,
    total: usize,
    /// Layers that have computed.
    reached: AtomicUsize,
    began: Instant,
    /// From the beginning to the last slot.
    took: OnceLock<Duration>,
}

impl Arrivals {
    /// For `total` slots.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            failure: Mutex::new(None),
            changed: Condvar::new(),
            abandoned: AtomicBool::new(false),
            filled: AtomicUsize::new(0),
            total,
            reached: AtomicUsize::new(0),
            began: Instant::now(),
            took: OnceLock::new(),
        }
    }

    /// How long it took until the last slot was filled, once it is.
    pub(crate) fn took(&self) -> Option<Duration> {
        self.took.get().copied()
    }

    /// Slots filled, and slots in all.
    pub(crate) fn progress(&self) -> (usize, usize) {
        (self.filled.load(Ordering::Acquire), self.total)
    }

    /// Layers that have computed something.
    pub(crate) fn reached(&self) -> usize {
        self.reached.load(Ordering::Acquire)
    }

    /// Notes that the first `layers` have computed.
    pub(crate) fn reach(&self, layers: usize) {
        self.reached.fetch_max(layers, Ordering::AcqRel);
    }

    /// Blocks until every slot is filled.
    pub(crate) fn wait_all(&self) -> Result<()> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        while self.filled.load(Ordering::Acquire) < self.total {
            if let Some((kind, message)) = &*failure {
                return Err(Error::new(*kind, message.clone()));
            }
            (failure, _) = self.changed.wait_timeout(failure, POLL).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Fills a slot and wakes who waits for it.
    pub(crate) fn fill<T>(&self, slot: &Slot<T>, value: T) {
        let held = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // A slot is filled once, by the one loading thread.
        slot.set(value).ok();
        if self.filled.fetch_add(1, Ordering::AcqRel) + 1 == self.total {
            self.took.get_or_init(|| self.began.elapsed());
        }
        drop(held);
        self.changed.notify_all();
    }

    /// Nothing more will come.
    pub(crate) fn fail(&self, error: &Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert((error.kind(), error.to_string()));
        drop(failure);
        self.changed.notify_all();
    }

    /// Nobody needs the rest.
    pub(crate) fn abandon(&self) {
        let held = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        self.abandoned.store(true, Ordering::Release);
        drop(held);
        self.changed.notify_all();
    }

    /// Waits, unless nobody needs what was loaded; says whether somebody does.
    pub(crate) fn rest(&self, pause: Duration) -> bool {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.changed.wait_timeout_while(failure, pause, |_| !self.is_abandoned());
        drop(wait.unwrap_or_else(PoisonError::into_inner));
        !self.is_abandoned()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// What made loading fail, if it did.
    pub(crate) fn failure(&self) -> Option<Error> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(|(kind, message)| Error::new(*kind, message.clone()))
    }

    /// The slot's content once it is there.
    pub(crate) fn wait<'a, T>(&self, slot: &'a Slot<T>, stop: &dyn Fn() -> bool) -> Result<&'a T> {
        if let Some(value) = slot.get() {
            return Ok(value);
        }
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = slot.get() {
                return Ok(value);
            }
            if let Some((kind, message)) = &*failure {
                return Err(Error::new(*kind, message.clone()));
            }
            if stop() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled while its weights were loading"));
            }
            (failure, _) = self.changed.wait_timeout(failure, POLL).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_waiter_gets_the_value_the_failure_or_its_own_cancellation() {
        let shared = Arc::new((Arrivals::new(2), Slot::new(), Slot::<u32>::new()));
        let waiter = shared.clone();
        let thread = std::thread::spawn(move || {
            let first = *waiter.0.wait(&waiter.1, &|| false).unwrap();
            (first, waiter.0.wait(&waiter.2, &|| false).unwrap_err().kind())
        });
        shared.0.fill(&shared.1, 7);
        shared.0.fail(&Error::corrupt("bad shard"));
        assert_eq!(thread.join().unwrap(), (7, ErrorKind::Corrupt));
        let fresh = Arrivals::new(1);
        assert_eq!(fresh.wait(&Slot::<u32>::new(), &|| true).unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
