//! `orion-resilience` alone, around a call that has nothing to do with models.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orion_core::{Error, ErrorKind, Operation, SystemClock};
use orion_resilience::{
    Backoff, BreakerRegistry, BreakerSettings, Context, Deadline, Guard, Retry, RetryBudget, RetryPolicy,
    Service, ThreadSleep,
};

fn main() -> orion_core::Result<()> {
    let clock = Arc::new(SystemClock::new());
    let breakers = Arc::new(BreakerRegistry::new(BreakerSettings::new(), clock.clone())?);
    let calls = AtomicU32::new(0);
    let flaky = |name: &str, _: &Context| match calls.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Err(Error::new(ErrorKind::Network, "connection reset")),
        _ => Ok(format!("hello, {name}")),
    };
    let guarded = Guard::new(flaky, breakers.clone(), clock.clone(), "greeter", Operation::Generate);
    let policy = RetryPolicy::new().backoff(Backoff::constant(Duration::from_millis(1)));
    let service = Retry::new(guarded, policy, Arc::new(RetryBudget::default()), Arc::new(ThreadSleep));
    let context = Context::new(Deadline::after(clock, Duration::from_secs(30)));
    assert_eq!(service.call("world", &context)?, "hello, world");
    println!("resilience: answered at call {}", calls.load(Ordering::SeqCst));
    Ok(())
}
