//! Memory that models, caches and buffers share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// A number of bytes that may be held at once. Clones share it; every holder keeps a [`Reservation`].
#[derive(Clone)]
pub struct MemoryBudget(Arc<Counters>);

struct Counters {
    limit: u64,
    used: AtomicU64,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Counters { limit, used: AtomicU64::new(0) }))
    }

    /// A budget that refuses nothing and still counts.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Takes `bytes` until the reservation is dropped.
    ///
    /// # Errors
    /// [`OutOfMemory`](ErrorKind::OutOfMemory) with what was asked, what is used and the limit.
    pub fn reserve(&self, bytes: u64, what: &str) -> Result<Reservation> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&total| total <= self.0.limit);
        match self.0.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(_) => Ok(Reservation { budget: self.clone(), bytes }),
            Err(used) => Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("needs {bytes} bytes, {used} of {} are in use", self.0.limit),
            )
            .about(what)),
        }
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Acquire)
    }

    /// Bytes that may be held.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.limit
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBudget({} of {} bytes)", self.used(), self.limit())
    }
}

/// Bytes held from a [`MemoryBudget`], given back on drop.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its bytes back"]
pub struct Reservation {
    budget: MemoryBudget,
    bytes: u64,
}

impl Reservation {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_add_up_and_come_back() {
        let budget = MemoryBudget::new(100);
        let first = budget.reserve(60, "a").unwrap();
        let error = budget.reserve(41, "model b").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert_eq!(error.to_string(), "model b: needs 41 bytes, 60 of 100 are in use");
        let second = budget.reserve(40, "c").unwrap();
        assert_eq!((budget.used(), second.bytes()), (100, 40));
        drop(first);
        assert_eq!(budget.used(), 40);
    }

    #[test]
    fn an_unlimited_budget_still_refuses_overflow() {
        let budget = MemoryBudget::unlimited();
        let _held = budget.reserve(2, "a").unwrap();
        assert!(budget.reserve(u64::MAX, "b").is_err());
    }

    #[test]
    fn racing_reservations_never_exceed_the_limit() {
        let budget = MemoryBudget::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        if let Ok(held) = budget.reserve(300, "x") {
                            assert!(budget.used() <= 1000);
                            drop(held);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }
}
