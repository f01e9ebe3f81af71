//! A model that computes while its weights are still on their way, from a server that withholds what a test wants.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::net::TcpStream;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use orion::loader::{Loader, LoaderOptions, MemorySource};
use orion::runtime::{ExecutorKind, LocalModel, LocalRuntime, RuntimeOptions};
use orion::{
    Engine, EngineBuilder, ErrorKind, FileSpec, Generation, GenerationEvent, ModelExt, ModelHeader,
    ModelSpec, SamplingParams, TokenId,
};
use orion_testkit::models::smollm2;
use orion_testkit::references;
use orion_testkit::server::{Gate, Request, Server, answer, good, status};
use tempfile::TempDir;

const LAYERS: usize = 30;

struct Bench {
    cache: TempDir,
    body: Arc<Vec<u8>>,
    header: ModelHeader,
}

impl Bench {
    fn new() -> Self {
        let header = orion::loader::open(smollm2()).unwrap().header().clone();
        Self { cache: TempDir::new().unwrap(), body: Arc::new(std::fs::read(smollm2()).unwrap()), header }
    }

    fn options(&self) -> LoaderOptions {
        LoaderOptions::new().cache_directory(self.cache.path()).offline(false).wait(|_| ())
    }

    fn open(&self, options: LoaderOptions, server: &Server) -> LocalModel {
        let source = Loader::new(options).unwrap().open(&format!("{}/m.gguf", server.url)).unwrap();
        LocalRuntime::default().open(source).unwrap()
    }

    fn tensor(&self, name: &str) -> Range<usize> {
        self.header.tensors[self.header.position(name).unwrap()].range().unwrap()
    }

    /// Where the tensors of a layer stand: beside each other.
    fn layer(&self, number: usize) -> Range<usize> {
        let name = format!("blk.{number}.");
        let of_layer = self.header.tensors.iter().filter(|info| info.name.starts_with(&name));
        let ranges: Vec<_> = of_layer.map(|info| info.range().unwrap()).collect();
        ranges.iter().map(|range| range.start).min().unwrap()
            ..ranges.iter().map(|range| range.end).max().unwrap()
    }
}

fn generation() -> Generation {
    let prompt =
        "Write a short note to a friend about the weather by the sea, the boats and the gulls. ".repeat(3);
    Generation::user(prompt).sampling(SamplingParams::greedy()).max_tokens(12)
}

fn local_answer() -> Vec<TokenId> {
    let model = LocalRuntime::default().open(orion::loader::open(smollm2()).unwrap()).unwrap();
    model.generate(generation()).unwrap().tokens
}

/// Waits for what must come; the time is only there so that a defect ends.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(120), "{what} never came");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_first_layers_run_while_the_last_are_withheld() {
    let bench = Bench::new();
    let (gate, body) = (
        Arc::new(Gate::new((20..LAYERS).map(|number| bench.layer(number)).collect())),
        Arc::clone(&bench.body),
    );
    let held = Arc::clone(&gate);
    let server = Server::start(move |request, _, stream| held.good(request, stream, &body));
    let model = bench.open(bench.options(), &server);
    let mut stream = model.stream(generation()).unwrap();
    until("layer 19", || model.layers_reached() == 20);
    let (loaded, parts) = model.load_progress();
    assert!(loaded < parts && loaded >= 20, "{loaded} of {parts}");
    // The embedding is the head as well and comes last; of it, rows may have been asked for, and little else.
    let embedding = bench.tensor("token_embd.weight");
    let in_embedding: Vec<_> =
        server.requests().iter().map(Request::range).filter(|(from, _)| embedding.contains(from)).collect();
    let rows: usize = in_embedding.iter().filter_map(|(from, to)| Some((*to)? - from)).sum();
    assert!(rows < embedding.len() / 2, "{rows} bytes in {} requests", in_embedding.len());
    gate.open();
    let mut tokens = Vec::new();
    for event in stream.by_ref() {
        match event {
            GenerationEvent::Token { id, .. } => tokens.push(id),
            GenerationEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(tokens, local_answer());
    assert_eq!(model.layers_reached(), LAYERS);
}

#[test]
fn no_token_leaves_before_the_last_byte() {
    let bench = Bench::new();
    // Everything but the last kilobyte of what is fetched last: the embedding's end.
    let end = bench.tensor("token_embd.weight").end - 1000;
    let (held, release) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (body, flag, freed) = (Arc::clone(&bench.body), Arc::clone(&held), Arc::clone(&release));
    let server = Server::start(move |request: &Request, _, stream: &mut TcpStream| {
        let range = answer(request, stream, &body);
        for start in range.clone().step_by(500) {
            let piece = start..(start + 500).min(range.end);
            while piece.contains(&end) && !freed.load(Ordering::SeqCst) {
                flag.store(false, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
            if std::io::Write::write_all(stream, &body[piece]).is_err() {
                return;
            }
        }
    });
    let model = bench.open(bench.options().connections(1), &server);
    let stream = model.stream(generation()).unwrap();
    until("the last layer", || model.layers_reached() >= LAYERS - 1 && !held.load(Ordering::SeqCst));
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let reader = thread::spawn(move || {
        for event in stream {
            if let GenerationEvent::Token { id, .. } = event {
                seen.lock().unwrap().push(id);
            }
        }
    });
    assert_eq!(events.lock().unwrap().len(), 0);
    let (loaded, parts) = model.load_progress();
    assert!(loaded < parts, "{loaded} of {parts}");
    release.store(true, Ordering::SeqCst);
    reader.join().unwrap();
    assert_eq!(*events.lock().unwrap(), local_answer());
}

#[test]
fn a_load_that_breaks_off_fails_the_request_and_leaves_nothing_visible() {
    let bench = Bench::new();
    let broken = Arc::new(AtomicBool::new(true));
    let (body, flag, lost) = (Arc::clone(&bench.body), Arc::clone(&broken), bench.layer(15));
    let server = Server::start(move |request: &Request, _, stream: &mut TcpStream| {
        if !flag.load(Ordering::SeqCst) {
            return good(request, stream, &body);
        }
        if lost.contains(&request.from()) {
            return status(stream, "503 Service Unavailable", "");
        }
        let range = answer(request, stream, &body);
        let end = if range.start < lost.start { range.end.min(lost.start) } else { range.end };
        let _ = std::io::Write::write_all(stream, &body[range.start..end]);
    });
    let options = bench.options().retries(2);
    let model = bench.open(options.clone(), &server);
    let error = model.generate(generation()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    // Later requests hear the same at once, and the cache shows nothing.
    assert_eq!(model.generate(generation()).unwrap_err().kind(), ErrorKind::Network);
    drop(model);
    let cache = Loader::new(options.clone()).unwrap();
    assert_eq!(cache.cache().list().unwrap(), []);
    // Threads that fetch let go of what they leave behind a moment after the model is gone.
    until("the partial files are let go", || {
        std::fs::read_dir(bench.cache.path().join("partial")).unwrap().all(|entry| {
            let path = entry.unwrap().path();
            path.extension().is_none_or(|kind| kind != "part")
                || std::fs::File::open(path).unwrap().try_lock().is_ok()
        })
    });
    broken.store(false, Ordering::SeqCst);
    let before = server.requests().len();
    let model = bench.open(options, &server);
    assert_eq!(model.generate(generation()).unwrap().tokens, local_answer());
    // What had come was not fetched again.
    let later: Vec<_> = server.requests().drain(before..).collect();
    assert!(later.iter().all(|request| request.headers.contains_key("if-range")), "{later:?}");
    drop(model);
    assert_eq!(cache.cache().verify().unwrap().good, 1);
}

#[test]
fn priority_layers_are_fetched_first() {
    let bench = Bench::new();
    let (from, body) = (bench.layer(25).start, Arc::clone(&bench.body));
    let server = Server::start(move |request, _, stream| good(request, stream, &body));
    let options = bench.options().connections(1).priority_layers([25]);
    let model = bench.open(options, &server);
    assert_eq!(model.generate(generation()).unwrap().tokens, local_answer());
    let starts: Vec<usize> = server.requests().iter().map(Request::from).collect();
    let jumped = starts.iter().position(|&start| start == from).unwrap();
    let first_layer = starts.iter().position(|&start| bench.layer(0).contains(&start)).unwrap();
    assert!(jumped < first_layer, "{starts:?}");
}

#[test]
fn every_executor_answers_the_same_with_the_embedding_first_or_last() {
    // Rows looked up one by one and the whole table must give the same bits: a source that forgets its rows is the
    // reference.
    let case = references::case("llama-gqa-tied");
    let file = TempDir::new().unwrap();
    let path = file.path().join("m.gguf");
    std::fs::write(&path, case.gguf().unwrap()).unwrap();
    let logits = |source| {
        let mut options = RuntimeOptions::default();
        options.executor = ExecutorKind::Cpu;
        let model = LocalRuntime::new(options).open(source).unwrap();
        let tokens: Vec<TokenId> = (0..40).map(|n| TokenId(n % 17)).collect();
        let mut all = Vec::new();
        model.evaluate(&tokens, orion::runtime::Positions::All, |_, row| all.extend_from_slice(row)).unwrap();
        all
    };
    let from_file = orion::loader::open(&path).unwrap();
    let mut memory = MemorySource::new(from_file.header().format);
    for (key, value) in &from_file.header().metadata {
        memory = memory.meta(key.clone(), value.clone());
    }
    for (index, info) in from_file.header().tensors.iter().enumerate() {
        let bytes = from_file.tensor(index).unwrap();
        memory = memory.tensor(info.name.clone(), info.shape.clone(), info.ty, bytes).unwrap();
    }
    assert_eq!(logits(from_file), logits(memory.build()));
}

#[test]
fn what_likely_comes_next_and_finds_no_room_is_fetched_ahead() {
    let body = references::case("llama-gqa-tied").gguf().unwrap();
    let folder = TempDir::new().unwrap();
    let near = folder.path().join("a.gguf");
    std::fs::write(&near, &body).unwrap();
    let server = Server::start(move |request, _, stream| good(request, stream, &body));
    let seen =
        |server: &Server, name: &str| server.requests().iter().any(|request| request.path.contains(name));
    let engine = |cache: &str, limit: u64| {
        let loader = LoaderOptions::new().cache_directory(folder.path().join(cache));
        let far = format!("{}/b-{cache}.gguf", server.url);
        let models = [("a", near.to_str().unwrap()), ("b", far.as_str())].map(|(id, location)| {
            let mut spec = ModelSpec::new(id.into(), vec![FileSpec::new(location)]);
            spec.pinned = id == "a";
            spec
        });
        models
            .into_iter()
            .fold(Engine::builder(), EngineBuilder::spec)
            .loader(Loader::new(loader).unwrap())
            .habits(folder.path().join("habits.json"))
            .memory(limit)
            .kv_tokens(64)
            .build()
            .unwrap()
    };
    let ask = |engine: &Engine, model: &str| {
        let prompt = orion::Prompt::Tokens(vec![TokenId(1)]);
        let answer = engine.infer_with(orion::Request::of(prompt).model(model).max_tokens(1)).unwrap();
        assert_eq!(answer.model.as_str(), model);
    };
    let teacher = engine("first", 1 << 30);
    for model in ["a", "b"].repeat(6) {
        ask(&teacher, model);
    }
    let memory = teacher.stats().unwrap().memory_used;
    teacher.shutdown(Duration::from_secs(10));

    // The first is pinned, and how large the other is nobody knows yet.
    let engine = engine("second", memory * 3 / 4);
    ask(&engine, "a");
    until("b is fetched", || seen(&server, "/b-second"));
    let stats = engine.stats().unwrap();
    let here: Vec<_> = stats.models.iter().filter(|it| it.loads > 0).map(|it| it.model.as_str()).collect();
    assert_eq!((here.as_slice(), stats.evictions), (&["a"][..], 0));
}
