//! What the circuit breaker promises beyond the conformance table.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use orion_core::{Clock, Error, ErrorKind, ManualClock, Outcome, Refused, Timestamp};
use orion_resilience::{
    Backoff, BreakerEvent, BreakerSettings, BreakerSnapshot, BreakerState, CallError, Cause, CircuitBreaker,
    Judgement, SlowCalls, WindowKind, classify,
};

const SECOND: Duration = Duration::from_secs(1);

fn breaker(settings: BreakerSettings) -> (CircuitBreaker, ManualClock) {
    let clock = ManualClock::new();
    (CircuitBreaker::new("m", settings, Arc::new(clock.clone())).unwrap(), clock)
}

fn streak(failures: u32) -> BreakerSettings {
    BreakerSettings::new()
        .failure_rate(None)
        .consecutive_failures(failures)
        .wait(Backoff::constant(5 * SECOND))
        .half_open_limit(None)
}

fn fail(breaker: &CircuitBreaker) {
    breaker.acquire().unwrap().failure(Duration::ZERO);
}

fn succeed(breaker: &CircuitBreaker) {
    breaker.acquire().unwrap().success(Duration::ZERO);
}

fn events(breaker: &CircuitBreaker) -> Arc<Mutex<Vec<BreakerEvent>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    breaker.on_event(move |event| into.lock().unwrap().push(event.clone()));
    seen
}

/// A herd at half-open: `threads` ask `asks` times each at once, over and over; exactly N are permitted every time.
fn herd(permits: u32, threads: usize, asks: usize, repetitions: usize) {
    let (breaker, clock) = breaker(streak(1).half_open(permits, Judgement::FirstFailure));
    let (ready, done) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    let permitted = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let asker = || {
                for _ in 0..repetitions {
                    ready.wait();
                    let mut held = Vec::new();
                    held.extend((0..asks).filter_map(|_| breaker.acquire().ok()));
                    permitted.fetch_add(held.len(), Ordering::Relaxed);
                    // Held until all have asked, so that no place is given back meanwhile.
                    done.wait();
                }
            };
            std::thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, asker).unwrap();
        }
        for repetition in 0..repetitions {
            breaker.trip();
            clock.advance(6 * SECOND);
            ready.wait();
            done.wait();
            assert_eq!(permitted.swap(0, Ordering::Relaxed), permits as usize, "repetition {repetition}");
        }
    });
}

#[test]
fn exactly_n_of_a_thousand_askers_are_permitted_in_half_open() {
    herd(1, 50, 20, 1000);
    herd(7, 50, 20, 1000);
    herd(4, 1000, 1, 20);
}

/// With a thousand threads of its own each time.
#[test]
#[ignore = "takes half a minute; run it with `--run-ignored all` or `-- --ignored`"]
fn exactly_n_of_a_thousand_threads_are_permitted_a_thousand_times() {
    herd(1, 1000, 1, 500);
    herd(7, 1000, 1, 500);
}

#[test]
fn counts_of_ten_threads_with_ten_thousand_calls_are_exact() {
    let settings = BreakerSettings::new().window(WindowKind::Calls(200_000)).failure_rate(1.0);
    let (breaker, _) = breaker(settings.consecutive_failures(None));
    std::thread::scope(|scope| {
        for thread in 0..10 {
            let breaker = &breaker;
            scope.spawn(move || {
                for call in 0..10_000 {
                    let permit = breaker.acquire().unwrap();
                    match (thread + call) % 4 {
                        0 => permit.failure(Duration::ZERO),
                        1 => permit.ignore(),
                        _ => permit.success(Duration::ZERO),
                    }
                }
            });
        }
    });
    let statistics = breaker.statistics();
    assert_eq!((statistics.calls, statistics.failures), (75_000, 25_000));
    assert_eq!((statistics.total_calls, statistics.total_failures), (75_000, 25_000));
    assert_eq!((statistics.total_ignored, statistics.total_refused, statistics.total_stale), (25_000, 0, 0));
    assert_eq!(statistics.failure_rate, Some(1.0 / 3.0));
}

#[test]
fn every_call_is_accounted_for_while_the_breaker_opens_and_closes() {
    let (breaker, clock) = breaker(streak(2).half_open(3, Judgement::FirstFailure));
    let (permitted, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (breaker, clock, permitted, refused) = (&breaker, &clock, &permitted, &refused);
            scope.spawn(move || {
                for call in 0..5000 {
                    match breaker.acquire() {
                        Ok(permit) if (thread * 31 + call * 7) % 11 < 6 => permit.failure(Duration::ZERO),
                        Ok(permit) if call % 5 == 0 => drop(permit),
                        Ok(permit) => permit.success(Duration::ZERO),
                        Err(_) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            clock.advance(SECOND);
                            continue;
                        }
                    }
                    permitted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let all = breaker.statistics();
    assert_eq!(all.total_calls + all.total_ignored + all.total_stale, permitted.into_inner() as u64);
    assert_eq!(all.total_refused, refused.into_inner() as u64);
    assert_eq!(all.probes_running, 0);
    assert!(all.total_refused > 0, "it opened");
}

#[test]
fn a_panic_is_a_failure_and_a_dropped_permit_is_not() {
    let (breaker, _) = breaker(streak(2));
    drop(breaker.acquire().unwrap());
    assert_eq!(breaker.statistics().total_ignored, 1);
    let boom = || -> orion_core::Result<()> { resume_unwind(Box::new("boom")) };
    for _ in 0..2 {
        assert!(catch_unwind(AssertUnwindSafe(|| breaker.call(boom))).is_err());
    }
    assert_eq!((breaker.state(), breaker.statistics().total_failures), (BreakerState::Open, 2));
}

#[test]
fn a_permit_taken_and_dropped_during_someone_elses_panic_is_given_back() {
    struct AsksInDrop<'a>(&'a CircuitBreaker);
    impl Drop for AsksInDrop<'_> {
        fn drop(&mut self) {
            drop(self.0.acquire().unwrap());
        }
    }
    let (breaker, _) = breaker(streak(1));
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _asks = AsksInDrop(&breaker);
        resume_unwind(Box::new("boom"));
    }));
    assert!(unwound.is_err());
    let statistics = breaker.statistics();
    assert_eq!((breaker.state(), statistics.total_ignored), (BreakerState::Closed, 1));
}

/// A panic while the half-open probe runs, with a hook that panics at the change it causes.
#[test]
fn a_probe_that_panics_reopens_although_a_hook_panics_too() {
    let (breaker, clock) = breaker(streak(1));
    breaker.on_event(|_| resume_unwind(Box::new("hook")));
    let seen = events(&breaker);
    fail(&breaker);
    clock.advance(6 * SECOND);
    let boom = || -> orion_core::Result<()> { resume_unwind(Box::new("boom")) };
    assert!(catch_unwind(AssertUnwindSafe(|| breaker.call(boom))).is_err());
    assert_eq!(breaker.state(), BreakerState::Open);
    let states: Vec<_> = seen.lock().unwrap().iter().map(|event| event.to).collect();
    assert_eq!(states, [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Open]);
    assert_eq!(breaker.statistics().hook_panics, 3);
    clock.advance(6 * SECOND);
    succeed(&breaker);
    assert_eq!(breaker.state(), BreakerState::Closed);
}

/// A log that panics, as a layer of `tracing` may.
#[test]
fn a_log_that_panics_leaves_the_breaker_as_it_should_be() {
    struct Panics;
    impl tracing::Subscriber for Panics {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            resume_unwind(Box::new("log"));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    let (breaker, _) = breaker(streak(1));
    let seen = events(&breaker);
    tracing::subscriber::with_default(Panics, || fail(&breaker));
    assert_eq!((breaker.state(), seen.lock().unwrap().len()), (BreakerState::Open, 1));
    assert_eq!(breaker.statistics().hook_panics, 1);
    breaker.reset();
    assert_eq!((breaker.state(), seen.lock().unwrap().len()), (BreakerState::Closed, 2));
}

#[test]
fn events_tell_what_happened_and_why() {
    let slow = SlowCalls { longer_than: SECOND, rate: 0.5 };
    let settings = BreakerSettings::new()
        .window(WindowKind::Calls(4))
        .minimum_calls(4)
        .failure_rate(0.75)
        .slow_calls(slow)
        .consecutive_failures(None)
        .half_open(2, Judgement::Rate)
        .wait(Backoff::exponential(SECOND, 4 * SECOND))
        .half_open_limit(10 * SECOND);
    let (breaker, clock) = breaker(settings);
    let seen = events(&breaker);
    let next = |breaker: &CircuitBreaker| {
        let _settled = breaker.state();
        seen.lock().unwrap().drain(..).map(|event| (event.to, event.cause, event.wait)).collect::<Vec<_>>()
    };
    use BreakerState as S;

    (0..3).for_each(|_| fail(&breaker));
    assert!(next(&breaker).is_empty());
    succeed(&breaker);
    assert_eq!(next(&breaker), [(S::Open, Cause::FailureRate(0.75), Some(SECOND))]);
    clock.advance(SECOND + Duration::from_nanos(1));
    breaker.acquire().unwrap().success(2 * SECOND);
    breaker.acquire().unwrap().success(SECOND);
    assert_eq!(
        next(&breaker),
        [(S::HalfOpen, Cause::WaitOver, None), (S::Open, Cause::SlowCallRate(0.5), Some(2 * SECOND))]
    );
    clock.advance(3 * SECOND);
    let held = breaker.acquire().unwrap();
    clock.advance(10 * SECOND);
    assert_eq!(breaker.state(), S::HalfOpen);
    clock.advance(Duration::from_nanos(1));
    assert_eq!(
        next(&breaker),
        [(S::HalfOpen, Cause::WaitOver, None), (S::Open, Cause::HalfOpenTimedOut, Some(4 * SECOND))]
    );
    held.success(Duration::ZERO);
    assert_eq!(breaker.statistics().total_stale, 1);
    clock.advance(5 * SECOND);
    (0..2).for_each(|_| succeed(&breaker));
    assert_eq!(
        next(&breaker),
        [(S::HalfOpen, Cause::WaitOver, None), (S::Closed, Cause::ProbesSucceeded, None)]
    );
    breaker.disable();
    breaker.trip();
    breaker.reset();
    assert_eq!(
        next(&breaker),
        [
            (S::Disabled, Cause::Command, None),
            (S::Open, Cause::Command, Some(SECOND)),
            (S::Closed, Cause::Command, None)
        ]
    );
    let (breaker, clock) = self::breaker(streak(1));
    let seen = events(&breaker);
    clock.advance(SECOND);
    fail(&breaker);
    clock.advance(6 * SECOND);
    fail(&breaker);
    let seen = seen.lock().unwrap();
    let causes: Vec<_> = seen.iter().map(|event| (event.sequence, event.from, event.cause)).collect();
    assert_eq!(
        causes,
        [
            (1, S::Closed, Cause::ConsecutiveFailures(1)),
            (2, S::Open, Cause::WaitOver),
            (3, S::HalfOpen, Cause::ProbeFailed)
        ]
    );
    assert_eq!((&*seen[0].breaker, seen[0].at, seen[1].at), ("m", Timestamp(SECOND), Timestamp(7 * SECOND)));
}

#[test]
fn hooks_see_every_event_once_and_in_order_and_may_use_the_breaker() {
    let (breaker, _) = breaker(streak(1));
    let breaker = Arc::new(breaker);
    let seen = events(&breaker);
    let again = Arc::downgrade(&breaker);
    breaker.on_event(move |event| {
        let breaker = again.upgrade().unwrap();
        let _state = breaker.state();
        // Answers an opening with a reset: its event comes after this one.
        if event.to == BreakerState::Open {
            breaker.reset();
        }
    });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..500 {
                    if let Ok(permit) = breaker.acquire() {
                        permit.failure(Duration::ZERO);
                    }
                }
            });
        }
    });
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 2);
    for (n, event) in seen.iter().enumerate() {
        assert_eq!(event.sequence, n as u64 + 1);
        assert_eq!(event.from, if n == 0 { BreakerState::Closed } else { seen[n - 1].to });
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn a_refusal_says_when_a_call_is_permitted_again() {
    let (breaker, clock) = breaker(streak(1).half_open_limit(2 * SECOND));
    fail(&breaker);
    clock.advance(SECOND);
    let Refused { retry_after } = breaker.acquire().unwrap_err();
    assert_eq!(retry_after, Some(4 * SECOND + Duration::from_nanos(1)));
    clock.advance(retry_after.unwrap() - Duration::from_nanos(1));
    assert_eq!(breaker.acquire().unwrap_err().retry_after, Some(Duration::from_nanos(1)));
    clock.advance(Duration::from_nanos(1));
    let _probe = breaker.acquire().unwrap();
    // The only place is taken: at the latest half-open ends after two seconds.
    clock.advance(SECOND);
    assert_eq!(breaker.acquire().unwrap_err().retry_after, Some(SECOND + Duration::from_nanos(1)));
    breaker.force_open();
    assert_eq!(breaker.acquire().unwrap_err().retry_after, None);
    assert_eq!(breaker.statistics().total_refused, 4);
}

#[test]
fn without_a_limit_the_refusal_in_half_open_names_the_last_wait() {
    let (breaker, clock) = breaker(streak(1).wait(Backoff::exponential(SECOND, 8 * SECOND)));
    fail(&breaker);
    clock.advance(2 * SECOND);
    fail(&breaker);
    clock.advance(3 * SECOND);
    let _probe = breaker.acquire().unwrap();
    assert_eq!(breaker.acquire().unwrap_err().retry_after, Some(2 * SECOND));
}

#[test]
fn waits_grow_below_a_second_with_jitter_and_a_cap() {
    let wait = Backoff::exponential(Duration::from_millis(100), Duration::from_millis(350)).jitter(0.5);
    let draw = |seed| {
        let (breaker, clock) = breaker(streak(1).wait(wait).seed(seed));
        let seen = events(&breaker);
        for _ in 0..4 {
            fail(&breaker);
            clock.advance(SECOND);
        }
        let seen = seen.lock().unwrap();
        seen.iter().filter_map(|event| event.wait).collect::<Vec<_>>()
    };
    let all: Vec<_> = (0..50).map(draw).collect();
    for waits in &all {
        assert_eq!(waits.len(), 4);
        for (wait, ceiling) in waits.iter().zip([100, 200, 350, 350].map(Duration::from_millis)) {
            assert!(*wait <= ceiling && *wait >= ceiling / 2, "{wait:?} of {ceiling:?}");
        }
    }
    let distinct: std::collections::BTreeSet<_> = all.iter().map(|waits| waits[0]).collect();
    assert!(distinct.len() > 40, "breakers do not wait alike: {}", distinct.len());
    assert_eq!(draw(7), draw(7), "a seed repeats them");
}

#[test]
fn statistics_can_be_read_at_any_time() {
    let slow = SlowCalls { longer_than: SECOND, rate: 1.0 };
    let settings = BreakerSettings::new().minimum_calls(3).failure_rate(1.0).slow_calls(slow);
    let (breaker, clock) = breaker(settings.half_open(2, Judgement::Rate).wait(Backoff::constant(SECOND)));
    breaker.acquire().unwrap().success(2 * SECOND);
    fail(&breaker);
    let two = breaker.statistics();
    assert_eq!((two.calls, two.failures, two.slow_calls, two.consecutive_failures), (2, 1, 1, 1));
    assert_eq!((two.failure_rate, two.slow_call_rate), (None, None));
    fail(&breaker);
    let three = breaker.statistics();
    assert_eq!((three.failure_rate, three.slow_call_rate), (Some(2.0 / 3.0), Some(1.0 / 3.0)));
    clock.advance(Duration::from_secs(60));
    assert_eq!(breaker.statistics().calls, 0, "the minute is over");
    breaker.trip();
    clock.advance(2 * SECOND);
    let held = breaker.acquire().unwrap();
    succeed(&breaker);
    let half = breaker.statistics();
    assert_eq!((half.calls, half.probes_running, half.trips, half.failure_rate), (1, 1, 1, None));
    held.failure(Duration::ZERO);
    assert_eq!((breaker.state(), breaker.statistics().trips), (BreakerState::Closed, 0));
    assert_eq!(breaker.statistics().total_calls, 5);
}

#[test]
fn in_metrics_only_calls_count_and_when_disabled_they_do_not() {
    let (breaker, _) = breaker(streak(1));
    breaker.metrics_only();
    (0..3).for_each(|_| fail(&breaker));
    assert_eq!((breaker.statistics().calls, breaker.state()), (3, BreakerState::MetricsOnly));
    breaker.disable();
    fail(&breaker);
    assert_eq!((breaker.statistics().calls, breaker.statistics().total_calls), (0, 3));
}

#[test]
fn a_snapshot_is_stored_and_brought_back() {
    let (breaker, clock) = breaker(streak(2).wait(Backoff::exponential(4 * SECOND, 60 * SECOND)));
    (0..2).for_each(|_| fail(&breaker));
    clock.advance(5 * SECOND);
    fail(&breaker);
    clock.advance(SECOND);
    assert!(breaker.acquire().is_err());
    let stored = serde_json::to_string(&breaker.snapshot()).unwrap();
    assert_eq!(
        stored,
        concat!(
            r#"{"version":1,"name":"m","state":"open","remaining_wait":{"secs":7,"nanos":0},"generation":3,"#,
            r#""statistics":{"calls":0,"failures":0,"slow_calls":0,"failure_rate":null,"slow_call_rate":null,"#,
            r#""consecutive_failures":3,"probes_running":0,"trips":2,"total_calls":3,"total_failures":3,"#,
            r#""total_ignored":0,"total_refused":1,"total_stale":0,"hook_panics":0}}"#
        )
    );
    let snapshot: BreakerSnapshot = serde_json::from_str(&stored).unwrap();

    let (other, clock) = self::breaker(streak(2).wait(Backoff::exponential(4 * SECOND, 60 * SECOND)));
    let held = other.acquire().unwrap();
    let seen = events(&other);
    other.restore(&snapshot).unwrap();
    held.success(Duration::ZERO);
    assert_eq!(seen.lock().unwrap().iter().map(|event| event.cause).collect::<Vec<_>>(), [Cause::Restored]);
    clock.advance(7 * SECOND);
    assert!(other.acquire().is_err());
    clock.advance(Duration::from_nanos(1));
    fail(&other);
    let again = other.snapshot();
    assert_eq!(again.remaining_wait, Some(16 * SECOND), "the wait goes on growing");
    let statistics = again.statistics;
    assert_eq!((statistics.total_calls, statistics.total_failures), (4, 4));
    assert_eq!((statistics.total_refused, statistics.total_stale), (2, 1));
}

#[test]
fn every_state_survives_a_snapshot_and_hostile_ones_do_no_harm() {
    use BreakerState as S;
    for state in [S::Closed, S::Open, S::HalfOpen, S::ForcedOpen, S::Disabled, S::MetricsOnly] {
        let (breaker, clock) = breaker(streak(5));
        match state {
            S::Closed => fail(&breaker),
            S::ForcedOpen => breaker.force_open(),
            S::Disabled => breaker.disable(),
            S::MetricsOnly => breaker.metrics_only(),
            _ => breaker.trip(),
        }
        if state == S::HalfOpen {
            clock.advance(6 * SECOND);
            breaker.acquire().unwrap().ignore();
        }
        assert_eq!(breaker.state(), state);
        let (other, clock) = self::breaker(streak(5));
        other.restore(&breaker.snapshot()).unwrap();
        // Probes do not survive: half-open comes back as open without a wait.
        let expected = if state == S::HalfOpen { S::Open } else { state };
        assert_eq!(other.state(), expected);
        clock.advance(Duration::from_nanos(1));
        let permitted = !matches!(state, S::Open | S::ForcedOpen);
        assert_eq!(other.acquire().is_ok(), permitted, "{state}");
        if state == S::Closed {
            assert_eq!(other.statistics().consecutive_failures, 1);
        }
    }
    let (breaker, clock) = breaker(streak(5));
    breaker.trip();
    let mut hostile = breaker.snapshot();
    hostile.generation = u64::MAX;
    hostile.remaining_wait = Some(Duration::MAX);
    hostile.statistics.trips = u32::MAX;
    hostile.statistics.consecutive_failures = u32::MAX;
    hostile.statistics.total_calls = u64::MAX;
    hostile.statistics.total_refused = u64::MAX;
    breaker.restore(&hostile).unwrap();
    clock.advance(SECOND);
    assert!(breaker.acquire().is_err());
    breaker.reset();
    hostile.state = S::Closed;
    breaker.restore(&hostile).unwrap();
    fail(&breaker);
    assert_eq!(breaker.state(), S::Open);
    hostile.version = 2;
    let error = breaker.restore(&hostile).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "breaker m: snapshot of version 2, this build reads version 1");
}

#[test]
fn a_predicate_decides_what_an_error_means() {
    let (breaker, _) = breaker(streak(1));
    let predicate = |code: &u16| if *code >= 500 { Outcome::Failure } else { Outcome::Ignored };
    assert_eq!(breaker.call_with(predicate, || Err::<(), _>(404)), Err(CallError::Failed(404)));
    assert_eq!(breaker.call_with(predicate, || Ok::<_, u16>(3)), Ok(3));
    assert_eq!(breaker.call_with(|_| Outcome::Success, || Err::<(), _>(500)), Err(CallError::Failed(500)));
    assert_eq!(breaker.statistics().total_calls, 2);
    assert_eq!(breaker.call_with(predicate, || Err::<(), _>(503)), Err(CallError::Failed(503)));
    assert!(matches!(breaker.call_with(predicate, || Ok::<_, u16>(3)), Err(CallError::Refused(_))));
    let error = breaker.call(|| Ok(())).unwrap_err();
    assert_eq!(error.to_string(), "breaker m: calls are refused, try again in 5.000000001s");
}

#[test]
fn the_default_predicate_spares_the_model_what_is_not_its_fault() {
    use ErrorKind as K;
    for kind in [K::InvalidInput, K::ContextOverflow, K::Template, K::Cancelled, K::Rejected] {
        assert_eq!(classify(&Error::new(kind, "x")), Outcome::Ignored, "{kind:?}");
    }
    let failures = [
        K::NotFound,
        K::Unsupported,
        K::Corrupt,
        K::OutOfMemory,
        K::Io,
        K::Network,
        K::DeadlineExceeded,
        K::Internal,
    ];
    for kind in failures {
        assert_eq!(classify(&Error::new(kind, "x")), Outcome::Failure, "{kind:?}");
    }
}

#[test]
fn a_guarded_call_is_timed_by_the_injected_clock() {
    let slow = SlowCalls { longer_than: SECOND, rate: 0.5 };
    let (breaker, clock) = breaker(streak(9).slow_calls(slow).minimum_calls(1));
    let takes = |time| {
        breaker.call(|| {
            clock.advance(time);
            Ok(())
        })
    };
    takes(SECOND).unwrap();
    assert_eq!(breaker.statistics().slow_calls, 0);
    takes(SECOND + Duration::from_nanos(1)).unwrap();
    assert_eq!(breaker.state(), BreakerState::Open, "one of two was slow");
}

/// Clocks that break their promise: no panic, no negative wait, nothing expires in a mass.
#[test]
fn a_clock_that_jumps_does_no_harm() {
    struct Jumping(Mutex<Duration>);
    impl Clock for Jumping {
        fn now(&self) -> Timestamp {
            Timestamp(*self.0.lock().unwrap())
        }
        fn wall(&self) -> Duration {
            panic!("the breaker never reads the wall clock")
        }
    }
    let clock = Arc::new(Jumping(Mutex::new(100 * SECOND)));
    let breaker = CircuitBreaker::new("m", streak(3), clock.clone()).unwrap();
    let set = |seconds: u64| *clock.0.lock().unwrap() = Duration::from_secs(seconds);
    fail(&breaker);
    set(10);
    fail(&breaker);
    breaker.call(|| Err::<(), _>(Error::new(ErrorKind::Io, "x"))).unwrap_err();
    assert_eq!(breaker.state(), BreakerState::Open);
    let wait = breaker.acquire().unwrap_err().retry_after.unwrap();
    assert_eq!(wait, 5 * SECOND + Duration::from_nanos(1), "counted from the latest time seen");
    set(105);
    assert!(breaker.acquire().is_err());
    set(86_400);
    succeed(&breaker);
    set(0);
    assert_eq!(breaker.state(), BreakerState::Closed);
    fail(&breaker);
    assert_eq!(breaker.statistics().calls, 1);
    set(u64::MAX);
    breaker.trip();
    assert!(breaker.acquire().is_err(), "at the end of time a wait has no end");

    let (breaker, manual) = self::breaker(streak(1));
    fail(&breaker);
    manual.set_wall(Duration::from_secs(86_400));
    assert!(breaker.acquire().is_err());
    manual.set_wall(Duration::ZERO);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn names_and_debug_output_do_not_take_locks() {
    let (breaker, _) = breaker(streak(1));
    let permit = breaker.acquire().unwrap();
    assert_eq!(breaker.name(), "m");
    assert_eq!(
        format!("{breaker:?} {permit:?}"),
        r#"CircuitBreaker { name: "m", .. } BreakerPermit { breaker: "m", .. }"#
    );
    let states =
        [BreakerState::Closed, BreakerState::Disabled, BreakerState::MetricsOnly].map(|s| s.to_string());
    assert_eq!(states, ["closed", "disabled", "metrics_only"]);
    let bad = CircuitBreaker::new("bad", streak(0), Arc::new(ManualClock::new())).unwrap_err();
    assert!(bad.to_string().starts_with("breaker bad: consecutive_failures is 0"), "{bad}");
}
