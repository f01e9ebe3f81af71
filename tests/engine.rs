//! The engine through its public API, over models that do what the test says.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

mod fakes;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fakes::{LONG, Latch, Stage, builder, engine, names, spec, until, weights, with};
use orion::resilience::{Backoff, BreakerSettings, RetryPolicy};
use orion::state::{Phase, Residency, Trace};
use orion::{
    Candidate, Decision, Engine, EngineEvent, Error, ErrorKind, FinishReason, Guardrail, Health, InputLimits,
    ManualClock, Message, ModelHeader, ModelSpec, Observer, Priority, Query, Ranked, Request, RequestEvent,
    RequestId, Result, Role, Router, TensorBytes, WeightSource,
};

fn down() -> Error {
    Error::new(ErrorKind::Internal, "worker lost")
}

// --- coming up ---

#[test]
fn what_is_wrong_with_the_settings_is_said_by_name() {
    let text = |result: Result<Engine>| result.unwrap_err().to_string();
    assert!(text(Engine::builder().build()).starts_with("no model is named"));
    let one = || Engine::builder().model("m", "m.gguf");
    assert_eq!(text(one().parallel(0).build()), "parallel is 0, expected more");
    assert_eq!(text(one().model("m", "other.gguf").build()), "model m: two models have this id");
    let broken = orion::registry::Sources::text("models.json", r#"{"version": 1, "modles": []}"#);
    let error = text(Engine::builder().registry_from(broken).build());
    assert!(error.contains("models.json:1:") && error.contains("models"), "{error}");
}

#[test]
fn a_model_that_is_not_there_is_an_error_of_the_request() {
    let engine = Engine::builder().model("m", "/no/such/model.gguf").build().unwrap();
    let error = engine.infer("hi").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("model m: /no/such/model.gguf"), "{error}");
}

// --- the way of a request ---

#[test]
fn a_request_walks_the_machine_and_its_report_says_how() {
    let stage = Stage::new();
    let engine = engine(&stage, &["m"]);
    let events: Vec<_> = engine.stream("why is the sky blue").collect();
    assert_eq!(names(&events), ["routed", "queued", "loading", "prefill", "token", "done"]);
    let Some(EngineEvent::Done(answer)) = events.last() else { panic!("the last event") };
    assert_eq!(answer.text, "m: why is the sky blue");
    assert_eq!((answer.reason, answer.model.as_str()), (FinishReason::Stop, "m"));
    assert_eq!((answer.usage.completion_tokens, answer.confidence), (6, 1.0));
    let phases: Vec<_> = answer.report.trace.visits().iter().map(|visit| visit.phase).collect();
    use Phase as P;
    let all = [P::Validating, P::Routing, P::Admitting, P::Loading, P::Prefilling, P::Decoding];
    assert_eq!(phases, all);
    assert_eq!(answer.report.phase(), P::Done);
    assert_eq!(engine.recent(), std::slice::from_ref(&answer.report));
    let stats = engine.stats().unwrap();
    assert_eq!((stats.outcomes.done, stats.outcomes.completion_tokens, stats.waiting), (1, 6, 0));
    assert_eq!((stats.models[0].residency, stats.models[0].bytes), (Residency::Ready, 4000));
}

/// Weights whose third tensor is late.
struct Late(Arc<dyn WeightSource>, Latch);
impl WeightSource for Late {
    fn header(&self) -> &ModelHeader {
        self.0.header()
    }
    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        if index == 2 {
            self.1.pass();
        }
        self.0.tensor(index)
    }
}

#[test]
fn loading_tells_how_far_it_is() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let door = latch.clone();
    let engine = builder(&stage, [spec("m")])
        .sources(move |spec| Ok(Arc::new(Late(weights(spec.id.as_str(), 4000), door.clone()))))
        .build()
        .unwrap();
    let mut stream = engine.stream("hi");
    let half = |event: EngineEvent| match event {
        EngineEvent::Loading { done, total, .. } => (done, total) == (2000, 4000),
        _ => false,
    };
    assert!(stream.by_ref().any(half));
    latch.open();
    assert_eq!(stream.answer().unwrap().text, "m: hi");
}

/// Weights that note what is asked of them besides whole tensors.
struct Noted(Arc<dyn WeightSource>, Arc<Mutex<Vec<String>>>);
impl Noted {
    fn note(&self, what: String) {
        self.1.lock().unwrap().push(what);
    }
}
impl WeightSource for Noted {
    fn header(&self) -> &ModelHeader {
        self.0.header()
    }
    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        self.0.tensor(index)
    }
    fn read(&self, index: usize, piece: usize, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.note(format!("read {index} by {piece}"));
        self.0.read(index, piece, each)
    }
    fn read_at(&self, index: usize, offset: u64, out: &mut [u8], wait: bool) -> Result<bool> {
        self.note(format!("read {} of {index} from {offset}, waiting: {wait}", out.len()));
        Ok(wait)
    }
    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        self.note(format!("rows {rows:?} of {index}"));
        Ok(vec![7; 2].into())
    }
    fn expect(&self, order: &[usize]) {
        self.note(format!("expect {order:?}"));
    }
}

/// A runtime that reads weights in every way.
struct Thorough(fakes::Actors);
impl orion::Runtime for Thorough {
    fn load(&self, weights: Arc<dyn WeightSource>) -> Result<Arc<dyn orion::Model>> {
        weights.expect(&[1, 0]);
        assert_eq!(*weights.rows(2, &[5])?, [7, 7]);
        assert!(
            weights.read_at(3, 0, &mut [0; 600], true)? && !weights.read_at(3, 600, &mut [0; 400], false)?
        );
        let mut read = 0;
        weights.read(3, 300, &mut |bytes| {
            read += bytes.len();
            Ok(())
        })?;
        assert_eq!(read, 1000);
        self.0.load(weights)
    }
}

#[test]
fn a_source_hears_all_that_a_runtime_asks() {
    let (stage, notes) = (Stage::new(), Arc::new(Mutex::new(Vec::new())));
    let noted = notes.clone();
    let engine = builder(&stage, [spec("m")])
        .runtime(Arc::new(Thorough(fakes::Actors(stage.clone()))))
        .sources(move |spec| Ok(Arc::new(Noted(weights(spec.id.as_str(), 4000), noted.clone()))))
        .build()
        .unwrap();
    let events: Vec<_> = engine.stream("hi").collect();
    assert_eq!(
        *notes.lock().unwrap(),
        [
            "expect [1, 0]",
            "rows [5] of 2",
            "read 600 of 3 from 0, waiting: true",
            "read 400 of 3 from 600, waiting: false",
            "read 3 by 300"
        ]
    );
    let loaded = |event: &EngineEvent| match event {
        EngineEvent::Loading { done, total, .. } => done <= total,
        EngineEvent::Failed { error, .. } => panic!("{error}"),
        _ => true,
    };
    assert!(events.iter().all(loaded), "no byte counts twice");
    assert_eq!(engine.stats().unwrap().models[0].bytes, 4000);
}

#[test]
fn a_first_responder_speaks_until_its_model_is_there() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let door = latch.clone();
    let large = with("large", |it| it.first_responder = Some("small".into()));
    let engine = builder(&stage, [large, spec("small")])
        .sources(move |spec| {
            let source = weights(spec.id.as_str(), 4000);
            Ok(if spec.id.as_str() == "large" { Arc::new(Late(source, door.clone())) } else { source })
        })
        .build()
        .unwrap();
    let ask = || Request::new("hi").model("large");
    for _ in 0..2 {
        let events: Vec<_> = engine.stream(ask()).collect();
        let speaks = |event: &EngineEvent| match event {
            EngineEvent::FirstResponder { model, instead_of } => {
                (model.as_str(), instead_of.as_str()) == ("small", "large")
            }
            _ => false,
        };
        assert!(events.iter().any(speaks), "{:?}", names(&events));
        let Some(EngineEvent::Done(answer)) = events.last() else { panic!("{:?}", names(&events)) };
        assert_eq!((answer.model.as_str(), answer.text.as_str()), ("small", "small: hi"));
    }
    let loads = || stage.loads().iter().filter(|model| *model == "large").count();
    until("the large model is being loaded", || loads() > 0);
    latch.open();
    let ready = |id: &str| {
        let models = engine.stats().unwrap().models;
        models.iter().any(|model| model.model.as_str() == id && model.residency == Residency::Ready)
    };
    until("the large model is there", || ready("large"));
    assert_eq!(loads(), 1, "one load for both");
    let events: Vec<_> = engine.stream(ask()).collect();
    assert!(!names(&events).contains(&"first responder"));
    let Some(EngineEvent::Done(answer)) = events.last() else { panic!("the last event") };
    assert_eq!(answer.text, "large: hi");
}

#[test]
fn a_first_responder_that_fails_lets_the_request_wait_for_its_model() {
    let stage = Stage::new();
    stage.script("small", |_| Err(down()));
    let large = with("large", |it| it.first_responder = Some("small".into()));
    let engine = builder(&stage, [large, spec("small")]).build().unwrap();
    let events: Vec<_> = engine.stream(Request::new("hi").model("large")).collect();
    let Some(EngineEvent::Done(answer)) = events.last() else { panic!("{:?}", names(&events)) };
    assert_eq!(answer.text, "large: hi");
}

#[test]
fn each_kind_of_agent_gets_its_prompts() {
    let stage = Stage::new();
    let agents = [("coder", "rust"), ("poet", "poem"), ("cook", "recipe"), ("doctor", "headache")];
    let specs = agents.map(|(id, word)| with(id, |it| it.keywords = vec![word.into()]));
    let engine = builder(&stage, specs).default_model("cook").build().unwrap();
    for (id, word) in agents {
        let prompt = format!("Tell me about this {word} please");
        let decision = engine.route(prompt.as_str()).unwrap();
        assert_eq!(decision.chosen().map(|model| model.as_str()), Some(id));
        let answer = engine.infer(&*prompt).unwrap();
        assert_eq!(answer.model.as_str(), id);
        assert!(answer.report.decision.as_ref().unwrap().reason.contains(word));
    }
    // Nothing points anywhere: the default answers.
    assert_eq!(engine.infer("What is the capital of Mongolia?").unwrap().model.as_str(), "cook");
}

#[test]
fn a_forced_model_answers_and_an_unknown_one_is_not_found() {
    let stage = Stage::new();
    let engine = engine(&stage, &["a", "b"]);
    let answer = engine.infer_with(Request::new("hi").model("b")).unwrap();
    assert_eq!((answer.model.as_str(), answer.text.as_str()), ("b", "b: hi"));
    let events: Vec<_> = engine.stream(Request::new("hi").model("c")).collect();
    let Some(EngineEvent::Failed { error, report }) = events.last() else { panic!("the last event") };
    assert_eq!((error.kind(), report.phase()), (ErrorKind::NotFound, Phase::Failed));
}

#[test]
fn an_agent_brings_its_instructions_and_shares_its_weights() {
    let stage = Stage::new();
    stage.script("base", |turn| {
        turn.started();
        turn.say(&turn.prompt.to_uppercase());
        Ok(())
    });
    let of = |id: &str| {
        let mut agent = spec("base");
        agent.id = id.into();
        agent
    };
    let named = |spec: &ModelSpec| Ok(weights("base", spec.weight_bytes));
    let engine = builder(&stage, [of("x"), of("y")]).sources(named).build().unwrap();
    assert_eq!(engine.infer_with(Request::new("hi").model("x")).unwrap().text, "HI");
    assert_eq!(engine.infer_with(Request::new("ho").model("y")).unwrap().text, "HO");
    assert_eq!(stage.loads(), ["base"]);
    assert_eq!(engine.stats().unwrap().models.len(), 1);
}

// --- what is refused ---

struct Rules;
impl Guardrail for Rules {
    fn input(&self, request: &Request) -> Result<()> {
        if request.last_user_turn().contains("panic") {
            panic!("a guardrail's own defect");
        }
        match request.last_user_turn().contains("forbidden") {
            true => Err(Error::invalid("not about this")),
            false => Ok(()),
        }
    }

    fn output(&self, text: &str, _: &str) -> Result<()> {
        if text.contains("collapse") {
            panic!("a guardrail's own defect");
        }
        match text.contains("secret word") {
            true => Err(Error::invalid("the answer gives something away")),
            false => Ok(()),
        }
    }
}

#[test]
fn guardrails_see_what_goes_in_and_what_comes_out() {
    let stage = Stage::new();
    let engine = builder(&stage, [spec("m")]).guardrail(Arc::new(Rules)).build().unwrap();
    for (prompt, kind, phase) in [
        ("forbidden things", ErrorKind::InvalidInput, Phase::Rejected),
        ("panic now", ErrorKind::Internal, Phase::Rejected),
        ("a secret word", ErrorKind::InvalidInput, Phase::Failed),
        ("now collapse", ErrorKind::Internal, Phase::Failed),
    ] {
        let events: Vec<_> = engine.stream(prompt).collect();
        let Some(EngineEvent::Failed { error, report }) = events.last() else { panic!("{prompt}") };
        assert_eq!((error.kind(), report.phase()), (kind, phase), "{prompt}");
        let said: String = events
            .iter()
            .filter_map(|event| match event {
                EngineEvent::Token { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert!(!said.contains("word") && !said.contains("collapse"), "{said}");
    }
    assert_eq!(engine.infer("all is well").unwrap().text, "m: all is well");
}

#[test]
fn what_no_model_could_answer_is_rejected_at_the_door() {
    let stage = Stage::new();
    let mut limits = InputLimits::default();
    limits.prompt_bytes = 20;
    let engine = builder(&stage, [spec("m")]).limits(limits).build().unwrap();
    for prompt in ["", "  ", "a\u{0}b", "much longer than twenty bytes"] {
        let error = engine.infer(prompt).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{prompt:?}");
    }
    assert!(stage.loads().is_empty());
    assert_eq!(engine.stats().unwrap().outcomes.rejected, 4);
}

#[test]
fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let door = latch.clone();
    stage.script("m", move |turn| {
        turn.started();
        door.pass();
        turn.say("ok");
        Ok(())
    });
    let engine = builder(&stage, [spec("m")]).parallel(1).queued_requests(2).build().unwrap();
    let running = engine.stream("0");
    until("it runs", || engine.stats().unwrap().models.first().is_some_and(|model| model.running == 1));
    let queued: Vec<_> = (1..=2).map(|n| engine.stream(n.to_string())).collect();
    let error = engine.infer("3").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("2 requests wait") && error.retry_after().is_some(), "{error}");
    assert_eq!(engine.stats().unwrap().outcomes.rejected, 1);
    latch.open();
    assert_eq!(running.answer().unwrap().text, "ok");
    queued.into_iter().for_each(|stream| assert_eq!(stream.answer().unwrap().text, "ok"));
    assert_eq!(engine.stats().unwrap().waiting, 0);
}

// --- cancelling ---

/// A router that waits.
struct Slow(Latch);
impl Router for Slow {
    fn route(&self, _: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
        self.0.pass();
        let ranked = candidates.iter().map(|it| Ranked { model: it.spec.id.clone(), score: 1.0 }).collect();
        Ok(Decision::new(ranked, 1.0, false, "slowly", "slow"))
    }
}

fn cancelled(stream: orion::AnswerStream) -> (orion::Answer, Vec<Phase>) {
    let answer = stream.answer().unwrap();
    assert_eq!((answer.reason, answer.report.phase()), (FinishReason::Cancelled, Phase::Cancelled));
    let phases = answer.report.trace.visits().iter().map(|visit| visit.phase).collect();
    (answer, phases)
}

#[test]
fn a_request_can_be_cancelled_in_every_state() {
    // Routing.
    let (stage, latch) = (Stage::new(), Latch::default());
    let slow = Arc::new(Slow(latch.clone()));
    let routing = builder(&stage, [spec("a"), spec("b")]).router(slow).build().unwrap();
    let stream = routing.stream("hi");
    stream.cancel();
    assert_eq!(cancelled(stream).1.last(), Some(&Phase::Routing));
    latch.open();

    // Loading.
    let latch = Latch::default();
    let door = latch.clone();
    let loading = builder(&stage, [spec("m")])
        .sources(move |spec| {
            door.pass();
            Ok(weights(spec.id.as_str(), 4000))
        })
        .build()
        .unwrap();
    let mut stream = loading.stream("hi");
    assert!(stream.by_ref().any(|event| matches!(event, EngineEvent::Loading { .. })));
    stream.cancel();
    assert_eq!(cancelled(stream).1.last(), Some(&Phase::Loading));
    latch.open();
    assert_eq!(loading.infer("still there").unwrap().text, "m: still there");

    // Prefilling, decoding and, behind them, queued.
    let stage = Stage::new();
    stage.script("m", |turn| {
        turn.started();
        if turn.prompt == "decode" {
            turn.say("half an ");
        }
        turn.until_cancelled();
        Ok(())
    });
    let engine = builder(&stage, [spec("m")]).parallel(1).build().unwrap();
    for (prompt, phase, text) in [("prefill", Phase::Prefilling, ""), ("decode", Phase::Decoding, "half an ")]
    {
        let mut stream = engine.stream(prompt);
        let reached = |event: EngineEvent| match phase {
            Phase::Decoding => matches!(event, EngineEvent::Token { .. }),
            _ => matches!(event, EngineEvent::Prefill { .. }),
        };
        assert!(stream.by_ref().any(reached));
        let mut queued = engine.stream("never runs");
        assert!(queued.by_ref().any(|event| matches!(event, EngineEvent::Queued { .. })));
        queued.cancel();
        assert_eq!(cancelled(queued).1.last(), Some(&Phase::Admitting));
        stream.cancel();
        let (answer, phases) = cancelled(stream);
        assert_eq!((answer.text.as_str(), phases.last()), (text, Some(&phase)));
    }
    assert_eq!(engine.stats().unwrap().outcomes.cancelled, 4);
}

/// Polls until there is something, and sleeps until it is woken.
#[cfg(feature = "async")]
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(feature = "async")]
#[test]
fn an_answer_can_be_awaited_and_a_future_that_is_dropped_cancels() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let door = latch.clone();
    stage.script("m", move |turn| match turn.prompt.as_str() {
        "bad" => Err(down()),
        "endless" => {
            turn.started();
            turn.until_cancelled();
            Ok(())
        }
        _ => {
            door.pass();
            turn.say("one ");
            turn.say("two");
            Ok(())
        }
    });
    let engine = engine(&stage, &["m"]);
    let waiting = engine.stream("hi");
    let seen = engine.clone();
    let opens = std::thread::spawn(move || {
        until("it runs", || seen.stats().unwrap().models.first().is_some_and(|model| model.running == 1));
        latch.open();
    });
    assert_eq!(block_on(async { waiting.await.unwrap() }).text, "one two");
    opens.join().unwrap();
    assert_eq!(block_on(engine.stream("bad").into_future()).unwrap_err().kind(), down().kind());

    let endless = engine.stream("endless").into_future();
    until("it runs", || engine.stats().unwrap().models[0].running == 1);
    drop(endless);
    until("it is over", || engine.stats().unwrap().outcomes.cancelled == 1);
}

#[test]
fn dropping_a_stream_or_setting_its_flag_cancels() {
    let stage = Stage::new();
    stage.script("m", |turn| {
        turn.started();
        turn.say("one");
        turn.until_cancelled();
        Ok(())
    });
    let engine = engine(&stage, &["m"]);
    drop(engine.stream("dropped at once"));
    let mut stream = engine.stream("dropped on the way");
    assert!(stream.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    drop(stream);
    let flag = orion::CancelToken::new();
    let two = Request::new("by their flag").cancelled_by(flag.clone());
    let [first, second] = [two.clone(), two].map(|request| engine.stream(request));
    first.cancel();
    assert_eq!(first.answer().unwrap().reason, FinishReason::Cancelled);
    assert!(!flag.is_cancelled(), "one request's end is not the other's");
    flag.cancel();
    assert_eq!(second.answer().unwrap().reason, FinishReason::Cancelled);
    until("all are cancelled", || engine.stats().unwrap().outcomes.cancelled == 4);
    until("nothing runs", || engine.stats().unwrap().models.iter().all(|model| model.running == 0));
}

// --- time ---

#[test]
fn a_deadline_holds_in_the_queue_and_while_decoding() {
    let (stage, clock) = (Stage::new(), ManualClock::new());
    stage.script("m", |turn| {
        turn.started();
        turn.say("one");
        turn.until_cancelled();
        Ok(())
    });
    let minute = Duration::from_secs(60);
    // Not to be taken for a worker that hangs.
    let builder = builder(&stage, [spec("m")]).parallel(1).stall(10 * minute);
    let engine = builder.clock(Arc::new(clock.clone())).build().unwrap();
    let mut running = engine.stream(Request::new("a").timeout(2 * minute));
    assert!(running.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    let mut queued = engine.stream(Request::new("b").timeout(minute));
    assert!(queued.by_ref().any(|event| matches!(event, EngineEvent::Queued { .. })));
    clock.advance(minute);
    for (stream, phase, message) in [
        (queued, Phase::Rejected, "the deadline passed while the request was admitting"),
        (running, Phase::Failed, "the deadline passed while the request was decoding"),
    ] {
        let events: Vec<_> = stream.collect();
        let Some(EngineEvent::Failed { error, report }) = events.last() else { panic!("{message}") };
        assert_eq!((error.kind(), report.phase()), (ErrorKind::DeadlineExceeded, phase));
        assert_eq!(error.to_string(), message);
        clock.advance(minute);
    }
    until("the model is free", || engine.stats().unwrap().models[0].running == 0);
}

#[test]
fn a_wall_clock_that_jumps_is_not_seen() {
    let (stage, clock) = (Stage::new(), ManualClock::new());
    clock.set_wall(Duration::from_secs(1_000_000));
    let engine = builder(&stage, [spec("m")]).clock(Arc::new(clock.clone())).build().unwrap();
    engine.infer("before").unwrap();
    clock.set_wall(Duration::ZERO);
    let answer = engine.infer_with(Request::new("after").timeout(Duration::from_secs(1))).unwrap();
    assert_eq!(answer.report.trace.time_in(Phase::Decoding), Duration::ZERO);
    clock.set_wall(Duration::from_secs(2_000_000));
    engine.infer("and after that").unwrap();
    assert_eq!(stage.loads(), ["m"]);
}

#[test]
fn an_idle_model_leaves_after_its_time_and_comes_back() {
    let (stage, clock) = (Stage::new(), ManualClock::new());
    let minute = Duration::from_secs(60);
    let engine =
        builder(&stage, [spec("m")]).keep_alive(minute).clock(Arc::new(clock.clone())).build().unwrap();
    engine.infer("hi").unwrap();
    clock.advance(minute / 2);
    engine.infer("hi").unwrap();
    assert_eq!(stage.loads().len(), 1);
    clock.advance(minute);
    until("it has left", || engine.stats().unwrap().models[0].residency == Residency::Absent);
    assert_eq!(engine.stats().unwrap().memory_used, 0);
    engine.infer("hi").unwrap();
    assert_eq!(stage.loads().len(), 2);
}

// --- failing, and going on ---

#[test]
fn the_next_of_the_chain_takes_over_before_the_first_token_and_not_after() {
    let stage = Stage::new();
    stage.script("big", |turn| {
        turn.started();
        if turn.prompt == "late" {
            turn.say("half an ");
        }
        Err(down())
    });
    let mut big = spec("big");
    big.fallback = vec!["small".into()];
    let engine = builder(&stage, [big, spec("small")]).build().unwrap();
    let events: Vec<_> = engine.stream(Request::new("early").model("big")).collect();
    assert!(names(&events).contains(&"fallback"));
    let Some(EngineEvent::Done(answer)) = events.last() else { panic!("the last event") };
    assert_eq!((answer.model.as_str(), answer.text.as_str()), ("small", "small: early"));
    assert_eq!(answer.report.trace.state().fallbacks, 1);
    assert_eq!(engine.infer_with(Request::new("late").model("big")).unwrap_err().to_string(), "worker lost");
    let alone = Request::new("early").model("big").without_fallback();
    assert_eq!(engine.infer_with(alone).unwrap_err().to_string(), "worker lost");
}

#[test]
fn a_chain_that_is_all_down_is_one_error_that_lists_every_hop() {
    let stage = Stage::new();
    for id in ["a", "b", "c"] {
        stage.script(id, |_| Err(down()));
    }
    let chain = |id: &str, next: &str| with(id, |it| it.fallback = vec![next.into()]);
    // b leads back to a: nothing is tried twice.
    let engine =
        builder(&stage, [chain("a", "b"), chain("b", "a"), spec("c")]).default_model("c").build().unwrap();
    let error = engine.infer_with(Request::new("hi").model("a")).unwrap_err();
    let expected = "3 tried, no model is left; a: worker lost; b: worker lost; c: worker lost";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_breaker_opens_is_seen_and_heals() {
    let (stage, clock) = (Stage::new(), ManualClock::new());
    let broken = Arc::new(AtomicUsize::new(1));
    let flag = broken.clone();
    stage.script("m", move |turn| {
        turn.started();
        match flag.load(Ordering::SeqCst) {
            0 => {
                turn.say("well again");
                Ok(())
            }
            _ => Err(down()),
        }
    });
    let wait = Duration::from_secs(10);
    let settings = BreakerSettings::new().consecutive_failures(3).wait(Backoff::constant(wait));
    let engine =
        builder(&stage, [spec("m")]).breaker(settings).clock(Arc::new(clock.clone())).build().unwrap();
    for _ in 0..3 {
        assert_eq!(engine.infer("hi").unwrap_err().kind(), ErrorKind::Internal);
    }
    let refused = engine.infer("hi").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Rejected);
    let after = refused.retry_after().unwrap();
    assert!(after >= wait && after < 2 * wait, "{after:?}");
    assert_eq!(engine.health(), [("m".into(), Health::Down)]);
    broken.store(0, Ordering::SeqCst);
    clock.advance(after);
    assert_eq!(engine.infer("hi").unwrap().text, "well again");
    assert_eq!(engine.health(), [("m".into(), Health::Healthy)]);
}

#[test]
fn weights_that_cannot_be_opened_are_tried_again_and_then_said_so() {
    let stage = Stage::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let (count, no_wait) = (tries.clone(), Backoff::constant(Duration::from_millis(1)));
    let engine = builder(&stage, [spec("flaky"), with("gone", |it| it.fallback = vec!["flaky".into()])])
        .retry(RetryPolicy::new().attempts(3).backoff(no_wait))
        .sources(move |spec| match spec.id.as_str() {
            "gone" => Err(Error::corrupt("bad shard")),
            _ if count.fetch_add(1, Ordering::SeqCst) < 2 => Err(Error::new(ErrorKind::Network, "link lost")),
            _ => Ok(weights(spec.id.as_str(), 4000)),
        })
        .build()
        .unwrap();
    assert_eq!(engine.infer_with(Request::new("hi").model("flaky")).unwrap().text, "flaky: hi");
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    let answer = engine.infer_with(Request::new("hi").model("gone")).unwrap();
    assert_eq!(answer.model.as_str(), "flaky");
    let alone = Request::new("hi").model("gone").without_fallback();
    let error = engine.infer_with(alone).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Corrupt, "model gone: bad shard"));
    let stats = engine.stats().unwrap();
    let gone = stats.models.iter().find(|model| model.model.as_str() == "gone").unwrap();
    assert_eq!((gone.residency, gone.bytes), (Residency::Failed, 0));
}

#[test]
fn a_load_that_panics_costs_its_request_and_nothing_else() {
    let stage = Stage::new();
    let engine = builder(&stage, [spec("bad"), spec("good")])
        .sources(|spec| match spec.id.as_str() {
            "bad" => panic!("a source's own defect"),
            id => Ok(weights(id, 4000)),
        })
        .build()
        .unwrap();
    let error = engine.infer_with(Request::new("hi").model("bad")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("a source's own defect"), "{error}");
    assert_eq!(engine.infer_with(Request::new("hi").model("good")).unwrap().text, "good: hi");
}

#[test]
fn a_worker_that_hangs_is_replaced_and_its_requests_go_on() {
    let (stage, clock) = (Stage::new(), ManualClock::new());
    let (latch, hang) = (Latch::default(), Arc::new(AtomicUsize::new(1)));
    let (door, first) = (latch.clone(), hang.clone());
    stage.script("m", move |turn| {
        turn.started();
        if first.swap(0, Ordering::SeqCst) == 1 {
            door.pass();
        }
        turn.say("here I am");
        Ok(())
    });
    let chain = with("m", |it| it.fallback = vec!["other".into()]);
    let engine = builder(&stage, [chain, spec("other")])
        .stall(Duration::from_secs(30))
        .clock(Arc::new(clock.clone()))
        .build()
        .unwrap();
    let mut stream = engine.stream(Request::new("hi").model("m"));
    assert!(stream.by_ref().any(|event| matches!(event, EngineEvent::Prefill { .. })));
    clock.advance(Duration::from_secs(31));
    let answer = stream.answer().unwrap();
    assert_eq!(answer.model.as_str(), "other");
    until("it is replaced", || stage.loads().iter().filter(|id| *id == "m").count() == 2);
    assert_eq!(engine.infer_with(Request::new("hi").model("m")).unwrap().text, "here I am");
    // What the lost worker says at last is not heard.
    latch.open();
    until("the lost model is gone", || stage.dropped.load(Ordering::SeqCst) == 1);
    assert_eq!(engine.stats().unwrap().outcomes.done, 2);
}

struct Panics;
impl Router for Panics {
    fn route(&self, _: &Query<'_>, _: &[Candidate<'_>]) -> Result<Decision> {
        panic!("a router's own defect");
    }
}
impl Observer for Panics {
    fn event(&self, _: RequestId, _: RequestEvent<'_>) {
        panic!("an observer's own defect");
    }
    fn finished(&self, _: RequestId, _: &Trace) {
        panic!("an observer's own defect");
    }
}

#[test]
fn a_router_or_observer_that_panics_stops_nobody() {
    let stage = Stage::new();
    let make = || builder(&stage, [spec("a"), spec("b")]).router(Arc::new(Panics)).observer(Arc::new(Panics));
    let answer = make().default_model("b").build().unwrap().infer("hi").unwrap();
    assert_eq!(answer.model.as_str(), "b");
    let reason = &answer.report.decision.as_ref().unwrap().reason;
    assert!(reason.contains("a router's own defect"), "{reason}");
    let error = make().build().unwrap().infer("hi").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

// --- memory ---

#[test]
fn models_take_turns_in_a_budget_and_pinned_ones_stay() {
    let stage = Stage::new();
    let pinned = with("pinned", |it| it.pinned = true);
    let engine = builder(&stage, [pinned, spec("a"), spec("b")]).memory(8000).build().unwrap();
    for id in ["pinned", "a", "b", "a", "pinned"] {
        let answer = engine.infer_with(Request::new("hi").model(id)).unwrap();
        assert_eq!(answer.model.as_str(), id);
        let stats = engine.stats().unwrap();
        assert!(stats.memory_used <= stats.memory_limit, "{stats:?}");
    }
    assert_eq!(stage.loads(), ["pinned", "a", "b", "a"]);
    assert_eq!(engine.stats().unwrap().evictions, 2);
}

#[test]
fn a_model_larger_than_the_budget_is_an_error_with_the_figures() {
    let stage = Stage::new();
    let pinned = with("pinned", |it| it.pinned = true);
    let big = with("big", |it| it.weight_bytes = 16_000);
    let engine = builder(&stage, [pinned, big, spec("a")]).memory(7000).build().unwrap();
    let error = engine.infer_with(Request::new("hi").model("big")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let text = error.to_string();
    assert!(text.ends_with("its weights take 16000 bytes, the memory budget is 7000 bytes"), "{text}");
    engine.preload("pinned").unwrap();
    let text = engine.preload("a").unwrap_err().to_string();
    assert!(text.ends_with("the memory budget is 7000 bytes, of which 4000 are pinned"), "{text}");
    assert_eq!(engine.infer_with(Request::new("hi").model("pinned")).unwrap().text, "pinned: hi");
}

#[test]
fn a_busy_model_is_never_evicted() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let door = latch.clone();
    stage.script("a", move |turn| {
        turn.started();
        turn.say("begun ");
        door.pass();
        turn.say("and ended");
        Ok(())
    });
    let engine =
        builder(&stage, [spec("a"), spec("b")]).memory(5000).patience(Duration::ZERO).build().unwrap();
    let mut busy = engine.stream(Request::new("hi").model("a"));
    assert!(busy.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    let mut other = engine.stream(Request::new("hi").model("b"));
    assert!(other.by_ref().any(|event| matches!(event, EngineEvent::Loading { .. })));
    until("b waits for room", || {
        engine.stats().unwrap().models.iter().any(|model| model.residency == Residency::Fetching)
    });
    assert_eq!(stage.loads(), ["a"]);
    latch.open();
    assert_eq!(busy.answer().unwrap().text, "begun and ended");
    assert_eq!(other.answer().unwrap().text, "b: hi");
}

#[test]
fn many_who_want_the_same_model_load_it_once() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let door = latch.clone();
    let engine = builder(&stage, [spec("m")])
        .sources(move |spec| {
            door.pass();
            Ok(weights(spec.id.as_str(), 4000))
        })
        .build()
        .unwrap();
    let streams: Vec<_> = (0..20).map(|n| engine.stream(format!("number {n}"))).collect();
    latch.open();
    for (n, stream) in streams.into_iter().enumerate() {
        assert_eq!(stream.answer().unwrap().text, format!("m: number {n}"));
    }
    assert_eq!(stage.loads(), ["m"]);
}

#[test]
fn requests_for_two_models_swap_seldom_and_nobody_starves() {
    let stage = Stage::new();
    let engine = builder(&stage, [spec("a"), spec("b")])
        .memory(5000)
        .patience(Duration::from_millis(20))
        .parallel(2)
        .build()
        .unwrap();
    let streams: Vec<_> = (0..40)
        .map(|n| engine.stream(Request::new("hi").model(if n % 2 == 0 { "a" } else { "b" })))
        .collect();
    for stream in streams {
        stream.answer().unwrap();
    }
    // Served as they came, they would have swapped 39 times.
    assert!(stage.loads().len() < 20, "{:?}", stage.loads());
}

#[test]
fn preload_and_unload_do_as_they_say() {
    let stage = Stage::new();
    let engine = engine(&stage, &["m"]);
    engine.preload("m").unwrap();
    engine.preload("m").unwrap();
    assert_eq!(engine.stats().unwrap().memory_used, 4000);
    engine.unload("m").unwrap();
    assert_eq!(stage.dropped.load(Ordering::SeqCst), 1);
    assert_eq!(engine.stats().unwrap().memory_used, 0);
    engine.unload("m").unwrap();
    assert_eq!(engine.preload("x").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(engine.unload("x").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(engine.infer("hi").unwrap().text, "m: hi");
    assert_eq!(stage.loads(), ["m", "m"]);
}

// --- order, pace and the end ---

#[test]
fn the_urgent_go_first_and_callers_take_turns() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let (door, order) = (latch.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen = order.clone();
    stage.script("m", move |turn| {
        door.pass();
        seen.lock().unwrap().push(turn.prompt.clone());
        turn.say("ok");
        Ok(())
    });
    let engine = builder(&stage, [spec("m")]).parallel(1).build().unwrap();
    let first = engine.stream("first");
    until("it runs", || engine.stats().unwrap().models.first().is_some_and(|model| model.running == 1));
    let mut rest = Vec::new();
    for n in 0..3 {
        rest.push(engine.stream(Request::new(format!("greedy {n}")).caller("greedy")));
    }
    rest.push(engine.stream(Request::new("modest").caller("modest")));
    rest.push(engine.stream(Request::new("low").priority(Priority::Low)));
    rest.push(engine.stream(Request::new("urgent").priority(Priority::High)));
    until("all wait", || engine.stats().unwrap().models[0].queued == 6);
    latch.open();
    first.answer().unwrap();
    rest.into_iter().for_each(|stream| drop(stream.answer().unwrap()));
    let expected = ["first", "urgent", "greedy 0", "modest", "greedy 1", "greedy 2", "low"];
    assert_eq!(*order.lock().unwrap(), expected);
}

#[test]
fn a_slow_consumer_pauses_its_own_request_and_loses_nothing() {
    let stage = Stage::new();
    let said = Arc::new(AtomicUsize::new(0));
    let count = said.clone();
    stage.script("m", move |turn| {
        turn.started();
        for _ in 0..2000 {
            if !turn.say("x") {
                break;
            }
            if turn.prompt == "slow" {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    });
    let engine = engine(&stage, &["m"]);
    let slow = engine.stream("slow");
    until("it has filled its room", || said.load(Ordering::SeqCst) >= 200);
    assert_eq!(engine.infer("fast").unwrap().text.len(), 2000);
    assert!(said.load(Ordering::SeqCst) < 400, "it paused at {}", said.load(Ordering::SeqCst));
    assert_eq!(slow.answer().unwrap().text.len(), 2000);
}

#[test]
fn shutdown_turns_the_queued_away_and_lets_the_running_end() {
    let (stage, latch) = (Stage::new(), Latch::default());
    let door = latch.clone();
    stage.script("m", move |turn| {
        turn.started();
        turn.say("begun ");
        if turn.prompt == "endless" {
            turn.until_cancelled();
        } else {
            door.pass();
            turn.say("and ended");
        }
        Ok(())
    });
    let engine = builder(&stage, [spec("m")]).parallel(2).build().unwrap();
    let mut running = [engine.stream("short"), engine.stream("endless")];
    for stream in &mut running {
        assert!(stream.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    }
    let queued: Vec<_> = (0..5).map(|n| engine.stream(format!("queued {n}"))).collect();
    let closing = engine.clone();
    let closed = std::thread::spawn(move || closing.shutdown(Duration::from_millis(300)));
    for stream in queued {
        assert_eq!(stream.answer().unwrap_err().kind(), ErrorKind::Rejected);
    }
    latch.open();
    let [short, endless] = running;
    assert_eq!(short.answer().unwrap().text, "begun and ended");
    let cut = endless.answer().unwrap();
    assert_eq!((cut.text.as_str(), cut.reason), ("begun ", FinishReason::Cancelled));
    let drained = closed.join().unwrap();
    assert_eq!((drained.rejected, drained.finished, drained.aborted), (5, 1, 1));
    let late = engine.infer("too late").unwrap_err();
    assert_eq!(late.to_string(), "the engine is shutting down");
    assert_eq!(engine.stats().unwrap_err().kind(), ErrorKind::Rejected);
    until("the model is gone", || stage.dropped.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_stream_keeps_its_engine_and_the_last_handle_closes_it() {
    let stage = Stage::new();
    let stream = engine(&stage, &["m"]).stream("hi");
    assert_eq!(stream.answer().unwrap().text, "m: hi");
    until("the model is gone", || stage.dropped.load(Ordering::SeqCst) == 1);
}

#[test]
fn every_request_of_a_crowd_ends_in_exactly_one_way() {
    #[derive(Default)]
    struct Count(AtomicUsize, AtomicUsize);
    impl Observer for Count {
        fn event(&self, _: RequestId, event: RequestEvent<'_>) {
            if let RequestEvent::Entered(trace) = event {
                self.0.fetch_add(usize::from(trace.state().phase.is_terminal()), Ordering::SeqCst);
            }
        }
        fn finished(&self, _: RequestId, trace: &Trace) {
            assert!(trace.state().phase.is_terminal());
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (stage, count) = (Stage::new(), Arc::new(Count::default()));
    stage.script("b", |turn| {
        turn.started();
        if turn.prompt.ends_with('7') {
            Err(down())
        } else {
            turn.say("b");
            Ok(())
        }
    });
    let engine = builder(&stage, [spec("a"), spec("b"), spec("c")])
        .memory(9000)
        .patience(Duration::from_millis(5))
        .default_model("c")
        .observer(count.clone())
        .build()
        .unwrap();
    let work = |thread: usize| {
        for n in 0..40 {
            let model = ["a", "b", "c"][(n + thread) % 3];
            let stream = engine.stream(Request::new(format!("{thread} {n}")).model(model));
            match n % 5 {
                0 => stream.cancel(),
                1 => drop(stream),
                _ => {
                    stream.last().unwrap();
                }
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|thread| drop(scope.spawn(move || work(thread)))));
    let total = || {
        let it = engine.stats().unwrap().outcomes;
        it.done + it.cancelled + it.failed + it.rejected
    };
    until("all 160 have ended", || total() == 160);
    let stats = engine.stats().unwrap();
    assert_eq!((count.0.load(Ordering::SeqCst), count.1.load(Ordering::SeqCst)), (160, 160));
    assert_eq!(stats.waiting, 0);
    until("nothing runs", || engine.stats().unwrap().models.iter().all(|model| model.running == 0));
    assert!(engine.shutdown(LONG).finished == 0);
}

#[test]
fn requests_appear_in_the_metrics() {
    let prometheus = orion::logging::Prometheus::install().unwrap();
    let stage = Stage::new();
    stage.script("metered-bad", |_| Err(down()));
    let bad = with("metered-bad", |it| it.fallback = vec!["metered".into()]);
    let engine = builder(&stage, [bad, spec("metered")]).build().unwrap();
    engine.infer_with(Request::new("hi").model("metered-bad")).unwrap();
    engine.unload("metered").unwrap();
    let text = prometheus.render();
    for line in [
        r#"orion_requests_total{model="metered",outcome="done"} 1"#,
        r#"orion_fallbacks_total{model="metered-bad"} 1"#,
        r#"orion_completion_tokens_total{model="metered"} 2"#,
        r#"orion_model_loads_total{model="metered",outcome="ok"} 1"#,
        r#"orion_model_evictions_total{model="metered"} 1"#,
        r#"orion_model_resident_bytes{model="metered"} 0"#,
        r#"orion_ttft_seconds_count{model="metered"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_conversation_is_routed_by_its_latest_turn_and_keeps_its_thread() {
    #[derive(Default)]
    struct Sees(Mutex<Vec<(String, usize, Option<String>)>>);
    impl Router for Sees {
        fn route(&self, query: &Query<'_>, candidates: &[Candidate<'_>]) -> Result<Decision> {
            let current = query.current.map(|model| model.as_str().to_owned());
            self.0.lock().unwrap().push((query.prompt.to_owned(), query.history.len(), current));
            let ranked =
                candidates.iter().map(|it| Ranked { model: it.spec.id.clone(), score: 1.0 }).collect();
            Ok(Decision::new(ranked, 0.5, false, "as it comes", "sees"))
        }
    }
    let (stage, sees) = (Stage::new(), Arc::new(Sees::default()));
    let engine = builder(&stage, [spec("a"), spec("b")]).router(sees.clone()).build().unwrap();
    let turns = [(Role::User, "one"), (Role::Assistant, "two"), (Role::User, "three")];
    let turns = turns.map(|(role, text)| Message::new(role, text)).to_vec();
    let answer = engine.infer_with(Request::chat(turns).current_model("b")).unwrap();
    assert_eq!(answer.confidence, 0.5);
    assert_eq!(*sees.0.lock().unwrap(), [("three".to_owned(), 2, Some("b".to_owned()))]);
}

#[test]
fn a_chat_remembers_what_was_answered_and_forgets_what_failed() {
    let stage = Stage::new();
    stage.script("m", |turn| {
        turn.started();
        if turn.prompt == "fail" {
            return Err(down());
        }
        turn.say(&format!("about {}", turn.prompt));
        Ok(())
    });
    let engine = engine(&stage, &["m"]);
    let mut chat = engine.chat().system("Be brief.");
    assert_eq!(chat.say("one").unwrap().text, "about one");
    assert_eq!(chat.say("fail").unwrap_err().kind(), ErrorKind::Internal);
    drop(chat.stream("dropped"));
    assert_eq!(chat.say("two").unwrap().text, "about two");
    let turns: Vec<_> = chat.history().into_iter().map(|message| message.content).collect();
    assert_eq!(turns, ["Be brief.", "one", "about one", "two", "about two"]);
}

#[test]
fn a_model_file_that_is_replaced_is_loaded_anew() {
    let (stage, clock) = (Stage::new(), ManualClock::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let of = ModelSpec::new("m".into(), vec![orion::FileSpec::new(path.clone())]);
    let engine = builder(&stage, [of])
        .sources(move |_| Ok(weights(&std::fs::read_to_string(&path).unwrap(), 4000)))
        .clock(Arc::new(clock.clone()))
        .build()
        .unwrap();
    std::fs::write(file.path(), "first").unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(engine.infer("hi").unwrap().text, "first: hi");
    assert_eq!(engine.infer("hi").unwrap().text, "first: hi");
    std::fs::write(file.path(), "the second").unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(engine.infer("hi").unwrap().text, "the second: hi");
    assert_eq!(stage.loads(), ["first", "the second"]);
    until("the first is gone", || stage.dropped.load(Ordering::SeqCst) == 1);
}

#[test]
fn weights_that_break_off_fail_the_request_and_the_next_load_works() {
    struct Breaks(Arc<dyn WeightSource>);
    impl WeightSource for Breaks {
        fn header(&self) -> &ModelHeader {
            self.0.header()
        }
        fn tensor(&self, index: usize) -> Result<TensorBytes> {
            match index {
                2 => Err(Error::corrupt("shard 2 has another digest")),
                _ => self.0.tensor(index),
            }
        }
    }
    let (stage, tries) = (Stage::new(), Arc::new(AtomicUsize::new(0)));
    let engine = builder(&stage, [spec("m")])
        .sources(move |spec| {
            let whole = weights(spec.id.as_str(), 4000);
            match tries.fetch_add(1, Ordering::SeqCst) {
                0 => Ok(Arc::new(Breaks(whole))),
                _ => Ok(whole),
            }
        })
        .build()
        .unwrap();
    let error = engine.infer("hi").unwrap_err();
    assert_eq!(error.to_string(), "model m: shard 2 has another digest");
    assert_eq!(engine.stats().unwrap().memory_used, 0);
    assert_eq!(engine.infer("hi").unwrap().text, "m: hi");
}

// --- loading ahead ---

#[test]
fn the_model_that_comes_next_is_there_before_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let habits = folder.path().join("habits.json");
    let build = |stage: &Arc<Stage>| {
        builder(stage, ["a", "b", "c"].map(spec)).memory(8000).habits(&habits).build().unwrap()
    };
    let resident = |engine: &Engine, id: &str| {
        let models = engine.stats().unwrap().models;
        models.iter().any(|model| model.model.as_str() == id && model.residency == Residency::Ready)
    };
    let engine = build(&Stage::new());
    for id in ["a", "b", "c"].repeat(8) {
        engine.infer_with(Request::new("hi").model(id)).unwrap();
    }
    engine.infer_with(Request::new("hi").model("a")).unwrap();
    until("b is there", || resident(&engine, "b"));
    let foresight = engine.stats().unwrap().foresight.unwrap();
    assert!(foresight.on && foresight.came_true * 10 >= foresight.foretold * 9, "{foresight:?}");
    engine.shutdown(LONG);

    // Another engine remembers.
    let stage = Stage::new();
    let engine = build(&stage);
    for id in ["c", "a", "b"] {
        engine.infer_with(Request::new("hi").model(id)).unwrap();
    }
    until("c is there again", || resident(&engine, "c"));
    assert!(!resident(&engine, "a") || engine.stats().unwrap().memory_used <= 8000);
    engine.infer_with(Request::new("hi").model("c")).unwrap();
    assert_eq!(engine.stats().unwrap().foresight.unwrap().wasted_bytes, 0);
}

#[test]
fn habits_that_cannot_be_read_are_said_so() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "not json").unwrap();
    let error = builder(&Stage::new(), [spec("a")]).habits(file.path()).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
