//! A simulated outage: what it costs, how soon it is over, and whether callers wake up together. Virtual time; the
//! figures do not depend on the machine. `tests/outage.rs` holds them against their limits.

#![allow(clippy::print_stdout, reason = "printing is what this bench is for")]

mod simulation;

use orion_resilience::{Backoff, BreakerSettings, Judgement, RetryPolicy};
use simulation::{Outage, a_minute_of_a_hundred_callers, run};
use std::time::Duration;

fn main() -> orion_core::Result<()> {
    let whole = a_minute_of_a_hundred_callers(1);
    let without = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60));
    let generous = (1.0, 1000);
    let runs: Vec<(&str, Outage)> = vec![
        ("defaults", whole.clone()),
        (
            "no breaker",
            Outage {
                breaker: BreakerSettings::new()
                    .failure_rate(1.0)
                    .consecutive_failures(None)
                    .minimum_calls(u64::MAX),
                ..whole.clone()
            },
        ),
        ("no budget", Outage { budget: generous, ..whole.clone() }),
        (
            "no jitter, no budget",
            Outage {
                budget: generous,
                breaker: BreakerSettings::new().wait(without).half_open(1, Judgement::FirstFailure),
                retry: RetryPolicy::new()
                    .backoff(Backoff::exponential(Duration::from_nanos(1), Duration::from_secs(10))),
                ..whole.clone()
            },
        ),
        ("a request every 10 s", Outage { period: Duration::from_secs(10), ..whole }),
    ];
    println!("60 s at 100 % failure, 100 callers, 50 ms per call, virtual time");
    println!(
        "{:22} {:>8} {:>8} {:>8} {:>8} {:>12} {:>10} {:>12}",
        "", "offered", "wasted", "share", "retries", "recovered", "last wait", "at once"
    );
    for (name, outage) in runs {
        let report = run(&outage)?;
        let share = report.wasted as f64 / report.offered as f64 * 100.0;
        let recovered = report
            .recovered_after
            .map_or("never open".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
        println!(
            "{name:22} {:>8} {:>8} {share:>6.2} % {:>8} {recovered:>12} {:>8.1} s {:>9}/ms",
            report.offered,
            report.wasted,
            report.retries,
            report.last_wait.as_secs_f64(),
            report.most_retries_at_once,
        );
    }
    Ok(())
}
