//! Models without arithmetic: they do what a script says, when the test lets them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use orion::{
    Completion, Engine, EngineBuilder, EngineEvent, Error, FileSpec, FinishReason, Flow, Generation,
    GenerationEvent, Job, MetaValue, Model, ModelFormat, ModelInfo, ModelSpec, Prompt, Result, Runtime,
    TensorType, Timings, TokenId, Usage, WeightSource,
};

/// Longer than anything here takes; a test that waits this long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A door that is shut until it is opened, for ever.
#[derive(Clone, Default)]
pub(crate) struct Latch(Arc<(Mutex<bool>, Condvar)>);

impl Latch {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn pass(&self) {
        let (open, wait) = (self.0.0.lock().unwrap(), LONG);
        let (open, _) = self.0.1.wait_timeout_while(open, wait, |open| !*open).unwrap();
        assert!(*open, "a latch was never opened");
    }
}

/// What a model does with one request.
pub(crate) struct Turn {
    job: Job,
    pub(crate) prompt: String,
    text: String,
    tokens: u32,
}

impl Turn {
    pub(crate) fn started(&mut self) {
        self.job.sink.event(GenerationEvent::Started { prompt_tokens: 3, cached_tokens: 0 });
    }

    /// Says a word. False once nobody wants more. Waits while the consumer is behind.
    pub(crate) fn say(&mut self, word: &str) -> bool {
        if self.job.cancel.is_cancelled() {
            return false;
        }
        self.text += word;
        self.tokens += 1;
        let event =
            GenerationEvent::Token { id: TokenId(self.tokens), text: word.to_owned(), logprobs: None };
        match self.job.sink.event(event) {
            Flow::Continue => true,
            Flow::Stop => false,
            Flow::Pause => {
                while !self.job.sink.ready() && !self.job.cancel.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                true
            }
        }
    }

    /// Waits until the request is cancelled.
    pub(crate) fn until_cancelled(&self) {
        while !self.job.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(mut self, result: Result<()>) {
        let reason = match self.job.cancel.is_cancelled() {
            true => FinishReason::Cancelled,
            false => FinishReason::Stop,
        };
        let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: self.tokens };
        self.job.sink.event(match result {
            Ok(()) => {
                let done = Completion::new(reason, self.text, Vec::new(), usage, Timings::default());
                GenerationEvent::Done(done)
            }
            Err(error) => GenerationEvent::Failed(error),
        });
    }
}

pub(crate) type Script = Arc<dyn Fn(&mut Turn) -> Result<()> + Send + Sync>;

/// A runtime of scripted models.
#[derive(Default)]
pub(crate) struct Stage {
    scripts: Mutex<HashMap<String, Script>>,
    loads: Mutex<Vec<String>>,
    pub(crate) dropped: Arc<AtomicUsize>,
}

impl Stage {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What `model` does from now on. Without a script it says its name and the prompt.
    pub(crate) fn script(
        &self,
        model: &str,
        script: impl Fn(&mut Turn) -> Result<()> + Send + Sync + 'static,
    ) {
        self.scripts.lock().unwrap().insert(model.to_owned(), Arc::new(script));
    }

    /// The models that were loaded, in order.
    pub(crate) fn loads(&self) -> Vec<String> {
        self.loads.lock().unwrap().clone()
    }
}

/// The runtime over a stage.
pub(crate) struct Actors(pub(crate) Arc<Stage>);

impl Runtime for Actors {
    fn load(&self, weights: Arc<dyn WeightSource>) -> Result<Arc<dyn Model>> {
        let header = weights.header();
        let name = header.metadata["general.name"].as_str().unwrap().to_owned();
        self.0.loads.lock().unwrap().push(name.clone());
        let mut info = ModelInfo::new("fake");
        for index in 0..header.tensors.len() {
            info.weight_bytes += weights.tensor(index)?.len() as u64;
        }
        Ok(Arc::new(Actor { name, info, stage: self.0.clone() }))
    }
}

struct Actor {
    name: String,
    info: ModelInfo,
    stage: Arc<Stage>,
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.stage.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Model for Actor {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn submit(&self, job: Job) -> Result<()> {
        let prompt = match &job.generation.prompt {
            Prompt::Chat(messages) => messages.last().unwrap().content.clone(),
            Prompt::Text(text) => text.clone(),
            _ => return Err(Error::unsupported("token prompts")),
        };
        let script = self.stage.scripts.lock().unwrap().get(&self.name).cloned();
        let name = self.name.clone();
        std::thread::spawn(move || {
            let mut turn = Turn { job, prompt, text: String::new(), tokens: 0 };
            let result = match script {
                Some(script) => script(&mut turn),
                None => {
                    turn.started();
                    let text = format!("{name}: {}", turn.prompt);
                    text.split_inclusive(' ').all(|word| turn.say(word));
                    Ok(())
                }
            };
            turn.end(result);
        });
        Ok(())
    }

    fn count_tokens(&self, _: &Generation) -> Result<usize> {
        Ok(3)
    }
}

/// Weights of `bytes` bytes in four tensors.
pub(crate) fn weights(name: &str, bytes: u64) -> Arc<dyn WeightSource> {
    let mut source = orion::loader::MemorySource::new(ModelFormat::Gguf)
        .meta("general.name", MetaValue::Str(name.to_owned()));
    for part in 0..4 {
        let values = bytes / 16;
        let data = vec![0_u8; 4 * values as usize];
        source = source.tensor(format!("t{part}"), [values], TensorType::F32, data).unwrap();
    }
    source.build()
}

/// A model of 4,000 bytes.
pub(crate) fn spec(id: &str) -> ModelSpec {
    let mut spec = ModelSpec::new(id.into(), vec![FileSpec::new(format!("mem://{id}"))]);
    spec.weight_bytes = 4000;
    spec
}

/// A model of 4,000 bytes, changed.
pub(crate) fn with(id: &str, change: impl FnOnce(&mut ModelSpec)) -> ModelSpec {
    let mut spec = spec(id);
    change(&mut spec);
    spec
}

/// An engine of scripted models that loads them from memory.
pub(crate) fn builder(stage: &Arc<Stage>, specs: impl IntoIterator<Item = ModelSpec>) -> EngineBuilder {
    let builder = Engine::builder()
        .runtime(Arc::new(Actors(stage.clone())))
        .memory(1 << 30)
        .sources(|spec| Ok(weights(spec.id.as_str(), spec.weight_bytes)));
    specs.into_iter().fold(builder, EngineBuilder::spec)
}

pub(crate) fn engine(stage: &Arc<Stage>, ids: &[&str]) -> Engine {
    builder(stage, ids.iter().map(|id| spec(id))).build().unwrap()
}

/// Waits until `what` holds.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The events of a stream by name, tokens counted once.
pub(crate) fn names(events: &[EngineEvent]) -> Vec<&'static str> {
    let name = |event: &EngineEvent| match event {
        EngineEvent::Routed { .. } => "routed",
        EngineEvent::Queued { .. } => "queued",
        EngineEvent::Loading { .. } => "loading",
        EngineEvent::Prefill { .. } => "prefill",
        EngineEvent::Token { .. } => "token",
        EngineEvent::FirstResponder { .. } => "first responder",
        EngineEvent::Fallback { .. } => "fallback",
        EngineEvent::Done(_) => "done",
        EngineEvent::Failed { .. } => "failed",
        _ => "other",
    };
    let mut names: Vec<_> = events.iter().map(name).collect();
    names.dedup();
    names
}
