//! Random schedules of queue, workers and shutdown.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release -p orion-resilience --test shuttle --target-dir target/shuttle`
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use orion_core::{Error, ErrorKind, ManualClock};
use orion_resilience::*;
use shuttle::thread;

const SCHEDULES: usize = 3000;

type Queue = RequestQueue<u32, u32>;

/// Three workers, three callers, a pause, and an end by drain or shutdown: every ticket is answered once.
fn everyone_is_answered(drain: bool) {
    let (ran, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = dropped.clone();
    let hook = move |_: u32, _: &Error| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let queue = Queue::with_hook(QueueSettings::new().max_requests(4), Arc::new(ManualClock::new()), hook);
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let (queue, ran) = (queue.clone(), ran.clone());
            thread::spawn(move || {
                queue.serve(|n, _| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                    if n == 2 { Err(Error::invalid("two")) } else { Ok(n) }
                });
            })
        })
        .collect();
    let callers: Vec<_> = (0..3)
        .map(|caller| {
            let queue = queue.clone();
            thread::spawn(move || {
                let mut answered = 0;
                for n in 0..3 {
                    let Ok(ticket) = queue.submit(Submission::new(n).caller(Caller(caller))) else {
                        continue;
                    };
                    if n == 1 {
                        ticket.cancel();
                    }
                    match ticket.wait() {
                        Ok(answer) => assert_eq!(answer, n),
                        Err(error) => {
                            let expected =
                                [ErrorKind::Cancelled, ErrorKind::Rejected, ErrorKind::InvalidInput];
                            assert!(expected.contains(&error.kind()), "{error}");
                        }
                    }
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let manager = {
        let queue = queue.clone();
        thread::spawn(move || {
            queue.pause();
            thread::yield_now();
            queue.resume();
            if drain {
                queue.drain();
            } else {
                queue.shutdown();
            }
            queue.join();
            let all = queue.statistics();
            assert_eq!((all.queued, all.running), (0, 0));
        })
    };
    let answered: usize = callers.into_iter().map(|caller| caller.join().unwrap()).sum();
    manager.join().unwrap();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let all = queue.statistics();
    assert_eq!(all.accepted as usize, answered);
    assert_eq!(ran.load(Ordering::Relaxed) as u64, all.finished);
    assert_eq!(ran.load(Ordering::Relaxed) + dropped.load(Ordering::Relaxed), answered);
    assert_eq!((all.queued, all.running), (0, 0));
}

#[test]
fn everyone_is_answered_when_the_queue_drains() {
    shuttle::check_random(|| everyone_is_answered(true), SCHEDULES);
}

#[test]
fn everyone_is_answered_when_the_queue_is_shut_down() {
    shuttle::check_random(|| everyone_is_answered(false), SCHEDULES);
}

#[test]
fn everyone_is_answered_under_adversarial_schedules() {
    shuttle::check_pct(|| everyone_is_answered(false), SCHEDULES, 3);
    shuttle::check_pct(|| everyone_is_answered(true), SCHEDULES, 3);
}

/// Nobody sleeps while there is work: requests put in one after the other all get done by waiting workers.
#[test]
fn no_ring_is_lost() {
    let busy = || {
        let queue = Queue::new(QueueSettings::new(), Arc::new(ManualClock::new()));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || queue.serve(|n, _| Ok(n)))
            })
            .collect();
        let tickets: Vec<_> = (0..4).map(|n| queue.submit(Submission::new(n)).unwrap()).collect();
        for (n, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.wait().unwrap(), n as u32);
        }
        queue.shutdown();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    };
    shuttle::check_random(busy, SCHEDULES);
}
