//! The compute pool: fixed threads that run one region at a time, the caller among them.
//!
//! A region is one closure that every thread runs. Inside, the threads share out chunks by an atomic cursor, so a
//! slower thread takes fewer, and meet at barriers. A whole decoding step is one region: waking threads costs tens
//! of microseconds, a barrier about one.
#![allow(unsafe_code, reason = "workers run a closure borrowed from the caller's stack")]

mod first;
mod wait;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use orion_core::{Error, ErrorKind, Result};

use first::First;
use wait::WaitPoint;

type Task = *const (dyn Fn(&Region<'_>) + Sync);

/// A value on a cache line of its own, so that a write to it does not slow readers of its neighbours.
#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

struct Shared {
    /// Job number above, participating threads in the low 16 bits: one word, so that both are read together.
    job: Padded<AtomicU64>,
    /// The closure of the current job. Written while no worker takes part, read by participants only.
    task: UnsafeCell<Option<Task>>,
    /// Workers that have not left the current job.
    inside: Padded<AtomicUsize>,
    /// Next item of the current phase.
    cursor: Padded<AtomicUsize>,
    /// Threads that reached the current barrier.
    arrived: Padded<AtomicUsize>,
    /// Barriers passed so far.
    generation: Padded<AtomicU32>,
    /// A thread panicked; the others leave at their next barrier.
    poisoned: AtomicBool,
    panic_message: Mutex<Option<String>>,
    shutdown: AtomicBool,
    waits: WaitPoint,
    first: First,
}

// SAFETY: `task` is written by the caller only while `inside` is zero and read by participants of the job only;
// publication goes through `job` (release/acquire). The closure behind it is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

thread_local! {
    /// Whether this thread is inside a region. A nested region could never start.
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// What unwinds a thread out of a region that another thread's panic has ended.
struct Abandoned;

/// Fixed threads for numeric work. Cloning shares the pool.
///
/// The calling thread takes part, so a pool of `n` threads starts `n - 1`. Jobs of several callers take turns.
/// Waiting threads spin for some tens of microseconds, then yield, then sleep. When a neighbour on the machine keeps
/// a core so busy that waiting dominates, the pool works with the calling thread alone for a while; results do not
/// depend on the number of threads.
#[derive(Clone)]
pub struct ComputePool {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    threads: usize,
    turn: Mutex<Contention>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl ComputePool {
    /// A pool of `threads` threads, the caller's included; 0 means as many as this process may use, by its affinity
    /// mask and its cgroup's CPU quota.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if a thread cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
        .min(MAX_THREADS);
        let shared = Arc::new(Shared {
            job: Padded::default(),
            task: UnsafeCell::new(None),
            inside: Padded::default(),
            cursor: Padded::default(),
            arrived: Padded::default(),
            generation: Padded::default(),
            poisoned: AtomicBool::new(false),
            panic_message: Mutex::new(None),
            shutdown: AtomicBool::new(false),
            waits: WaitPoint::default(),
            first: First::default(),
        });
        let inner = Inner {
            shared: Arc::clone(&shared),
            threads,
            turn: Mutex::new(Contention::default()),
            handles: Mutex::new(Vec::with_capacity(threads - 1)),
        };
        for index in 1..threads {
            let shared = Arc::clone(&shared);
            let handle = std::thread::Builder::new()
                .name(format!("orion-compute-{index}"))
                .spawn(move || work(&shared, index))
                .map_err(|error| Error::io(error, "starting a compute thread"))?;
            inner.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The process-wide pool with the default number of threads, started at first use.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if its threads cannot be started.
    pub fn shared() -> Result<Self> {
        static SHARED: OnceLock<ComputePool> = OnceLock::new();
        if let Some(pool) = SHARED.get() {
            return Ok(pool.clone());
        }
        let pool = Self::new(0)?;
        Ok(SHARED.get_or_init(|| pool).clone())
    }

    /// Number of threads, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.inner.threads
    }

    /// Runs `body` on every thread and returns when all have finished. Allocates nothing.
    ///
    /// Every thread must pass the same barriers and loops in the same order.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) if `body` panicked on any thread, or if called from inside a region. The
    /// pool stays usable.
    pub fn run(&self, body: impl Fn(&Region<'_>) + Sync) -> Result<()> {
        refuse_nested()?;
        let turn = self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_turn(turn, &body)
    }

    /// [`run`](Self::run) for short work that somebody waits for: it does not wait for the region that is running to end, but
    /// is done by its threads where that region [gives way](Region::give_way).
    ///
    /// # Errors
    /// As [`run`](Self::run). A panic in `body` ends the other region, too.
    pub fn run_first(&self, body: impl Fn(&Region<'_>) + Sync) -> Result<()> {
        refuse_nested()?;
        let turn = || match self.inner.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        match self.inner.shared.first.ask(&body, turn)? {
            Some(turn) => self.take_turn(turn, &body),
            None => Ok(()),
        }
    }

    fn take_turn(
        &self,
        mut contention: MutexGuard<'_, Contention>,
        body: &(dyn Fn(&Region<'_>) + Sync),
    ) -> Result<()> {
        let result = self.region(&mut contention, body);
        self.inner.shared.first.region_ended();
        drop(contention);
        self.inner.shared.first.turn_is_free();
        result
    }

    fn region(&self, contention: &mut Contention, body: &(dyn Fn(&Region<'_>) + Sync)) -> Result<()> {
        let participants = contention.participants(self.inner.threads);
        let shared = &*self.inner.shared;
        shared.cursor.0.store(0, Ordering::Relaxed);
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.poisoned.store(false, Ordering::Relaxed);
        shared.inside.0.store(participants - 1, Ordering::Relaxed);

        if participants > 1 {
            // SAFETY: only the lifetime changes. No worker holds the pointer once `inside` is back at zero, which is
            // awaited below, also after a panic.
            let task: Task = unsafe { std::mem::transmute(body) };
            // SAFETY: the previous job's workers have all left, and the new job is not published yet.
            unsafe { *shared.task.get() = Some(task) };
            let number = (shared.job.0.load(Ordering::Relaxed) >> 16) + 1;
            shared.job.0.store(number << 16 | participants as u64, Ordering::Release);
            shared.waits.wake();
        }

        let started = Instant::now();
        let region = Region::new(shared, 0, participants);
        shared.enter(body, &region);
        let waited =
            region.slow_wait.get() + shared.waits.until(|| shared.inside.0.load(Ordering::Acquire) == 0);
        if shared.poisoned.load(Ordering::Acquire) {
            let message = shared.panic_message.lock().unwrap_or_else(PoisonError::into_inner).take();
            let message = message.unwrap_or_else(|| "no message".to_owned());
            return Err(Error::new(ErrorKind::Internal, format!("a compute thread panicked: {message}")));
        }
        contention.note(participants, waited, started);
        Ok(())
    }
}

fn refuse_nested() -> Result<()> {
    match IN_REGION.get() {
        true => Err(Error::new(ErrorKind::Internal, "a compute region cannot be started inside another")),
        false => Ok(()),
    }
}

/// More threads than this gain nothing in what this crate does.
const MAX_THREADS: usize = 256;

impl fmt::Debug for ComputePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ComputePool({} threads)", self.threads())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        self.shared.waits.wake();
        for handle in self.handles.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A worker catches every panic of its tasks, so there is no error to look at.
            drop(handle.join());
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        shared.waits.until(|| {
            shared.job.0.load(Ordering::Acquire) != seen || shared.shutdown.load(Ordering::Acquire)
        });
        if shared.shutdown.load(Ordering::Acquire) {
            return;
        }
        seen = shared.job.0.load(Ordering::Acquire);
        let participants = (seen & 0xffff) as usize;
        if index >= participants {
            continue;
        }
        // SAFETY: this thread is a participant of the job it has just read, so the caller waits for it and the
        // pointer was published before the job's number.
        if let Some(task) = unsafe { *shared.task.get() } {
            // SAFETY: as above, the closure outlives this thread's part in the job.
            shared.enter(unsafe { &*task }, &Region::new(shared, index, participants));
        }
        if shared.inside.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.waits.wake();
        }
    }
}

impl Shared {
    /// Runs one thread's part and turns a panic into the job's error.
    fn enter(&self, body: &(dyn Fn(&Region<'_>) + Sync), region: &Region<'_>) {
        IN_REGION.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| body(region)));
        IN_REGION.set(false);
        if let Err(payload) = result {
            if !payload.is::<Abandoned>() {
                *self.panic_message.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(message_of(&*payload));
            }
            self.poisoned.store(true, Ordering::SeqCst);
            self.waits.wake();
        }
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// One thread's view of a running region.
pub struct Region<'a> {
    shared: &'a Shared,
    thread: usize,
    threads: usize,
    slow_wait: Cell<Duration>,
}

impl<'a> Region<'a> {
    fn new(shared: &'a Shared, thread: usize, threads: usize) -> Self {
        Self { shared, thread, threads, slow_wait: Cell::new(Duration::ZERO) }
    }

    /// This thread's number, below [`threads`](Self::threads); the caller's is 0.
    #[must_use]
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// Threads that take part in this region.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Returns once every thread has called it. What was written before is visible after.
    pub fn barrier(&self) {
        self.barrier_meanwhile(|| false);
    }

    /// [`barrier`](Self::barrier), and `meanwhile` is called as long as there is nothing to do but to wait, until it says that it
    /// has done all. It should take some tens of nanoseconds.
    fn barrier_meanwhile(&self, meanwhile: impl FnMut() -> bool) {
        if self.threads == 1 {
            self.shared.cursor.0.store(0, Ordering::Relaxed);
            return;
        }
        let shared = self.shared;
        let generation = shared.generation.0.load(Ordering::Acquire);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.cursor.0.store(0, Ordering::Relaxed);
            shared.first.decide();
            shared.generation.0.store(generation.wrapping_add(1), Ordering::Release);
            shared.waits.wake();
        } else {
            let passed = || {
                shared.generation.0.load(Ordering::Acquire) != generation
                    || shared.poisoned.load(Ordering::Relaxed)
            };
            let waited = shared.waits.until_meanwhile(passed, meanwhile);
            self.slow_wait.set(self.slow_wait.get() + waited);
        }
        if shared.poisoned.load(Ordering::Acquire) {
            resume_unwind(Box::new(Abandoned));
        }
    }

    /// Lets work that [goes first](ComputePool::run_first) run here, on the threads of this region, if there is any.
    ///
    /// Every thread must call it at the same place, after a barrier and with nothing that other work could disturb.
    pub fn give_way(&self) {
        if self.threads == 1 {
            self.shared.first.decide();
        }
        let first = &self.shared.first;
        first.let_through();
        let Some(task) = first.decided() else { return };
        if self.thread == 0 {
            first.take();
        }
        // SAFETY: whoever published the task waits until it is done, which is said after all threads have left it.
        unsafe { (*task)(self) };
        self.barrier();
        if self.thread == 0 {
            first.done();
        }
        first.let_through();
    }

    /// Hands out `0..items` in chunks of at most `grain` to whichever thread asks, then meets at a barrier.
    pub fn for_chunks(&self, items: usize, grain: usize, body: impl FnMut(Range<usize>)) {
        self.share(Shares { items, first: 0, grain: grain.max(1) }, body, || false);
    }

    /// Hands out shares, then meets at a barrier. While a thread waits there it does a little of `meanwhile` again and again,
    /// until that says that it has done all.
    pub(crate) fn share(
        &self,
        shares: Shares,
        mut body: impl FnMut(Range<usize>),
        meanwhile: impl FnMut() -> bool,
    ) {
        let Shares { items, first, grain } = shares;
        if self.threads == 1 {
            (0..items).step_by(grain).for_each(|start| body(start..(start + grain).min(items)));
            return;
        }
        if first > 0 {
            body(shares.first_of(self.thread));
        }
        loop {
            let start = self.threads * first + self.shared.cursor.0.fetch_add(grain, Ordering::Relaxed);
            if start >= items {
                break;
            }
            body(start..(start + grain).min(items));
        }
        self.barrier_meanwhile(meanwhile);
    }

    /// Hands out shares, then meets at a barrier. The body gets items one by one, each with the one that this thread does next; for
    /// that a thread takes a share before it begins with the one before.
    pub(crate) fn share_foreseen(&self, shares: Shares, mut body: impl FnMut(usize, Option<usize>)) {
        let Shares { items, first, grain } = shares;
        let take = || {
            let start = self.threads * first + self.shared.cursor.0.fetch_add(grain, Ordering::Relaxed);
            start.min(items)..(start + grain).min(items)
        };
        let mut share = if first > 0 { shares.first_of(self.thread) } else { take() };
        while !share.is_empty() {
            let next = take();
            let after = (!next.is_empty()).then_some(next.start);
            for item in share.clone() {
                body(item, if item + 1 < share.end { Some(item + 1) } else { after });
            }
            share = next;
        }
        self.barrier_meanwhile(|| false);
    }
}

/// How a phase's items are shared out: to each thread `first` of them that it knows beforehand, the rest in chunks of `grain` to
/// whichever thread asks.
#[derive(Clone, Copy)]
pub(crate) struct Shares {
    pub(crate) items: usize,
    pub(crate) first: usize,
    pub(crate) grain: usize,
}

impl Shares {
    /// The items that this thread begins with.
    pub(crate) fn first_of(self, thread: usize) -> Range<usize> {
        let start = (thread * self.first).min(self.items);
        start..(start + self.first).min(self.items)
    }
}

impl fmt::Debug for Region<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region(thread {} of {})", self.thread, self.threads)
    }
}

/// Decides when a busy neighbour makes fewer threads the faster choice.
///
/// A thread that has lost its core holds up every barrier. If the caller spent most of several jobs waiting beyond
/// the spin, one thread alone is faster; after a while all are tried again, less often each time that fails.
#[derive(Default)]
struct Contention {
    /// Consecutive jobs in which waiting dominated.
    bad: u32,
    /// Jobs left to run alone.
    alone: u32,
    /// How long to stay alone next time.
    penalty: u32,
}

impl Contention {
    const BAD_JOBS: u32 = 3;
    const FIRST_PENALTY: u32 = 16;
    const LAST_PENALTY: u32 = 128;
    /// Jobs shorter than this say nothing.
    const SHORTEST: Duration = Duration::from_micros(300);

    fn participants(&mut self, threads: usize) -> usize {
        if self.alone > 0 {
            self.alone -= 1;
            return 1;
        }
        threads
    }

    fn note(&mut self, participants: usize, waited: Duration, started: Instant) {
        if participants == 1 || (waited.is_zero() && self.bad == 0 && self.penalty == 0) {
            return;
        }
        let took = started.elapsed();
        if took < Self::SHORTEST {
            return;
        }
        if waited * 2 > took {
            self.bad += 1;
            // After a spell alone, one bad job is enough.
            if self.bad >= Self::BAD_JOBS || self.penalty > 0 {
                self.penalty = (self.penalty * 2).clamp(Self::FIRST_PENALTY, Self::LAST_PENALTY);
                self.alone = self.penalty;
                self.bad = 0;
            }
        } else {
            self.bad = 0;
            self.penalty /= 2;
            if self.penalty < Self::FIRST_PENALTY {
                self.penalty = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_handed_out_once_in_every_phase() {
        for threads in 1..=5 {
            let pool = ComputePool::new(threads).unwrap();
            for items in [0, 1, 7, 1000] {
                let phases: Vec<Vec<AtomicUsize>> =
                    (0..20).map(|_| (0..items).map(|_| AtomicUsize::new(0)).collect()).collect();
                pool.run(|region| {
                    for (number, phase) in phases.iter().enumerate() {
                        region.for_chunks(items, 3, |range| {
                            for item in range {
                                // The phase before is complete and this one's items are new.
                                if number > 0 {
                                    assert_eq!(phases[number - 1][item].load(Ordering::Relaxed), 1);
                                }
                                phase[item].fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                })
                .unwrap();
                assert!(phases.iter().flatten().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_fails_its_job_and_the_next_succeeds() {
        let pool = ComputePool::new(3).unwrap();
        for culprit in 0..3 {
            let error = pool
                .run(|region| {
                    region.barrier();
                    assert!(region.thread() != culprit, "thread {culprit} gives up");
                    region.barrier();
                    region.barrier();
                })
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.to_string().contains(&format!("thread {culprit} gives up")), "{error}");
            let sum = AtomicUsize::new(0);
            pool.run(|region| {
                region.for_chunks(100, 7, |range| {
                    sum.fetch_add(range.sum(), Ordering::Relaxed);
                })
            })
            .unwrap();
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_nested_region_is_refused() {
        let pool = ComputePool::new(2).unwrap();
        let refused = AtomicUsize::new(0);
        pool.run(|_| {
            if pool.run(|_| ()).is_err() {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        })
        .unwrap();
        assert_eq!(refused.into_inner(), 2);
    }

    #[test]
    fn callers_take_turns() {
        let pool = ComputePool::new(2).unwrap();
        let busy = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(|region| {
                            if region.thread() == 0 {
                                assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0);
                                busy.fetch_sub(1, Ordering::SeqCst);
                            }
                        })
                        .unwrap();
                    }
                });
            }
        });
    }

    /// Starts a region on `pool`, and work that goes first while it runs; returns both results.
    fn beside(
        pool: &ComputePool,
        region: impl Fn(&Region<'_>, &AtomicBool) + Sync,
        first: impl Fn(&Region<'_>) + Sync,
    ) -> [Result<()>; 2] {
        let (started, over) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                while !started.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                let result = pool.run_first(&first);
                over.store(true, Ordering::Release);
                result
            });
            let result = pool.run(|r| {
                started.store(true, Ordering::Release);
                region(r, &over);
            });
            [result, other.join().unwrap()]
        })
    }

    #[test]
    fn a_region_does_what_goes_first_where_it_gives_way() {
        for threads in [1, 2, 3] {
            let (pool, sum) = (ComputePool::new(threads).unwrap(), AtomicUsize::new(0));
            let stop = AtomicBool::new(false);
            // The region ends only after what goes first is over: it cannot have waited for the region's end.
            let patient = |region: &Region<'_>, over: &AtomicBool| {
                loop {
                    region.for_chunks(10, 1, |_| {});
                    region.give_way();
                    if region.thread() == 0 {
                        stop.store(over.load(Ordering::Acquire), Ordering::Release);
                    }
                    region.barrier();
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                }
            };
            let results = beside(&pool, patient, |region| {
                for _ in 0..3 {
                    region.for_chunks(100, 7, |range| {
                        sum.fetch_add(range.sum(), Ordering::Relaxed);
                    });
                }
            });
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            assert_eq!(sum.into_inner(), 3 * 4950);
        }
    }

    #[test]
    fn what_goes_first_takes_its_turn_where_nothing_gives_way() {
        let (pool, runs) = (ComputePool::new(2).unwrap(), AtomicUsize::new(0));
        let first = |region: &Region<'_>| {
            region.for_chunks(1, 1, |_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
        };
        pool.run_first(first).unwrap();
        let results = beside(&pool, |region, _| (0..50).for_each(|_| region.barrier()), first);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(runs.into_inner(), 2);
    }

    #[test]
    fn a_panic_of_what_goes_first_ends_both_and_the_pool_stays_usable() {
        let pool = ComputePool::new(2).unwrap();
        let endless = |region: &Region<'_>, _: &AtomicBool| {
            loop {
                region.barrier();
                region.give_way();
            }
        };
        let results = beside(&pool, endless, |region| assert!(region.thread() == 5, "gives up"));
        for result in results {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Internal);
        }
        pool.run(|region| region.barrier()).unwrap();
        pool.run_first(|region| region.barrier()).unwrap();
    }

    #[test]
    fn many_callers_go_first_beside_many_regions() {
        let (pool, done) = (ComputePool::new(2).unwrap(), AtomicUsize::new(0));
        let count = |region: &Region<'_>| {
            region.for_chunks(4, 1, |range| {
                done.fetch_add(range.len(), Ordering::Relaxed);
            });
        };
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let (pool, count) = (&pool, &count);
                scope.spawn(move || {
                    for _ in 0..200 {
                        match caller {
                            0 | 1 => pool.run_first(count),
                            _ => pool.run(|region| {
                                (0..3).for_each(|_| {
                                    region.barrier();
                                    region.give_way();
                                });
                                count(region);
                            }),
                        }
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 4 * 200 * 4);
    }

    #[test]
    fn contention_goes_alone_after_bad_jobs_and_comes_back() {
        let mut contention = Contention::default();
        let started = Instant::now() - Duration::from_millis(10);
        let bad = |c: &mut Contention| c.note(2, Duration::from_millis(9), started);
        for _ in 0..Contention::BAD_JOBS {
            assert_eq!(contention.participants(2), 2);
            bad(&mut contention);
        }
        for _ in 0..Contention::FIRST_PENALTY {
            assert_eq!(contention.participants(2), 1);
        }
        assert_eq!(contention.participants(2), 2);
        bad(&mut contention);
        assert_eq!((0..1000).take_while(|_| contention.participants(2) == 1).count(), 32);
        for _ in 0..3 {
            contention.note(2, Duration::from_millis(1), started);
        }
        assert_eq!((contention.penalty, contention.participants(2)), (0, 2));
    }
}
