//! Work that does not wait for its turn: the region that is running does it in between.
//!
//! Whether to give way must be one decision for all threads of a region. The last thread at a barrier makes it, before it
//! lets the others go; it stands until all have arrived at the next barrier.
#![allow(unsafe_code, reason = "threads of a region run a closure borrowed from another thread's stack")]

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::yield_now;

use orion_core::{Error, ErrorKind, Result};

use super::wait::WaitPoint;
use super::{Region, Task};

/// Nobody waits.
const IDLE: u8 = 0;
/// A task is published.
const WANTED: u8 = 1;
/// A region is doing it.
const TAKEN: u8 = 2;
/// A region has done it.
const DONE: u8 = 3;
/// The region that was doing it ended by a panic.
const LOST: u8 = 4;

#[derive(Default)]
pub(super) struct First {
    state: AtomicU8,
    /// The decision at the last barrier.
    give_way: AtomicBool,
    /// Written before the state becomes wanted, read by the threads of a region until it is done.
    task: UnsafeCell<Option<Task>>,
    /// One task at a time.
    turn: Mutex<()>,
    waits: WaitPoint,
}

impl First {
    /// Waits until a region has done `body`, or until `turn` hands out the pool's turn, which is returned then.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) if the region panicked meanwhile.
    pub(super) fn ask<T>(
        &self,
        body: &(dyn Fn(&Region<'_>) + Sync),
        turn: impl Fn() -> Option<T>,
    ) -> Result<Option<T>> {
        let _one_at_a_time = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turn() {
            return Ok(Some(turn));
        }
        // SAFETY: only the lifetime changes. This function does not return before the task is done, lost with its region, or
        // taken back while no region runs.
        let task: Task = unsafe { std::mem::transmute(body) };
        // SAFETY: the state is idle, so nobody reads it.
        unsafe { *self.task.get() = Some(task) };
        self.state.store(WANTED, Ordering::Release);
        let got = Cell::new(None);
        self.waits.asleep(|| {
            let over = || matches!(self.state.load(Ordering::Acquire), DONE | LOST);
            if over() {
                return true;
            }
            let Some(turn) = turn() else { return false };
            // Whoever has the turn knows that no region runs. The last one may have done the task.
            if !over() {
                got.set(Some(turn));
            }
            true
        });
        match self.state.swap(IDLE, Ordering::AcqRel) {
            LOST => {
                let message = "the compute region that did this work, too, was ended by a panic";
                Err(Error::new(ErrorKind::Internal, message))
            }
            _ => Ok(got.take()),
        }
    }

    /// Called by one thread of a region while the others wait at a barrier.
    pub(super) fn decide(&self) {
        let wanted = self.state.load(Ordering::Acquire) == WANTED;
        // A write takes the cache line from all other threads; there is hardly ever one.
        if self.give_way.load(Ordering::Relaxed) != wanted {
            self.give_way.store(wanted, Ordering::Relaxed);
        }
    }

    /// The task, if the region is to do it now: the same answer for all its threads between two barriers.
    pub(super) fn decided(&self) -> Option<Task> {
        if !self.give_way.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: it was published before the decision, and is not written before it is done.
        unsafe { *self.task.get() }
    }

    /// Said by one thread before it does the task.
    pub(super) fn take(&self) {
        self.state.store(TAKEN, Ordering::Release);
    }

    /// Said by one thread after all have done the task.
    pub(super) fn done(&self) {
        self.state.store(DONE, Ordering::Release);
        self.waits.wake();
    }

    /// Leaves the core to who waits for a task that is done, until it has noticed. The region's threads may have taken every
    /// core, and it would get one at the scheduler's next tick, milliseconds later.
    pub(super) fn let_through(&self) {
        if self.state.load(Ordering::Relaxed) == DONE {
            yield_now();
        }
    }

    /// Said while the region's turn lasts: a task that it has not finished is lost.
    pub(super) fn region_ended(&self) {
        if self.state.load(Ordering::Acquire) == TAKEN {
            self.state.store(LOST, Ordering::Release);
        }
        if self.give_way.load(Ordering::Relaxed) {
            self.give_way.store(false, Ordering::Relaxed);
        }
    }

    /// Said when the turn is free: who waits may take it.
    pub(super) fn turn_is_free(&self) {
        self.waits.wake();
    }
}
