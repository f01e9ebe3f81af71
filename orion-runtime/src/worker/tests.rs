//! The worker over an executor whose answers depend on every token it finds in the pages, and on nothing else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{bounded, unbounded};
use orion_core::{
    CancelToken, Flow, Generation, Job, ModelFormat, ModelHeader, Prompt, SamplingParams, TokenSink,
};

use super::*;
use crate::config::{Activation, Architecture, LayerOptions, RopeConfig, RopePairing, RopeScaling};

const VOCAB: usize = 97;
const CONTEXT: usize = 1000;
/// A chunk with this token makes the executor panic.
const POISON: TokenId = TokenId(13);

#[derive(Default)]
struct Fake {
    slots: HashMap<(u32, usize), TokenId>,
    gate: Option<Receiver<()>>,
    entered: Option<Sender<()>>,
}

impl Executor for Fake {
    fn reserve_pages(&mut self, _: usize) -> Result<()> {
        Ok(())
    }

    fn forward(
        &mut self,
        chunks: &[Chunk<'_>],
        stop: &dyn Fn() -> bool,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        if let Some(entered) = &self.entered {
            entered.send(()).ok();
        }
        if let Some(gate) = &self.gate {
            gate.recv().ok();
        }
        for chunk in chunks {
            if stop() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
            }
            for (offset, &token) in chunk.tokens.iter().enumerate() {
                let position = chunk.start + offset;
                self.slots.insert((chunk.pages[position / PAGE_TOKENS], position % PAGE_TOKENS), token);
            }
            assert!(!chunk.tokens.contains(&POISON), "poisoned");
            for row in 0..chunk.wanted_rows() {
                let end = chunk.start + chunk.tokens.len() - chunk.wanted_rows() + row + 1;
                let mut state = 1u64;
                for position in 0..end {
                    let token = self.slots[&(chunk.pages[position / PAGE_TOKENS], position % PAGE_TOKENS)];
                    state = (state ^ u64::from(token.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
                }
                logits.extend((0..VOCAB as u64).map(|id| {
                    let bits = (state ^ id).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40;
                    if id == u64::from(POISON.0) { f32::NEG_INFINITY } else { bits as f32 * 1e-6 }
                }));
            }
        }
        Ok(())
    }
}

fn config() -> DecoderConfig {
    DecoderConfig {
        architecture: Architecture::Llama,
        vocab_size: VOCAB,
        hidden: 8,
        ffn: 8,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        context_length: CONTEXT,
        layers: vec![LayerOptions { window: None, local_rope: false }],
        norm_eps: 1e-5,
        norm_offset: false,
        post_norms: false,
        qk_norm: false,
        qkv_bias: false,
        output_bias: false,
        ffn_bias: false,
        fused: false,
        attention_scale: 1.0,
        attention_soft_cap: None,
        logit_soft_cap: None,
        embedding_scale: 1.0,
        activation: Activation::Silu,
        tied: true,
        rope_pairing: RopePairing::Halves,
        rope: RopeConfig { dim: 8, base: 1e4, scaling: RopeScaling::None },
        local_rope: None,
    }
}

/// Starts a worker and returns where its commands go.
fn start(executor: Fake, limits: Limits) -> Sender<Command> {
    let header = ModelHeader::new(ModelFormat::Gguf, Default::default(), Vec::new());
    let codec = Arc::new(TextCodec::from_header(&header, VOCAB).unwrap());
    let (sender, receiver) = bounded(64);
    let worker = Worker::new(Arc::new(config()), codec, Box::new(executor), limits);
    std::thread::spawn(move || worker.run(&receiver));
    sender
}

fn limits() -> Limits {
    Limits { max_batch: 4, prefill_chunk: 100, max_pages: 64 }
}

fn prompt(seed: u32, length: usize) -> Vec<TokenId> {
    (0..length as u32)
        .map(|i| TokenId((i * 7 + seed * 31) % 89 + 1))
        .map(|t| if t == POISON { TokenId(0) } else { t })
        .collect()
}

fn prepared(tokens: Vec<TokenId>, max: u32, sink: impl TokenSink + 'static) -> Prepared {
    let mut generation =
        Generation::new(Prompt::Tokens(tokens.clone())).sampling(SamplingParams::greedy()).max_tokens(max);
    generation.logprobs = 0;
    Prepared { tokens, job: Job::new(generation, sink), submitted: Instant::now(), follow: None }
}

/// Sends a generation and returns where its events come.
fn send(worker: &Sender<Command>, tokens: Vec<TokenId>, max: u32) -> Receiver<GenerationEvent> {
    let (sender, events) = unbounded();
    let sink = move |event| if sender.send(event).is_ok() { Flow::Continue } else { Flow::Stop };
    worker.send(Command::Generate(Box::new(prepared(tokens, max, sink)))).unwrap();
    events
}

fn end(events: &Receiver<GenerationEvent>) -> Result<Completion> {
    let mut ends: Vec<Result<Completion>> = events
        .iter()
        .filter_map(|event| match event {
            GenerationEvent::Done(done) => Some(Ok(done)),
            GenerationEvent::Failed(error) => Some(Err(error)),
            _ => None,
        })
        .collect();
    assert_eq!(ends.len(), 1, "exactly one final event");
    ends.remove(0)
}

fn alone(tokens: Vec<TokenId>, max: u32) -> Vec<TokenId> {
    end(&send(&start(Fake::default(), limits()), tokens, max)).unwrap().tokens
}

#[test]
fn sequences_in_a_batch_say_what_they_say_alone() {
    let worker = start(Fake::default(), limits());
    let cases: Vec<(Vec<TokenId>, u32)> = (0..9).map(|i| (prompt(i, 40 * i as usize + 1), 30 + i)).collect();
    let running: Vec<_> = cases.iter().map(|(tokens, max)| send(&worker, tokens.clone(), *max)).collect();
    for (events, (tokens, max)) in running.iter().zip(cases) {
        let done = end(events).unwrap();
        assert_eq!(done.reason, FinishReason::Length);
        assert_eq!(done.tokens, alone(tokens, max));
        assert_eq!(done.tokens.len(), max as usize);
    }
}

#[test]
fn a_repeated_prompt_takes_over_pages_and_says_the_same() {
    let worker = start(Fake::default(), limits());
    let tokens = prompt(1, 200);
    let first = end(&send(&worker, tokens.clone(), 20)).unwrap();
    let mut longer = tokens;
    longer.extend(&first.tokens);
    longer.extend(prompt(2, 10));
    let second = end(&send(&worker, longer.clone(), 20)).unwrap();
    assert_eq!((first.usage.cached_tokens, second.usage.cached_tokens), (0, 192));
    assert_eq!(second.tokens, alone(longer, 20));
}

#[test]
fn pages_come_back_when_sequences_end() {
    let few = Limits { max_pages: 16, ..limits() };
    let worker = start(Fake::default(), few);
    for seed in 0..12 {
        let tokens = prompt(seed, 900);
        assert_eq!(end(&send(&worker, tokens.clone(), 5)).unwrap().tokens, alone(tokens, 5));
    }
}

#[test]
fn a_panic_costs_one_request() {
    let worker = start(Fake::default(), limits());
    let good = prompt(3, 150);
    let mut bad = prompt(4, 150);
    bad[149] = POISON;
    let running = [send(&worker, good.clone(), 40), send(&worker, bad, 40), send(&worker, good.clone(), 40)];
    let [first, second, third] = running.map(|events| end(&events));
    assert_eq!(second.unwrap_err().kind(), ErrorKind::Internal);
    let expected = alone(good, 40);
    assert_eq!(first.unwrap().tokens, expected);
    assert_eq!(third.unwrap().tokens, expected);
}

#[test]
fn cancelling_ends_a_running_and_a_waiting_generation() {
    let (release, gate) = unbounded();
    let (entered, entries) = unbounded();
    let worker = start(
        Fake { gate: Some(gate), entered: Some(entered), ..Fake::default() },
        Limits { max_batch: 1, ..limits() },
    );
    let submit = |tokens| {
        let (sender, events) = unbounded();
        let cancel = CancelToken::new();
        let sink = move |event| if sender.send(event).is_ok() { Flow::Continue } else { Flow::Stop };
        let mut prepared = prepared(tokens, 500, sink);
        prepared.job = prepared.job.cancelled_by(cancel.clone());
        worker.send(Command::Generate(Box::new(prepared))).unwrap();
        (events, cancel)
    };
    let (running, stop_running) = submit(prompt(1, 10));
    let (waiting, stop_waiting) = submit(prompt(2, 10));
    for _ in 0..3 {
        entries.recv().unwrap();
        release.send(()).unwrap();
    }
    entries.recv().unwrap();
    stop_running.cancel();
    stop_waiting.cancel();
    drop(release);
    let done = end(&running).unwrap();
    assert_eq!((done.reason, done.tokens.len()), (FinishReason::Cancelled, 3));
    let done = end(&waiting).unwrap();
    assert_eq!((done.reason, done.tokens.len()), (FinishReason::Cancelled, 0));
}

#[test]
fn a_prompt_beyond_the_context_fails_and_one_at_its_end_gets_one_token() {
    let worker = start(Fake::default(), limits());
    let error = end(&send(&worker, prompt(1, CONTEXT + 1), 5)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    let done = end(&send(&worker, prompt(1, CONTEXT), 5)).unwrap();
    assert_eq!((done.reason, done.tokens.len()), (FinishReason::Length, 1));
    let done = end(&send(&worker, prompt(1, 5), 0)).unwrap();
    assert_eq!((done.reason, done.tokens.len()), (FinishReason::Length, 0));
}

#[test]
fn a_full_consumer_pauses_its_own_sequence_only() {
    struct Reluctant {
        open: Arc<AtomicBool>,
        events: Sender<GenerationEvent>,
    }
    impl TokenSink for Reluctant {
        fn event(&mut self, event: GenerationEvent) -> Flow {
            self.events.send(event).unwrap();
            if self.open.load(Ordering::SeqCst) { Flow::Continue } else { Flow::Pause }
        }
        fn ready(&mut self) -> bool {
            self.open.load(Ordering::SeqCst)
        }
    }
    let worker = start(Fake::default(), limits());
    let open = Arc::new(AtomicBool::new(false));
    let (events, slow) = unbounded();
    let sink = Reluctant { open: open.clone(), events };
    worker.send(Command::Generate(Box::new(prepared(prompt(1, 20), 50, sink)))).unwrap();
    let fast = end(&send(&worker, prompt(2, 20), 50)).unwrap();
    assert_eq!(fast.tokens.len(), 50);
    assert!(slow.try_iter().count() <= 1, "it has heard that it started and waits");
    open.store(true, Ordering::SeqCst);
    assert_eq!(end(&slow).unwrap().tokens, alone(prompt(1, 20), 50));
}

#[test]
fn unloading_answers_everyone() {
    let (entered, entries) = unbounded();
    let (release, gate) = unbounded();
    let worker = start(Fake { gate: Some(gate), entered: Some(entered), ..Fake::default() }, limits());
    let running = send(&worker, prompt(1, 10), 500);
    entries.recv().unwrap();
    let waiting = send(&worker, prompt(2, 10), 500);
    drop(worker);
    drop(release);
    for events in [running, waiting] {
        assert_eq!(end(&events).unwrap_err().kind(), ErrorKind::Rejected);
    }
}

#[test]
fn an_evaluation_sees_every_position_once_and_in_order() {
    let worker = start(Fake::default(), limits());
    let tokens = prompt(5, 250);
    let rows = |last_only| {
        let (reply, rows) = unbounded();
        worker.send(Command::Evaluate(Evaluate { tokens: tokens.clone(), last_only, reply })).unwrap();
        rows.iter().collect::<Result<Vec<_>>>().unwrap()
    };
    let all = rows(false);
    assert!(all.iter().map(|(position, _)| *position).eq(0..250));
    assert_eq!(rows(true), all[249..]);
}
