//! The engine with real models: what it adds must not change a single token.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orion::pipeline::{ShardOptions, ShardSize};
use orion::resilience::{Backoff, BreakerSettings};
use orion::{
    Constraint, Engine, EngineEvent, Error, ErrorKind, FileSpec, FinishReason, Generation, Health,
    ManualClock, ModelExt, ModelSpec, Request, SamplingParams, state::Phase,
};
use orion_testkit::models;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn smollm2() -> Engine {
    Engine::builder().model("smollm2", path(&models::smollm2())).build().unwrap()
}

fn greedy(prompt: &str, tokens: u32) -> Request {
    Request::new(prompt).sampling(SamplingParams::greedy()).max_tokens(tokens)
}

#[test]
fn a_program_of_five_lines_gets_its_answer() {
    let answer = smollm2().infer_with(greedy("List three fruits.", 40)).unwrap();
    assert!(answer.text.contains("Apples"), "{}", answer.text);
    assert!(answer.usage.prompt_tokens > 5 && answer.timings.ttft > std::time::Duration::ZERO);
}

#[test]
fn the_engine_says_what_the_model_says_alone_or_in_a_crowd() {
    let prompts: Vec<String> = (0..6).map(|n| format!("Write a sentence about the number {n}.")).collect();
    let model = orion::open(models::smollm2()).unwrap();
    let alone: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let generation = Generation::user(prompt).sampling(SamplingParams::greedy()).max_tokens(24);
            model.generate(generation).unwrap().tokens
        })
        .collect();
    let engine = smollm2();
    let streams: Vec<_> = prompts.iter().map(|prompt| engine.stream(greedy(prompt, 24))).collect();
    for (stream, alone) in streams.into_iter().zip(alone) {
        let mut text = String::new();
        for event in stream {
            match event {
                EngineEvent::Token { text: piece, .. } => text += &piece,
                EngineEvent::Done(answer) => {
                    assert_eq!(answer.tokens, alone);
                    assert!(answer.text.starts_with(&text), "{text:?} is not the start of {:?}", answer.text);
                }
                EngineEvent::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    }
}

#[test]
fn an_answer_follows_its_schema_its_expression_and_its_grammar() {
    let engine = smollm2();
    let schema = r#"{"type": "object", "additionalProperties": false, "required": ["name", "legs"],
        "properties": {"name": {"enum": ["cat", "bird"]}, "legs": {"type": "integer", "minimum": 2, "maximum": 4}}}"#;
    let answer = engine.infer_with(greedy("Describe an animal.", 64).json_schema(schema)).unwrap();
    let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
    assert!(["cat", "bird"].contains(&value["name"].as_str().unwrap()), "{value}");
    assert!((2..=4).contains(&value["legs"].as_i64().unwrap()), "{value}");
    assert_eq!(value.as_object().unwrap().len(), 2);

    let regex = Constraint::Regex("[0-9]{3}-[a-f]{2}".into());
    let answer = engine.infer_with(greedy("Say something.", 32).constraint(regex)).unwrap();
    let (digits, letters) = answer.text.split_once('-').unwrap();
    assert!(digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{}", answer.text);
    assert!(
        letters.len() == 2 && letters.bytes().all(|byte| (b'a'..=b'f').contains(&byte)),
        "{}",
        answer.text
    );

    let grammar = Constraint::Grammar(r#"root ::= "move " ("north" | "south") "!""#.into());
    let answer = engine.infer_with(greedy("Where to?", 32).constraint(grammar)).unwrap();
    assert!(["move north!", "move south!"].contains(&answer.text.as_str()), "{}", answer.text);

    let broken = Request::new("hi").json_schema("{not a schema");
    assert_eq!(engine.infer_with(broken).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_prompt_that_begins_like_an_earlier_one_is_not_computed_again() {
    let engine = smollm2();
    let rules = "Always answer in one short sentence. Never use lists. ".repeat(12);
    let ask = |question: &str| {
        let mut chat = engine.chat().system(&rules).like(greedy("", 8));
        chat.say(question).unwrap()
    };
    let (first, second) = (ask("What is water?"), ask("What is fire?"));
    assert_eq!(first.usage.cached_tokens, 0);
    assert!(second.usage.cached_tokens >= 64, "{:?}", second.usage);
    let fresh = smollm2().chat().system(&rules).like(greedy("", 8)).say("What is fire?").unwrap();
    assert_eq!(fresh.tokens, second.tokens);
    assert_eq!(engine.stats().unwrap().outcomes.cached_tokens, u64::from(second.usage.cached_tokens));
}

#[test]
fn a_prompt_beyond_the_context_is_the_callers_mistake() {
    let engine = smollm2();
    let error = engine.infer_with(greedy(&"word ".repeat(9000), 4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert!(error.to_string().contains("the context holds 8192"), "{error}");
    assert_eq!(engine.health()[0].1, orion::Health::Healthy);
}

#[test]
fn a_real_prompt_and_a_real_answer_can_be_cancelled() {
    let engine = smollm2();
    engine.preload("smollm2").unwrap();
    let mut decoding = engine.stream(greedy("Tell me a very long story.", 4000));
    assert!(decoding.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    decoding.cancel();
    let answer = decoding.answer().unwrap();
    assert_eq!(answer.reason, FinishReason::Cancelled);
    assert!(answer.usage.completion_tokens >= 1 && answer.usage.completion_tokens < 4000);
    let mut prefilling = engine.stream(greedy(&"Once more. ".repeat(2500), 10));
    assert!(prefilling.by_ref().any(|event| matches!(event, EngineEvent::Prefill { .. })));
    prefilling.cancel();
    let answer = prefilling.answer().unwrap();
    assert_eq!((answer.reason, answer.report.phase()), (FinishReason::Cancelled, Phase::Cancelled));
    assert_eq!(answer.report.ttft(), None);
}

#[test]
fn two_models_take_turns_in_a_budget_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let twin = folder.path().join("twin.gguf");
    std::fs::copy(models::smollm2(), &twin).unwrap();
    let engine = Engine::builder()
        .model("one", path(&models::smollm2()))
        .model("two", path(&twin))
        .memory(180_000_000)
        .build()
        .unwrap();
    let answers: Vec<_> = ["one", "two", "one"]
        .map(|id| engine.infer_with(greedy("List three fruits.", 12).model(id)).unwrap())
        .to_vec();
    assert!(answers.windows(2).all(|pair| pair[0].tokens == pair[1].tokens));
    let stats = engine.stats().unwrap();
    assert_eq!(stats.evictions, 2);
    assert_eq!(stats.models.iter().map(|model| model.loads).sum::<u64>(), 3);
}

#[test]
fn a_file_cut_short_is_refused_with_its_place_and_stops_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.gguf");
    let bytes = std::fs::read(models::smollm2()).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let engine = Engine::builder()
        .model("cut", path(&cut))
        .model("whole", path(&models::smollm2()))
        .default_model("whole")
        .build()
        .unwrap();
    let alone = greedy("List three fruits.", 8).model("cut");
    let error = engine.infer_with(alone.clone().without_fallback()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("cut.gguf"), "{error}");
    let answer = engine.infer_with(alone).unwrap();
    assert_eq!((answer.model.as_str(), answer.report.trace.state().fallbacks), ("whole", 1));
}

#[test]
fn the_demo_catalogue_routes_among_its_agents_and_loads_their_weights_once() {
    let _ = models::minilm();
    let engine = Engine::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models.json")).unwrap();
    let kinds = [
        ("code", "Write a Rust function that reverses a string."),
        ("translation", "Translate into French: good morning, my friend."),
        ("reasoning", "If a train travels 60 km in 45 minutes, what is its speed in km/h? Work it out."),
        ("creative", "Write a short poem about autumn leaves."),
    ];
    for (kind, prompt) in kinds {
        let decision = engine.route(prompt).unwrap();
        assert_eq!(decision.chosen().map(|model| model.as_str()), Some(kind), "{decision:?}");
        let answer = engine.infer_with(greedy(prompt, 4)).unwrap();
        assert_eq!((answer.model.as_str(), answer.report.decision.is_some()), (kind, true));
    }
    let stats = engine.stats().unwrap();
    assert_eq!((stats.models.len(), stats.models[0].loads), (1, 1), "{stats:?}");
    let vectors = engine.embed(&["a cat", "a kitten", "tax law"]).unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!((dot(&vectors[0], &vectors[0]) - 1.0).abs() < 1e-3);
    assert!(dot(&vectors[0], &vectors[1]) > dot(&vectors[0], &vectors[2]) + 0.2);
}

#[test]
fn a_system_prompt_outlives_its_model_and_its_engine() {
    let folder = tempfile::tempdir().unwrap();
    let build = |memory: u64| {
        Engine::builder()
            .model("m", path(&models::smollm2()))
            .kv_directory(folder.path(), memory)
            .build()
            .unwrap()
    };
    let rules = "Always answer in one short sentence. Never use lists. ".repeat(12);
    let ask = |engine: &Engine, question: &str| {
        engine.chat().system(&rules).like(greedy("", 8)).say(question).unwrap()
    };
    let engine = build(1 << 30);
    let first = ask(&engine, "What is water?");
    let second = ask(&engine, "What is fire?");
    let kept = (second.usage.cached_tokens / 64) as usize;
    assert!(kept >= 1 && first.usage.cached_tokens == 0);
    engine.shutdown(std::time::Duration::from_secs(60));
    let files = || {
        let files = std::fs::read_dir(folder.path()).unwrap().flatten();
        files.filter(|file| file.path().extension() == Some("kv".as_ref())).count()
    };
    let start = std::time::Instant::now();
    while files() < kept {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{} of {kept} pages", files());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let restarted = build(1 << 30);
    let again = ask(&restarted, "What is fire?");
    assert_eq!((again.usage.cached_tokens, &again.tokens), (second.usage.cached_tokens, &second.tokens));

    // A page that rots is computed again, and nothing else changes.
    for file in std::fs::read_dir(folder.path()).unwrap().flatten() {
        let mut bytes = std::fs::read(file.path()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file.path(), bytes).unwrap();
    }
    let rotten = ask(&build(1 << 30), "What is fire?");
    assert_eq!((rotten.usage.cached_tokens, rotten.tokens), (0, second.tokens));
}

/// A request that computes until it is told to stop, and has begun to answer.
fn endless(engine: &Engine) -> orion::AnswerStream {
    let mut stream = engine.stream(greedy("Tell me a very long story.", 4000));
    assert!(stream.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    stream
}

#[test]
fn a_full_queue_turns_away_and_who_waits_gets_its_answer() {
    let engine = Engine::builder().model("smollm2", path(&models::smollm2()));
    let engine = engine.parallel(1).queued_requests(1).build().unwrap();
    let running = endless(&engine);
    let waiting = engine.stream(greedy("List three fruits.", 8));
    let error = engine.infer("no room").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.retry_after().is_some());
    running.cancel();
    assert_eq!(running.answer().unwrap().reason, FinishReason::Cancelled);
    assert_eq!(waiting.answer().unwrap().usage.completion_tokens, 8);
}

#[test]
fn a_deadline_ends_a_real_answer_and_keeps_what_waits_from_running() {
    let clock = ManualClock::new();
    let engine = Engine::builder().model("smollm2", path(&models::smollm2())).parallel(1);
    let minute = Duration::from_secs(60);
    let engine = engine.stall(10 * minute).clock(Arc::new(clock.clone())).build().unwrap();
    let story = greedy("Tell me a very long story.", 4000);
    let mut running = engine.stream(story.timeout(2 * minute));
    assert!(running.by_ref().any(|event| matches!(event, EngineEvent::Token { .. })));
    let mut waiting = engine.stream(greedy("List three fruits.", 8).timeout(minute));
    assert!(waiting.by_ref().any(|event| matches!(event, EngineEvent::Queued { .. })));
    clock.advance(minute);
    assert_eq!(waiting.answer().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    clock.advance(minute);
    assert_eq!(running.answer().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(engine.infer_with(greedy("List three fruits.", 4)).unwrap().usage.completion_tokens, 4);
}

#[test]
fn a_breaker_keeps_away_from_a_model_that_cannot_be_had_and_lets_it_back() {
    let (clock, lost) = (ManualClock::new(), Arc::new(AtomicBool::new(true)));
    let disk = lost.clone();
    let wait = Duration::from_secs(10);
    let settings = BreakerSettings::new().consecutive_failures(2).wait(Backoff::constant(wait));
    let engine = Engine::builder()
        .model("smollm2", path(&models::smollm2()))
        .sources(move |spec| match disk.load(Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Corrupt, "the disk returned another digest")),
            false => orion::loader::open(&spec.files[0].location),
        })
        .breaker(settings)
        .clock(Arc::new(clock.clone()))
        .build()
        .unwrap();
    let ask = || engine.infer_with(greedy("List three fruits.", 4));
    assert!((0..2).all(|_| ask().unwrap_err().kind() == ErrorKind::Corrupt));
    let refused = ask().unwrap_err();
    assert_eq!((refused.kind(), engine.health()[0].1), (ErrorKind::Rejected, Health::Down));
    lost.store(false, Ordering::SeqCst);
    clock.advance(refused.retry_after().unwrap());
    assert_eq!(ask().unwrap().usage.completion_tokens, 4);
    assert_eq!(engine.health()[0].1, Health::Healthy);
}

#[test]
fn the_chain_of_a_model_whose_file_is_gone_leads_to_one_that_answers() {
    let mut gone = ModelSpec::new("gone".into(), vec![FileSpec::new("/nowhere/model.gguf")]);
    gone.fallback = vec!["smollm2".into()];
    let engine = Engine::builder().spec(gone).model("smollm2", path(&models::smollm2())).build().unwrap();
    let events: Vec<_> = engine.stream(greedy("List three fruits.", 8).model("gone")).collect();
    assert!(events.iter().any(|event| matches!(event, EngineEvent::Fallback { .. })));
    let Some(EngineEvent::Done(answer)) = events.last() else { panic!("the chain has an answer") };
    assert_eq!((answer.model.as_str(), answer.report.trace.state().fallbacks), ("smollm2", 1));
    assert!(engine.infer_with(greedy("List three fruits.", 8).model("gone").without_fallback()).is_err());
}

#[test]
fn a_file_that_is_replaced_answers_as_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.gguf");
    std::fs::copy(models::smollm2(), &file).unwrap();
    let clock = ManualClock::new();
    let engine = Engine::builder().model("m", path(&file)).clock(Arc::new(clock.clone())).build().unwrap();
    let ask = || engine.infer_with(greedy("List three fruits.", 4));
    ask().unwrap();
    // Another file in its place, as a download would put it there: this one is cut short.
    let next = folder.path().join("next.gguf");
    let bytes = std::fs::read(models::smollm2()).unwrap();
    std::fs::write(&next, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::rename(&next, &file).unwrap();
    clock.advance(Duration::from_secs(60));
    assert_eq!(ask().unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::copy(models::smollm2(), &next).unwrap();
    std::fs::rename(&next, &file).unwrap();
    clock.advance(Duration::from_secs(60));
    assert_eq!(ask().unwrap().usage.completion_tokens, 4);
}

#[test]
fn conversations_at_once_keep_to_their_own_history() {
    let engine = smollm2();
    let talk = |topic: &str| {
        let mut chat = engine.chat().like(greedy("", 12));
        let said =
            ["Name one.", "And another?"].map(|turn| chat.say(format!("{topic}: {turn}")).unwrap().text);
        assert_eq!(chat.history().len(), 4);
        assert!(
            chat.history()
                .iter()
                .all(|message| message.content.contains(topic) || said.contains(&message.content))
        );
        said
    };
    let topics = ["fruits", "rivers", "colours", "planets"];
    let alone = topics.map(talk);
    let talk = &talk;
    let together = std::thread::scope(|scope| {
        topics.map(|topic| scope.spawn(move || talk(topic))).map(|thread| thread.join().unwrap())
    });
    assert_eq!(together, alone);
}

#[test]
fn shutdown_cuts_real_answers_off_with_what_there_was() {
    let engine = Engine::builder().model("smollm2", path(&models::smollm2())).parallel(2).build().unwrap();
    let running = [endless(&engine), endless(&engine)];
    let waiting: Vec<_> = (0..3).map(|_| engine.stream(greedy("List three fruits.", 4))).collect();
    let drained = engine.shutdown(Duration::from_millis(100));
    assert_eq!((drained.rejected, drained.finished, drained.aborted), (3, 0, 2));
    for stream in running {
        let answer = stream.answer().unwrap();
        assert!(answer.reason == FinishReason::Cancelled && !answer.text.is_empty());
    }
    assert!(waiting.into_iter().all(|stream| stream.answer().is_err()));
}

#[test]
fn events_come_in_order_and_the_report_adds_up() {
    let engine = smollm2();
    let events: Vec<_> = engine.stream(greedy(&"Boats and gulls. ".repeat(150), 8)).collect();
    let at = |is: fn(&EngineEvent) -> bool| events.iter().position(is).unwrap();
    let order = [
        at(|event| matches!(event, EngineEvent::Routed { .. })),
        at(|event| matches!(event, EngineEvent::Loading { .. })),
        at(|event| matches!(event, EngineEvent::Prefill { .. })),
        at(|event| matches!(event, EngineEvent::Token { .. })),
        at(|event| matches!(event, EngineEvent::Done(_))),
    ];
    assert!(order.is_sorted(), "{order:?}");
    let Some(EngineEvent::Done(answer)) = events.last() else { panic!("it ends well") };
    let report = &answer.report;
    let phases =
        [Phase::Loading, Phase::Prefilling, Phase::Decoding].map(|phase| report.trace.time_in(phase));
    assert!(phases.iter().all(|time| *time > Duration::ZERO), "{phases:?}");
    assert!(report.ttft().unwrap() >= phases[0] + phases[1]);
    assert_eq!(engine.recent().last(), Some(report));
    assert_eq!(engine.stats().unwrap().outcomes.completion_tokens, 8);
}

#[test]
fn a_shard_with_a_flipped_bit_fails_its_request_and_is_well_once_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    let source = orion::loader::open(models::smollm2()).unwrap();
    let options = ShardOptions::new(ShardSize::Count(NonZero::new(6).unwrap()));
    orion::pipeline::shard(&*source, &set, &options).unwrap();
    let shards = std::fs::read_dir(&set).unwrap().map(|entry| entry.unwrap().path());
    let shard = shards.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let whole = std::fs::read(&shard).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(&shard, flipped).unwrap();

    let engine = Engine::builder().model("set", path(&set)).build().unwrap();
    let error = engine.infer_with(greedy("List three fruits.", 8)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    std::fs::write(&shard, whole).unwrap();
    let answer = engine.infer_with(greedy("List three fruits.", 8)).unwrap();
    let expected = smollm2().infer_with(greedy("List three fruits.", 8)).unwrap();
    assert_eq!(answer.tokens, expected.tokens);
}

#[test]
fn a_real_answer_appears_in_the_metrics() {
    let prometheus = orion::logging::Prometheus::install().unwrap();
    let engine = Engine::builder().model("metered", path(&models::smollm2())).build().unwrap();
    engine.infer_with(greedy("List three fruits.", 8)).unwrap();
    let text = prometheus.render();
    for line in [
        r#"orion_requests_total{model="metered",outcome="done"} 1"#,
        r#"orion_completion_tokens_total{model="metered"} 8"#,
        r#"orion_model_loads_total{model="metered",outcome="ok"} 1"#,
        r#"orion_ttft_seconds_count{model="metered"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
