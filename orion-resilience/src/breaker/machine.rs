//! The three states and the moves between them, behind a trait of four verbs.
//!
//! What ships is `failsafe`'s state machine, told what to do: its policy always says "open, for no time at all", so
//! that it never decides about time. Under loom a plain enum stands in, because loom cannot see into `failsafe`;
//! a test holds the two against each other.

#[cfg(not(loom))]
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(loom))]
use std::time::Duration;

/// The states of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tri {
    Closed,
    Open,
    HalfOpen,
}

/// Moves between three states. A move that makes no sense where it stands does nothing.
pub(crate) trait ThreeState {
    fn state(&self) -> Tri;
    /// Closed or half-open to open.
    fn trip(&mut self);
    /// Open to half-open.
    fn probe(&mut self);
    /// Half-open or open to closed.
    fn close(&mut self);
}

#[cfg(not(loom))]
pub(crate) type Machine = Failsafe;
#[cfg(loom)]
pub(crate) type Machine = Plain;

/// Says "open" to every failure, for no time.
#[cfg(not(loom))]
#[derive(Debug)]
struct Commanded;

#[cfg(not(loom))]
impl failsafe::FailurePolicy for Commanded {
    fn record_success(&mut self) {}
    fn mark_dead_on_failure(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn revived(&mut self) {}
}

/// `failsafe` shows its state only in its events; this keeps the last.
#[cfg(not(loom))]
#[derive(Debug, Clone, Default)]
struct Seen(Arc<AtomicU8>);

#[cfg(not(loom))]
impl failsafe::Instrument for Seen {
    fn on_call_rejected(&self) {}
    fn on_closed(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
    fn on_open(&self) {
        self.0.store(1, Ordering::Relaxed);
    }
    fn on_half_open(&self) {
        self.0.store(2, Ordering::Relaxed);
    }
}

/// `failsafe`'s state machine.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Failsafe {
    machine: failsafe::StateMachine<Commanded, Seen>,
    seen: Seen,
}

#[cfg(not(loom))]
impl Default for Failsafe {
    fn default() -> Self {
        let seen = Seen::default();
        Self { machine: failsafe::StateMachine::new(Commanded, seen.clone()), seen }
    }
}

#[cfg(not(loom))]
impl ThreeState for Failsafe {
    fn state(&self) -> Tri {
        match self.seen.0.load(Ordering::Relaxed) {
            0 => Tri::Closed,
            1 => Tri::Open,
            _ => Tri::HalfOpen,
        }
    }

    fn trip(&mut self) {
        self.machine.on_error();
    }

    fn probe(&mut self) {
        // The wait of zero is over once the machine's clock has moved at all: at the first ask or the next.
        while self.state() == Tri::Open && !self.machine.is_call_permitted() {
            std::hint::spin_loop();
        }
    }

    fn close(&mut self) {
        match self.state() {
            Tri::Closed => {}
            Tri::HalfOpen => self.machine.on_success(),
            Tri::Open => self.machine.reset(),
        }
    }
}

/// The same as an enum.
#[cfg(any(loom, test))]
#[derive(Debug)]
pub(crate) struct Plain(Tri);

#[cfg(any(loom, test))]
impl Default for Plain {
    fn default() -> Self {
        Self(Tri::Closed)
    }
}

#[cfg(any(loom, test))]
impl ThreeState for Plain {
    fn state(&self) -> Tri {
        self.0
    }
    fn trip(&mut self) {
        self.0 = Tri::Open;
    }
    fn probe(&mut self) {
        if self.0 == Tri::Open {
            self.0 = Tri::HalfOpen;
        }
    }
    fn close(&mut self) {
        self.0 = Tri::Closed;
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn failsafe_moves_as_the_plain_machine_does(moves in prop::collection::vec(0..3u8, 0..40)) {
            let (mut shipped, mut plain) = (Failsafe::default(), Plain::default());
            prop_assert_eq!(shipped.state(), Tri::Closed);
            for step in moves {
                for machine in [&mut shipped as &mut dyn ThreeState, &mut plain] {
                    match step {
                        0 => machine.trip(),
                        1 => machine.probe(),
                        _ => machine.close(),
                    }
                }
                prop_assert_eq!(shipped.state(), plain.state());
            }
        }
    }
}
