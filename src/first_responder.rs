//! A small model that answers while the large one is on its way.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use orion_core::{
    CancelToken, Completion, Error, ErrorKind, Generation, GenerationEvent, Model, Prompt, Result,
};
use orion_runtime::{LocalModel, SpecialTokens};

use crate::stream::{ModelExt, TokenStream};

/// When the large model takes over from the small one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HandOver {
    /// At the end of a sentence of the answer that is under way.
    #[default]
    AtSentence,
    /// With the next answer.
    NextTurn,
}

/// Which of the two models speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// The small one.
    First,
    /// The large one.
    Main,
}

/// What one of the models contributed to an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Part {
    /// Who spoke.
    pub speaker: Speaker,
    /// What it said and what it cost. Where it was interrupted its text ends with the sentence that was handed over at;
    /// its tokens may go on for a few.
    pub completion: Completion,
}

/// What an answer of two models reports while it runs. Exactly one of `Done` and `Failed` comes, last.
#[derive(Debug)]
#[non_exhaustive]
pub enum RelayEvent {
    /// From here on this model speaks.
    Speaks(Speaker),
    /// An event of the model that speaks, neither `Done` nor `Failed`.
    Event(Speaker, GenerationEvent),
    /// The large model cannot be loaded; the small one goes on.
    MainUnavailable(Error),
    /// The answer ended; who said what.
    Done(Vec<Part>),
    /// It failed.
    Failed(Error),
}

/// A model that can take an answer up where another left it.
pub trait Continues: Model {
    /// The generation that answers `generation` with an answer that begins with `said`.
    ///
    /// # Errors
    /// If the prompt cannot be written down, as a generation would fail.
    fn continuing(&self, generation: &Generation, said: &str) -> Result<Generation>;
}

impl Continues for LocalModel {
    fn continuing(&self, generation: &Generation, said: &str) -> Result<Generation> {
        let mut tokens = self.codec().encode(generation)?;
        tokens.extend(self.codec().tokenizer()?.encode(said, SpecialTokens::Plain)?);
        let mut rest = generation.clone();
        rest.prompt = Prompt::Tokens(tokens);
        Ok(rest)
    }
}

enum Main {
    Loading,
    Ready(Arc<dyn Continues>),
    Failed(Arc<Error>),
}

struct Slot {
    main: Mutex<Main>,
    changed: Condvar,
}

impl Slot {
    // A panic elsewhere leaves one of the three.
    fn lock(&self) -> MutexGuard<'_, Main> {
        self.main.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready(&self) -> Option<Arc<dyn Continues>> {
        match &*self.lock() {
            Main::Ready(model) => Some(Arc::clone(model)),
            _ => None,
        }
    }

    fn failure(&self) -> Option<Error> {
        match &*self.lock() {
            Main::Failed(error) => Some(again(error)),
            _ => None,
        }
    }

    /// Waits for the end of loading.
    fn wait(&self) -> Result<Arc<dyn Continues>> {
        let mut main = self.lock();
        loop {
            match &*main {
                Main::Ready(model) => return Ok(Arc::clone(model)),
                Main::Failed(error) => return Err(again(error)),
                Main::Loading => main = self.changed.wait(main).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

fn again(error: &Arc<Error>) -> Error {
    Error::new(error.kind(), error.to_string())
}

/// Two models that answer as one: the small one as long as the large one is not there.
///
/// ```no_run
/// use orion::{FirstResponder, Generation, RelayEvent};
///
/// let small = orion::open("small.gguf")?;
/// let both = FirstResponder::new(small, || {
///     let large = orion::open("large.gguf")?;
///     large.wait_loaded()?; // it takes over once it is all there
///     Ok(large)
/// })?;
/// for event in both.stream(Generation::user("Why is the sky blue?"))? {
///     if let RelayEvent::Speaks(speaker) = event {
///         println!("({speaker:?})");
///     }
/// }
/// # Ok::<_, orion::Error>(())
/// ```
pub struct FirstResponder {
    small: Arc<dyn Model>,
    slot: Arc<Slot>,
    hand_over: HandOver,
}

impl FirstResponder {
    /// Lets `small` answer from now on, and calls `load` on a thread of its own; what it returns takes over.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn new<M: Continues + 'static>(
        small: impl Model + 'static,
        load: impl FnOnce() -> Result<M> + Send + 'static,
    ) -> Result<Self> {
        let slot = Arc::new(Slot { main: Mutex::new(Main::Loading), changed: Condvar::new() });
        let to = Arc::clone(&slot);
        let work = move || {
            let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
            let loaded = loaded.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "loading panicked")));
            *to.lock() = match loaded {
                Ok(model) => Main::Ready(Arc::new(model)),
                Err(error) => Main::Failed(Arc::new(error)),
            };
            to.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("orion-main".into()).spawn(work);
        thread.map_err(|error| Error::io(error, "a thread that loads the main model"))?;
        Ok(Self { small: Arc::new(small), slot, hand_over: HandOver::default() })
    }

    /// Sets when the large model takes over.
    #[must_use]
    pub fn hand_over(mut self, hand_over: HandOver) -> Self {
        self.hand_over = hand_over;
        self
    }

    /// Who would begin an answer now.
    #[must_use]
    pub fn speaker(&self) -> Speaker {
        if self.slot.ready().is_some() { Speaker::Main } else { Speaker::First }
    }

    /// Starts an answer and returns its events as they come. Does not block.
    ///
    /// # Errors
    /// [`Rejected`](ErrorKind::Rejected) if the model that would begin takes no more work.
    pub fn stream(&self, generation: Generation) -> Result<RelayStream> {
        let mut relay = RelayStream {
            slot: Arc::clone(&self.slot),
            hand_over: self.hand_over,
            generation: generation.clone(),
            speaker: Speaker::First,
            stream: None,
            said: String::new(),
            interrupted: None,
            parts: Vec::new(),
            events: VecDeque::new(),
            cancel: CancelToken::new(),
            told: false,
            ended: false,
        };
        match self.slot.ready() {
            Some(main) => relay.begin(Speaker::Main, main.stream(generation)?),
            None => relay.begin(Speaker::First, self.small.stream(generation)?),
        }
        Ok(relay)
    }
}

impl fmt::Debug for FirstResponder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FirstResponder({:?} speaks, {:?})", self.speaker(), self.hand_over)
    }
}

/// The events of one answer of a [`FirstResponder`]. Dropping it cancels the answer.
pub struct RelayStream {
    slot: Arc<Slot>,
    hand_over: HandOver,
    generation: Generation,
    speaker: Speaker,
    stream: Option<TokenStream>,
    /// What the small model has said.
    said: String,
    /// The small model was told to end, because of this successor.
    interrupted: Option<Arc<dyn Continues>>,
    parts: Vec<Part>,
    events: VecDeque<RelayEvent>,
    cancel: CancelToken,
    told: bool,
    ended: bool,
}

impl RelayStream {
    /// Ends the answer; what was said until then comes in the final event.
    pub fn cancel(&self) {
        self.cancel.cancel();
        if let Some(stream) = &self.stream {
            stream.cancel();
        }
    }

    fn begin(&mut self, speaker: Speaker, stream: TokenStream) {
        self.speaker = speaker;
        self.stream = Some(stream);
        self.events.push_back(RelayEvent::Speaks(speaker));
    }

    fn take(&mut self, event: GenerationEvent) {
        match event {
            GenerationEvent::Done(completion) => self.done(completion),
            GenerationEvent::Failed(error) => self.failed(error),
            // What comes after the sentence is the successor's.
            _ if self.interrupted.is_some() => {}
            GenerationEvent::Token { id, text, logprobs } => {
                if self.speaker == Speaker::First {
                    if self.successor_due(&text) {
                        return;
                    }
                    self.said.push_str(&text);
                }
                let event = GenerationEvent::Token { id, text, logprobs };
                self.events.push_back(RelayEvent::Event(self.speaker, event));
            }
            other => self.events.push_back(RelayEvent::Event(self.speaker, other)),
        }
    }

    /// Whether the large model takes over before this text; the small one is told so then.
    fn successor_due(&mut self, next: &str) -> bool {
        if self.hand_over != HandOver::AtSentence || self.cancel.is_cancelled() {
            return false;
        }
        if !self.told
            && let Some(error) = self.slot.failure()
        {
            self.told = true;
            self.events.push_back(RelayEvent::MainUnavailable(error));
        }
        if !ends_sentence(&self.said, next) {
            return false;
        }
        self.interrupted = self.slot.ready();
        if self.interrupted.is_some()
            && let Some(stream) = &self.stream
        {
            stream.cancel();
        }
        self.interrupted.is_some()
    }

    fn done(&mut self, mut completion: Completion) {
        let Some(main) = self.interrupted.take() else {
            self.parts.push(Part { speaker: self.speaker, completion });
            return self.end(None);
        };
        let spoken = u32::try_from(completion.tokens.len()).unwrap_or(u32::MAX);
        completion.text.clone_from(&self.said);
        self.parts.push(Part { speaker: Speaker::First, completion });
        if self.cancel.is_cancelled() {
            return self.end(None);
        }
        let mut rest = self.generation.clone();
        rest.max_tokens = rest.max_tokens.map(|most| most.saturating_sub(spoken).max(1));
        match main.continuing(&rest, &self.said).and_then(|rest| main.stream(rest)) {
            Ok(stream) => self.begin(Speaker::Main, stream),
            Err(error) => self.end(Some(error)),
        }
    }

    fn failed(&mut self, error: Error) {
        // Before it has said anything the other can answer instead; input that one refuses the other would too.
        let other = self.speaker == Speaker::First && self.said.is_empty() && !error.kind().is_bad_input();
        if !other {
            return self.end(Some(error));
        }
        match self.slot.wait().and_then(|main| main.stream(self.generation.clone())) {
            Ok(stream) => self.begin(Speaker::Main, stream),
            Err(_) => self.end(Some(error)),
        }
    }

    fn end(&mut self, error: Option<Error>) {
        self.stream = None;
        self.events.push_back(match error {
            Some(error) => RelayEvent::Failed(error),
            None => RelayEvent::Done(std::mem::take(&mut self.parts)),
        });
    }
}

impl Iterator for RelayStream {
    type Item = RelayEvent;

    fn next(&mut self) -> Option<RelayEvent> {
        while !self.ended {
            if let Some(event) = self.events.pop_front() {
                self.ended = matches!(event, RelayEvent::Done(_) | RelayEvent::Failed(_));
                return Some(event);
            }
            let event = self.stream.as_mut()?.next()?;
            self.take(event);
        }
        None
    }
}

impl fmt::Debug for RelayStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayStream({:?} speaks)", self.speaker)
    }
}

/// Whether `said` ends with a sentence and `next` begins something new. A full stop alone does not tell: `3.` may go on
/// with `14`.
fn ends_sentence(said: &str, next: &str) -> bool {
    let trimmed = said.trim_end_matches([' ', '"', '\'', '”', '»', ')', '*']);
    let full = trimmed.ends_with(['.', '!', '?', '…', ':']) || trimmed.ends_with('\n');
    let wide = trimmed.ends_with(['。', '！', '？']);
    wide || trimmed.ends_with('\n') || full && (next.starts_with(char::is_whitespace) || said.ends_with(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_something_new_begins() {
        for (said, next) in
            [("It is.", " The"), ("Why?", "\n"), ("\"Yes.\"", " he"), ("好。", "我"), ("a\n", "b")]
        {
            assert!(ends_sentence(said, next), "{said:?} {next:?}");
        }
        for (said, next) in [("3.", "14"), ("", " The"), ("It is", " The"), ("e.", "g."), ("a,", " b")] {
            assert!(!ends_sentence(said, next), "{said:?} {next:?}");
        }
    }
}
