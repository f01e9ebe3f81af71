//! The conformance suite of `Gate` on the breakers.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::sync::Arc;

use orion_core::{ManualClock, testing};
use orion_resilience::{BreakerRegistry, BreakerSettings};

fn registry(clock: &ManualClock) -> BreakerRegistry {
    BreakerRegistry::new(BreakerSettings::new(), Arc::new(clock.clone())).unwrap()
}

#[test]
fn the_registry_of_breakers_conforms() {
    testing::gate(&registry(&ManualClock::new()));
}

#[test]
fn the_registry_of_breakers_closes_after_five_failures_and_opens_again() {
    let clock = ManualClock::new();
    testing::breaking_gate(&registry(&clock), 5, |time| clock.advance(time));
}
