//! The request queue.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use crossbeam_channel::bounded;
use orion_core::{CancelToken, Clock, Error, ErrorKind, ManualClock, Timestamp};
use orion_resilience::{
    NotQueued, Priority, QueuePhase, QueueSettings, RequestQueue, Submission, Ticket, Work,
};

const SECOND: Duration = Duration::from_secs(1);

type Queue = RequestQueue<u32, u32>;

fn queue(settings: QueueSettings) -> (Queue, ManualClock) {
    let clock = ManualClock::new();
    (RequestQueue::new(settings, Arc::new(clock.clone())), clock)
}

fn put(queue: &Queue, request: u32) -> Ticket<u32, u32> {
    queue.submit(Submission::new(request)).unwrap()
}

fn rest(queue: &Queue) -> Vec<u32> {
    std::iter::from_fn(|| queue.try_next().map(answer_with_itself)).collect()
}

fn answer_with_itself(work: Work<u32, u32>) -> u32 {
    let request = *work.request();
    work.complete(request);
    request
}

/// What a ticket was answered with: a number, or the kind of error.
fn answer(ticket: Ticket<u32, u32>) -> Result<u32, ErrorKind> {
    ticket.try_answer().expect("answered").map_err(|error| error.kind())
}

fn refusal(result: Result<Ticket<u32, u32>, NotQueued<u32>>) -> Error {
    result.unwrap_err().into()
}

#[test]
fn what_a_worker_says_went_wrong_reaches_the_caller() {
    let (queue, _) = queue(QueueSettings::new());
    let ticket = put(&queue, 1);
    queue.try_next().unwrap().fail(Error::new(ErrorKind::NotFound, "no such model"));
    let error = ticket.try_answer().expect("answered").unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "no such model"));
}

#[test]
fn requests_of_one_caller_are_served_in_order_and_answered() {
    let (queue, _) = queue(QueueSettings::new());
    let tickets: Vec<_> = (0..5).map(|n| put(&queue, n)).collect();
    let positions: Vec<_> = tickets.iter().map(Ticket::position).collect();
    assert_eq!(positions, [0, 1, 2, 3, 4].map(Some));
    assert_eq!(rest(&queue), [0, 1, 2, 3, 4]);
    assert_eq!(tickets[3].position(), None);
    let answers: Vec<_> = tickets.into_iter().map(answer).collect();
    assert_eq!(answers, [0, 1, 2, 3, 4].map(Ok));
    let statistics = queue.statistics();
    assert_eq!((statistics.accepted, statistics.finished, statistics.running), (5, 5, 0));
}

#[test]
fn callers_are_served_in_turn() {
    let (queue, _) = queue(QueueSettings::new());
    for n in 0..100 {
        queue.submit(Submission::new(n).caller("greedy")).unwrap();
    }
    let modest = queue.submit(Submission::new(1000).caller("modest")).unwrap();
    assert_eq!(modest.position(), Some(1), "one turn of the other, not a hundred requests");
    queue.submit(Submission::new(1001).caller("modest")).unwrap();
    assert_eq!(rest(&queue)[..6], [0, 1000, 1, 1001, 2, 3]);
}

/// A flood of low priority: the high one is next, and the oldest low one is not forgotten.
#[test]
fn priority_goes_first_and_ageing_bounds_the_wait_of_the_rest() {
    let settings = QueueSettings::new().max_requests(5000).ageing(5 * SECOND);
    let (queue, clock) = queue(settings);
    for n in 0..1000 {
        queue.submit(Submission::new(n).caller("batch").priority(Priority::Low)).unwrap();
    }
    queue.submit(Submission::new(5000).caller("person").priority(Priority::High)).unwrap();
    assert_eq!(answer_with_itself(queue.try_next().unwrap()), 5000);
    // From now on a high one comes for every one served, a second each.
    let mut low_served_at = None;
    for second in 0..60 {
        queue.submit(Submission::new(6000 + second).caller("person").priority(Priority::High)).unwrap();
        if answer_with_itself(queue.try_next().unwrap()) == 0 {
            low_served_at = Some(second);
            break;
        }
        clock.advance(SECOND);
    }
    // Two classes up take 10 s; then the callers take turns.
    assert_eq!(low_served_at, Some(11));
}

#[test]
fn a_full_queue_says_so_at_once() {
    let (queue, _) = queue(QueueSettings::new().max_requests(3));
    let tickets: Vec<_> = (0..3).map(|n| put(&queue, n)).collect();
    let NotQueued { request, error } = queue.submit(Submission::new(7)).unwrap_err();
    assert_eq!((request, error.kind()), (7, ErrorKind::Rejected));
    assert_eq!(error.to_string(), "the queue is full: 3 requests of 3 tokens wait");
    assert_eq!(error.retry_after(), None, "nothing is known of the pace yet");
    assert_eq!((queue.statistics().rejected, queue.statistics().queued), (1, 3));
    assert!(tickets[1].cancel());
    put(&queue, 8);
    assert_eq!(rest(&queue), [0, 2, 8]);
}

#[test]
fn tokens_are_bounded_besides_requests() {
    let (queue, _) = queue(QueueSettings::new().max_tokens(100));
    let submit = |tokens| queue.submit(Submission::new(tokens).tokens(tokens));
    submit(60).unwrap();
    assert_eq!(refusal(submit(41)).kind(), ErrorKind::Rejected);
    submit(40).unwrap();
    assert_eq!(queue.statistics().queued_tokens, 100);
    assert_eq!(refusal(submit(1)).kind(), ErrorKind::Rejected);
    let error = refusal(submit(101));
    assert_eq!(error.to_string(), "a request of 101 tokens, the queue holds at most 100");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    queue.try_next().unwrap().complete(0);
    submit(60).unwrap();
    assert_eq!(queue.statistics().queued_tokens, 100);
    assert_eq!(rest(&queue), [40, 60]);
    submit(100).expect("as many as it holds");
}

#[test]
fn what_is_late_is_dropped_at_dequeue_and_never_runs() {
    let (queue, clock) = queue(QueueSettings::new());
    let until = |seconds: u64| Timestamp(Duration::from_secs(seconds));
    let late = queue.submit(Submission::new(1).deadline(until(5))).unwrap();
    let in_time = queue.submit(Submission::new(2).deadline(until(6))).unwrap();
    clock.advance(5 * SECOND);
    assert!(late.position().is_some(), "it leaves when its turn comes");
    assert_eq!(rest(&queue), [2]);
    assert_eq!(answer(late), Err(ErrorKind::DeadlineExceeded));
    assert_eq!(answer(in_time), Ok(2));
    assert_eq!((queue.statistics().expired, queue.statistics().finished), (1, 1));
    let error = refusal(queue.submit(Submission::new(3).deadline(until(5))));
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

#[test]
fn the_dead_do_not_keep_the_living_out() {
    let (queue, clock) = queue(QueueSettings::new().max_requests(2));
    let dead = queue.submit(Submission::new(1).deadline(Timestamp(SECOND))).unwrap();
    put(&queue, 2);
    clock.advance(SECOND);
    put(&queue, 3);
    assert_eq!(answer(dead), Err(ErrorKind::DeadlineExceeded));
    assert_eq!(refusal(queue.submit(Submission::new(4))).kind(), ErrorKind::Rejected);
    assert_eq!(rest(&queue), [2, 3]);
    let late = queue.submit(Submission::new(5).deadline(Timestamp(2 * SECOND))).unwrap();
    assert_eq!(queue.expire(), 0);
    clock.advance(SECOND);
    assert_eq!((queue.expire(), queue.expire()), (1, 0));
    assert_eq!(answer(late), Err(ErrorKind::DeadlineExceeded));
    assert_eq!(queue.statistics().expired, 2);
}

#[test]
fn a_cancelled_request_never_reaches_a_worker() {
    let (queue, _) = queue(QueueSettings::new());
    let token = CancelToken::new();
    let by_token = queue.submit(Submission::new(1).cancelled_by(token.clone())).unwrap();
    let by_ticket = put(&queue, 2);
    let stays = put(&queue, 3);
    token.cancel();
    assert!(by_ticket.cancel());
    assert!(!by_ticket.cancel(), "it has its answer");
    assert_eq!(stays.position(), Some(1));
    assert_eq!(rest(&queue), [3]);
    assert_eq!((answer(by_token), answer(by_ticket)), (Err(ErrorKind::Cancelled), Err(ErrorKind::Cancelled)));
    assert_eq!(answer(stays), Ok(3));
    assert_eq!(queue.statistics().cancelled, 2);
    let error = refusal(queue.submit(Submission::new(4).cancelled_by(token)));
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn cancelling_a_running_request_sets_its_own_token_and_no_other() {
    let (queue, _) = queue(QueueSettings::new());
    let token = CancelToken::new();
    let first = queue.submit(Submission::new(1).cancelled_by(token.clone())).unwrap();
    let _second = put(&queue, 2);
    let (_, first_receipt) = queue.try_next().unwrap().split();
    let (_, second_receipt) = queue.try_next().unwrap().split();
    assert!(first.cancel());
    assert!(token.is_cancelled() && first_receipt.cancel_token().is_cancelled());
    assert!(!second_receipt.cancel_token().is_cancelled());
    first_receipt.fail(Error::new(ErrorKind::Cancelled, "stopped"));
    assert!(!first.cancel());
    assert_eq!(answer(first), Err(ErrorKind::Cancelled));
}

#[test]
fn a_paused_queue_takes_and_gives_nothing() {
    let (queue, _) = queue(QueueSettings::new());
    queue.pause();
    put(&queue, 1);
    assert_eq!(queue.statistics().phase, QueuePhase::Paused);
    assert!(queue.try_next().is_none());
    assert!(queue.next_timeout(Duration::from_millis(1)).is_none());
    let waiting = std::thread::spawn({
        let queue = queue.clone();
        move || queue.next().map(answer_with_itself)
    });
    queue.resume();
    assert_eq!(waiting.join().unwrap(), Some(1));
    assert_eq!(queue.statistics().phase, QueuePhase::Open);
}

#[test]
fn a_draining_queue_takes_nothing_and_gives_what_it_has() {
    let (queue, clock) = queue(QueueSettings::new());
    put(&queue, 0);
    let work = queue.try_next().unwrap();
    clock.advance(2 * SECOND);
    work.complete(0);
    let tickets: Vec<_> = (1..4).map(|n| put(&queue, n)).collect();
    queue.pause();
    queue.drain();
    queue.pause();
    assert_eq!(queue.statistics().phase, QueuePhase::Draining, "a pause does not stop a drain");
    queue.resume();
    let error = refusal(queue.submit(Submission::new(9)));
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Rejected, "the queue is draining"));
    assert_eq!(error.retry_after(), Some(6 * SECOND), "three requests of two seconds");
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let queue = queue.clone();
            std::thread::spawn(move || queue.serve(|n, _| Ok(n)))
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    queue.join();
    assert_eq!(tickets.into_iter().map(answer).collect::<Vec<_>>(), [1, 2, 3].map(Ok));
    assert!(queue.next().is_none());
    queue.shutdown();
    queue.drain();
    assert_eq!(queue.statistics().phase, QueuePhase::Stopped);
}

/// One ring wakes one worker: who takes something and leaves more rings for the next.
#[test]
fn all_workers_wake_for_what_came_at_once() {
    const WORKERS: u32 = 4;
    let (queue, _) = queue(QueueSettings::new());
    queue.pause();
    let (took, taken) = bounded(4);
    let all = Arc::new(Barrier::new(WORKERS as usize));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (queue, took, all) = (queue.clone(), took.clone(), Arc::clone(&all));
            std::thread::spawn(move || {
                let work = queue.next_timeout(20 * SECOND).expect("work for everyone");
                took.send(()).unwrap();
                // Nobody comes back for a second one.
                all.wait();
                answer_with_itself(work)
            })
        })
        .collect();
    (0..WORKERS).for_each(|n| drop(put(&queue, n)));
    std::thread::sleep(Duration::from_millis(50));
    queue.resume();
    (0..WORKERS).for_each(|_| taken.recv_timeout(10 * SECOND).expect("every worker takes one"));
    let mut done: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    done.sort_unstable();
    assert_eq!(done, [0, 1, 2, 3]);
}

#[test]
fn a_drained_queue_sends_its_workers_home_while_the_last_request_runs() {
    let (queue, _) = queue(QueueSettings::new());
    queue.pause();
    let (said, heard) = bounded(2);
    let both: Vec<_> = (0..2)
        .map(|_| {
            let (queue, said) = (queue.clone(), said.clone());
            std::thread::spawn(move || {
                let work = queue.next();
                said.send(work.is_some()).unwrap();
                work
            })
        })
        .collect();
    let ticket = put(&queue, 5);
    // Both sleep again: what came did not concern them yet.
    std::thread::sleep(Duration::from_millis(50));
    queue.drain();
    let mut found = [(); 2].map(|()| heard.recv_timeout(10 * SECOND).expect("both hear of it"));
    found.sort_unstable();
    assert_eq!(found, [false, true]);
    let work = both.into_iter().filter_map(|worker| worker.join().unwrap()).next().unwrap();
    answer_with_itself(work);
    assert_eq!(answer(ticket), Ok(5));
}

#[test]
fn one_waits_for_what_runs_and_for_what_is_queued() {
    let (queue, _) = queue(QueueSettings::new());
    assert!(queue.wait_idle(Duration::MAX), "nothing to wait for");
    queue.join();
    let done = Arc::new(AtomicUsize::new(0));
    for wait in [|queue: &Queue| assert!(queue.wait_idle(60 * SECOND)), |queue: &Queue| queue.join()] {
        done.store(0, Ordering::SeqCst);
        let tickets = [put(&queue, 0), put(&queue, 1)];
        let running = queue.next_timeout(SECOND).expect("there is work now");
        assert!(!queue.wait_idle(Duration::from_millis(1)));
        let worker = std::thread::spawn({
            let (queue, done) = (queue.clone(), Arc::clone(&done));
            move || {
                std::thread::sleep(Duration::from_millis(30));
                done.fetch_add(1, Ordering::SeqCst);
                answer_with_itself(running);
                let last = queue.next().expect("the second");
                std::thread::sleep(Duration::from_millis(30));
                done.fetch_add(1, Ordering::SeqCst);
                answer_with_itself(last);
            }
        });
        wait(&queue);
        assert_eq!(done.load(Ordering::SeqCst), 2);
        assert_eq!(tickets.map(answer), [Ok(0), Ok(1)]);
        worker.join().unwrap();
    }
}

/// Shutdown under load: eight run, fifty are queued.
#[test]
fn shutting_down_answers_everyone() {
    let (queue, _) = queue(QueueSettings::new());
    let (started, starts) = bounded::<()>(8);
    let (release, held) = bounded::<()>(0);
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (queue, started, held) = (queue.clone(), started.clone(), held.clone());
            std::thread::spawn(move || {
                queue.serve(|n, _| {
                    started.send(()).unwrap();
                    let _released = held.recv();
                    Ok(n)
                });
            })
        })
        .collect();
    let tickets: Vec<_> = (0..58).map(|n| put(&queue, n)).collect();
    (0..8).for_each(|_| starts.recv().unwrap());
    assert!(!queue.wait_idle(Duration::ZERO));
    assert_eq!(queue.shutdown(), 50);
    assert_eq!(queue.shutdown(), 0);
    let (running, turned_away): (Vec<_>, Vec<_>) =
        tickets.into_iter().map(Ticket::try_answer).partition(Result::is_err);
    assert_eq!((running.len(), turned_away.len()), (8, 50));
    for answer in turned_away {
        assert_eq!(answer.unwrap().unwrap_err().to_string(), "the queue was shut down");
    }
    let error = refusal(queue.submit(Submission::new(9)));
    assert_eq!(error.to_string(), "the queue has been shut down");
    drop(release);
    for ticket in running {
        assert!(ticket.unwrap_err().wait().is_ok());
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert!(queue.wait_idle(Duration::ZERO));
    let statistics = queue.statistics();
    assert_eq!((statistics.finished, statistics.turned_away, statistics.rejected), (8, 50, 1));
}

#[test]
fn those_who_wait_are_told_when_the_last_handle_goes() {
    let (queue, _) = queue(QueueSettings::new());
    let (waiting, cancelled) = (put(&queue, 1), put(&queue, 2));
    assert!(cancelled.cancel());
    drop(queue);
    assert_eq!(waiting.position(), None);
    assert_eq!(waiting.estimated_wait(), None);
    assert!(!waiting.cancel());
    assert_eq!(waiting.wait().unwrap_err().kind(), ErrorKind::Rejected);
}

#[test]
fn a_worker_that_panics_or_gives_up_leaves_an_answer() {
    let (queue, _) = queue(QueueSettings::new());
    let tickets: Vec<_> = (0..3).map(|n| put(&queue, n)).collect();
    drop(queue.try_next().unwrap());
    let work = queue.try_next().unwrap();
    let unwound = catch_unwind(AssertUnwindSafe(move || {
        let _work = work;
        resume_unwind(Box::new("boom"));
    }));
    assert!(unwound.is_err());
    queue.drain();
    queue.serve(|_, _| resume_unwind(Box::new("boom")));
    let mut answers = tickets.into_iter().map(|ticket| ticket.wait().unwrap_err().to_string());
    assert_eq!(answers.next().unwrap(), "the worker dropped the request");
    assert_eq!(answers.next().unwrap(), "the worker panicked");
    assert_eq!(answers.next().unwrap(), "the worker panicked");
    let statistics = queue.statistics();
    assert_eq!((statistics.running, statistics.finished), (0, 3));
}

#[test]
fn a_receipt_dropped_within_someone_elses_panic_did_not_panic() {
    struct Drops(Option<Queue>);
    impl Drop for Drops {
        fn drop(&mut self) {
            drop(self.0.as_ref().unwrap().try_next().unwrap());
        }
    }
    let (queue, _) = queue(QueueSettings::new());
    let ticket = put(&queue, 1);
    let inner = queue.clone();
    let unwound = catch_unwind(AssertUnwindSafe(move || {
        let _drops = Drops(Some(inner));
        resume_unwind(Box::new("boom"));
    }));
    assert!(unwound.is_err());
    assert_eq!(ticket.wait().unwrap_err().to_string(), "the worker dropped the request");
}

/// A hook that panics leaves the queue intact, and sees each dropped request with its error.
#[test]
fn the_hook_gets_what_was_dropped_and_may_panic() {
    let clock = ManualClock::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = seen.clone();
    let hook = move |request: u32, error: &Error| {
        into.lock().unwrap_or_else(|poison| poison.into_inner()).push((request, error.kind()));
        resume_unwind(Box::new("hook"));
    };
    let queue = Queue::with_hook(QueueSettings::new(), Arc::new(clock.clone()), hook);
    let late = queue.submit(Submission::new(1).deadline(Timestamp(SECOND))).unwrap();
    let cancelled = put(&queue, 2);
    put(&queue, 3);
    cancelled.cancel();
    clock.advance(SECOND);
    assert_eq!(answer_with_itself(queue.try_next().unwrap()), 3);
    put(&queue, 4);
    queue.shutdown();
    use ErrorKind::{Cancelled, DeadlineExceeded, Rejected};
    assert_eq!(*seen.lock().unwrap(), [(2, Cancelled), (1, DeadlineExceeded), (4, Rejected)]);
    assert_eq!(queue.statistics().hook_panics, 3);
    assert_eq!(answer(late), Err(DeadlineExceeded));
}

#[test]
fn a_request_that_panics_when_dropped_does_no_harm() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            resume_unwind(Box::new("bomb"));
        }
    }
    let queue: RequestQueue<Bomb> = RequestQueue::new(QueueSettings::new(), Arc::new(ManualClock::new()));
    let tickets: Vec<_> = (0..2).map(|_| queue.submit(Submission::new(Bomb)).unwrap()).collect();
    assert_eq!(queue.shutdown(), 2);
    for ticket in tickets {
        assert_eq!(ticket.wait().unwrap_err().kind(), ErrorKind::Rejected);
    }
    assert_eq!(queue.statistics().hook_panics, 2);
}

#[test]
fn waits_are_estimated_from_the_pace_of_late() {
    let (queue, clock) = queue(QueueSettings::new().servers(2));
    let submit = |tokens| queue.submit(Submission::new(0).tokens(tokens)).unwrap();
    let first = submit(10);
    assert_eq!((queue.predicted_wait(), first.estimated_wait()), (None, None));
    let work = queue.try_next().unwrap();
    clock.advance(5 * SECOND);
    work.complete(0);
    // Half a second per token, and two at a time.
    assert_eq!(queue.predicted_wait(), Some(Duration::ZERO));
    let tickets: Vec<_> = (0..4).map(|_| submit(20)).collect();
    assert_eq!(queue.predicted_wait(), Some(20 * SECOND));
    let waits: Vec<_> = tickets.iter().map(|ticket| ticket.estimated_wait().unwrap().as_secs()).collect();
    assert_eq!(waits, [0, 5, 10, 15]);
    let running = [queue.try_next().unwrap(), queue.try_next().unwrap()];
    // 40 tokens wait, and half of the 40 that run are left on average.
    assert_eq!(queue.predicted_wait(), Some(15 * SECOND));
    clock.advance(20 * SECOND);
    let [one, two] = running;
    assert_eq!(one.split().1.waited(), Duration::ZERO);
    two.complete(0);
    // The one dropped does not count; the other took a second per token, which weighs a fifth: 0.6 s.
    assert_eq!(queue.predicted_wait(), Some(12 * SECOND));
    queue.try_next().unwrap().fail(Error::invalid("x"));
    assert_eq!(queue.predicted_wait(), Some(6 * SECOND), "failures say nothing about the pace");
    let (_, receipt) = queue.try_next().unwrap().split();
    assert_eq!(receipt.waited(), 20 * SECOND);
    assert_eq!(queue.predicted_wait(), Some(Duration::ZERO), "one of two is free");
    let last = submit(20);
    let running = queue.try_next().unwrap();
    assert_eq!(queue.predicted_wait(), Some(6 * SECOND), "half of what both run");
    drop((receipt, running, last));
}

#[test]
fn a_ticket_can_be_waited_for_and_asked() {
    let (queue, _) = queue(QueueSettings::new());
    let ticket = put(&queue, 5).try_answer().unwrap_err();
    let ticket = ticket.wait_timeout(Duration::from_millis(1)).unwrap_err();
    assert!(format!("{ticket:?} {queue:?}").starts_with("Ticket"));
    let worker = std::thread::spawn({
        let queue = queue.clone();
        move || queue.next().map(answer_with_itself)
    });
    assert_eq!(ticket.wait_timeout(Duration::MAX).unwrap().unwrap(), 5);
    worker.join().unwrap();
    assert!(queue.next_timeout(Duration::ZERO).is_none());
}

/// Everyone is answered exactly once, whoever wins.
#[test]
fn many_threads_submit_cancel_and_work_at_once() {
    const CALLERS: u32 = 6;
    const EACH: u32 = 2000;
    let hooked = Arc::new(AtomicUsize::new(0));
    let count = hooked.clone();
    let clock = Arc::new(orion_core::SystemClock::new());
    let settings = QueueSettings::new().max_requests(64).servers(3);
    let queue = Queue::with_hook(settings, clock.clone(), move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let ran = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let (queue, ran) = (queue.clone(), ran.clone());
            std::thread::spawn(move || {
                queue.serve(|n, _| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    Ok(n)
                });
            })
        })
        .collect();
    let barrier = Barrier::new(CALLERS as usize);
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (queue, barrier, answered, refused, clock) = (&queue, &barrier, &answered, &refused, &clock);
            scope.spawn(move || {
                barrier.wait();
                let mut tickets = Vec::new();
                for n in 0..EACH {
                    let priority = [Priority::Low, Priority::Normal, Priority::High][n as usize % 3];
                    let mut submission =
                        Submission::new(n).caller(format!("{caller}").as_str()).priority(priority);
                    if n % 7 == 0 {
                        submission = submission.deadline(clock.now().after(Duration::from_micros(20)));
                    }
                    match queue.submit(submission) {
                        Ok(ticket) => {
                            if n % 5 == 0 {
                                ticket.cancel();
                            }
                            tickets.push((n, ticket));
                        }
                        Err(_) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                for (n, ticket) in tickets {
                    if let Ok(answer) = ticket.wait() {
                        assert_eq!(answer, n);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    queue.drain();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let all = queue.statistics();
    let (answered, refused, ran, hooked) = (
        answered.into_inner(),
        refused.into_inner(),
        ran.load(Ordering::Relaxed),
        hooked.load(Ordering::Relaxed),
    );
    assert_eq!(answered + refused, (CALLERS * EACH) as usize);
    assert_eq!(answered as u64, all.accepted);
    assert_eq!(ran as u64, all.finished);
    assert_eq!(ran + hooked, answered, "each either ran or was dropped");
    assert_eq!(hooked as u64, all.expired + all.cancelled + all.turned_away);
    assert_eq!((all.queued, all.queued_tokens, all.running), (0, 0, 0));
}

#[test]
fn every_part_can_be_printed() {
    let (queue, _) = queue(QueueSettings::new().max_requests(1));
    let ticket = put(&queue, 1);
    let refused = queue.submit(Submission::new(2)).unwrap_err();
    let work = queue.try_next().unwrap();
    let parts = [format!("{queue:?}"), format!("{ticket:?}"), format!("{refused:?}"), format!("{work:?}")];
    let expected =
        ["max_requests: 1", "Ticket { key", "the queue is full", "Work { receipt: Receipt { waited: 0ns"];
    for (part, expected) in parts.iter().zip(expected) {
        assert!(part.contains(expected), "{part}");
    }
}

/// A jump of the wall clock expires nothing.
#[test]
fn deadlines_do_not_follow_the_wall_clock() {
    let (queue, clock) = queue(QueueSettings::new());
    for n in 0..10 {
        queue.submit(Submission::new(n).deadline(Timestamp(SECOND))).unwrap();
    }
    clock.set_wall(Duration::from_secs(86_400));
    assert_eq!(queue.expire(), 0);
    clock.set_wall(Duration::ZERO);
    assert_eq!(rest(&queue).len(), 10);
}

/// A clock that goes back against its promise: waits are zero, never negative, and nothing panics.
#[test]
fn a_clock_that_goes_back_does_no_harm() {
    struct Back(AtomicUsize);
    impl Clock for Back {
        fn now(&self) -> Timestamp {
            Timestamp(Duration::from_secs(1000 - self.0.fetch_add(1, Ordering::Relaxed) as u64))
        }
        fn wall(&self) -> Duration {
            Duration::ZERO
        }
    }
    let queue = Queue::new(QueueSettings::new(), Arc::new(Back(AtomicUsize::new(0))));
    for n in 0..5 {
        queue.submit(Submission::new(n).priority(Priority::Low).deadline(Timestamp(1001 * SECOND))).unwrap();
    }
    let (request, receipt) = queue.try_next().unwrap().split();
    assert_eq!((request, receipt.waited()), (0, Duration::ZERO));
    receipt.complete(0);
    assert_eq!(rest(&queue), [1, 2, 3, 4]);
    assert_eq!(queue.predicted_wait(), Some(Duration::ZERO));
}
