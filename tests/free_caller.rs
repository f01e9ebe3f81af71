//! The caller stays free: with reading and computing held at a fault point, every call that promises not to wait returns.
//!
//! No time is asserted. What is held is let go only after the calls have come back, so a call that waited for it would
//! never return; the long wait is there so that a defect ends.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

#[allow(dead_code, reason = "each test uses a part")]
mod fakes;

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use fakes::{LONG, Latch, Stage, builder, spec, until, weights};
use orion::runtime::LocalRuntime;
use orion::{
    CancelToken, Engine, EngineEvent, Flow, Generation, GenerationEvent, Job, Model, ModelExt, ModelHeader,
    Request, Result, SamplingParams, TensorBytes, TokenSink, WeightSource,
};

/// Makes a call on a thread of its own and hands back what it returned.
fn returns<T: Send + 'static>(point: &str, what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let (reply, answer) = mpsc::channel();
    thread::spawn(move || reply.send(call()));
    answer.recv_timeout(LONG).unwrap_or_else(|_| panic!("{what} did not return while {point} was held"))
}

/// A door, and a note of whether somebody stands before it.
#[derive(Clone, Default)]
struct Point {
    door: Latch,
    reached: Latch,
}

impl Point {
    fn hold(&self) {
        self.reached.open();
        self.door.pass();
    }
}

/// Weights of which one tensor is not to be had yet.
struct Held {
    source: Arc<dyn WeightSource>,
    tensor: usize,
    point: Point,
}

impl WeightSource for Held {
    fn header(&self) -> &ModelHeader {
        self.source.header()
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        if index == self.tensor {
            self.point.hold();
        }
        self.source.tensor(index)
    }

    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        self.source.rows(index, rows)
    }
}

/// Tells one kind of event.
type Which = fn(&GenerationEvent) -> bool;

/// Takes events, and holds whoever brings the one that is waited for.
struct Consumer {
    hold_at: Which,
    point: Point,
    done: mpsc::Sender<GenerationEvent>,
}

impl TokenSink for Consumer {
    fn event(&mut self, event: GenerationEvent) -> Flow {
        if (self.hold_at)(&event) {
            self.point.hold();
        }
        if matches!(event, GenerationEvent::Done(_) | GenerationEvent::Failed(_)) {
            self.done.send(event).ok();
        }
        Flow::Continue
    }
}

fn generation() -> Generation {
    Generation::user("Name three birds of the sea.").sampling(SamplingParams::greedy()).max_tokens(4)
}

/// What a model promises to do without waiting.
fn calls_of_a_model(point: &str, model: &Arc<orion::runtime::LocalModel>) {
    let with = |what: &str, call: fn(&orion::runtime::LocalModel)| {
        let model = Arc::clone(model);
        returns(point, what, move || call(&model));
    };
    with("info", |model| drop(model.info().executor.clone()));
    with("load_progress", |model| {
        std::hint::black_box(model.load_progress());
    });
    with("layers_reached", |model| {
        std::hint::black_box(model.layers_reached());
    });
    with("load_time", |model| {
        std::hint::black_box(model.load_time());
    });
    with("count_tokens", |model| assert!(model.count_tokens(&generation()).unwrap() > 0));
    with("stream and drop", |model| drop(model.stream(generation()).unwrap()));
    let (model, cancel) = (Arc::clone(model), CancelToken::new());
    returns(point, "submit and cancel", move || {
        let (done, _) = mpsc::channel();
        let sink = Consumer { hold_at: |_| false, point: Point::default(), done };
        model.submit(Job::new(generation(), sink).cancelled_by(cancel.clone())).unwrap();
        cancel.cancel();
    });
}

#[test]
fn a_model_answers_calls_while_a_tensor_does_not_come() {
    let source = orion::loader::open(orion_testkit::models::smollm2()).unwrap();
    let position = |name: &str| source.header().position(name).unwrap();
    for name in ["blk.0.attn_norm.weight", "blk.14.ffn_down.weight", "output_norm.weight"] {
        let point = Point::default();
        let held = Held { source: Arc::clone(&source), tensor: position(name), point: point.clone() };
        let model = returns(name, "open", move || LocalRuntime::default().open(Arc::new(held)).unwrap());
        let model = Arc::new(model);
        let first = model.stream(generation()).unwrap();
        point.reached.pass();
        calls_of_a_model(name, &model);
        point.door.open();
        let last = first.last().unwrap();
        assert!(matches!(last, GenerationEvent::Done(_)), "{last:?}");
    }
}

#[test]
fn a_model_answers_calls_while_its_worker_is_held() {
    let source = orion::loader::open(orion_testkit::models::smollm2()).unwrap();
    let model = Arc::new(LocalRuntime::default().open(source).unwrap());
    let points: [(&str, Which); 3] = [
        ("the start of the prompt", |event| matches!(event, GenerationEvent::Started { .. })),
        ("a token", |event| matches!(event, GenerationEvent::Token { .. })),
        ("the end", |event| matches!(event, GenerationEvent::Done(_))),
    ];
    for (name, hold_at) in points {
        let (point, (done, last)) = (Point::default(), mpsc::channel());
        let sink = Consumer { hold_at, point: point.clone(), done };
        model.submit(Job::new(generation(), sink)).unwrap();
        point.reached.pass();
        calls_of_a_model(name, &model);
        point.door.open();
        let last = last.recv_timeout(LONG).unwrap();
        assert!(matches!(last, GenerationEvent::Done(_)), "{last:?}");
    }
}

/// What an engine promises to do without waiting for any model.
fn calls_of_an_engine(point: &str, engine: &Engine, id: &str) {
    let with = |what: &str, call: fn(&Engine)| {
        let engine = engine.clone();
        returns(point, what, move || call(&engine));
    };
    with("stats", |engine| assert!(!engine.stats().unwrap().models.is_empty()));
    with("health", |engine| assert!(!engine.health().is_empty()));
    with("recent", |engine| drop(engine.recent()));
    with("route", |engine| drop(engine.route("hello").unwrap()));
    let (forced, engine) = (Request::new("hello").model(id), engine.clone());
    returns(point, "stream, try_next, cancel and drop", move || {
        let mut stream = engine.stream(forced);
        drop((stream.id(), stream.cancel_token()));
        while stream.try_next().is_some() {}
        stream.cancel();
        drop(stream);
    });
}

#[test]
fn an_engine_answers_calls_at_every_point_where_a_request_can_be_held() {
    for name in ["the source", "a tensor", "the prompt", "a token"] {
        let (stage, point) = (Stage::new(), Point::default());
        let (at, before) = (name, point.clone());
        stage.script("m", move |turn| {
            if at == "the prompt" {
                before.hold();
            }
            turn.started();
            turn.say("one");
            if at == "a token" {
                before.hold();
            }
            turn.say(" two");
            Ok(())
        });
        let before = point.clone();
        let engine = builder(&stage, [spec("m"), spec("other")])
            .sources(move |spec| {
                let source = weights(spec.id.as_str(), 4000);
                if spec.id.as_str() != "m" {
                    return Ok(source);
                }
                if at == "the source" {
                    before.hold();
                }
                let tensor = if at == "a tensor" { 2 } else { usize::MAX };
                Ok(Arc::new(Held { source, tensor, point: before.clone() }) as Arc<dyn WeightSource>)
            })
            .build()
            .unwrap();
        let mut first = engine.stream(Request::new("hello").model("m"));
        point.reached.pass();
        calls_of_an_engine(name, &engine, "m");
        // Another model is not held up either: it loads and answers.
        let other = engine.clone();
        let answer = returns(name, "infer with another model", move || {
            other.infer_with(Request::new("hello").model("other"))
        });
        assert_eq!(answer.unwrap().text, "other: hello");
        while first.try_next().is_some() {}
        point.door.open();
        let last = first.last().unwrap();
        let EngineEvent::Done(answer) = last else { panic!("{name}: {last:?}") };
        assert_eq!(answer.text, "one two");
        until("everything has ended", || engine.stats().unwrap().waiting == 0);
    }
}
