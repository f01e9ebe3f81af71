//! Two models that answer as one: who speaks, and when the other takes over.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use orion::{
    Completion, Continues, Error, ErrorKind, FinishReason, FirstResponder, Flow, Generation, GenerationEvent,
    HandOver, Job, Model, ModelInfo, Prompt, RelayEvent, Result, Speaker, Timings, TokenId, Usage,
};

/// Says words; between two of them it may be made to wait for a permit.
struct Script {
    info: ModelInfo,
    words: Vec<&'static str>,
    permits: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
    asked: Arc<Mutex<Vec<Generation>>>,
    fails: bool,
}

impl Script {
    fn new(words: &[&'static str]) -> Self {
        let info = ModelInfo::new("script");
        Self { info, words: words.to_vec(), permits: None, asked: Arc::default(), fails: false }
    }

    fn with_permits(mut self) -> (Self, mpsc::Sender<()>) {
        let (sender, receiver) = mpsc::channel();
        self.permits = Some(Arc::new(Mutex::new(receiver)));
        (self, sender)
    }
}

impl Model for Script {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn submit(&self, mut job: Job) -> Result<()> {
        self.asked.lock().unwrap().push(job.generation.clone());
        let (words, permits, fails) = (self.words.clone(), self.permits.clone(), self.fails);
        thread::spawn(move || {
            if fails {
                job.sink.event(GenerationEvent::Failed(Error::new(ErrorKind::Internal, "broken")));
                return;
            }
            let (mut text, mut tokens, mut reason) = (String::new(), Vec::new(), FinishReason::Stop);
            for (word, id) in words.into_iter().zip(0..) {
                if let Some(permits) = &permits {
                    let _ = permits.lock().unwrap().recv();
                }
                if job.cancel.is_cancelled() {
                    reason = FinishReason::Cancelled;
                    break;
                }
                text.push_str(word);
                tokens.push(TokenId(id));
                let event = GenerationEvent::Token { id: TokenId(id), text: word.into(), logprobs: None };
                if job.sink.event(event) == Flow::Stop {
                    return;
                }
            }
            let (usage, timings) = (Usage::default(), Timings::default());
            let completion = Completion::new(reason, text, tokens, usage, timings);
            job.sink.event(GenerationEvent::Done(completion));
        });
        Ok(())
    }

    fn count_tokens(&self, _: &Generation) -> Result<usize> {
        Ok(0)
    }
}

impl Continues for Script {
    fn continuing(&self, generation: &Generation, said: &str) -> Result<Generation> {
        let mut rest = generation.clone();
        rest.prompt = Prompt::Text(said.into());
        Ok(rest)
    }
}

const SMALL: [&str; 6] = ["One", " is", " small.", " Two", " is", " more."];

/// Who said what, in order: a change of speaker is `[First]` or `[Main]`.
fn told(event: &RelayEvent) -> String {
    match event {
        RelayEvent::Speaks(speaker) => format!("[{speaker:?}]"),
        RelayEvent::Event(_, GenerationEvent::Token { text, .. }) => text.clone(),
        RelayEvent::MainUnavailable(error) => format!("[no main: {error}]"),
        RelayEvent::Done(parts) => format!("[{} parts]", parts.len()),
        RelayEvent::Failed(error) => format!("[failed: {error}]"),
        other => panic!("{other:?}"),
    }
}

/// A main model that is there when the sender is used or dropped.
fn later(main: Script) -> (impl FnOnce() -> Result<Script> + Send, mpsc::Sender<()>) {
    let (sender, receiver) = mpsc::channel();
    let load = move || {
        let _ = receiver.recv();
        Ok(main)
    };
    (load, sender)
}

fn until_main(both: &FirstResponder) {
    while both.speaker() == Speaker::First {
        thread::yield_now();
    }
}

#[test]
fn the_large_model_takes_over_at_the_end_of_a_sentence() {
    let (small, permits) = Script::new(&SMALL).with_permits();
    let main = Script::new(&[" Main", " goes", " on."]);
    let asked = Arc::clone(&main.asked);
    let (load, there) = later(main);
    let both = FirstResponder::new(small, load).unwrap();
    let mut stream = both.stream(Generation::user("Count.").max_tokens(10)).unwrap();
    let mut heard = vec![told(&stream.next().unwrap())];
    permits.send(()).unwrap();
    heard.push(told(&stream.next().unwrap()));
    // The large model comes in the middle of the sentence, and lets the small one finish it.
    drop(there);
    until_main(&both);
    drop(permits);
    heard.extend(stream.by_ref().map(|event| told(&event)));
    assert_eq!(heard.concat(), "[First]One is small.[Main] Main goes on.[2 parts]");
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0].prompt, Prompt::Text("One is small.".into()));
    assert!(asked[0].max_tokens.unwrap() < 10);
}

#[test]
fn parts_say_who_said_what() {
    let (small, permits) = Script::new(&SMALL).with_permits();
    let (load, there) = later(Script::new(&[" Main."]));
    let both = FirstResponder::new(small, load).unwrap();
    let stream = both.stream(Generation::user("Count.")).unwrap();
    drop(there);
    until_main(&both);
    drop(permits);
    let Some(RelayEvent::Done(parts)) = stream.last() else { panic!("not done") };
    let said: Vec<_> = parts.iter().map(|part| (part.speaker, part.completion.text.as_str())).collect();
    assert_eq!(said, [(Speaker::First, "One is small."), (Speaker::Main, " Main.")]);
}

#[test]
fn or_with_the_next_answer() {
    let (small, permits) = Script::new(&SMALL).with_permits();
    let (load, there) = later(Script::new(&["Main."]));
    let both = FirstResponder::new(small, load).unwrap().hand_over(HandOver::NextTurn);
    let first = both.stream(Generation::user("Count.")).unwrap();
    drop(there);
    until_main(&both);
    drop(permits);
    let all = |stream: orion::RelayStream| stream.map(|event| told(&event)).collect::<String>();
    assert_eq!(all(first), "[First]One is small. Two is more.[1 parts]");
    assert_eq!(all(both.stream(Generation::user("Count.")).unwrap()), "[Main]Main.[1 parts]");
}

#[test]
fn a_large_model_that_cannot_be_loaded_is_reported_and_the_small_one_goes_on() {
    let (small, permits) = Script::new(&SMALL).with_permits();
    let (failed, was) = mpsc::channel();
    let load = move || -> Result<Script> {
        failed.send(()).unwrap();
        Err(Error::new(ErrorKind::Network, "no route"))
    };
    let both = FirstResponder::new(small, load).unwrap();
    let mut stream = both.stream(Generation::user("Count.")).unwrap();
    was.recv().unwrap();
    let mut heard = String::new();
    // The failure is noticed at some word, at the latest when it has been entered.
    for _ in 0..SMALL.len() {
        permits.send(()).unwrap();
    }
    stream.by_ref().for_each(|event| heard.push_str(&told(&event)));
    let heard = heard.replace("[no main: no route]", "");
    assert_eq!(heard, "[First]One is small. Two is more.[1 parts]");
}

#[test]
fn the_large_model_answers_when_the_small_one_breaks() {
    let small = Script { fails: true, ..Script::new(&[]) };
    let (load, there) = later(Script::new(&["Main."]));
    let both = FirstResponder::new(small, load).unwrap();
    let stream = both.stream(Generation::user("Count.")).unwrap();
    drop(there);
    assert_eq!(stream.map(|event| told(&event)).collect::<String>(), "[First][Main]Main.[1 parts]");
    let broken = || Script { fails: true, ..Script::new(&[]) };
    let both = FirstResponder::new(broken(), || -> Result<Script> { panic!("loading") }).unwrap();
    let heard: String = both.stream(Generation::user("x")).unwrap().map(|event| told(&event)).collect();
    assert_eq!(heard, "[First][failed: broken]");
}

#[test]
fn cancelling_ends_it_with_what_was_said() {
    let (small, permits) = Script::new(&SMALL).with_permits();
    let (load, _there) = later(Script::new(&["Main."]));
    let both = FirstResponder::new(small, load).unwrap();
    let mut stream = both.stream(Generation::user("Count.")).unwrap();
    stream.next();
    permits.send(()).unwrap();
    assert_eq!(told(&stream.next().unwrap()), "One");
    stream.cancel();
    drop(permits);
    let Some(RelayEvent::Done(parts)) = stream.last() else { panic!("not done") };
    assert_eq!(
        (parts[0].completion.text.as_str(), parts[0].completion.reason),
        ("One", FinishReason::Cancelled)
    );
}
