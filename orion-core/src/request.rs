//! What a caller asks for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::TokenId;

/// Who speaks in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// Instructions that frame the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The name chat templates know.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. Strings that spell special tokens stay plain text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// What the model continues.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Chat(Vec<Message>),
    /// Plain text without a template; BOS is added if the vocabulary asks for it.
    Text(String),
    /// Exactly these tokens.
    Tokens(Vec<TokenId>),
}

/// How the next token is chosen from the logits.
///
/// The steps run in this order: logit bias, penalties, top-k, temperature, top-p, min-p, draw. With
/// `temperature` 0 the most likely token after bias and penalties is taken (the lowest id wins a tie) and the
/// steps after the penalties do not apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in the last `penalty_last_n`; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the last `penalty_last_n` tokens.
    pub frequency_penalty: f32,
    /// Subtracted once from every token that occurs in the last `penalty_last_n`.
    pub presence_penalty: f32,
    /// How many of the latest tokens, prompt included, the penalties look at.
    pub penalty_last_n: u32,
    /// Added to the logit of a token; negative infinity forbids it.
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// Seed of the draws. The same seed, model and prompt give the same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_last_n: 64,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most likely token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) naming the parameter, its value and the range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, name: &str, value: f32, range: &str| {
            if ok { Ok(()) } else { Err(Error::invalid(format!("{name} is {value}, expected {range}"))) }
        };
        let finite = |v: f32, low: f32, high: f32| v.is_finite() && v >= low && v <= high;
        check(finite(self.temperature, 0.0, 100.0), "temperature", self.temperature, "0 (greedy) to 100")?;
        check(finite(self.top_p, f32::MIN_POSITIVE, 1.0), "top_p", self.top_p, "above 0, up to 1 (off)")?;
        check(finite(self.min_p, 0.0, 1.0), "min_p", self.min_p, "0 (off) to 1")?;
        let (name, value) = ("repetition_penalty", self.repetition_penalty);
        check(finite(value, f32::MIN_POSITIVE, 100.0), name, value, "above 0, up to 100; 1 is off")?;
        let (name, value) = ("frequency_penalty", self.frequency_penalty);
        check(finite(value, -100.0, 100.0), name, value, "-100 to 100; 0 is off")?;
        let (name, value) = ("presence_penalty", self.presence_penalty);
        check(finite(value, -100.0, 100.0), name, value, "-100 to 100; 0 is off")?;
        self.logit_bias.iter().try_for_each(|(token, &bias)| {
            let ok = !bias.is_nan() && bias < f32::INFINITY;
            check(ok, &format!("logit_bias of token {token}"), bias, "a finite number or negative infinity")
        })
    }
}

/// What an answer has to look like. Tokens that would break it are never chosen; what was not asked for is not promised:
/// an answer that is cut off by its length is the beginning of one that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Constraint {
    /// A JSON text that this JSON Schema (draft 2020-12, given as JSON) admits; `{}` admits any.
    JsonSchema(String),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// A text of this grammar, in llama.cpp's notation (GBNF); it begins at the rule `root`.
    Grammar(String),
}

/// One generation: prompt, sampling and when to stop.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// What to continue.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// At most this many new tokens; `None` goes on to the end of the context.
    pub max_tokens: Option<u32>,
    /// Generation ends before the first of these strings; the string itself is not part of the text. An empty
    /// string is refused; one that never comes has no effect.
    pub stop: Vec<String>,
    /// Generation ends at these tokens, besides the model's own end-of-generation tokens.
    pub stop_tokens: Vec<TokenId>,
    /// Go on past the model's end-of-generation tokens (benchmarks).
    pub ignore_eos: bool,
    /// Report the log-probabilities of this many candidates with each token; 0 for none, at most 20.
    pub logprobs: u8,
    /// What the answer has to look like.
    pub constraint: Option<Constraint>,
}

impl Generation {
    /// A generation with default sampling and no limit but the context.
    #[must_use]
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            max_tokens: None,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: 0,
            constraint: None,
        }
    }

    /// A single user turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Prompt::Chat(vec![Message::new(Role::User, text)]))
    }

    /// Replaces the sampling parameters.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Limits the number of new tokens.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Has the answer follow a schema, an expression or a grammar.
    #[must_use]
    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) naming what is wrong: an empty prompt, a parameter out of
    /// range, an empty stop string.
    pub fn validate(&self) -> Result<()> {
        let empty = match &self.prompt {
            Prompt::Chat(messages) => messages.iter().all(|message| message.content.trim().is_empty()),
            Prompt::Text(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
        };
        if empty {
            return Err(Error::invalid("the prompt is empty"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::invalid("a stop string is empty"));
        }
        if self.logprobs > 20 {
            return Err(Error::invalid(format!("logprobs is {}, expected at most 20", self.logprobs)));
        }
        self.sampling.validate()
    }
}

/// A flag that ends a request. Clones share it; it is read at every layer of a prefill chunk and every token.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A flag that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        SamplingParams::default().validate().unwrap();
        SamplingParams::greedy().validate().unwrap();
        Generation::user("hi").validate().unwrap();
    }

    #[test]
    fn each_parameter_out_of_range_is_named() {
        let base = SamplingParams::default;
        let cases = [
            ("temperature", SamplingParams { temperature: f32::NAN, ..base() }),
            ("temperature", SamplingParams { temperature: -0.1, ..base() }),
            ("top_p", SamplingParams { top_p: 0.0, ..base() }),
            ("top_p", SamplingParams { top_p: 2.0, ..base() }),
            ("min_p", SamplingParams { min_p: 1.5, ..base() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: f32::INFINITY, ..base() }),
            ("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..base() }),
            ("logit_bias", SamplingParams { logit_bias: [(TokenId(3), f32::NAN)].into(), ..base() }),
        ];
        for (name, params) in cases {
            let message = params.validate().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }

    #[test]
    fn an_empty_prompt_or_stop_string_is_refused() {
        for prompt in [Prompt::Text(String::new()), Prompt::Tokens(vec![]), Prompt::Chat(vec![])] {
            assert!(Generation::new(prompt).validate().is_err());
        }
        assert!(Generation::user("  \n").validate().is_err());
        let generation = Generation { stop: vec![String::new()], ..Generation::user("hi") };
        assert!(generation.validate().is_err());
    }
}
