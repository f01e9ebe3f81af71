//! Outages replayed in virtual time, and what they cost.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../benches/simulation/mod.rs"]
mod simulation;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use orion_core::{Clock, Error, ErrorKind, ManualClock};
use orion_resilience::{Backoff, BreakerPermit, BreakerSettings, BreakerState, CircuitBreaker, RetryPolicy};
use simulation::{Outage, a_minute_of_a_hundred_callers, run};

/// A minute at 100 % failure with a hundred callers.
#[test]
fn an_outage_wastes_little_and_is_over_soon() {
    for seed in 0..20 {
        let outage = a_minute_of_a_hundred_callers(seed);
        let report = run(&outage).unwrap();
        assert_eq!(report.offered, 6000);
        assert!(report.wasted * 100 <= report.offered * 2, "seed {seed}: {} wasted", report.wasted);
        let recovered = report.recovered_after.unwrap();
        assert!(recovered <= report.last_wait, "seed {seed}: {recovered:?} of {:?}", report.last_wait);
        assert!(report.retries <= report.requests / 10 + 10, "seed {seed}: {} retries", report.retries);
        // Retries of a hundred callers that were all told the same end of the wait: no more than a few a millisecond.
        assert!(report.most_retries_at_once <= 8, "seed {seed}: {} at once", report.most_retries_at_once);
        let (served, offered) = report.served_since;
        assert!(served * 100 >= offered * 99, "seed {seed}: {served} of {offered} served after it");
    }
}

/// Even if every caller may retry as it likes, they do not come back together.
#[test]
fn jitter_is_what_keeps_callers_from_waking_together() {
    let whole = a_minute_of_a_hundred_callers(3);
    let with = run(&Outage { budget: (1.0, 1000), ..whole.clone() }).unwrap();
    let bare = Backoff::exponential(Duration::from_nanos(1), Duration::from_secs(10));
    let without =
        run(&Outage { budget: (1.0, 1000), retry: RetryPolicy::new().backoff(bare), ..whole }).unwrap();
    assert!(without.most_retries_at_once >= 50, "{}", without.most_retries_at_once);
    assert!(with.most_retries_at_once * 4 <= without.most_retries_at_once, "{}", with.most_retries_at_once);
}

/// The rule of a well-known gateway: with a single deployment it takes a thousand requests a minute, more than half of
/// them failed, before it stops calling.
#[derive(Default)]
struct ThousandAMinute(VecDeque<(Duration, bool)>);

impl ThousandAMinute {
    fn permits(&mut self, now: Duration) -> bool {
        self.0.retain(|(at, _)| now - *at < Duration::from_secs(60));
        let failed = self.0.iter().filter(|(_, failed)| *failed).count();
        !(self.0.len() >= 1000 && failed * 2 > self.0.len())
    }
}

/// One local model, one request every two seconds, and for ten minutes every call hangs for ten seconds and fails. A rule
/// that waits for a thousand requests never opens: each of them pays ten seconds.
#[test]
fn the_defaults_open_where_a_rule_for_busy_gateways_never_does() {
    const REQUESTS: u32 = 300;
    let timeout = Duration::from_secs(10);
    let mut gateway = ThousandAMinute::default();
    let mut paid_by_gateway = Duration::ZERO;
    for request in 0..REQUESTS {
        let now = Duration::from_secs(2) * request;
        if gateway.permits(now) {
            paid_by_gateway += timeout;
            gateway.0.push_back((now, true));
        }
    }
    assert_eq!(paid_by_gateway / REQUESTS, timeout, "every request pays in full");

    let clock = ManualClock::new();
    let breaker = CircuitBreaker::new("m", BreakerSettings::new().seed(1), Arc::new(clock.clone())).unwrap();
    let (mut paid, mut opened_after) = (Duration::ZERO, None);
    let mut running: VecDeque<(Duration, BreakerPermit<'_>)> = VecDeque::new();
    for request in 0..REQUESTS {
        let now = Duration::from_secs(2) * request;
        while let Some((end, permit)) = running.pop_front() {
            if end > now {
                running.push_front((end, permit));
                break;
            }
            clock.advance(end - clock.now().0);
            permit.failure(timeout);
        }
        clock.advance(now - clock.now().0);
        if breaker.state() == BreakerState::Open {
            opened_after.get_or_insert(request);
        }
        if let Ok(permit) = breaker.acquire() {
            paid += timeout;
            running.push_back((now + timeout, permit));
        }
    }
    println!(
        "cost per request: a thousand a minute {:?}, our defaults {:?}",
        paid_by_gateway / REQUESTS,
        paid / REQUESTS
    );
    // Five calls must have failed; four more were on their way when the fifth did.
    assert_eq!(opened_after, Some(9));
    assert!(paid / REQUESTS <= Duration::from_millis(800), "{:?} per request", paid / REQUESTS);
}

/// The same at one request a minute: a window of a minute sees one call at a time, the streak sees them all.
#[test]
fn the_defaults_open_for_a_model_that_is_rarely_called() {
    let clock = ManualClock::new();
    let breaker = CircuitBreaker::new("m", BreakerSettings::new(), Arc::new(clock.clone())).unwrap();
    for _ in 0..5 {
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.call(|| Err::<(), _>(Error::new(ErrorKind::Io, "disk gone"))).unwrap_err();
        clock.advance(Duration::from_secs(60));
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

/// And at half of the calls failing, never five in a row.
#[test]
fn the_defaults_open_at_half_of_ten_calls() {
    let breaker = CircuitBreaker::new("m", BreakerSettings::new(), Arc::new(ManualClock::new())).unwrap();
    for call in 0..10 {
        assert_eq!(breaker.state(), BreakerState::Closed, "call {call}");
        let permit = breaker.acquire().unwrap();
        if call % 2 == 0 { permit.failure(Duration::ZERO) } else { permit.success(Duration::ZERO) }
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}
