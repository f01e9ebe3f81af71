//! Events, spans, levels, capture, performance events.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{logged, values};
use orion_core::ManualClock;
use orion_logging::{Format, Installed, Logging, Rotation};
use tracing_subscriber::layer::SubscriberExt;

#[test]
fn an_event_is_one_json_object_and_one_line() {
    let clock = Arc::new(ManualClock::new());
    clock.set_wall(Duration::from_secs(1_769_862_896));
    let (_, json, pretty) = logged(Logging::builder().ignore_environment().clock(clock), |_| {
        let outer =
            tracing::info_span!(target: "orion_router", "request", id = "r1", late = tracing::field::Empty);
        let _outer = outer.enter();
        outer.record("late", 7);
        let _inner = tracing::info_span!(target: "orion_router", "route").entered();
        tracing::info!(target: "orion_router::keyword", model = "a \"b\"", score = 0.5, count = 3u64, yes = true, nan = f64::NAN, "chosen");
    });
    assert_eq!(
        json,
        "{\"ts\":\"2026-01-31T12:34:56.000Z\",\"level\":\"INFO\",\"component\":\"router\",\
         \"target\":\"orion_router::keyword\",\"message\":\"chosen\",\"fields\":{\"model\":\"a \\\"b\\\"\",\
         \"score\":0.5,\"count\":3,\"yes\":true,\"nan\":\"NaN\"},\
         \"spans\":[{\"name\":\"request\",\"fields\":{\"id\":\"r1\",\"late\":7}},{\"name\":\"route\"}]}\n"
    );
    values(&json);
    assert_eq!(
        pretty,
        "2026-01-31T12:34:56.000Z  INFO router: chosen model=\"a \\\"b\\\"\" score=0.5 count=3 yes=true nan=\"NaN\" \
         in request{\"id\":\"r1\",\"late\":7} > route\n"
    );
}

#[test]
fn levels_are_per_component_and_change_while_it_runs() {
    let builder = Logging::builder().ignore_environment().levels("warn,router=debug").verbose_levels("trace");
    let (handle, json, _) = logged(builder, |log| {
        let say = |phase: &str| {
            tracing::debug!(target: "orion_router", phase, "router debug");
            tracing::info!(target: "orion_loader", phase, "loader info");
        };
        say("start");
        log.set_verbose(true);
        assert!(log.is_verbose());
        say("verbose");
        log.set_verbose(false);
        say("normal");
        log.set_levels("off,loader=info").unwrap();
        say("set");
        assert!(log.set_levels("loud").is_err());
        say("same");
    });
    let seen: Vec<_> = values(&json)
        .iter()
        .map(|line| {
            format!("{} {}", line["fields"]["phase"].as_str().unwrap(), line["component"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        seen,
        ["start router", "verbose router", "verbose loader", "normal router", "set loader", "same loader"]
    );
    assert_eq!(handle.statistics().by_component["router"], 3);
}

#[test]
fn the_environment_overrides_what_the_program_says_and_nonsense_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("from-env.log");
    let path = file.to_str().unwrap().to_owned();
    let builder = Logging::builder().levels("off").environment(move |name| match name {
        "ORION_LOG" => Some("loader=info".to_owned()),
        "ORION_LOG_FILE" => Some(path.clone()),
        _ => None,
    });
    let (_, json, _) = logged(builder, |_| tracing::info!(target: "orion_loader", "hello"));
    assert_eq!(values(&json).len(), 1);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), json);

    let verbose =
        Logging::builder().environment(|name| (name == "ORION_LOG_VERBOSE").then(|| "1".to_owned()));
    let (handle, json, _) = logged(verbose, |_| tracing::debug!(target: "orion_loader", "hello"));
    assert!(handle.is_verbose() && values(&json).len() == 1);

    for (name, value) in [("ORION_LOG", "loud"), ("ORION_LOG_VERBOSE", "maybe"), ("ORION_LOG_FORMAT", "xml")]
    {
        let builder = Logging::builder().environment(move |asked| (asked == name).then(|| value.to_owned()));
        let error = builder.layer::<tracing_subscriber::Registry>().err().unwrap();
        assert!(error.to_string().starts_with(name), "{error}");
    }
}

#[test]
fn the_ring_is_bounded_counted_and_exported() {
    let (handle, ..) = logged(Logging::builder().ignore_environment().capture(3), |_| {
        for number in 0..5 {
            tracing::info!(target: "orion_loader", number, "event");
        }
        tracing::warn!(target: "orion_router::x", password = "hunter2", "bad");
    });
    let statistics = handle.statistics();
    assert_eq!((statistics.total, statistics.overwritten), (6, 3));
    assert_eq!((statistics.by_level["INFO"], statistics.by_level["WARN"]), (5, 1));
    assert_eq!((statistics.by_component["loader"], statistics.by_component["router"]), (5, 1));
    let export: serde_json::Value = serde_json::from_str(&handle.export_capture()).unwrap();
    assert_eq!(export["statistics"]["total"], 6);
    let events = export["events"].as_array().unwrap();
    assert_eq!((events.len(), &events[0]["fields"]["number"]), (3, &3.into()));
    assert_eq!(events[2]["fields"]["password"], "[redacted]");
}

#[test]
fn as_a_layer_it_leaves_the_programs_own_layers_alone() {
    let (own, ours) = (common::Sink::default(), common::Sink::default());
    let all =
        Logging::builder().ignore_environment().quiet().levels("trace").writer(own.clone(), Format::Json);
    let (own_layer, own_handle) = all.layer().unwrap();
    let few =
        Logging::builder().ignore_environment().quiet().levels("error").writer(ours.clone(), Format::Json);
    let (our_layer, our_handle) = few.layer().unwrap();
    assert_eq!(our_handle.installed(), Installed::Layer);
    let subscriber = tracing_subscriber::registry().with(own_layer).with(our_layer);
    tracing::subscriber::with_default(subscriber, || {
        tracing::debug!("detail");
        tracing::error!("trouble");
    });
    assert!(own_handle.flush(common::LONG) && our_handle.flush(common::LONG));
    assert_eq!((values(&own.text()).len(), values(&ours.text()).len()), (2, 1));
}

#[test]
fn a_value_that_logs_or_panics_while_it_is_formatted_harms_nobody() {
    struct Chatty;
    impl std::fmt::Debug for Chatty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            tracing::info!(target: "orion_loader", "inner");
            f.write_str("chatty")
        }
    }
    struct Panics;
    impl std::fmt::Debug for Panics {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("while formatting")
        }
    }
    let (_, json, _) = logged(Logging::builder().ignore_environment(), |_| {
        tracing::info!(target: "orion_loader", value = ?Chatty, "outer");
        let caught =
            std::panic::catch_unwind(|| tracing::info!(target: "orion_loader", value = ?Panics, "lost"));
        assert!(caught.is_err());
        tracing::info!(target: "orion_loader", "after");
    });
    let messages: Vec<_> = values(&json).iter().map(|line| line["message"].clone()).collect();
    // `tracing` itself leaves out what is logged while an event of a scoped subscriber is being written.
    assert_eq!(messages, ["outer", "after"]);
}

#[test]
fn performance_and_memory_are_events() {
    let (_, json, _) = logged(Logging::builder().ignore_environment(), |_| {
        let sum = orion_logging::perf!("prefill", tokens = 512, (0..512u64).sum::<u64>());
        assert_eq!(sum, 130_816);
        orion_logging::perf!("quiet", ());
        orion_logging::log_memory("after load");
    });
    let lines = values(&json);
    let fields = &lines[0]["fields"];
    assert_eq!((&fields["perf"], &fields["tokens"]), (&"prefill".into(), &512.into()));
    assert!(
        fields["duration_ms"].as_f64().unwrap() >= 0.0 && fields["tokens_per_second"].as_f64().unwrap() > 0.0
    );
    assert!(lines[1]["fields"].get("tokens").is_none());
    if cfg!(target_os = "linux") {
        assert!(fields["rss_bytes"].as_u64().unwrap() > 0);
        assert!(lines[2]["fields"]["peak_rss_bytes"].as_u64() >= lines[2]["fields"]["rss_bytes"].as_u64());
        assert_eq!(lines[2]["fields"]["when"], "after load");
    }
}

#[test]
fn files_are_rotated_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orion.log");
    let builder = Logging::builder().ignore_environment().file(&path, Rotation::bytes(400).keep(2));
    let (..) = logged(builder, |_| {
        for number in 0..20 {
            tracing::info!(target: "orion_loader", number, "event");
        }
    });
    let mut numbers = Vec::new();
    for name in ["orion.log.2", "orion.log.1", "orion.log"] {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text.len() <= 400, "{name} has {} bytes", text.len());
        numbers.extend(values(&text).iter().map(|line| line["fields"]["number"].as_u64().unwrap()));
    }
    assert!(
        numbers.ends_with(&[18, 19]) && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{numbers:?}"
    );
    assert!(!dir.path().join("orion.log.3").exists());
}
