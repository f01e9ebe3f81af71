//! Requests as spans, wide events and metrics.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod common;

use std::time::Duration;

use common::{logged, values};
use orion_core::state::{Event, Trace};
use orion_core::{
    Completion, Decision, Error, FinishReason, ModelId, Observer, Operation, Ranked, RequestEvent, RequestId,
    Timestamp, Timings, Usage,
};
use orion_logging::metric::{self, BreakerState};
use orion_logging::{Logging, METRICS, Prometheus, RequestLog};

fn at(millis: u64) -> Timestamp {
    Timestamp(Duration::from_millis(millis))
}

/// A request that is routed to `big`, falls back to `small` while loading, and answers with three tokens.
fn run(log: &RequestLog, id: RequestId) {
    let mut trace = Trace::new(at(0));
    log.event(id, RequestEvent::Entered(&trace));
    let step = |trace: &mut Trace, event, millis| {
        trace.step(event, at(millis)).unwrap();
        log.event(id, RequestEvent::Entered(trace));
    };
    step(&mut trace, Event::Validated, 1);
    let ranked =
        vec![Ranked { model: "big".into(), score: 0.9 }, Ranked { model: "small".into(), score: 0.1 }];
    log.event(id, RequestEvent::Decided(&Decision::new(ranked, 0.75, false, "keyword: rust", "keyword")));
    trace.set_model(ModelId::from("big"));
    step(&mut trace, Event::Routed, 3);
    step(&mut trace, Event::Admitted, 8);
    log.event(id, RequestEvent::Failed(&Error::corrupt("digest does not match").about("big.gguf")));
    step(&mut trace, Event::FellBack, 20);
    trace.set_model(ModelId::from("small"));
    step(&mut trace, Event::Admitted, 21);
    step(&mut trace, Event::PrefillStarted, 30);
    log.span(id).unwrap().in_scope(|| tracing::info!(target: "orion_runtime", "work"));
    step(&mut trace, Event::Token, 50);
    trace.step(Event::Token, at(60)).unwrap();
    trace.step(Event::Token, at(70)).unwrap();
    let usage = Usage { prompt_tokens: 12, cached_tokens: 4, completion_tokens: 3 };
    let completion =
        Completion::new(FinishReason::Stop, "an answer".into(), vec![], usage, Timings::default());
    log.event(id, RequestEvent::Completed(&completion));
    step(&mut trace, Event::Finished, 70);
    log.finished(id, &trace);
}

#[test]
fn a_request_is_one_wide_event_with_the_time_in_every_state() {
    let log = RequestLog::new();
    let (_, json, _) = logged(Logging::builder().ignore_environment(), |_| run(&log, RequestId(7)));
    let lines = values(&json);
    assert_eq!(lines.len(), 2, "{json}");
    let spans: Vec<_> =
        lines[0]["spans"].as_array().unwrap().iter().map(|span| span["name"].clone()).collect();
    assert_eq!(spans, ["request", "prefill"]);
    assert_eq!(lines[0]["spans"][0]["fields"]["id"], "r7");
    assert_eq!(lines[0]["spans"][1]["fields"]["model"], "small");
    assert!(!json.contains("an answer"));
    let expected = serde_json::json!({
        "request": "r7", "outcome": "done", "model": "small", "total_ms": 70.0, "ttft_ms": 50.0,
        "validate_ms": 1.0, "route_ms": 2.0, "queue_ms": 6.0, "load_ms": 21.0, "prefill_ms": 20.0, "decode_ms": 20.0,
        "tokens": 3, "tokens_per_second": 100.0, "prompt_tokens": 12, "cached_tokens": 4, "fallbacks": 1,
        "finish_reason": "stop", "router": "keyword", "confidence": 0.75, "abstained": false,
        "reason": "keyword: rust", "error_kind": "corrupt", "error": "big.gguf: digest does not match",
    });
    let plain = |value: &serde_json::Value| {
        value
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| {
                (
                    key.clone(),
                    value.as_f64().map_or_else(|| value.to_string(), |number| format!("{number:.3}")),
                )
            })
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(plain(&lines[1]["fields"]), plain(&expected));
    assert!(log.span(RequestId(7)).is_none(), "nothing is kept of it");
}

#[test]
fn a_request_goes_through_the_spans_of_its_states_under_one_id() {
    use std::sync::{Arc, Mutex};
    use tracing::span::{Attributes, Id};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry::LookupSpan;

    #[derive(Clone, Default)]
    struct Spans(Arc<Mutex<Vec<String>>>);
    impl<S: tracing::Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Spans {
        fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            let parent = context.span(id).and_then(|span| Some(span.parent()?.name())).unwrap_or("-");
            self.0.lock().unwrap().push(format!("open {} in {parent}", attributes.metadata().name()));
        }
        fn on_close(&self, id: Id, context: Context<'_, S>) {
            self.0.lock().unwrap().push(format!("close {}", context.span(&id).unwrap().name()));
        }
    }
    let spans = Spans::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(spans.clone()), || {
        run(&RequestLog::new(), RequestId(1));
    });
    let seen = spans.0.lock().unwrap().clone();
    let mut expected = vec!["open request in -".to_owned()];
    for name in ["validate", "route", "queue", "load", "queue", "load", "prefill", "decode"] {
        expected.extend([format!("open {name} in request"), format!("close {name}")]);
    }
    expected.push("close request".to_owned());
    assert_eq!(seen, expected);
}

#[test]
fn metrics_are_labelled_by_model_and_rendered() {
    let (_, text) = Prometheus::local(|| {
        run(&RequestLog::new(), RequestId(1));
        let big = ModelId::from("big");
        metric::queue_depth(2);
        metric::model_loaded(&big, Duration::from_millis(15), true);
        metric::model_loaded(&big, Duration::ZERO, false);
        metric::model_evicted(&big);
        metric::model_resident(&big, 96_576_768);
        metric::breaker_changed(&big, Operation::Generate, BreakerState::Open);
        metric::routed(&Decision::new(vec![], 0.1, true, "unsure", "embedding"));
    })
    .unwrap();
    for line in [
        r#"orion_requests_total{model="small",outcome="done"} 1"#,
        r#"orion_fallbacks_total{model="big"} 1"#,
        r#"orion_ttft_seconds_sum{model="small"} 0.05"#,
        r#"orion_inter_token_seconds_sum{model="small"} 0.01"#,
        r#"orion_prompt_tokens_total{model="small"} 12"#,
        r#"orion_cached_tokens_total{model="small"} 4"#,
        r#"orion_completion_tokens_total{model="small"} 3"#,
        "orion_queue_depth 2",
        r#"orion_queue_wait_seconds_count{model="big"} 1"#,
        r#"orion_queue_wait_seconds_count{model="small"} 1"#,
        r#"orion_model_loads_total{model="big",outcome="ok"} 1"#,
        r#"orion_model_loads_total{model="big",outcome="failed"} 1"#,
        r#"orion_model_load_seconds_bucket{model="big",le="0.02"} 1"#,
        r#"orion_model_load_seconds_bucket{model="big",le="0.01"} 0"#,
        r#"orion_model_evictions_total{model="big"} 1"#,
        r#"orion_model_resident_bytes{model="big"} 96576768"#,
        r#"orion_breaker_state{model="big",operation="generate"} 2"#,
        r#"orion_breaker_transitions_total{model="big",operation="generate",to="open"} 1"#,
        r#"orion_router_decisions_total{model="big",router="keyword"} 1"#,
        r#"orion_router_decisions_total{model="none",router="embedding"} 1"#,
        r#"orion_router_confidence_count{router="keyword"} 1"#,
        "# TYPE orion_ttft_seconds histogram",
        "# HELP orion_queue_depth requests waiting for a place",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn every_metric_is_documented_as_it_is() {
    let readme = include_str!("../README.md");
    let rows: Vec<_> = readme.lines().filter(|line| line.starts_with("| `orion_")).collect();
    let table: Vec<_> = METRICS
        .iter()
        .map(|m| format!("| `{}` | {} | {} | {} |", m.name, m.kind, m.labels, m.help))
        .collect();
    assert_eq!(rows, table);
}
