//! What every runtime and its models must do.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::at_once;
use crate::{
    CancelToken, Completion, Error, ErrorKind, FinishReason, Flow, Generation, GenerationEvent, Job, Model,
    Prompt, Runtime, SamplingParams, TokenSink, WeightSource,
};

/// Longer than anything here takes; who is silent this long hangs.
const LONG: Duration = Duration::from_secs(60);
/// Tokens asked for: few, a model may be slow.
const TOKENS: u32 = 8;

/// Checks a runtime by a model that it can load: two loads are two models, each of which passes [`model`], and one outlives
/// the other and the source.
///
/// # Panics
/// With the law that was broken.
pub fn runtime(runtime: &dyn Runtime, weights: Arc<dyn WeightSource>, prompt: &Prompt) {
    let load = |weights| runtime.load(weights).unwrap_or_else(|error| panic!("loading: {error}"));
    let first = load(weights.clone());
    let second = load(weights);
    assert_eq!(first.info(), second.info(), "the same weights make the same model");
    model(&*first, prompt);
    drop(first);
    model(&*second, prompt);
}

/// Checks a loaded model by a prompt that it answers with two tokens at least.
///
/// Work is queued without waiting for it. It ends in exactly one `Done` or `Failed`, after which the sink is dropped; events come
/// in their order; counts agree with each other and with [`count_tokens`](Model::count_tokens); `max_tokens` is kept; a cancel,
/// [`Flow::Stop`] and [`Flow::Pause`] are obeyed; parameters out of range are an error that is reported; requests of several
/// threads all end.
///
/// # Panics
/// With the law that was broken, or when nothing happens for a minute.
pub fn model(model: &dyn Model, prompt: &Prompt) {
    let info = model.info();
    assert!(!info.architecture.is_empty(), "the architecture has no name");
    let greedy = SamplingParams::greedy();
    let generation = || Generation::new(prompt.clone()).sampling(greedy.clone()).max_tokens(TOKENS);

    let whole = run(model, generation(), |_| Flow::Continue);
    let done = whole.done();
    assert!(
        whole.tokens >= 2,
        "the suite needs a prompt that is answered with two tokens, not {}",
        whole.tokens
    );
    assert_eq!(whole.text, done.text, "the texts of the tokens are not the text of the completion");
    let counted =
        model.count_tokens(&generation()).unwrap_or_else(|error| panic!("counting tokens: {error}"));
    if let Some(started) = whole.started {
        assert_eq!(counted, started as usize, "count_tokens() and the prompt that ran");
        assert_eq!(done.usage.prompt_tokens, started, "usage and the prompt that ran");
    }
    assert!(done.usage.cached_tokens <= done.usage.prompt_tokens, "more was cached than asked");
    assert!(done.usage.completion_tokens <= TOKENS, "max_tokens is {TOKENS}: {:?}", done.usage);

    let one = run(model, generation().max_tokens(1), |_| Flow::Continue);
    assert!(one.done().usage.completion_tokens <= 1, "max_tokens is 1: {:?}", one.done().usage);
    assert_eq!(one.done().reason, FinishReason::Length, "max_tokens ended it");

    let stopped = run(model, generation(), |_| Flow::Stop);
    assert_eq!(stopped.done().reason, FinishReason::Cancelled, "the sink said stop");
    assert_eq!(stopped.tokens, 1, "tokens after the sink said stop");

    let cancel = CancelToken::new();
    cancel.cancel();
    let cancelled = submit(model, generation(), Some(cancel), |_| Flow::Continue).ended();
    assert_eq!(cancelled.done().reason, FinishReason::Cancelled, "it was cancelled before it began");
    assert_eq!(cancelled.tokens, 0, "tokens of what was cancelled before it began");

    let paused = run(model, generation(), |_| Flow::Pause);
    assert_eq!(paused.text, paused.done().text, "a sink that pauses misses tokens");

    let mut wrong = generation();
    wrong.sampling.temperature = f32::NAN;
    let failed = run(model, wrong, |_| Flow::Continue);
    assert_eq!(failed.kind(), Some(ErrorKind::InvalidInput), "a temperature that is no number");

    at_once(|| {
        for _ in 0..2 {
            run(model, generation(), |_| Flow::Continue).done();
        }
    });
}

/// What a sink was told, in order.
struct Heard {
    started: Option<u32>,
    tokens: u32,
    text: String,
    end: Result<Completion, Error>,
}

impl Heard {
    fn done(&self) -> &Completion {
        self.end.as_ref().unwrap_or_else(|error| panic!("the generation failed: {error}"))
    }

    fn kind(&self) -> Option<ErrorKind> {
        self.end.as_ref().err().map(Error::kind)
    }
}

/// Sends what it hears to the test, and asks for a break where told to.
struct Tap<F> {
    to: Sender<(GenerationEvent, bool)>,
    flow: F,
    /// Polls left until it is ready again.
    busy: u32,
    /// A token came while it was not.
    early: bool,
}

impl<F: FnMut(&GenerationEvent) -> Flow + Send> TokenSink for Tap<F> {
    fn event(&mut self, event: GenerationEvent) -> Flow {
        let mut flow = Flow::Continue;
        if matches!(event, GenerationEvent::Token { .. }) {
            self.early |= self.busy > 0;
            flow = (self.flow)(&event);
            self.busy = if flow == Flow::Pause { 2 } else { 0 };
        }
        // Once the test has failed nobody listens.
        self.to.send((event, self.early)).ok();
        flow
    }

    fn ready(&mut self) -> bool {
        self.busy = self.busy.saturating_sub(1);
        self.busy == 0
    }
}

struct Running(Receiver<(GenerationEvent, bool)>);

fn submit(
    model: &dyn Model,
    generation: Generation,
    cancel: Option<CancelToken>,
    flow: impl FnMut(&GenerationEvent) -> Flow + Send + 'static,
) -> Running {
    let (to, events) = channel();
    let mut job = Job::new(generation, Tap { to: to.clone(), flow, busy: 0, early: false });
    if let Some(cancel) = cancel {
        job = job.cancelled_by(cancel);
    }
    if let Err(error) = model.submit(job) {
        // A model may also say at once what it would tell the sink.
        assert_ne!(error.kind(), ErrorKind::Rejected, "the suite asks for little, and yet: {error}");
        to.send((GenerationEvent::Failed(error), false)).ok();
    }
    Running(events)
}

fn run(
    model: &dyn Model,
    generation: Generation,
    flow: impl FnMut(&GenerationEvent) -> Flow + Send + 'static,
) -> Heard {
    submit(model, generation, None, flow).ended()
}

impl Running {
    /// Waits until the sink is dropped.
    fn ended(self) -> Heard {
        let (mut started, mut tokens, mut text, mut end) = (None, 0, String::new(), None);
        let mut prefilled = 0;
        loop {
            let (event, early) = match self.0.recv_timeout(LONG) {
                Ok(told) => told,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if end.is_some() => panic!("the sink was kept after the end"),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("nothing happened for {LONG:?}, and there is no end")
                }
            };
            assert!(end.is_none(), "{event:?} came after the end");
            assert!(!early, "a token came before the paused sink was ready");
            match event {
                GenerationEvent::Started { prompt_tokens, cached_tokens } => {
                    assert_eq!((started, tokens), (None, 0), "it started late or twice");
                    assert!(cached_tokens <= prompt_tokens, "{cached_tokens} cached of {prompt_tokens}");
                    started = Some(prompt_tokens);
                }
                GenerationEvent::Prefill { done, total } => {
                    assert_eq!(tokens, 0, "the prompt runs after a token came");
                    assert!(prefilled <= done && done <= total, "{prefilled}, then {done} of {total}");
                    prefilled = done;
                }
                GenerationEvent::Token { text: piece, .. } => {
                    tokens += 1;
                    text += &piece;
                }
                GenerationEvent::Done(completion) => end = Some(Ok(completion)),
                GenerationEvent::Failed(error) => end = Some(Err(error)),
            }
        }
        let end = end.expect("it ended with neither `Done` nor `Failed`");
        Heard { started, tokens, text, end }
    }
}
