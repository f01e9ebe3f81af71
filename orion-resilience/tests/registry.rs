//! Breakers by name.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use orion_core::{Gate, Health, ManualClock, ModelId, Operation, Outcome};
use orion_resilience::{Backoff, BreakerRegistry, BreakerSettings, BreakerState, Scope};

const SECOND: Duration = Duration::from_secs(1);

fn settings(failures: u32) -> BreakerSettings {
    BreakerSettings::new().consecutive_failures(failures).wait(Backoff::constant(SECOND))
}

fn registry() -> (BreakerRegistry, ManualClock) {
    let clock = ManualClock::new();
    (BreakerRegistry::new(settings(2), Arc::new(clock.clone())).unwrap(), clock)
}

fn call(registry: &BreakerRegistry, model: &ModelId, operation: Operation, outcome: Outcome) {
    registry.acquire(model, operation).unwrap().settle(outcome, SECOND);
}

#[test]
fn a_breaker_is_made_when_first_asked_for_and_then_kept() {
    let (registry, _) = registry();
    let model = ModelId::from("m");
    assert_eq!(registry.snapshots().len(), 0);
    let first = registry.breaker(&model, Operation::Load);
    assert!(Arc::ptr_eq(&first, &registry.breaker(&model, Operation::Load)));
    assert!(!Arc::ptr_eq(&first, &registry.breaker(&model, Operation::Generate)));
    let names: Vec<_> = registry.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
    assert_eq!(names, ["m/generate", "m/load"]);
    assert!(format!("{registry:?}").contains("m/load"));
}

#[test]
fn threads_that_ask_at_once_get_one_breaker() {
    let (registry, _) = registry();
    let breakers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let breaker = registry.breaker(&"m".into(), Operation::Load);
                breakers.lock().unwrap().push(breaker);
            });
        }
    });
    let breakers = breakers.into_inner().unwrap();
    assert!(breakers.iter().all(|breaker| Arc::ptr_eq(breaker, &breakers[0])));
}

#[test]
fn operations_fail_apart_or_together_as_the_scope_says() {
    let (registry, _) = registry();
    let model = ModelId::from("m");
    for operation in [Operation::Load, Operation::Generate] {
        call(&registry, &model, operation, Outcome::Failure);
    }
    assert!(registry.acquire(&model, Operation::Load).is_ok());

    let (registry, _) = self::registry();
    let registry = registry.with_scope(Scope::Model);
    for operation in [Operation::Load, Operation::Generate] {
        call(&registry, &model, operation, Outcome::Failure);
    }
    let refused = registry.acquire(&model, Operation::Load).map(|_| ()).unwrap_err();
    assert_eq!(refused.retry_after, Some(SECOND + Duration::from_nanos(1)));
    assert_eq!(registry.snapshots()[0].name, "m");
}

#[test]
fn a_name_has_its_own_settings() {
    let (registry, _) = registry();
    let registry = registry.with_settings("frail", settings(1)).unwrap();
    call(&registry, &"frail".into(), Operation::Load, Outcome::Failure);
    call(&registry, &"sturdy".into(), Operation::Load, Outcome::Failure);
    assert!(registry.acquire(&"frail".into(), Operation::Load).is_err());
    assert!(registry.acquire(&"sturdy".into(), Operation::Load).is_ok());
    let bad = registry.with_settings("bad", settings(0)).unwrap_err();
    assert!(bad.to_string().starts_with("breaker bad: consecutive_failures"), "{bad}");
    assert!(BreakerRegistry::new(settings(0), Arc::new(ManualClock::new())).is_err());
}

#[test]
fn health_is_healthy_degraded_or_down() {
    let (registry, clock) = registry();
    let [good, failing, down, forced, probing, watched] =
        ["good", "failing", "down", "forced", "probing", "watched"].map(ModelId::from);
    let generate = Operation::Generate;
    call(&registry, &good, generate, Outcome::Success);
    call(&registry, &failing, generate, Outcome::Failure);
    call(&registry, &failing, Operation::Load, Outcome::Success);
    registry.breaker(&forced, generate).force_open();
    registry.breaker(&watched, generate).disable();
    (0..2).for_each(|_| call(&registry, &probing, generate, Outcome::Failure));
    clock.advance(2 * SECOND);
    let _probe = registry.acquire(&probing, generate).unwrap();
    (0..2).for_each(|_| call(&registry, &down, generate, Outcome::Failure));
    call(&registry, &down, Operation::Load, Outcome::Success);

    let health = [&good, &failing, &down, &forced, &probing, &watched].map(|model| registry.health(model));
    use Health::{Degraded, Down, Healthy};
    assert_eq!(health, [Healthy, Degraded, Down, Down, Degraded, Healthy]);
    assert_eq!(registry.health(&"never called".into()), Healthy);
    let summary = serde_json::to_string(&registry.summary()).unwrap();
    assert_eq!(
        summary,
        r#"{"healthy":["good","watched"],"degraded":["failing","probing"],"down":["down","forced"]}"#
    );
    registry.breaker(&watched, generate).metrics_only();
    call(&registry, &watched, generate, Outcome::Failure);
    assert_eq!(registry.health(&watched), Degraded);

    assert_eq!(registry.reset(&down), 2);
    assert_eq!(registry.health(&down), Healthy);
    assert_eq!(registry.health(&forced), Down);
    assert_eq!(registry.reset_all(), 8);
    assert_eq!(registry.summary().healthy.len(), 6);
}

#[test]
fn hooks_hear_of_every_breaker() {
    let (registry, _) = registry();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&heard);
    let registry = registry.with_hook(move |event| {
        into.lock().unwrap().push((event.breaker.to_string(), event.to));
    });
    for model in ["a", "b"] {
        (0..2).for_each(|_| call(&registry, &model.into(), Operation::Load, Outcome::Failure));
    }
    let open = BreakerState::Open;
    assert_eq!(*heard.lock().unwrap(), [("a/load".to_owned(), open), ("b/load".to_owned(), open)]);
}

#[test]
fn a_permit_of_the_gate_outlives_the_registry_and_is_given_back_when_dropped() {
    let (registry, _) = registry();
    let breaker = registry.breaker(&"m".into(), Operation::Load);
    let (first, second) =
        (registry.acquire(&"m".into(), Operation::Load), registry.acquire(&"m".into(), Operation::Load));
    drop(registry);
    drop(first);
    second.unwrap().settle(Outcome::Ignored, SECOND);
    assert_eq!(breaker.statistics().total_ignored, 2);
}
