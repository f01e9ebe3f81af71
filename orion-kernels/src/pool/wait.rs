//! Waiting for another thread: spin, then yield, then sleep.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// A pause is 10 to 40 ns on current processors: 20 to 50 microseconds in all.
const SPINS: u32 = 1500;
/// A yield with nobody to yield to is a system call of about 0.3 microseconds.
const YIELDS: u32 = 64;

/// A place to sleep until some shared state changes.
#[derive(Default)]
pub(super) struct WaitPoint {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl WaitPoint {
    /// Returns once `done` holds, with the time spent beyond the spin. Whoever makes it hold calls [`wake`](Self::wake)
    /// afterwards.
    pub(super) fn until(&self, done: impl Fn() -> bool) -> Duration {
        self.until_meanwhile(done, || false)
    }

    /// [`until`](Self::until), and does a little of something else, tens of nanoseconds of it, in place of each pause as long as
    /// there is some.
    pub(super) fn until_meanwhile(
        &self,
        done: impl Fn() -> bool,
        mut meanwhile: impl FnMut() -> bool,
    ) -> Duration {
        for _ in 0..SPINS {
            if done() {
                return Duration::ZERO;
            }
            if !meanwhile() {
                spin_loop();
            }
        }
        let started = Instant::now();
        for _ in 0..YIELDS {
            if done() {
                return started.elapsed();
            }
            yield_now();
        }
        self.asleep(done);
        started.elapsed()
    }

    /// [`until`](Self::until) for who waits for threads that need every core: sleeps at once.
    pub(super) fn asleep(&self, done: impl Fn() -> bool) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `wake`: either this thread sees the change or the waker sees this sleeper.
        fence(Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !done() {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes the sleepers. Costs one load when there is none.
    pub(super) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }
}
