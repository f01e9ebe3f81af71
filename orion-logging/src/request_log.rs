//! Requests as spans, as one wide event each, and as metrics.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, histogram};
use orion_core::state::{Phase, Trace};
use orion_core::{Observer, RequestEvent, RequestId, Usage};
use tracing::{Span, info, info_span};

use crate::metric;

/// Follows requests: a span `request` with the spans `validate`, `route`, `queue`, `load`, `prefill` and `decode`
/// below it, the metrics, and at the end one event with everything: outcome, model, the time in every state, tokens,
/// rates, the router's decision, the error.
#[derive(Debug, Default)]
pub struct RequestLog {
    running: Mutex<HashMap<RequestId, Running>>,
}

#[derive(Debug)]
struct Running {
    request: Span,
    /// Closes when it is replaced.
    phase: Option<Span>,
    decision: Option<(String, f32, bool, String)>,
    usage: Option<Usage>,
    finish: Option<String>,
    error: Option<(&'static str, String)>,
}

impl Running {
    fn new(id: RequestId) -> Self {
        Self {
            request: info_span!(target: "orion::request", parent: None, "request", id = %id),
            phase: None,
            decision: None,
            usage: None,
            finish: None,
            error: None,
        }
    }

    fn enter(&mut self, trace: &Trace) {
        self.phase = None;
        let model = trace.model().map(tracing::field::display);
        macro_rules! span {
            ($name:literal) => {
                Some(info_span!(target: "orion::request", parent: &self.request, $name, model))
            };
        }
        self.phase = match trace.state().phase {
            Phase::Validating => span!("validate"),
            Phase::Routing => span!("route"),
            Phase::Admitting => span!("queue"),
            Phase::Loading => span!("load"),
            Phase::Prefilling => span!("prefill"),
            Phase::Decoding => span!("decode"),
            Phase::Done | Phase::Cancelled | Phase::Failed | Phase::Rejected => None,
        };
    }
}

impl RequestLog {
    /// Follows no request yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The span a request is in now, so that work for it on other threads can enter it.
    #[must_use]
    pub fn span(&self, request: RequestId) -> Option<Span> {
        self.running()
            .get(&request)
            .map(|running| running.phase.clone().unwrap_or_else(|| running.request.clone()))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<RequestId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for RequestLog {
    fn event(&self, request: RequestId, event: RequestEvent<'_>) {
        let mut running = self.running();
        let it = running.entry(request).or_insert_with(|| Running::new(request));
        match event {
            RequestEvent::Entered(trace) => it.enter(trace),
            RequestEvent::Decided(decision) => {
                metric::routed(decision);
                it.decision = Some((
                    decision.router.clone(),
                    decision.confidence,
                    decision.abstained,
                    decision.reason.clone(),
                ));
            }
            RequestEvent::Completed(completion) => {
                it.usage = Some(completion.usage);
                it.finish =
                    serde_json::to_value(completion.reason).ok().and_then(|it| Some(it.as_str()?.to_owned()));
            }
            RequestEvent::Failed(error) => it.error = Some((error.kind().as_str(), error.to_string())),
            _ => {}
        }
    }

    fn finished(&self, request: RequestId, trace: &Trace) {
        let mut it = self.running().remove(&request).unwrap_or_else(|| Running::new(request));
        it.phase = None;
        let facts = Facts::of(trace, it.usage);
        facts.count(trace);
        let ms = |phase| millis(trace.time_in(phase));
        let (router, confidence, abstained, reason) = match &it.decision {
            Some((router, confidence, abstained, reason)) => {
                (Some(router.as_str()), Some(*confidence), Some(*abstained), Some(reason.as_str()))
            }
            None => (None, None, None, None),
        };
        info!(
            target: "orion::request",
            parent: &it.request,
            request = %request,
            outcome = facts.outcome,
            model = facts.model.as_deref(),
            total_ms = millis(facts.total),
            ttft_ms = facts.ttft.map(millis),
            validate_ms = ms(Phase::Validating),
            route_ms = ms(Phase::Routing),
            queue_ms = ms(Phase::Admitting),
            load_ms = ms(Phase::Loading),
            prefill_ms = ms(Phase::Prefilling),
            decode_ms = ms(Phase::Decoding),
            tokens = trace.state().tokens,
            tokens_per_second = facts.rate,
            prompt_tokens = it.usage.map(|usage| usage.prompt_tokens),
            cached_tokens = it.usage.map(|usage| usage.cached_tokens),
            fallbacks = trace.state().fallbacks,
            finish_reason = it.finish.as_deref(),
            router,
            confidence,
            abstained,
            reason,
            error_kind = it.error.as_ref().map(|(kind, _)| *kind),
            error = it.error.as_ref().map(|(_, error)| error.as_str()),
            "request"
        );
    }
}

fn millis(time: Duration) -> f64 {
    // Microseconds are enough, and keep the lines short.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// What a trace says.
struct Facts {
    outcome: &'static str,
    model: Option<String>,
    total: Duration,
    ttft: Option<Duration>,
    inter_token: Option<Duration>,
    rate: Option<f64>,
    usage: Option<Usage>,
}

impl Facts {
    fn of(trace: &Trace, usage: Option<Usage>) -> Self {
        let outcome = match trace.state().phase {
            Phase::Done => "done",
            Phase::Cancelled => "cancelled",
            Phase::Rejected => "rejected",
            Phase::Failed => "failed",
            // Not an end; said as it is.
            _ => "unfinished",
        };
        let tokens = trace.state().tokens;
        let decoding = trace.visits().iter().position(|visit| visit.phase == Phase::Decoding);
        let until = |end: usize| trace.visits()[..end].iter().map(|visit| visit.stayed).sum::<Duration>();
        let decode = trace.time_in(Phase::Decoding);
        let between = if tokens > 1 { Some(decode / (tokens - 1)) } else { None };
        Self {
            outcome,
            model: trace.model().map(|model| model.as_str().to_owned()),
            total: until(trace.visits().len()),
            ttft: decoding.map(until),
            inter_token: between,
            rate: between.filter(|gap| !gap.is_zero()).map(|gap| 1.0 / gap.as_secs_f64()),
            usage,
        }
    }

    fn count(&self, trace: &Trace) {
        let model = self.model.clone().unwrap_or_else(|| "none".to_owned());
        counter!(metric::REQUESTS, "model" => model.clone(), "outcome" => self.outcome).increment(1);
        if let Some(ttft) = self.ttft {
            histogram!(metric::TTFT, "model" => model.clone()).record(ttft.as_secs_f64());
        }
        if let Some(gap) = self.inter_token {
            histogram!(metric::INTER_TOKEN, "model" => model.clone()).record(gap.as_secs_f64());
        }
        if let Some(usage) = self.usage {
            for (name, count) in [
                (metric::PROMPT_TOKENS, usage.prompt_tokens),
                (metric::CACHED_TOKENS, usage.cached_tokens),
                (metric::COMPLETION_TOKENS, usage.completion_tokens),
            ] {
                counter!(name, "model" => model.clone()).increment(count.into());
            }
        }
        // Each visit that was left for another queue is a model that handed the request on.
        let mut visits = trace.visits().iter().peekable();
        let mut queued = false;
        while let Some(visit) = visits.next() {
            let visited =
                || visit.model.as_ref().map_or_else(|| "none".to_owned(), |it| it.as_str().to_owned());
            if visit.phase == Phase::Admitting {
                histogram!(metric::QUEUE_WAIT, "model" => visited()).record(visit.stayed.as_secs_f64());
            }
            queued |= visit.phase == Phase::Admitting;
            let next = visits.peek().map_or(trace.state().phase, |next| next.phase);
            if queued && next == Phase::Admitting {
                counter!(metric::FALLBACKS, "model" => visited()).increment(1);
            }
        }
    }
}
