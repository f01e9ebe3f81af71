//! What a guarded call and a queued request cost. The limits: 150 ns per guarded call on one thread, 1 µs with four
//! contending, 500 ns to put in and take out.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orion_core::{Gate, ModelId, Operation, Outcome, SystemClock};
use orion_resilience::{
    BreakerRegistry, BreakerSettings, Caller, CircuitBreaker, Priority, QueueSettings, RequestQueue,
    Submission, WindowKind,
};

fn breaker(window: WindowKind) -> CircuitBreaker {
    CircuitBreaker::new("bench", BreakerSettings::new().window(window), Arc::new(SystemClock::new()))
        .expect("the settings are valid")
}

fn guarded_call(c: &mut Criterion) {
    let windows =
        [("time_60s", WindowKind::Time(Duration::from_secs(60))), ("count_100", WindowKind::Calls(100))];
    let mut group = c.benchmark_group("guarded_call");
    for (name, window) in windows {
        let breaker = breaker(window);
        group.bench_function(format!("1_thread/{name}"), |b| {
            b.iter(|| breaker.call(|| Ok(black_box(1))));
        });
        group.bench_function(format!("4_threads/{name}"), |b| {
            b.iter_custom(|iterations| {
                four_threads(iterations, || black_box(breaker.call(|| Ok(1)).is_ok()))
            });
        });
    }
    let open = breaker(WindowKind::Calls(100));
    open.force_open();
    group.bench_function("refused", |b| b.iter(|| black_box(open.acquire().is_err())));
    let registry = BreakerRegistry::new(BreakerSettings::new(), Arc::new(SystemClock::new()))
        .expect("the defaults are valid");
    let model = ModelId::from("bench");
    group.bench_function("registry_permit", |b| {
        b.iter(|| {
            let permit = registry.acquire(&model, Operation::Generate).ok();
            permit.into_iter().for_each(|permit| permit.settle(Outcome::Success, Duration::ZERO));
        });
    });
    group.finish();
}

/// Time per call, as each of four threads sees it while all of them call.
fn four_threads(iterations: u64, call: impl Fn() -> bool + Sync) -> Duration {
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let start = Instant::now();
                    for _ in 0..iterations {
                        black_box(call());
                    }
                    start.elapsed()
                })
            })
            .collect();
        let times = threads.into_iter().filter_map(|thread| thread.join().ok());
        times.max().unwrap_or_default()
    })
}

fn queue(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue");
    group.throughput(Throughput::Elements(1));
    for depth in [0, 100_000u32] {
        let settings = QueueSettings::new().max_requests(depth + 1);
        let queue: RequestQueue<u64> = RequestQueue::new(settings, Arc::new(SystemClock::new()));
        let submission = |n: u32| {
            let priority = [Priority::Low, Priority::Normal, Priority::High][n as usize % 3];
            Submission::new(u64::from(n)).caller(Caller(u64::from(n % 50))).priority(priority).tokens(10)
        };
        for n in 0..depth {
            queue.submit(submission(n)).expect("there is room");
        }
        group.bench_function(format!("enqueue_dequeue/{depth}_waiting"), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                let mut taken = Vec::with_capacity(1000);
                for first in (0..iterations).step_by(1000) {
                    let start = Instant::now();
                    for n in first..iterations.min(first + 1000) {
                        let ticket = queue.submit(submission(n as u32)).expect("there is room");
                        taken.push((ticket, queue.try_next().expect("something waits")));
                    }
                    spent += start.elapsed();
                    // Answering is not part of it.
                    taken.drain(..).for_each(|(_, work)| work.complete(()));
                }
                spent
            });
        });
        group.bench_function(format!("position/{depth}_waiting"), |b| {
            let ticket = queue.submit(submission(1)).expect("there is room");
            b.iter(|| black_box(ticket.position()));
            ticket.cancel();
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = guarded_call, queue
}
criterion_main!(benches);
