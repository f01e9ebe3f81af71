#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod backoff;
mod breaker;
mod bulkhead;
mod fallback;
mod guard;
mod queue;
mod registry;
mod retry;
mod service;
mod shed;
mod sync;
mod timeout;

pub use backoff::Backoff;
pub use breaker::{
    BreakerEvent, BreakerPermit, BreakerSettings, BreakerSnapshot, BreakerState, BreakerStatistics,
    CallError, Cause, CircuitBreaker, Judgement, OwnedPermit, SlowCalls, WindowKind, classify,
};
pub use bulkhead::{Bulkhead, BulkheadPermit, Limited};
pub use fallback::{ChainEnd, Fallback, FallbackFailed, FallbackLimits, FallbackWalk, Hop};
pub use guard::Guard;
pub use queue::{
    Caller, NotQueued, Priority, QueuePhase, QueueSettings, QueueStatistics, Receipt, RequestQueue,
    Submission, Ticket, Work,
};
pub use registry::{BreakerRegistry, HealthSummary, Scope};
pub use retry::{Retry, RetryBudget, RetryPolicy};
pub use service::{BoxService, Context, Deadline, Service, Sleep, ThreadSleep};
pub use shed::{LoadShedder, Shed};
pub use timeout::Timeout;
