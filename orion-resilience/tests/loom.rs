//! Every interleaving of the permit ledger; cancel, hand-over, deadline and shutdown with a bounded number of preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p orion-resilience --test loom --target-dir target/loom`
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loom::thread;
use orion_core::{ErrorKind, ManualClock, Timestamp};
use orion_resilience::*;

const SECOND: Duration = Duration::from_secs(1);

fn breaker(settings: BreakerSettings) -> (Arc<CircuitBreaker>, ManualClock) {
    let clock = ManualClock::new();
    let settings = settings.failure_rate(None).half_open_limit(None).wait(Backoff::constant(SECOND)).seed(1);
    (Arc::new(CircuitBreaker::new("m", settings, Arc::new(clock.clone())).unwrap()), clock)
}

/// Three ask at once after the wait: exactly as many as there are places are permitted.
#[test]
fn half_open_never_permits_more_or_fewer_than_its_places() {
    for places in 1..=2 {
        loom::model(move || {
            let settings =
                BreakerSettings::new().consecutive_failures(1).half_open(places, Judgement::FirstFailure);
            let (breaker, clock) = breaker(settings);
            breaker.trip();
            clock.advance(2 * SECOND);
            let ask = |breaker: &Arc<CircuitBreaker>| {
                let breaker = breaker.clone();
                thread::spawn(move || CircuitBreaker::acquire_owned(&breaker).ok())
            };
            let threads = [ask(&breaker), ask(&breaker)];
            let mut permits = vec![CircuitBreaker::acquire_owned(&breaker).ok()];
            permits.extend(threads.map(|thread| thread.join().unwrap()));
            let permits: Vec<_> = permits.into_iter().flatten().collect();
            assert_eq!(permits.len(), places as usize);
            assert_eq!(breaker.statistics().probes_running, places);
            drop(permits);
            assert_eq!(breaker.statistics().probes_running, 0);
        });
    }
}

/// A place that is given back while others ask goes to one of them at most.
#[test]
fn a_place_given_back_is_given_once() {
    loom::model(|| {
        let settings = BreakerSettings::new().consecutive_failures(1).half_open(1, Judgement::FirstFailure);
        let (breaker, clock) = breaker(settings);
        breaker.trip();
        clock.advance(2 * SECOND);
        let first = CircuitBreaker::acquire_owned(&breaker).unwrap();
        let ask = {
            let breaker = breaker.clone();
            thread::spawn(move || CircuitBreaker::acquire_owned(&breaker).ok())
        };
        let give_back = thread::spawn(move || first.ignore());
        let second = CircuitBreaker::acquire_owned(&breaker).ok();
        give_back.join().unwrap();
        let third = ask.join().unwrap();
        assert!(second.is_none() || third.is_none());
        let running = u32::from(second.is_some()) + u32::from(third.is_some());
        assert_eq!(breaker.statistics().probes_running, running);
    });
}

/// The way past the lock: whoever was permitted before the breaker opened is stale after it, and nothing is lost.
#[test]
fn a_call_permitted_without_the_lock_counts_once_or_is_stale() {
    loom::model(|| {
        let (breaker, _) = breaker(BreakerSettings::new().consecutive_failures(1));
        let call = |breaker: &Arc<CircuitBreaker>, fails: bool| {
            let breaker = breaker.clone();
            thread::spawn(move || match breaker.acquire() {
                Ok(permit) if fails => permit.failure(Duration::ZERO),
                Ok(permit) => permit.success(Duration::ZERO),
                Err(_) => {}
            })
        };
        let threads = [call(&breaker, true), call(&breaker, false)];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let all = breaker.statistics();
        assert_eq!(all.total_calls + all.total_stale + all.total_refused, 2);
        assert_eq!(all.total_failures, 1);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(breaker.acquire().is_err(), "the published state is the state");
    });
}

#[test]
fn events_are_told_once_and_in_order() {
    loom::model(|| {
        let (breaker, _) = breaker(BreakerSettings::new().consecutive_failures(1));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = seen.clone();
        breaker.on_event(move |event| into.lock().unwrap().push(event.sequence));
        let other = breaker.clone();
        let thread = thread::spawn(move || other.trip());
        breaker.reset();
        thread.join().unwrap();
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
    });
}

#[test]
fn a_budget_gives_out_no_more_than_it_has() {
    loom::model(|| {
        let budget = Arc::new(RetryBudget::new(0.5, 1).unwrap());
        let take = |budget: &Arc<RetryBudget>| {
            let budget = budget.clone();
            thread::spawn(move || {
                budget.deposit();
                budget.withdraw()
            })
        };
        let threads = [take(&budget), take(&budget)];
        let taken = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|taken| *taken).count();
        // The first deposit finds the budget full, so there is one retry and at most a half.
        assert_eq!((taken, budget.available()), (1, 0));
    });
}

/// Cancelled by its caller, taken by a worker, overtaken by its deadline: one of them answers, once.
#[test]
fn cancel_hand_over_and_deadline_agree_on_one_end() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let clock = ManualClock::new();
        let dropped = Arc::new(AtomicUsize::new(0));
        let count = dropped.clone();
        let hook = move |_: u32, _: &orion_core::Error| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let queue: RequestQueue<u32, u32> =
            RequestQueue::with_hook(QueueSettings::new(), Arc::new(clock.clone()), hook);
        let ticket = Arc::new(queue.submit(Submission::new(7).deadline(Timestamp(SECOND))).unwrap());
        let worker = {
            let queue = queue.clone();
            thread::spawn(move || match queue.try_next() {
                Some(work) => {
                    work.complete(7);
                    1
                }
                None => 0,
            })
        };
        let canceller = {
            let ticket = ticket.clone();
            thread::spawn(move || ticket.cancel())
        };
        clock.advance(SECOND);
        queue.expire();
        let ran = worker.join().unwrap();
        let cancelled = canceller.join().unwrap();
        let statistics = queue.statistics();
        assert_eq!(ran + dropped.load(Ordering::Relaxed), 1, "it ran or was dropped, not both");
        let answer = Arc::into_inner(ticket).unwrap().wait();
        match answer {
            Ok(number) => assert_eq!((number, ran), (7, 1)),
            Err(error) if error.kind() == ErrorKind::Cancelled => assert!(cancelled && ran == 0),
            Err(error) => assert_eq!((error.kind(), ran), (ErrorKind::DeadlineExceeded, 0)),
        }
        assert_eq!(statistics.finished + statistics.cancelled + statistics.expired, 1);
        assert_eq!((statistics.queued, statistics.running), (0, 0));
    });
}

/// Two workers, one request and a shutdown: the request is answered once, and both workers end.
#[test]
fn shutdown_ends_every_worker_and_answers_the_request() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let queue: RequestQueue<u32, u32> =
            RequestQueue::new(QueueSettings::new(), Arc::new(ManualClock::new()));
        let worker = |queue: &RequestQueue<u32, u32>| {
            let queue = queue.clone();
            thread::spawn(move || queue.serve(|n, _| Ok(n)))
        };
        let workers = [worker(&queue), worker(&queue)];
        let ticket = queue.submit(Submission::new(7)).unwrap();
        queue.shutdown();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        match ticket.wait() {
            Ok(number) => assert_eq!(number, 7),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Rejected),
        }
        let all = queue.statistics();
        assert_eq!((all.finished + all.turned_away, all.running), (1, 0));
    });
}
