//! Faults of whole requests, through the public API: what `docs/reliability.md` promises and no other test shows.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

#[allow(dead_code, reason = "each test uses a part")]
mod fakes;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use fakes::{LONG, Latch, Stage, builder, engine, spec, until};
use orion::logging::{Format, Logging};
use orion::registry::{LiveRegistry, MissingFiles, Sources, write_atomic};
use orion::resilience::{Backoff, BreakerSettings, Judgement, RetryPolicy};
use orion::runtime::{ExecutorKind, InputObserver, LocalRuntime, RuntimeOptions};
use orion::{
    Engine, EngineEvent, Error, ErrorKind, Health, ManualClock, Prompt, Request, SamplingParams, TokenId,
};
use orion_testkit::references;

/// Opens at the first failure, for ten seconds; then so many may ask at once.
fn breaker(probes: u32) -> BreakerSettings {
    let wait = Backoff::constant(Duration::from_secs(10));
    BreakerSettings::new()
        .consecutive_failures(1)
        .failure_rate(None)
        .wait(wait)
        .half_open(probes, Judgement::FirstFailure)
}

/// Sees the input of every matrix product, and panics within one while it is told to.
#[derive(Debug, Default)]
struct Poison(AtomicBool);

impl InputObserver for Poison {
    fn inputs(&self, tensor: &str, _: usize, _: &[f32]) {
        assert!(!self.0.load(Ordering::SeqCst), "poisoned in {tensor}");
    }
}

#[test]
fn a_panic_within_the_forward_pass_fails_its_request_is_seen_and_the_next_one_succeeds() {
    let case = references::case("llama-gqa-tied");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, case.gguf().unwrap()).unwrap();
    let (poison, clock) = (Arc::new(Poison::default()), ManualClock::new());
    let mut options = RuntimeOptions::default();
    options.executor = ExecutorKind::Portable;
    options.input_observer = Some(poison.clone());
    let engine = Engine::builder()
        .model("m", path.to_string_lossy())
        .runtime(Arc::new(LocalRuntime::new(options)))
        .breaker(breaker(1))
        .clock(Arc::new(clock.clone()))
        .build()
        .unwrap();
    let ask = || {
        let tokens = case.tokens.iter().copied().map(TokenId).collect();
        let request = Request::of(Prompt::Tokens(tokens)).sampling(SamplingParams::greedy());
        engine.infer_with(request.max_tokens(3)).map(|answer| answer.tokens)
    };
    let expected = ask().unwrap();
    poison.0.store(true, Ordering::SeqCst);
    let error = ask().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("poisoned in "), "{error}");
    assert_eq!(engine.health(), [("m".into(), Health::Down)]);
    let refused = ask().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Rejected, "{refused}");
    poison.0.store(false, Ordering::SeqCst);
    clock.advance(refused.retry_after().unwrap());
    // The model that saw the panic answers, bit for bit as before: it was not loaded anew.
    assert_eq!(ask().unwrap(), expected);
    assert_eq!(engine.health(), [("m".into(), Health::Healthy)]);
    assert_eq!(engine.stats().unwrap().models[0].loads, 1);
}

#[test]
fn a_probe_that_panics_opens_the_breaker_again_and_it_is_not_stuck() {
    let (stage, clock) = (Stage::new(), ManualClock::new());
    let (calls, panics) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let (count, broken) = (calls.clone(), panics.clone());
    stage.script("m", move |turn| {
        count.fetch_add(1, Ordering::SeqCst);
        turn.started();
        assert!(!broken.load(Ordering::SeqCst), "a worker's own defect");
        turn.say("well again");
        Ok(())
    });
    let engine =
        builder(&stage, [spec("m")]).breaker(breaker(1)).clock(Arc::new(clock.clone())).build().unwrap();
    assert_eq!(engine.infer("first").unwrap_err().kind(), ErrorKind::Internal);
    for probes in 1..=3 {
        let refused = engine.infer("too early").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Rejected, "{refused}");
        clock.advance(refused.retry_after().unwrap());
        assert_eq!(engine.infer("a probe").unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(calls.load(Ordering::SeqCst), 1 + probes);
        assert_eq!(engine.health(), [("m".into(), Health::Down)]);
    }
    panics.store(false, Ordering::SeqCst);
    clock.advance(engine.infer("too early").unwrap_err().retry_after().unwrap());
    assert_eq!(engine.infer("a probe").unwrap().text, "well again");
    assert_eq!(engine.health(), [("m".into(), Health::Healthy)]);
}

#[test]
fn streams_nobody_reads_hold_little_and_leave_the_model_to_the_others() {
    const UNREAD: usize = 6;
    let (stage, said) = (Stage::new(), Arc::new(AtomicUsize::new(0)));
    let count = said.clone();
    stage.script("m", move |turn| {
        turn.started();
        if turn.prompt == "endless" {
            while turn.say("word ") {
                count.fetch_add(1, Ordering::SeqCst);
            }
        } else {
            turn.say("short");
        }
        Ok(())
    });
    let engine = builder(&stage, [spec("m")]).parallel(UNREAD + 1).build().unwrap();
    let mut unread: Vec<_> = (0..UNREAD).map(|_| engine.stream("endless")).collect();
    until("all have filled their room", || said.load(Ordering::SeqCst) >= UNREAD * 200);
    for _ in 0..20 {
        assert_eq!(engine.infer("another").unwrap().text, "short");
    }
    assert!(said.load(Ordering::SeqCst) <= UNREAD * 300, "{} words wait", said.load(Ordering::SeqCst));
    // One of them reads on: its generation goes on, the others still rest.
    let mut read = 0;
    for event in unread[0].by_ref() {
        read += usize::from(matches!(event, EngineEvent::Token { .. }));
        if read == 2000 {
            break;
        }
    }
    assert!(said.load(Ordering::SeqCst) <= 2000 + UNREAD * 300);
    drop(unread);
    until("all places are free", || engine.stats().unwrap().models[0].running == 0);
}

#[test]
fn when_everything_fails_retries_stay_within_their_budget() {
    const CALLERS: usize = 100;
    let (stage, tries) = (Stage::new(), Arc::new(AtomicUsize::new(0)));
    let count = tries.clone();
    let ids: Vec<String> = (0..CALLERS).map(|n| format!("m{n}")).collect();
    let engine = builder(&stage, ids.iter().map(|id| spec(id)))
        .retry(RetryPolicy::new().attempts(4).backoff(Backoff::constant(Duration::from_millis(1))))
        .sources(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Err(Error::new(ErrorKind::Network, "the store is down"))
        })
        .build()
        .unwrap();
    // A model each, so that no load is shared.
    let streams: Vec<_> = ids.iter().map(|id| engine.stream(Request::new("hi").model(id.as_str()))).collect();
    for stream in streams {
        let error = stream.answer().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    }
    let retries = tries.load(Ordering::SeqCst) - CALLERS;
    // Without a budget there were 300: one in ten calls, and ten to begin with, are allowed.
    assert!((1..=CALLERS / 10 + 10).contains(&retries), "{retries} retries");
}

#[test]
fn of_many_who_ask_a_half_open_breaker_exactly_as_many_reach_the_model_as_may_probe() {
    const CALLERS: usize = 64;
    const PROBES: usize = 3;
    let (stage, clock, latch) = (Stage::new(), ManualClock::new(), Latch::default());
    let (calls, door) = (Arc::new(AtomicUsize::new(0)), latch.clone());
    let count = calls.clone();
    stage.script("m", move |turn| {
        turn.started();
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Error::new(ErrorKind::Internal, "worker lost"));
        }
        door.pass();
        turn.say("ok");
        Ok(())
    });
    let engine = builder(&stage, [spec("m")])
        .breaker(breaker(PROBES as u32))
        .parallel(2 * CALLERS)
        .clock(Arc::new(clock.clone()))
        .build()
        .unwrap();
    assert_eq!(engine.infer("hi").unwrap_err().kind(), ErrorKind::Internal);
    clock.advance(engine.infer("hi").unwrap_err().retry_after().unwrap());
    let (start, refused) = (Barrier::new(CALLERS), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let ask = || {
            start.wait();
            let result = engine.infer("hi");
            if let Err(error) = &result {
                assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
                refused.fetch_add(1, Ordering::SeqCst);
            }
            result.is_ok()
        };
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(ask)).collect();
        until("the others are refused", || refused.load(Ordering::SeqCst) == CALLERS - PROBES);
        until("the probes are with the model", || calls.load(Ordering::SeqCst) == 1 + PROBES);
        latch.open();
        let answered = callers.into_iter().map(|caller| caller.join().unwrap());
        assert_eq!(answered.filter(|answered| *answered).count(), PROBES);
    });
    assert_eq!(calls.load(Ordering::SeqCst), 1 + PROBES);
    assert_eq!(engine.health(), [("m".into(), Health::Healthy)]);
    assert_eq!(engine.infer("hi").unwrap().text, "ok");
}

/// A registry in which every model carries the number of its version: a mixture would show.
fn version(number: u32) -> String {
    let model = |word: &str| {
        format!(
            r#"{{"id": "{word}-{number}", "files": [{{"path": "{word}.gguf"}}], "routing": {{"keywords": ["{word}"]}}}}"#
        )
    };
    let models = ["poem", "recipe", "function", "headache"].map(model);
    format!(r#"{{"version": 1, "models": [{}]}}"#, models.join(",\n"))
}

/// Says that writing is over, also where it panics: nobody must wait for it then.
struct Writing<'a>(&'a AtomicBool);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[test]
fn every_route_sees_one_whole_version_of_a_registry_that_is_rewritten() {
    const VERSIONS: u32 = 100;
    const THREADS: usize = 4;
    const ROUTES: usize = 1000 / THREADS;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("models.json");
    write_atomic(&path, version(1).as_bytes()).unwrap();
    let open = |path: &Path| Sources::new(path).missing_files(MissingFiles::Ignore);
    let live = LiveRegistry::open(open(&path)).unwrap();
    let stage = Stage::new();
    let engine = builder(&stage, []).catalog(live.clone()).build().unwrap();
    let (writing, routes) = (AtomicBool::new(true), AtomicUsize::new(0));
    let seen = |engine: &Engine| -> u32 {
        let decision = engine.route("Write a poem about the sea").unwrap();
        let ids: Vec<&str> = decision.ranked.iter().map(|ranked| ranked.model.as_str()).collect();
        assert_eq!((ids.len(), ids[0].split('-').next()), (4, Some("poem")), "{ids:?}");
        let versions: BTreeSet<u32> =
            ids.iter().map(|id| id.split_once('-').unwrap().1.parse().unwrap()).collect();
        assert_eq!(versions.len(), 1, "a route saw a mixture: {ids:?}");
        *versions.first().unwrap()
    };
    let distinct: BTreeSet<u32> = std::thread::scope(|scope| {
        let route = || {
            let mut versions = Vec::new();
            while versions.len() < ROUTES || writing.load(Ordering::Acquire) {
                let now = seen(&engine);
                assert!(versions.last().is_none_or(|last| *last <= now), "versions do not go back");
                versions.push(now);
                routes.fetch_add(1, Ordering::SeqCst);
            }
            versions
        };
        let on = Writing(&writing);
        let readers: Vec<_> = (0..THREADS).map(|_| scope.spawn(route)).collect();
        for number in 2..=VERSIONS {
            write_atomic(&path, version(number).as_bytes()).unwrap();
            live.reload().unwrap();
            // One of these began with this version in force.
            let enough = routes.load(Ordering::SeqCst) + THREADS + 1;
            until("it is routed by", || routes.load(Ordering::SeqCst) >= enough);
        }
        drop(on);
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    assert!((2..=VERSIONS).all(|number| distinct.contains(&number)), "{distinct:?}");
    assert_eq!(seen(&engine), VERSIONS);
}

/// An output that takes nothing until it is let go.
struct Stuck(Latch, Arc<AtomicBool>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if !self.1.swap(true, Ordering::SeqCst) {
            self.0.pass();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn requests_flow_while_the_log_is_stuck_and_its_losses_are_counted() {
    let (latch, stuck) = (Latch::default(), Arc::new(AtomicBool::new(false)));
    let log = Logging::builder()
        .ignore_environment()
        .quiet()
        .writer(Stuck(latch.clone(), stuck.clone()), Format::Json)
        .queue(4)
        .install()
        .unwrap();
    let stage = Stage::new();
    let engine = engine(&stage, &["m"]);
    engine.infer("the first line").unwrap();
    until("the output is stuck", || stuck.load(Ordering::SeqCst));
    let mut dropped = log.dropped_lines();
    for round in 0..5 {
        for n in 0..20 {
            assert_eq!(engine.infer(format!("{n}")).unwrap().text, format!("m: {n}"));
        }
        let now = log.dropped_lines();
        assert!(now > dropped || round == 0, "{now} lines dropped");
        dropped = now;
    }
    assert!(dropped >= 80, "{dropped} lines dropped");
    latch.open();
    assert!(log.flush(LONG));
    let settled = log.dropped_lines();
    engine.infer("one more").unwrap();
    assert!(log.flush(LONG));
    assert_eq!(log.dropped_lines(), settled, "an output that takes its lines loses none");
}
