//! Random sequences of operations on the breaker against a reference model written for clarity alone.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use orion_core::ManualClock;
use orion_resilience::{
    Backoff, BreakerSettings, BreakerState, CircuitBreaker, Judgement, OwnedPermit, SlowCalls, WindowKind,
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

/// Milliseconds of the settings under test.
const WINDOW: u64 = 2000;
const HALF_OPEN_LIMIT: u64 = 700;
const SLOW_OVER: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Success,
    Failure,
    Ignored,
}

#[derive(Debug, Clone)]
enum Step {
    Ask,
    Finish { which: prop::sample::Index, end: End, slow: bool },
    Wait(u64),
    Trip,
    ForceOpen,
    Disable,
    MetricsOnly,
    Reset,
}

#[derive(Debug, Clone)]
struct Variant {
    count_window: bool,
    by_rate: bool,
    streak: Option<u32>,
}

/// The reference: everything is kept, everything is computed anew.
#[derive(Debug, Clone)]
struct Reference {
    variant: Variant,
    now: u64,
    state: BreakerState,
    /// Every call of this generation: when, failed, slow.
    calls: Vec<(u64, bool, bool)>,
    streak: u32,
    generation: u64,
    /// Generations of the permits held.
    held: Vec<u64>,
    probes_out: usize,
    opened: u64,
    wait: u64,
    half_open_since: u64,
    trips: u32,
    permitted: bool,
}

impl Reference {
    fn enter(&mut self, state: BreakerState) {
        self.state = state;
        self.generation += 1;
        self.calls.clear();
        self.probes_out = 0;
    }

    fn open(&mut self) {
        self.wait = (500 << self.trips.min(10)).min(2000);
        self.trips += 1;
        self.opened = self.now;
        self.enter(BreakerState::Open);
    }

    fn settle_down(&mut self, state: BreakerState) {
        self.trips = 0;
        self.streak = 0;
        self.enter(state);
    }

    /// Half-open that has lasted too long is open, since now, or since it lapsed if the wait after that is over too.
    fn look(&mut self) {
        if self.state == BreakerState::HalfOpen && self.now - self.half_open_since > HALF_OPEN_LIMIT {
            self.open();
            if self.half_open_since + HALF_OPEN_LIMIT + self.wait < self.now {
                self.opened = self.half_open_since + HALF_OPEN_LIMIT;
            }
        }
    }

    fn ask(&mut self) -> bool {
        self.look();
        if self.state == BreakerState::Open && self.now > self.opened + self.wait {
            self.half_open_since = self.now;
            self.enter(BreakerState::HalfOpen);
        }
        let free = match self.state {
            BreakerState::Open | BreakerState::ForcedOpen => false,
            BreakerState::HalfOpen => self.probes_out + self.calls.len() < 3,
            _ => true,
        };
        if free {
            self.probes_out += usize::from(self.state == BreakerState::HalfOpen);
            self.held.push(self.generation);
        }
        free
    }

    fn finish(&mut self, which: usize, end: End, slow: bool) {
        self.look();
        let generation = self.held.remove(which);
        if generation != self.generation || self.state == BreakerState::Disabled {
            return;
        }
        if self.state == BreakerState::HalfOpen {
            self.probes_out -= 1;
        }
        if end == End::Ignored {
            return;
        }
        let failed = end == End::Failure;
        self.calls.push((self.now, failed, slow));
        self.streak = if failed { self.streak + 1 } else { 0 };
        let window = self.window();
        let share = |count: usize| count * 2 >= window.len();
        let failures = window.iter().filter(|call| call.1).count();
        let slow = window.iter().filter(|call| call.2).count();
        let too_many = share(failures) || share(slow);
        match self.state {
            BreakerState::Closed
                if self.variant.streak.is_some_and(|limit| self.streak >= limit)
                    || window.len() >= 4 && too_many =>
            {
                self.open();
            }
            BreakerState::Closed => {}
            BreakerState::HalfOpen => {
                if failed && !self.variant.by_rate {
                    self.open();
                } else if self.calls.len() == 3 {
                    if too_many { self.open() } else { self.settle_down(BreakerState::Closed) }
                }
            }
            _ => {}
        }
    }

    fn window(&self) -> Vec<(u64, bool, bool)> {
        if self.state == BreakerState::HalfOpen {
            self.calls.clone()
        } else if self.variant.count_window {
            self.calls[self.calls.len().saturating_sub(6)..].to_vec()
        } else {
            self.calls.iter().copied().filter(|call| self.now - call.0 < WINDOW).collect()
        }
    }
}

impl ReferenceStateMachine for Reference {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        (any::<bool>(), any::<bool>(), prop::option::of(2..4u32))
            .prop_map(|(count_window, by_rate, streak)| Self {
                variant: Variant { count_window, by_rate, streak },
                now: 0,
                state: BreakerState::Closed,
                calls: Vec::new(),
                streak: 0,
                generation: 0,
                held: Vec::new(),
                probes_out: 0,
                opened: 0,
                wait: 0,
                half_open_since: 0,
                trips: 0,
                permitted: false,
            })
            .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let end = prop_oneof![3 => Just(End::Success), 4 => Just(End::Failure), 1 => Just(End::Ignored)];
        let finish = (any::<prop::sample::Index>(), end, prop::bool::weighted(0.2))
            .prop_map(|(which, end, slow)| Step::Finish { which, end, slow });
        // Waits at the edges of the settings, and on both sides of them.
        let wait = prop_oneof![
            prop::sample::select(vec![1, 499, 500, 501, 699, 700, 701, 999, 1000, 1001, 1999, 2000, 2001]),
            1..5000u64,
        ];
        prop_oneof![
            20 => Just(Step::Ask),
            20 => finish,
            8 => wait.prop_map(Step::Wait),
            1 => Just(Step::Trip),
            1 => prop::sample::select(vec![Step::ForceOpen, Step::Disable, Step::MetricsOnly]),
            2 => Just(Step::Reset),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        match step {
            Step::Ask => state.permitted = state.ask(),
            Step::Finish { which, end, slow } => {
                if !state.held.is_empty() {
                    state.finish(which.index(state.held.len()), *end, *slow);
                }
            }
            Step::Wait(millis) => state.now += millis,
            Step::Trip => {
                state.look();
                // A manual state has no growth of the wait to go on from.
                state.open();
            }
            Step::ForceOpen => state.settle_down(BreakerState::ForcedOpen),
            Step::Disable => state.settle_down(BreakerState::Disabled),
            Step::MetricsOnly => state.settle_down(BreakerState::MetricsOnly),
            Step::Reset => state.settle_down(BreakerState::Closed),
        }
        state.look();
        state
    }
}

struct Shipped {
    breaker: Arc<CircuitBreaker>,
    clock: ManualClock,
    held: Vec<OwnedPermit>,
}

impl StateMachineTest for Shipped {
    type SystemUnderTest = Self;
    type Reference = Reference;

    fn init_test(reference: &Reference) -> Self {
        let Variant { count_window, by_rate, streak } = reference.variant;
        let millis = Duration::from_millis;
        let clock = ManualClock::new();
        let settings = BreakerSettings::new()
            .window(if count_window { WindowKind::Calls(6) } else { WindowKind::Time(millis(WINDOW)) })
            .minimum_calls(4)
            .failure_rate(0.5)
            .slow_calls(SlowCalls { longer_than: millis(SLOW_OVER), rate: 0.5 })
            .consecutive_failures(streak)
            .half_open(3, if by_rate { Judgement::Rate } else { Judgement::FirstFailure })
            .half_open_limit(millis(HALF_OPEN_LIMIT))
            .wait(Backoff::exponential(millis(500), millis(2000)));
        let breaker = CircuitBreaker::new("model", settings, Arc::new(clock.clone())).unwrap();
        Self { breaker: Arc::new(breaker), clock, held: Vec::new() }
    }

    fn apply(mut shipped: Self, reference: &Reference, step: Step) -> Self {
        match step {
            Step::Ask => {
                let permit = CircuitBreaker::acquire_owned(&shipped.breaker);
                assert_eq!(permit.is_ok(), reference.permitted);
                shipped.held.extend(permit.ok());
            }
            Step::Finish { which, end, slow } if !shipped.held.is_empty() => {
                let permit = shipped.held.remove(which.index(shipped.held.len()));
                let elapsed = Duration::from_millis(if slow { SLOW_OVER + 1 } else { SLOW_OVER });
                match end {
                    End::Success => permit.success(elapsed),
                    End::Failure => permit.failure(elapsed),
                    End::Ignored => permit.ignore(),
                }
            }
            Step::Finish { .. } => {}
            Step::Wait(millis) => shipped.clock.advance(Duration::from_millis(millis)),
            Step::Trip => shipped.breaker.trip(),
            Step::ForceOpen => shipped.breaker.force_open(),
            Step::Disable => shipped.breaker.disable(),
            Step::MetricsOnly => shipped.breaker.metrics_only(),
            Step::Reset => shipped.breaker.reset(),
        }
        shipped
    }

    fn check_invariants(shipped: &Self, reference: &Reference) {
        assert_eq!(shipped.breaker.state(), reference.state);
        let statistics = shipped.breaker.statistics();
        let window = reference.window();
        assert_eq!(statistics.calls, window.len() as u64);
        assert_eq!(statistics.failures, window.iter().filter(|call| call.1).count() as u64);
        assert_eq!(statistics.slow_calls, window.iter().filter(|call| call.2).count() as u64);
        assert_eq!(statistics.consecutive_failures, reference.streak);
        assert_eq!(statistics.probes_running as usize, reference.probes_out);
        assert_eq!(statistics.trips, reference.trips);
        assert_eq!(shipped.held.len(), reference.held.len());
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_breaker_behaves_as_its_reference(sequential 1..60 => Shipped);
}
