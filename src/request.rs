//! What a caller asks of the engine.

use std::time::Duration;

use orion_core::{
    CancelToken, Constraint, Generation, Message, ModelId, ModelSpec, Prompt, Role, SamplingParams,
};
use orion_resilience::{Caller, Priority};

/// A request: the prompt, and everything about it that is not as usual.
///
/// ```
/// use std::time::Duration;
/// use orion::{Priority, Request};
/// let request = Request::new("Why is the sky blue?")
///     .max_tokens(100)
///     .priority(Priority::High)
///     .timeout(Duration::from_secs(30));
/// assert_eq!(request.last_user_turn(), "Why is the sky blue?");
/// ```
#[derive(Debug, Clone)]
pub struct Request {
    pub(crate) prompt: Prompt,
    pub(crate) model: Option<ModelId>,
    pub(crate) current: Option<ModelId>,
    pub(crate) sampling: Option<SamplingParams>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) stop: Vec<String>,
    pub(crate) logprobs: u8,
    pub(crate) constraint: Option<Constraint>,
    pub(crate) priority: Priority,
    pub(crate) caller: Caller,
    pub(crate) timeout: Option<Duration>,
    pub(crate) fallback: bool,
    pub(crate) cancel: Option<CancelToken>,
}

impl Request {
    /// A single user turn.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self::chat(vec![Message::new(Role::User, prompt)])
    }

    /// A conversation, oldest turn first.
    #[must_use]
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::of(Prompt::Chat(messages))
    }

    /// Text to continue, without a chat template.
    pub fn completion(text: impl Into<String>) -> Self {
        Self::of(Prompt::Text(text.into()))
    }

    /// Any prompt.
    #[must_use]
    pub fn of(prompt: Prompt) -> Self {
        Self {
            prompt,
            model: None,
            current: None,
            sampling: None,
            max_tokens: None,
            stop: Vec::new(),
            logprobs: 0,
            constraint: None,
            priority: Priority::default(),
            caller: Caller::default(),
            timeout: None,
            fallback: true,
            cancel: None,
        }
    }

    /// This model answers; the router is not asked. Its fallback chain still holds.
    #[must_use]
    pub fn model(mut self, model: impl Into<ModelId>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// The model that answered the turn before, which follow-ups stay with.
    #[must_use]
    pub fn current_model(mut self, model: impl Into<ModelId>) -> Self {
        self.current = Some(model.into());
        self
    }

    /// How tokens are chosen, in place of the model's own defaults.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = Some(sampling);
        self
    }

    /// At most this many new tokens.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Another string that ends the answer, besides the model's own.
    #[must_use]
    pub fn stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    /// Log-probabilities of this many candidates come with each token.
    #[must_use]
    pub fn logprobs(mut self, candidates: u8) -> Self {
        self.logprobs = candidates;
        self
    }

    /// The answer follows a schema, an expression or a grammar.
    #[must_use]
    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// The answer is JSON that this JSON Schema admits.
    #[must_use]
    pub fn json_schema(self, schema: impl Into<String>) -> Self {
        self.constraint(Constraint::JsonSchema(schema.into()))
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Whose it is: callers of the same priority are served in turn.
    #[must_use]
    pub fn caller(mut self, caller: impl Into<Caller>) -> Self {
        self.caller = caller.into();
        self
    }

    /// When this much time has passed it ends, wherever it is.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// No other model takes over when the chosen one fails.
    #[must_use]
    pub fn without_fallback(mut self) -> Self {
        self.fallback = false;
        self
    }

    /// A flag that ends it, to be set from anywhere; several requests may share one. The engine never sets it.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: CancelToken) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// What a router looks at: the latest user turn, or the text to continue.
    #[must_use]
    pub fn last_user_turn(&self) -> &str {
        match &self.prompt {
            Prompt::Chat(messages) => self.turn(messages).map_or("", |at| messages[at].content.as_str()),
            Prompt::Text(text) => text,
            _ => "",
        }
    }

    /// The turns before it.
    pub(crate) fn history(&self) -> &[Message] {
        match &self.prompt {
            Prompt::Chat(messages) => &messages[..self.turn(messages).unwrap_or(0)],
            _ => &[],
        }
    }

    #[allow(clippy::unused_self, reason = "reads as a question to the request")]
    fn turn(&self, messages: &[Message]) -> Option<usize> {
        messages.iter().rposition(|message| message.role == Role::User)
    }

    /// Bytes of the prompt.
    pub(crate) fn bytes(&self) -> usize {
        match &self.prompt {
            Prompt::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(tokens) => 4 * tokens.len(),
            _ => 0,
        }
    }

    /// How much work it may be, for the bounds of the queue: four bytes of prompt are about a token.
    pub(crate) fn work(&self) -> u32 {
        let prompt = u32::try_from(self.bytes() / 4).unwrap_or(u32::MAX);
        prompt.saturating_add(self.max_tokens.unwrap_or(0)).max(1)
    }

    /// The generation that `spec` makes of it: its system prompt, sampling and stop strings where the request says
    /// nothing.
    pub(crate) fn generation(&self, spec: &ModelSpec) -> Generation {
        let mut prompt = self.prompt.clone();
        if let (Prompt::Chat(messages), Some(system)) = (&mut prompt, &spec.system_prompt)
            && messages.first().is_none_or(|first| first.role != Role::System)
        {
            messages.insert(0, Message::new(Role::System, system.clone()));
        }
        let mut generation = Generation::new(prompt);
        generation.sampling = self.sampling.clone().unwrap_or_else(|| spec.sampling.clone());
        generation.max_tokens = self.max_tokens;
        generation.stop = spec.stop.iter().chain(&self.stop).cloned().collect();
        generation.logprobs = self.logprobs;
        generation.constraint.clone_from(&self.constraint);
        generation
    }
}

impl<T: Into<String>> From<T> for Request {
    fn from(prompt: T) -> Self {
        Self::new(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_fills_in_what_the_request_leaves_open() {
        let mut spec = ModelSpec::new("m".into(), Vec::new());
        spec.system_prompt = Some("Be brief.".into());
        spec.sampling.temperature = 0.25;
        spec.stop = vec!["END".into()];
        let generation = Request::new("hi").stop("###").max_tokens(5).generation(&spec);
        let Prompt::Chat(messages) = &generation.prompt else { panic!("a conversation") };
        assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "Be brief."));
        assert_eq!(generation.stop, ["END", "###"]);
        assert_eq!((generation.sampling.temperature, generation.max_tokens), (0.25, Some(5)));
        let own = vec![Message::new(Role::System, "Be long."), Message::new(Role::User, "hi")];
        let generation = Request::chat(own.clone()).sampling(SamplingParams::greedy()).generation(&spec);
        assert_eq!(generation.prompt, Prompt::Chat(own));
        assert_eq!(generation.sampling.temperature, 0.0);
    }

    #[test]
    fn a_router_sees_the_latest_user_turn_and_what_came_before() {
        let turns = [(Role::User, "a"), (Role::Assistant, "b"), (Role::User, "c")];
        let request = Request::chat(turns.map(|(role, text)| Message::new(role, text)).to_vec());
        assert_eq!(request.last_user_turn(), "c");
        assert_eq!(request.history().len(), 2);
        assert_eq!(Request::completion("once").last_user_turn(), "once");
        assert_eq!(Request::chat(Vec::new()).last_user_turn(), "");
        assert_eq!(Request::new("12345678").max_tokens(3).work(), 5);
    }
}
