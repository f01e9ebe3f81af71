//! What ORION counts and measures: the names, and one function per event.
//!
//! Everything goes through the `metrics` facade: without a recorder a call costs about a nanosecond, and a program
//! may install the exporter it likes. [`Prometheus`] is the one that comes with this crate.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use orion_core::{Decision, Error, ModelId, Operation, Result};

/// A metric: its name, kind, labels and meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricInfo {
    /// Its name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static str,
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($constant:ident = $name:literal, $kind:literal, $labels:literal, $help:literal;)*) => {
        $(pub(crate) const $constant: &str = $name;)*

        /// Every metric of ORION.
        pub const METRICS: &[MetricInfo] = &[$(MetricInfo { name: $name, kind: $kind, labels: $labels, help: $help },)*];
    };
}

metrics_table! {
    REQUESTS = "orion_requests_total", "counter", "model, outcome", "requests that ended: done, cancelled, failed, rejected";
    FALLBACKS = "orion_fallbacks_total", "counter", "model", "requests a model handed on to the next of its chain";
    TTFT = "orion_ttft_seconds", "histogram", "model", "time from a request's arrival to its first token";
    INTER_TOKEN = "orion_inter_token_seconds", "histogram", "model", "mean time between the tokens of a request";
    PROMPT_TOKENS = "orion_prompt_tokens_total", "counter", "model", "prompt tokens, cached ones included";
    CACHED_TOKENS = "orion_cached_tokens_total", "counter", "model", "prompt tokens that were not computed again";
    COMPLETION_TOKENS = "orion_completion_tokens_total", "counter", "model", "tokens generated";
    QUEUE_DEPTH = "orion_queue_depth", "gauge", "", "requests waiting for a place";
    QUEUE_WAIT = "orion_queue_wait_seconds", "histogram", "model", "time a request waited for a place";
    LOADS = "orion_model_loads_total", "counter", "model, outcome", "attempts to bring a model into memory: ok, failed";
    LOAD_SECONDS = "orion_model_load_seconds", "histogram", "model", "time to bring a model into memory";
    EVICTIONS = "orion_model_evictions_total", "counter", "model", "times a model left memory for another";
    RESIDENT_BYTES = "orion_model_resident_bytes", "gauge", "model", "bytes a model takes in memory, 0 once it is gone";
    BREAKER_STATE = "orion_breaker_state", "gauge", "model, operation", "0 closed, 1 half-open, 2 open";
    BREAKER_TRANSITIONS = "orion_breaker_transitions_total", "counter", "model, operation, to", "changes of a breaker's state";
    DECISIONS = "orion_router_decisions_total", "counter", "model, router", "models chosen by a router; model is none where it abstained";
    CONFIDENCE = "orion_router_confidence", "histogram", "router", "confidence of a router's decisions";
    LOG_DROPPED = "orion_log_dropped_lines_total", "counter", "", "log lines dropped because an output lagged behind";
}

/// Registers unit and help of every metric with the recorder in force. [`Prometheus`] does so by itself.
pub fn describe() {
    for metric in METRICS {
        let unit = if metric.name.ends_with("_seconds") {
            Unit::Seconds
        } else if metric.name.ends_with("_bytes") {
            Unit::Bytes
        } else {
            Unit::Count
        };
        match metric.kind {
            "counter" => describe_counter!(metric.name, unit, metric.help),
            "gauge" => describe_gauge!(metric.name, unit, metric.help),
            _ => describe_histogram!(metric.name, unit, metric.help),
        }
    }
}

fn label(model: &ModelId) -> String {
    model.as_str().to_owned()
}

/// Sets how many requests wait for a place.
pub fn queue_depth(requests: usize) {
    #[allow(clippy::cast_precision_loss, reason = "a queue of 2^52 requests does not fit the machine")]
    gauge!(QUEUE_DEPTH).set(requests as f64);
}

/// Counts an attempt to bring a model into memory.
pub fn model_loaded(model: &ModelId, took: Duration, ok: bool) {
    counter!(LOADS, "model" => label(model), "outcome" => if ok { "ok" } else { "failed" }).increment(1);
    if ok {
        histogram!(LOAD_SECONDS, "model" => label(model)).record(took.as_secs_f64());
    }
}

/// Counts a model that left memory for another.
pub fn model_evicted(model: &ModelId) {
    counter!(EVICTIONS, "model" => label(model)).increment(1);
}

/// Sets how many bytes a model takes in memory.
pub fn model_resident(model: &ModelId, bytes: u64) {
    #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes")]
    gauge!(RESIDENT_BYTES, "model" => label(model)).set(bytes as f64);
}

/// The states a breaker reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// A probe passes.
    HalfOpen,
    /// Calls are refused.
    Open,
}

/// Counts a change of a breaker's state and sets the state.
pub fn breaker_changed(model: &ModelId, operation: Operation, to: BreakerState) {
    let operation = match operation {
        Operation::Load => "load",
        _ => "generate",
    };
    let (name, value) = match to {
        BreakerState::Closed => ("closed", 0.0),
        BreakerState::HalfOpen => ("half_open", 1.0),
        BreakerState::Open => ("open", 2.0),
    };
    gauge!(BREAKER_STATE, "model" => label(model), "operation" => operation).set(value);
    counter!(BREAKER_TRANSITIONS, "model" => label(model), "operation" => operation, "to" => name)
        .increment(1);
}

/// Counts a router's decision.
pub fn routed(decision: &Decision) {
    let model = decision.chosen().map_or_else(|| "none".to_owned(), label);
    counter!(DECISIONS, "model" => model, "router" => decision.router.clone()).increment(1);
    histogram!(CONFIDENCE, "router" => decision.router.clone()).record(f64::from(decision.confidence));
}

/// Metrics as Prometheus reads them. There is no server in here: the program serves [`render`](Self::render) where
/// and to whom it wants.
#[derive(Clone)]
pub struct Prometheus {
    handle: PrometheusHandle,
    /// Whether it is the recorder of the process.
    global: bool,
}

impl std::fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prometheus").field("global", &self.global).finish_non_exhaustive()
    }
}

/// Seconds: 100 microseconds to 100 seconds, three steps a decade.
const SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0,
    50.0, 100.0,
];
const SHARES: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

fn recorder() -> Result<PrometheusRecorder> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let shares = Matcher::Full(CONFIDENCE.to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(seconds, SECONDS);
    let builder = builder.and_then(|builder| builder.set_buckets_for_metric(shares, SHARES));
    let failed =
        |error| Error::new(orion_core::ErrorKind::Internal, "metrics cannot be set up").with_source(error);
    Ok(builder.map_err(failed)?.build_recorder())
}

impl Prometheus {
    /// Makes it the recorder of the process. Doing so again gives the same one.
    ///
    /// # Errors
    /// [`Rejected`](orion_core::ErrorKind::Rejected) if the program has installed a recorder of its own: ORION's
    /// metrics go there then.
    pub fn install() -> Result<Self> {
        static OURS: OnceLock<Prometheus> = OnceLock::new();
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ours) = OURS.get() {
            return Ok(ours.clone());
        }
        let recorder = recorder()?;
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| {
            let message = "the program has a metrics recorder of its own, which stays";
            Error::new(orion_core::ErrorKind::Rejected, message).with_source(error.to_string())
        })?;
        describe();
        Ok(OURS.get_or_init(|| Self { handle, global: true }).clone())
    }

    /// Runs `work` with a recorder that sees this thread's metrics only, and renders them.
    ///
    /// # Errors
    /// If the recorder cannot be built.
    pub fn local<T>(work: impl FnOnce() -> T) -> Result<(T, String)> {
        let recorder = recorder()?;
        let handle = recorder.handle();
        let result = metrics::with_local_recorder(&recorder, || {
            describe();
            work()
        });
        Ok((result, Self { handle, global: false }.render()))
    }

    /// The metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}
