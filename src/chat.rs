//! Conversations that remember.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orion_core::{Message, ModelId, Prompt, Result, Role};

use crate::answer::{Answer, EngineEvent};
use crate::engine::{AnswerStream, Engine};
use crate::request::Request;

/// A conversation: each turn is sent with those before it, and follow-ups stay with the model that answered.
///
/// ```no_run
/// # let engine = orion::Engine::open("models.json")?;
/// let mut chat = engine.chat().system("You are terse.");
/// chat.say("My name is Ada.")?;
/// println!("{}", chat.say("What is my name?")?.text);
/// # Ok::<(), orion::Error>(())
/// ```
#[derive(Debug)]
pub struct Chat {
    engine: Engine,
    like: Request,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    history: Vec<Message>,
    model: Option<ModelId>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Begins a conversation.
    #[must_use]
    pub fn chat(&self) -> Chat {
        Chat { engine: self.clone(), like: Request::new(""), state: Arc::default() }
    }
}

impl Chat {
    /// Every turn is sent with the settings of this request; its prompt does not count.
    #[must_use]
    pub fn like(mut self, request: Request) -> Self {
        self.like = request;
        self
    }

    /// Instructions that stand before the conversation, in place of the model's own.
    #[must_use]
    pub fn system(self, text: impl Into<String>) -> Self {
        {
            let history = &mut lock(&self.state).history;
            history.retain(|message| message.role != Role::System);
            history.insert(0, Message::new(Role::System, text));
        }
        self
    }

    /// Says something and waits for the whole answer.
    ///
    /// # Errors
    /// As [`Engine::infer`]; the conversation then stands as it did before.
    pub fn say(&mut self, text: impl Into<String>) -> Result<Answer> {
        let mut stream = self.stream(text);
        let last = stream.by_ref().last();
        match last {
            Some(EngineEvent::Done(answer)) => Ok(answer),
            Some(EngineEvent::Failed { error, .. }) => Err(error),
            _ => stream.inner.answer(),
        }
    }

    /// Says something and hands out the answer as it comes. Turn and answer are remembered once the answer is done; one
    /// that was cut short counts as far as it went, one that failed or was dropped does not.
    pub fn stream(&mut self, text: impl Into<String>) -> ChatStream {
        let said = Message::new(Role::User, text);
        let state = lock(&self.state);
        let mut turns = state.history.clone();
        turns.push(said.clone());
        let mut request = self.like.clone();
        request.prompt = Prompt::Chat(turns);
        request.current.clone_from(&state.model);
        drop(state);
        ChatStream { inner: self.engine.stream(request), state: self.state.clone(), said: Some(said) }
    }

    /// The turns so far.
    #[must_use]
    pub fn history(&self) -> Vec<Message> {
        lock(&self.state).history.clone()
    }
}

/// The events of one turn; as [`AnswerStream`].
#[derive(Debug)]
#[must_use = "dropping the stream cancels the request"]
pub struct ChatStream {
    inner: AnswerStream,
    state: Arc<Mutex<State>>,
    said: Option<Message>,
}

impl ChatStream {
    /// Ends the answer; what was generated until then comes in the last event.
    pub fn cancel(&self) {
        self.inner.cancel();
    }
}

impl Iterator for ChatStream {
    type Item = EngineEvent;

    fn next(&mut self) -> Option<EngineEvent> {
        let event = self.inner.next()?;
        if let EngineEvent::Done(answer) = &event
            && let Some(said) = self.said.take()
            && !answer.text.is_empty()
        {
            let mut state = lock(&self.state);
            state.history.push(said);
            state.history.push(Message::new(Role::Assistant, answer.text.clone()));
            state.model = Some(answer.model.clone());
        }
        Some(event)
    }
}
