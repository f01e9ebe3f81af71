//! The layers, alone and in their order.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::bounded;
use orion_core::{
    CancelToken, Clock, Error, ErrorKind, Gate, ManualClock, Operation, Outcome, Refused, Result,
};
use orion_resilience::*;

const SECOND: Duration = Duration::from_secs(1);

fn context(clock: &ManualClock) -> Context {
    Context::new(Deadline::never(Arc::new(clock.clone())))
}

fn broken() -> Error {
    Error::new(ErrorKind::Network, "connection reset")
}

/// A sleep that notes how long it was asked to take.
#[derive(Default)]
struct Noted(Mutex<Vec<Duration>>);

impl Sleep for Noted {
    fn sleep(&self, time: Duration, _: &CancelToken) {
        self.0.lock().unwrap().push(time);
    }
}

/// A retry of a call that fails `failures` times, with what it does and how long it sleeps.
fn retry_of(policy: RetryPolicy, error: fn() -> Error, failures: u32) -> (Result<u32>, u32, Vec<Duration>) {
    let (calls, slept) = (AtomicU32::new(0), Arc::new(Noted::default()));
    let call = |_: &(), _: &Context| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        if call < failures { Err(error()) } else { Ok(call) }
    };
    let result = Retry::new(call, policy, Arc::new(RetryBudget::default()), slept.clone())
        .call(&(), &context(&ManualClock::new()));
    let slept = std::mem::take(&mut *slept.0.lock().unwrap());
    (result, calls.load(Ordering::Relaxed), slept)
}

#[test]
fn retries_wait_longer_each_time_and_end() {
    let policy = RetryPolicy::new().attempts(4).backoff(Backoff::exponential(SECOND, 60 * SECOND));
    let (result, calls, slept) = retry_of(policy.clone(), broken, 2);
    assert_eq!((result.unwrap(), calls, slept), (2, 3, vec![SECOND, 2 * SECOND]));
    let (result, calls, slept) = retry_of(policy, broken, 9);
    assert_eq!(result.unwrap_err().to_string(), "attempt 4: connection reset");
    assert_eq!((calls, slept), (4, vec![SECOND, 2 * SECOND, 4 * SECOND]));
    let (_, calls, slept) = retry_of(RetryPolicy::new(), broken, 9);
    assert_eq!((calls, slept.len()), (3, 2), "three attempts by default");
}

#[test]
fn a_seed_repeats_the_jitter() {
    let slept = |seed: Option<u64>| {
        let noted = Arc::new(Noted::default());
        let fails = |_: &(), _: &Context| -> Result<()> { Err(broken()) };
        let policy =
            RetryPolicy::new().attempts(6).backoff(Backoff::exponential(SECOND, 60 * SECOND).jitter(1.0));
        let retry = Retry::new(fails, policy, Arc::new(RetryBudget::default()), noted.clone());
        let retry = if let Some(seed) = seed { retry.seed(seed) } else { retry };
        retry.call(&(), &context(&ManualClock::new())).unwrap_err();
        std::mem::take(&mut *noted.0.lock().unwrap())
    };
    assert_eq!(slept(Some(7)).len(), 5);
    assert_eq!(slept(Some(7)), slept(Some(7)));
    assert_ne!(slept(Some(7)), slept(Some(8)));
    assert_ne!(slept(None), slept(None));
}

#[test]
fn parts_of_a_deadline_are_never_later_than_the_whole() {
    let clock = ManualClock::new();
    let now = clock.now();
    assert_eq!(Deadline::never(Arc::new(clock.clone())).at(), None);
    let whole = Deadline::after(Arc::new(clock.clone()), 10 * SECOND);
    assert_eq!(whole.at(), Some(now.after(10 * SECOND)));
    assert_eq!(whole.within(3 * SECOND).at(), Some(now.after(3 * SECOND)));
    assert_eq!(whole.within(30 * SECOND).at(), whole.at());
}

#[test]
fn only_errors_that_may_pass_are_retried() {
    let calls = |error: fn() -> Error| retry_of(RetryPolicy::new(), error, 9).1;
    assert_eq!(calls(|| Error::new(ErrorKind::Io, "x")), 3);
    assert_eq!(calls(|| Refused { retry_after: Some(SECOND) }.into()), 3);
    assert_eq!(calls(|| Refused { retry_after: None }.into()), 1);
    for error in [|| Error::invalid("x"), || Error::new(ErrorKind::Internal, "x"), || Error::corrupt("x")] {
        assert_eq!(calls(error), 1);
    }
    let (result, ..) = retry_of(RetryPolicy::new(), || Error::invalid("x"), 9);
    assert_eq!(result.unwrap_err().to_string(), "x");
    let (_, calls, _) = retry_of(RetryPolicy::new().retry_if(|_| true), || Error::invalid("x"), 9);
    assert_eq!(calls, 3);
}

#[test]
fn a_retry_after_is_honoured() {
    let refused = |seconds: u64| Error::from(Refused { retry_after: Some(Duration::from_secs(seconds)) });
    let policy = RetryPolicy::new().backoff(Backoff::exponential(2 * SECOND, 60 * SECOND).jitter(0.5));
    let clock = ManualClock::new();
    let whole = context(&clock);
    assert_eq!(policy.next_wait(1, &refused(10), &whole, 0.0), Some(10 * SECOND));
    assert_eq!(policy.next_wait(1, &refused(10), &whole, 0.5), Some(Duration::from_millis(12_500)));
    assert_eq!(
        policy.next_wait(1, &refused(1), &whole, 0.0),
        Some(2 * SECOND),
        "never sooner than the own wait"
    );
    assert_eq!(policy.next_wait(1, &refused(60), &whole, 0.0), Some(60 * SECOND));
    assert_eq!(policy.next_wait(1, &refused(61), &whole, 0.0), None);
    assert_eq!(policy.clone().longest_wait(9 * SECOND).next_wait(1, &refused(10), &whole, 0.0), None);
    let part = whole.within(10 * SECOND);
    assert_eq!(policy.next_wait(1, &refused(10), &part, 0.0), None, "nothing would be left");
    assert_eq!(policy.next_wait(1, &refused(9), &part, 0.0), Some(9 * SECOND));
}

#[test]
fn nothing_is_retried_after_the_first_token_or_a_cancel() {
    let (policy, clock) = (RetryPolicy::new(), ManualClock::new());
    let started = context(&clock);
    assert!(policy.next_wait(1, &broken(), &started, 0.0).is_some());
    started.mark_started();
    assert_eq!(policy.next_wait(1, &broken(), &started, 0.0), None);
    let cancelled = context(&clock);
    cancelled.cancel().cancel();
    assert_eq!(policy.next_wait(1, &broken(), &cancelled, 0.0), None);
    assert!(policy.next_wait(2, &broken(), &context(&clock), 0.0).is_some());
    assert_eq!(policy.next_wait(3, &broken(), &context(&clock), 0.0), None);
}

#[test]
fn a_call_cancelled_or_late_during_the_sleep_is_not_made_again() {
    struct Cancels;
    impl Sleep for Cancels {
        fn sleep(&self, _: Duration, cancel: &CancelToken) {
            cancel.cancel();
        }
    }
    let calls = AtomicU32::new(0);
    let call = |_: &(), _: &Context| -> Result<()> {
        calls.fetch_add(1, Ordering::Relaxed);
        Err(broken())
    };
    let budget = Arc::new(RetryBudget::default());
    let retry = Retry::new(&call, RetryPolicy::new(), budget, Arc::new(Cancels));
    let error = retry.call(&(), &context(&ManualClock::new())).unwrap_err();
    assert_eq!((error.to_string().as_str(), calls.into_inner()), ("connection reset", 1));
}

/// A retry storm: a dependency at 100 % failure and a hundred callers.
#[test]
fn retries_stay_within_the_budget() {
    let calls = AtomicU32::new(0);
    let budget = Arc::new(RetryBudget::new(0.1, 10).unwrap());
    let call = |_: &(), _: &Context| -> Result<()> {
        calls.fetch_add(1, Ordering::Relaxed);
        Err(broken())
    };
    let retry = Retry::new(call, RetryPolicy::new().attempts(10), budget.clone(), Arc::new(Noted::default()));
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let failed = retry.call(&(), &context(&ManualClock::new()));
                    assert!(failed.is_err());
                }
            });
        }
    });
    let retries = calls.load(Ordering::Relaxed) - 10_000;
    assert!((900..=1010).contains(&retries), "{retries} retries of 10,000 calls");
    assert!(budget.available() <= 1);
}

#[test]
fn a_budget_holds_its_share_and_its_reserve() {
    let budget = RetryBudget::new(0.25, 2).unwrap();
    assert_eq!(budget.available(), 2);
    assert!(budget.withdraw() && budget.withdraw() && !budget.withdraw());
    (0..3).for_each(|_| budget.deposit());
    assert!(!budget.withdraw());
    budget.deposit();
    assert!(budget.withdraw() && !budget.withdraw());
    (0..100).for_each(|_| budget.deposit());
    assert_eq!(budget.available(), 2, "what is not used does not pile up");
    assert_eq!(RetryBudget::default().available(), 10);
    for share in [-0.1, 1.1, f64::NAN] {
        assert_eq!(RetryBudget::new(share, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_bulkhead_has_so_many_places_per_model() {
    let bulkhead = Arc::new(Bulkhead::new(2).with_limit("small", 1));
    let (big, small) = ("big".into(), "small".into());
    let places = [Bulkhead::acquire(&bulkhead, &big).unwrap(), Bulkhead::acquire(&bulkhead, &big).unwrap()];
    let error = Bulkhead::acquire(&bulkhead, &big).unwrap_err();
    assert_eq!(error.to_string(), "model big: all 2 places are taken, try again later");
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let other = Bulkhead::acquire(&bulkhead, &small).unwrap();
    assert!(Bulkhead::acquire(&bulkhead, &small).is_err());
    assert_eq!((bulkhead.used(&big), bulkhead.used(&small)), (2, 1));
    let [first, second] = places;
    drop(first);
    assert_eq!((bulkhead.used(&big), bulkhead.used(&small)), (1, 1));
    drop((second, other));
    assert_eq!((bulkhead.used(&big), bulkhead.used(&small)), (0, 0));
    let panicking = Limited::new(
        |_: &(), _: &Context| -> Result<()> { resume_unwind(Box::new("x")) },
        bulkhead.clone(),
        "big",
    );
    let context = context(&ManualClock::new());
    assert!(catch_unwind(AssertUnwindSafe(|| panicking.call(&(), &context))).is_err());
    assert_eq!(bulkhead.used(&big), 0, "a panic gives its place back");
    let inside = bulkhead.clone();
    let used =
        Limited::new(move |_: &(), _: &Context| Ok(inside.used(&"big".into())), bulkhead.clone(), "big");
    assert_eq!(used.call(&(), &context).unwrap(), 1);
}

#[test]
fn a_shedder_rejects_what_would_wait_too_long() {
    let clock = ManualClock::new();
    let (shedder, never) = (LoadShedder::new(10 * SECOND), context(&clock));
    let check = |seconds: u64, context: &Context| {
        shedder.check(Some(Duration::from_secs(seconds)), context.deadline())
    };
    shedder.check(None, never.deadline()).unwrap();
    check(10, &never).unwrap();
    let error = check(12, &never).unwrap_err();
    assert_eq!(error.to_string(), "the wait would be 12s, more than 10s");
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Rejected, Some(2 * SECOND)));
    let soon = never.within(5 * SECOND);
    check(4, &soon).unwrap();
    let error = check(5, &soon).unwrap_err();
    assert_eq!(error.to_string(), "the wait would be 5s, and the deadline is in 5s");
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Rejected, None));
    let shed = |wait| Shed::new(|_: &(), _: &Context| Ok(()), shedder, move || Some(wait)).call(&(), &never);
    assert!(shed(SECOND).is_ok() && shed(11 * SECOND).is_err());
}

#[test]
fn a_hanging_call_ends_for_its_caller() {
    let (release, hang) = bounded::<()>(0);
    let seen = Arc::new(Mutex::new(None));
    let note = seen.clone();
    let hanging = move |_: &String, context: &Context| -> Result<()> {
        *note.lock().unwrap() = Some(context.clone());
        let _released = hang.recv();
        Ok(())
    };
    let clock = ManualClock::new();
    let context = context(&clock);
    let error = Timeout::new(hanging, Duration::from_millis(5)).call(&"x".to_owned(), &context).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(error.to_string(), "no answer within 5ms");
    let inside = seen.lock().unwrap().take().unwrap();
    assert!(inside.cancel().is_cancelled(), "the attempt is told to end");
    context.check().expect("the caller may try something else");
    drop(release);
}

#[test]
fn a_hang_falls_back_to_the_next_model() {
    let (release, hang) = bounded::<()>(0);
    let hanging = move |_: &(), _: &Context| -> Result<String> {
        let _released = hang.recv();
        Ok("too late".to_owned())
    };
    let first: BoxService<(), String> = Box::new(Timeout::new(hanging, Duration::from_millis(5)));
    let chain = vec![("a".into(), first), hop("b", |_| Ok("b answers".into()))];
    let chain = Fallback::new(chain, FallbackLimits::default()).unwrap();
    assert_eq!(chain.call(&(), &context(&ManualClock::new())).unwrap(), "b answers");
    drop(release);
}

#[test]
fn the_callers_cancel_reaches_a_call_elsewhere() {
    let until_cancelled = |_: &(), context: &Context| -> Result<&'static str> {
        while !context.cancel().is_cancelled() {
            std::thread::yield_now();
        }
        Ok("partial")
    };
    let context = context(&ManualClock::new());
    context.cancel().cancel();
    let fresh = Context::new(context.deadline().clone());
    let cancel = fresh.cancel().clone();
    let timeout = Timeout::new(until_cancelled, Duration::MAX);
    assert_eq!(timeout.call(&(), &context).unwrap_err().kind(), ErrorKind::Cancelled, "not even begun");
    let canceller = std::thread::spawn(move || cancel.cancel());
    // Either it had not begun, or it ended because it was told to.
    match timeout.call(&(), &fresh) {
        Ok(answer) => assert_eq!(answer, "partial"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
    }
    canceller.join().unwrap();
}

#[test]
fn a_call_elsewhere_answers_fails_and_panics_as_at_home() {
    let clock = ManualClock::new();
    let context = context(&clock);
    let call = |text: &String, context: &Context| match text.as_str() {
        "ok" => Ok(context.deadline().remaining()),
        "panic" => resume_unwind(Box::new("boom")),
        _ => Err(broken()),
    };
    let timeout = Timeout::new(call, 60 * SECOND);
    assert_eq!(timeout.call(&"ok".to_owned(), &context).unwrap(), Some(60 * SECOND));
    let within = context.within(7 * SECOND);
    assert_eq!(timeout.call(&"ok".to_owned(), &within).unwrap(), Some(7 * SECOND));
    assert_eq!(timeout.call(&"error".to_owned(), &context).unwrap_err().kind(), ErrorKind::Network);
    let panic = catch_unwind(AssertUnwindSafe(|| timeout.call(&"panic".to_owned(), &context))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"boom"));
    clock.advance(7 * SECOND);
    assert_eq!(timeout.call(&"ok".to_owned(), &within).unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    let lost = Timeout::new(call, SECOND).on(|task| {
        drop(task);
        Ok(())
    });
    let error = lost.call(&"ok".to_owned(), &context).unwrap_err();
    assert_eq!(error.to_string(), "the executor dropped the call");
    let full = Timeout::new(call, SECOND).on(|_| Err(std::io::Error::other("no more threads")));
    assert_eq!(full.call(&"ok".to_owned(), &context).unwrap_err().kind(), ErrorKind::Io);
}

fn hop(
    model: &str,
    answer: impl Fn(&Context) -> Result<String> + Send + Sync + 'static,
) -> (orion_core::ModelId, BoxService<(), String>) {
    (model.into(), Box::new(move |_: &(), context: &Context| answer(context)))
}

#[test]
fn the_next_model_answers_when_one_is_down() {
    let clock = ManualClock::new();
    let hops = vec![
        hop("a", |_| Err(broken())),
        hop("b", |_| Ok("b answers".into())),
        hop("c", |_| panic!("not asked")),
    ];
    let chain = Fallback::new(hops, FallbackLimits::default()).unwrap();
    assert_eq!(chain.call(&(), &context(&clock)).unwrap(), "b answers");
    assert!(format!("{chain:?}").contains("ModelId(\"c\")"));
}

/// All breakers of a chain are open: one error that lists every hop.
#[test]
fn a_chain_that_is_all_down_lists_every_hop() {
    let clock = Arc::new(ManualClock::new());
    let registry = Arc::new(BreakerRegistry::new(BreakerSettings::new(), clock.clone()).unwrap());
    let hops = ["a", "b"].map(|model| {
        registry.breaker(&model.into(), Operation::Generate).force_open();
        let call = |_: &(), _: &Context| -> Result<String> { panic!("the breaker is open") };
        let service = Guard::new(call, registry.clone(), clock.clone(), model, Operation::Generate);
        (model.into(), Box::new(service) as BoxService<(), String>)
    });
    let chain = Fallback::new(hops.into(), FallbackLimits::default()).unwrap();
    let error = chain.call(&(), &context(&clock)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let until = "calls are refused until someone permits them again";
    assert_eq!(
        error.to_string(),
        format!("2 tried, no model is left; a: model a: {until}; b: model b: {until}")
    );
    let failed = error.source().unwrap().downcast_ref::<FallbackFailed>().unwrap();
    assert_eq!(failed.reason, ChainEnd::Exhausted);
    let hops: Vec<_> = failed.hops.iter().map(|hop| (hop.model.as_str(), hop.error.kind())).collect();
    assert_eq!(hops, [("a", ErrorKind::Rejected), ("b", ErrorKind::Rejected)]);
    assert!(failed.source().is_some());
}

#[test]
fn a_chain_is_bounded_in_depth_and_time() {
    let clock = ManualClock::new();
    let slow = |clock: &ManualClock| {
        let clock = clock.clone();
        move |_: &Context| {
            clock.advance(4 * SECOND);
            Err(broken())
        }
    };
    let chain = |depth, time| {
        let hops = ["a", "b", "c"].map(|model| hop(model, slow(&clock)));
        let chain = Fallback::new(hops.into(), FallbackLimits { depth, time }).unwrap();
        chain.call(&(), &context(&clock)).unwrap_err()
    };
    let reason = |error: &Error| {
        let failed = error.source().unwrap().downcast_ref::<FallbackFailed>().unwrap();
        (failed.hops.len(), failed.reason)
    };
    assert_eq!(reason(&chain(3, 60 * SECOND)), (3, ChainEnd::Exhausted));
    let deep = chain(2, 60 * SECOND);
    assert_eq!((reason(&deep), deep.kind()), ((2, ChainEnd::Depth), ErrorKind::Network));
    assert_eq!(reason(&chain(0, 60 * SECOND)), (1, ChainEnd::Depth));
    let late = chain(3, 8 * SECOND);
    assert_eq!((reason(&late), late.kind()), ((2, ChainEnd::Time), ErrorKind::DeadlineExceeded));
    let remaining = hop("a", |context| Ok(format!("{:?}", context.deadline().remaining())));
    let bounded = Fallback::new(vec![remaining], FallbackLimits::default()).unwrap();
    assert_eq!(bounded.call(&(), &context(&clock)).unwrap(), "Some(120s)");
    assert_eq!(bounded.call(&(), &context(&clock).within(SECOND)).unwrap(), "Some(1s)");
}

#[test]
fn a_chain_ends_where_another_model_would_not_help() {
    let clock = ManualClock::new();
    let end = |first: fn(&Context) -> Result<String>| {
        let chain =
            Fallback::new(vec![hop("a", first), hop("b", |_| Ok("b".into()))], FallbackLimits::default());
        chain
            .unwrap()
            .call(&(), &context(&clock))
            .map_err(|error| error.source().unwrap().downcast_ref::<FallbackFailed>().unwrap().reason)
    };
    assert_eq!(end(|_| Err(Error::invalid("the prompt is empty"))), Err(ChainEnd::Final));
    assert_eq!(end(|_| Err(Error::new(ErrorKind::Cancelled, "x"))), Err(ChainEnd::Final));
    assert_eq!(end(|_| Err(Error::new(ErrorKind::ContextOverflow, "x"))), Ok("b".to_owned()));
    let cancelled = end(|context| {
        context.cancel().cancel();
        Err(broken())
    });
    assert_eq!(cancelled, Err(ChainEnd::Final));
    let started = end(|context| {
        context.mark_started();
        Err(broken())
    });
    assert_eq!(started, Err(ChainEnd::Started));
}

#[test]
fn a_chain_without_models_or_with_a_cycle_is_refused() {
    let limits = FallbackLimits::default();
    let error = Fallback::<(), String>::new(vec![], limits).unwrap_err();
    assert_eq!(error.to_string(), "a fallback chain needs at least one model");
    let twice = vec![hop("a", |_| Err(broken())), hop("b", |_| Err(broken())), hop("a", |_| Err(broken()))];
    let error = Fallback::new(twice, limits).unwrap_err();
    assert_eq!(error.to_string(), "a: the model stands in the fallback chain twice");
    let clock = ManualClock::new();
    assert!(FallbackWalk::new(["a".into(), "a".into()], limits, &context(&clock)).is_err());
}

fn registry(clock: &Arc<ManualClock>) -> Arc<BreakerRegistry> {
    let settings = BreakerSettings::new().consecutive_failures(2).failure_rate(None);
    Arc::new(BreakerRegistry::new(settings, clock.clone()).unwrap())
}

#[test]
fn a_guard_settles_with_the_outcome_and_the_time() {
    let clock = Arc::new(ManualClock::new());
    let registry = registry(&clock);
    let inside = clock.clone();
    let call = move |answer: &Option<ErrorKind>, _: &Context| match answer {
        None => {
            inside.advance(SECOND);
            Ok(())
        }
        Some(ErrorKind::Internal) => resume_unwind(Box::new("boom")),
        Some(kind) => Err(Error::new(*kind, "x")),
    };
    let guard = Guard::new(call.clone(), registry.clone(), clock.clone(), "m", Operation::Load);
    let context = context(&clock);
    guard.call(&None, &context).unwrap();
    guard.call(&Some(ErrorKind::InvalidInput), &context).unwrap_err();
    guard.call(&Some(ErrorKind::Io), &context).unwrap_err();
    assert!(catch_unwind(AssertUnwindSafe(|| guard.call(&Some(ErrorKind::Internal), &context))).is_err());
    let statistics = registry.breaker(&"m".into(), Operation::Load).statistics();
    assert_eq!((statistics.total_calls, statistics.total_failures, statistics.total_ignored), (3, 2, 1));
    let error = guard.call(&None, &context).unwrap_err();
    assert_eq!((error.kind(), error.retry_after().is_some()), (ErrorKind::Rejected, true));
    registry.reset_all();
    let strict = Guard::new(call, registry.clone(), clock.clone(), "m", Operation::Load)
        .classify_with(|_| Outcome::Failure);
    strict.call(&Some(ErrorKind::InvalidInput), &context).unwrap_err();
    assert_eq!(registry.breaker(&"m".into(), Operation::Load).statistics().failures, 1);
    assert!(format!("{strict:?}").contains("ModelId(\"m\")"));
}

/// The table of the README: what changes when layers change places.
mod order {
    use super::*;

    fn always_broken(
        calls: &Arc<AtomicU32>,
    ) -> impl Fn(&(), &Context) -> Result<String> + Send + Sync + use<> {
        let calls = calls.clone();
        move |_, _| {
            calls.fetch_add(1, Ordering::Relaxed);
            Err(broken())
        }
    }

    #[test]
    fn retry_outside_the_guard_shows_the_breaker_every_attempt() {
        let clock = Arc::new(ManualClock::new());
        let (registry, calls) = (registry(&clock), Arc::new(AtomicU32::new(0)));
        let budget = Arc::new(RetryBudget::default());
        let policy = || RetryPolicy::new().attempts(3).retry_if(|error| error.kind() == ErrorKind::Network);
        let guard =
            Guard::new(always_broken(&calls), registry.clone(), clock.clone(), "m", Operation::Generate);
        let outside = Retry::new(guard, policy(), budget.clone(), clock.clone());
        outside.call(&(), &context(&clock)).unwrap_err();
        // The breaker opened at the second failure and stopped the third attempt.
        assert_eq!(calls.swap(0, Ordering::Relaxed), 2);

        registry.reset_all();
        let retry = Retry::new(always_broken(&calls), policy(), budget, clock.clone());
        let inside = Guard::new(retry, registry.clone(), clock.clone(), "m", Operation::Generate);
        inside.call(&(), &context(&clock)).unwrap_err();
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        let seen = registry.breaker(&"m".into(), Operation::Generate).statistics();
        assert_eq!((seen.failures, seen.consecutive_failures), (1, 1), "three failures looked like one");
    }

    #[test]
    fn a_guard_outside_the_timeout_learns_of_a_call_that_hangs() {
        let clock = Arc::new(ManualClock::new());
        let registry = registry(&clock);
        let (release, hang) = bounded::<()>(0);
        let call = move |_: &(), _: &Context| -> Result<String> {
            let _released = hang.recv();
            Ok(String::new())
        };
        let limit = Duration::from_millis(5);
        let outside = Guard::new(
            Timeout::new(call.clone(), limit),
            registry.clone(),
            clock.clone(),
            "outside",
            Operation::Generate,
        );
        outside.call(&(), &context(&clock)).unwrap_err();
        assert_eq!(registry.breaker(&"outside".into(), Operation::Generate).statistics().failures, 1);

        let inside = Guard::new(call, registry.clone(), clock.clone(), "inside", Operation::Generate);
        Timeout::new(inside, limit).call(&(), &context(&clock)).unwrap_err();
        let blind = registry.breaker(&"inside".into(), Operation::Generate).statistics();
        assert_eq!((blind.failures, blind.total_calls), (0, 0), "the call is still out");
        drop(release);
    }

    #[test]
    fn a_place_is_given_up_between_attempts_if_retry_is_outside() {
        let clock = Arc::new(ManualClock::new());
        let bulkhead = Arc::new(Bulkhead::new(1));
        struct Looks(Arc<Bulkhead>, AtomicBool);
        impl Sleep for Looks {
            fn sleep(&self, _: Duration, _: &CancelToken) {
                self.1.store(self.0.used(&"m".into()) == 0, Ordering::Relaxed);
            }
        }
        let looks = Arc::new(Looks(bulkhead.clone(), AtomicBool::new(false)));
        let (calls, budget) = (Arc::new(AtomicU32::new(0)), Arc::new(RetryBudget::default()));
        let limited = Limited::new(always_broken(&calls), bulkhead.clone(), "m");
        let outside = Retry::new(limited, RetryPolicy::new(), budget.clone(), looks.clone());
        outside.call(&(), &context(&clock)).unwrap_err();
        assert!(looks.1.load(Ordering::Relaxed), "free while waiting");
        let retry = Retry::new(always_broken(&calls), RetryPolicy::new(), budget, looks.clone());
        Limited::new(retry, bulkhead, "m").call(&(), &context(&clock)).unwrap_err();
        assert!(!looks.1.load(Ordering::Relaxed), "held while waiting");
    }

    #[test]
    fn fallback_inside_retry_walks_the_chain_again() {
        let clock = Arc::new(ManualClock::new());
        let (calls, budget) = (Arc::new(AtomicU32::new(0)), Arc::new(RetryBudget::default()));
        let service = |model: &str| (model.into(), Box::new(always_broken(&calls)) as BoxService<(), String>);
        let chain = Fallback::new(vec![service("a"), service("b")], FallbackLimits::default()).unwrap();
        let walked_again = Retry::new(chain, RetryPolicy::new(), budget.clone(), clock.clone());
        walked_again.call(&(), &context(&clock)).unwrap_err();
        assert_eq!(calls.swap(0, Ordering::Relaxed), 6);
    }

    #[test]
    fn shedding_outside_the_bulkhead_takes_no_place() {
        let clock = Arc::new(ManualClock::new());
        let bulkhead = Arc::new(Bulkhead::new(1));
        let inside = bulkhead.clone();
        let most = Arc::new(AtomicU32::new(0));
        let seen = most.clone();
        let predict = move || {
            seen.fetch_max(inside.used(&"m".into()) as u32, Ordering::Relaxed);
            Some(60 * SECOND)
        };
        let call = |_: &(), _: &Context| Ok(());
        let shedder = LoadShedder::new(SECOND);
        let outside = Shed::new(Limited::new(call, bulkhead.clone(), "m"), shedder, predict.clone());
        outside.call(&(), &context(&clock)).unwrap_err();
        assert_eq!(most.load(Ordering::Relaxed), 0);
        let inside = Limited::new(Shed::new(call, shedder, predict), bulkhead, "m");
        inside.call(&(), &context(&clock)).unwrap_err();
        assert_eq!(most.load(Ordering::Relaxed), 1);
    }
}

/// Everything at once: the deadline of the chain is the only time there is.
#[test]
fn the_whole_stack_answers_within_its_deadline() {
    let clock = Arc::new(ManualClock::new());
    let registry = registry(&clock);
    let (bulkhead, budget) = (Arc::new(Bulkhead::new(4)), Arc::new(RetryBudget::default()));
    let hop = |model: &'static str, works: bool| {
        let time = clock.clone();
        let call = move |_: &(), _: &Context| {
            time.advance(2 * SECOND);
            if works { Ok(model.to_owned()) } else { Err(broken()) }
        };
        let gate: Arc<dyn Gate> = registry.clone();
        let guard =
            Guard::new(Timeout::new(call, 60 * SECOND), gate, clock.clone(), model, Operation::Generate);
        let retry = Retry::new(guard, RetryPolicy::new(), budget.clone(), clock.clone()).seed(1);
        let limited = Limited::new(retry, bulkhead.clone(), model);
        let shed = Shed::new(limited, LoadShedder::new(SECOND), || Some(Duration::ZERO));
        (model.into(), Box::new(shed) as BoxService<(), String>)
    };
    let chain =
        Fallback::new(vec![hop("big", false), hop("small", true)], FallbackLimits::default()).unwrap();
    let enough = Context::new(Deadline::after(clock.clone(), 30 * SECOND));
    assert_eq!(chain.call(&(), &enough).unwrap(), "small");
    assert!(clock.now().0 < 30 * SECOND);
    registry.reset_all();
    let short = Context::new(Deadline::after(clock.clone(), 2 * SECOND));
    let error = chain.call(&(), &short).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.to_string().starts_with("1 tried, the time is up; big: connection reset"), "{error}");
}

#[test]
fn every_part_can_be_printed() {
    let clock = Arc::new(ManualClock::new());
    let call = || |_: &(), _: &Context| -> Result<()> { Ok(()) };
    let bulkhead = Arc::new(Bulkhead::new(3).with_limit("m", 2));
    let permit = Bulkhead::acquire(&bulkhead, &"m".into()).unwrap();
    let breaker = registry(&clock).breaker(&"m".into(), Operation::Load);
    let parts = [
        format!("{:?}", Retry::new(call(), RetryPolicy::new().attempts(7), Arc::default(), clock.clone())),
        format!("{:?}", Timeout::new(call(), SECOND)),
        format!("{:?}", Shed::new(call(), LoadShedder::new(SECOND), || None)),
        format!("{bulkhead:?}"),
        format!("{permit:?}"),
        format!("{:?}", CircuitBreaker::acquire_owned(&breaker).unwrap()),
    ];
    let expected = [
        "attempts: 7",
        "Timeout { limit: 1s",
        "Shed { shedder: LoadShedder { limit: 1s }",
        "Bulkhead { default: 3, limits: {ModelId(\"m\"): 2} }",
        "BulkheadPermit { model: ModelId(\"m\")",
        "OwnedPermit { breaker: \"m/load\"",
    ];
    for (part, expected) in parts.iter().zip(expected) {
        assert!(part.contains(expected), "{part}");
    }
}
