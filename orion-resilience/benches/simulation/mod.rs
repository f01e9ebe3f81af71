//! An outage in virtual time: callers with periods of their own, a dependency that is down for a while, and between
//! them the breaker and the retries of this crate. Nothing sleeps; the same seed gives the same run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orion_core::{Clock, Error, ErrorKind, ManualClock, Timestamp};
use orion_resilience::{
    BreakerEvent, BreakerSettings, BreakerState, CircuitBreaker, Context, Deadline, OwnedPermit, RetryBudget,
    RetryPolicy,
};

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    pub(crate) callers: u64,
    /// Each caller has a new request this often.
    pub(crate) period: Duration,
    /// The dependency fails every call that ends before this.
    pub(crate) lasts: Duration,
    /// The simulation ends here.
    pub(crate) ends: Duration,
    /// How long a call takes, failed or not.
    pub(crate) latency: Duration,
    pub(crate) breaker: BreakerSettings,
    pub(crate) retry: RetryPolicy,
    /// Retries per call that are allowed.
    pub(crate) budget: (f64, u32),
    pub(crate) seed: u64,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// Requests offered during the outage.
    pub(crate) offered: u64,
    /// Requests offered in all.
    pub(crate) requests: u64,
    /// Calls that reached the dependency while it was down.
    pub(crate) wasted: u64,
    pub(crate) retries: u64,
    /// From the end of the outage to the breaker's closing.
    pub(crate) recovered_after: Option<Duration>,
    /// The wait that was in force when the outage ended.
    pub(crate) last_wait: Duration,
    /// Most retries that woke up within one millisecond.
    pub(crate) most_retries_at_once: u64,
    /// Requests answered after the breaker had closed, and all that were offered since.
    pub(crate) served_since: (u64, u64),
}

enum Happening {
    /// A request of a caller, at its n-th attempt.
    Attempt { attempts: u32 },
    /// A call ends.
    End { permit: OwnedPermit, attempts: u32 },
    /// A caller's next request.
    Arrival,
}

struct Simulation<'a> {
    outage: &'a Outage,
    clock: ManualClock,
    context: Context,
    random: fastrand::Rng,
    budget: RetryBudget,
    agenda: BinaryHeap<Reverse<(Timestamp, u64)>>,
    happenings: BTreeMap<u64, (u64, Happening)>,
    next: u64,
    report: Report,
    wakes: BTreeMap<u128, u64>,
    closed_at: Option<Timestamp>,
}

impl Simulation<'_> {
    fn at(&mut self, time: Timestamp, caller: u64, happening: Happening) {
        self.agenda.push(Reverse((time, self.next)));
        self.happenings.insert(self.next, (caller, happening));
        self.next += 1;
    }

    fn is_down(&self) -> bool {
        self.clock.now().0 < self.outage.lasts
    }

    fn attempt(&mut self, breaker: &Arc<CircuitBreaker>, caller: u64, attempts: u32) {
        match CircuitBreaker::acquire_owned(breaker) {
            Ok(permit) => {
                let end = self.clock.now().after(self.outage.latency);
                self.at(end, caller, Happening::End { permit, attempts });
            }
            Err(refused) => self.failed(caller, attempts, &refused.into()),
        }
    }

    fn failed(&mut self, caller: u64, attempts: u32, error: &Error) {
        let attempts = attempts + 1;
        let random = self.random.f64();
        if let Some(wait) = self.outage.retry.next_wait(attempts, error, &self.context, random)
            && self.budget.withdraw()
        {
            self.report.retries += 1;
            let wake = self.clock.now().after(wait);
            *self.wakes.entry(wake.0.as_millis()).or_default() += 1;
            self.at(wake, caller, Happening::Attempt { attempts });
        }
    }

    fn end(&mut self, caller: u64, permit: OwnedPermit, attempts: u32) {
        if self.is_down() {
            self.report.wasted += 1;
            permit.failure(self.outage.latency);
            self.failed(caller, attempts, &Error::new(ErrorKind::Network, "down"));
        } else {
            permit.success(self.outage.latency);
            self.report.served_since.0 += u64::from(self.closed_at.is_some());
        }
    }
}

/// Runs the outage to its end.
pub(crate) fn run(outage: &Outage) -> orion_core::Result<Report> {
    let clock = ManualClock::new();
    let breaker = Arc::new(CircuitBreaker::new(
        "simulated",
        outage.breaker.clone().seed(outage.seed),
        Arc::new(clock.clone()),
    )?);
    let events = Arc::new(Mutex::new(Vec::<BreakerEvent>::new()));
    let into = Arc::clone(&events);
    breaker.on_event(move |event| {
        if let Ok(mut events) = into.lock() {
            events.push(event.clone());
        }
    });
    let mut simulation = Simulation {
        outage,
        context: Context::new(Deadline::never(Arc::new(clock.clone()))),
        clock,
        random: fastrand::Rng::with_seed(outage.seed),
        budget: RetryBudget::new(outage.budget.0, outage.budget.1)?,
        agenda: BinaryHeap::new(),
        happenings: BTreeMap::new(),
        next: 0,
        report: Report::default(),
        wakes: BTreeMap::new(),
        closed_at: None,
    };
    for caller in 0..outage.callers {
        let start = outage.period.mul_f64(simulation.random.f64());
        simulation.at(Timestamp(start), caller, Happening::Arrival);
    }
    while let Some(Reverse((time, id))) = simulation.agenda.pop() {
        if time.0 >= outage.ends {
            break;
        }
        let now = simulation.clock.now();
        simulation.clock.advance(time.since(now));
        let Some((caller, happening)) = simulation.happenings.remove(&id) else { continue };
        match happening {
            Happening::Arrival => {
                simulation.budget.deposit();
                simulation.report.requests += 1;
                simulation.report.offered += u64::from(simulation.is_down());
                simulation.report.served_since.1 += u64::from(simulation.closed_at.is_some());
                simulation.at(time.after(outage.period), caller, Happening::Arrival);
                simulation.attempt(&breaker, caller, 0);
            }
            Happening::Attempt { attempts } => simulation.attempt(&breaker, caller, attempts),
            Happening::End { permit, attempts } => simulation.end(caller, permit, attempts),
        }
        if let Ok(events) = events.lock()
            && let Some(last) = events.last()
            && last.to == BreakerState::Closed
            && simulation.closed_at.is_none()
        {
            simulation.closed_at = Some(last.at);
        }
    }
    let mut report = simulation.report;
    let end = Timestamp(outage.lasts);
    report.recovered_after = simulation.closed_at.map(|closed| closed.since(end));
    report.most_retries_at_once = simulation.wakes.values().copied().max().unwrap_or(0);
    if let Ok(events) = events.lock() {
        let opened = events.iter().rfind(|event| event.to == BreakerState::Open && event.at <= end);
        report.last_wait = opened.and_then(|event| event.wait).unwrap_or_default();
    }
    Ok(report)
}

/// A hundred callers with a request a second each; the dependency is down for a minute.
pub(crate) fn a_minute_of_a_hundred_callers(seed: u64) -> Outage {
    Outage {
        callers: 100,
        period: Duration::from_secs(1),
        lasts: Duration::from_secs(60),
        ends: Duration::from_secs(180),
        latency: Duration::from_millis(50),
        breaker: BreakerSettings::new(),
        retry: RetryPolicy::new(),
        budget: (0.1, 10),
        seed,
    }
}
