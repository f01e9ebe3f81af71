//! What a queued request costs beyond itself.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use orion_core::{ManualClock, Timestamp};
use orion_resilience::{Caller, Priority, QueueSettings, RequestQueue, Submission};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const REQUESTS: u32 = 100_000;
/// What is queued here: four words, as a boxed request with a sink might be.
type Request = [u64; 4];

/// Bytes per request, the request itself not counted. Tickets are kept, their own size is the caller's.
fn bytes_per_request(caller: impl Fn(u32) -> u64) -> usize {
    let before = MEMORY.current_usage();
    let settings = QueueSettings::new().max_requests(REQUESTS);
    let queue: RequestQueue<Request> = RequestQueue::new(settings, Arc::new(ManualClock::new()));
    let mut tickets = Vec::with_capacity(REQUESTS as usize);
    for n in 0..REQUESTS {
        let priority = [Priority::Low, Priority::Normal, Priority::High][n as usize % 3];
        let submission = Submission::new([u64::from(n); 4])
            .caller(Caller(caller(n)))
            .priority(priority)
            .deadline(Timestamp::default().after(std::time::Duration::from_secs(1)));
        tickets.push(queue.submit(submission).unwrap());
    }
    let ticket = size_of_val(&tickets[0]);
    let used = MEMORY.current_usage() - before - tickets.capacity() * ticket;
    assert_eq!(queue.statistics().queued, REQUESTS as usize);
    used / REQUESTS as usize - size_of::<Request>()
}

/// One test alone in its process: the allocator counts all threads.
#[test]
fn a_hundred_thousand_queued_requests_use_at_most_300_bytes_each() {
    let measured = [
        ("one caller", bytes_per_request(|_| 1)),
        ("a hundred callers", bytes_per_request(|n| u64::from(n % 100))),
        ("a caller each", bytes_per_request(u64::from)),
    ];
    for (callers, bytes) in measured {
        println!("{callers}: {bytes} bytes per queued request");
        assert!((50..=300).contains(&bytes), "{callers}: {bytes} bytes");
    }
}
