//! What a generation reports while it runs.

use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::id::TokenId;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its turn, or a stop token came.
    Stop,
    /// A stop string came.
    StopString,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The caller ended it.
    Cancelled,
}

/// A token and its log-probability under the model, before sampling changed the logits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token.
    pub id: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Tokens counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens whose keys and values were still there from earlier.
    pub cached_tokens: u32,
    /// Tokens generated, the ending token not counted.
    pub completion_tokens: u32,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Timings {
    /// Waiting for the worker.
    #[serde(serialize_with = "seconds", rename = "queue_s")]
    pub queue: Duration,
    /// Running the prompt.
    #[serde(serialize_with = "seconds", rename = "prefill_s")]
    pub prefill: Duration,
    /// Running the generated tokens.
    #[serde(serialize_with = "seconds", rename = "decode_s")]
    pub decode: Duration,
    /// From submission to the first token.
    #[serde(serialize_with = "seconds", rename = "ttft_s")]
    pub ttft: Duration,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// How a generation ended, and what it cost.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// Why it ended.
    pub reason: FinishReason,
    /// The whole text.
    pub text: String,
    /// The tokens generated, the ending token not included.
    pub tokens: Vec<TokenId>,
    /// Tokens counted.
    pub usage: Usage,
    /// Time spent.
    pub timings: Timings,
}

impl Completion {
    /// A completion of its parts.
    #[must_use]
    pub fn new(
        reason: FinishReason,
        text: String,
        tokens: Vec<TokenId>,
        usage: Usage,
        timings: Timings,
    ) -> Self {
        Self { reason, text, tokens, usage, timings }
    }
}

/// What a running generation tells its [`TokenSink`](crate::TokenSink). Exactly one of `Done` and `Failed` comes, last.
#[derive(Debug)]
#[non_exhaustive]
pub enum GenerationEvent {
    /// Work on the prompt begins.
    Started {
        /// Length of the prompt.
        prompt_tokens: u32,
        /// Of these, not computed again.
        cached_tokens: u32,
    },
    /// A chunk of the prompt is done.
    Prefill {
        /// Prompt tokens done, cached ones included.
        done: u32,
        /// Prompt tokens in all.
        total: u32,
    },
    /// A token was generated.
    Token {
        /// The token.
        id: TokenId,
        /// The text it completes: valid UTF-8, empty while a character or a possible stop string is unfinished.
        text: String,
        /// Log-probability of the token and of the most likely candidates, most likely first, if asked for.
        logprobs: Option<(f32, Vec<TokenLogprob>)>,
    },
    /// It ended, with the whole result.
    Done(Completion),
    /// It failed; what was generated until then has been reported.
    Failed(Error),
}

/// What a [`TokenSink`](crate::TokenSink) wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// More.
    Continue,
    /// Nothing until [`TokenSink::ready`](crate::TokenSink::ready) says so; the event was taken.
    Pause,
    /// Nothing more: end the generation as cancelled.
    Stop,
}
