//! What a caller gets back.

use std::sync::Arc;
use std::time::Duration;

use orion_core::state::{Phase, Trace};
use orion_core::{
    Decision, Error, ErrorKind, FinishReason, ModelId, RequestId, Timings, TokenId, TokenLogprob, Usage,
};

/// What happens to a request, in order. The last event is [`Done`](Self::Done) or [`Failed`](Self::Failed).
#[derive(Debug)]
#[non_exhaustive]
pub enum EngineEvent {
    /// A model was chosen.
    Routed {
        /// The model.
        model: ModelId,
        /// How likely it is right, 0 to 1.
        confidence: f32,
        /// Why it, for people.
        reason: String,
    },
    /// It waits for a place with the model.
    Queued {
        /// Requests before it.
        position: usize,
    },
    /// The model is brought into memory.
    Loading {
        /// The model.
        model: ModelId,
        /// Bytes of weights that are there.
        done: u64,
        /// Bytes in all; 0 while unknown.
        total: u64,
    },
    /// The prompt runs.
    Prefill {
        /// Prompt tokens done, those kept from earlier included.
        done: u32,
        /// Prompt tokens in all.
        total: u32,
    },
    /// A token was generated.
    Token {
        /// The token.
        id: TokenId,
        /// The text it completes; empty while a character or a possible stop string is unfinished.
        text: String,
        /// Log-probability of the token and of the likeliest candidates, if asked for.
        logprobs: Option<(f32, Vec<TokenLogprob>)>,
    },
    /// The chosen model is not there yet, and its first responder speaks for it.
    FirstResponder {
        /// Who answers.
        model: ModelId,
        /// The model that was chosen, and is brought into memory meanwhile.
        instead_of: ModelId,
    },
    /// A model failed, and the next of the chain takes over.
    Fallback {
        /// The model that failed.
        from: ModelId,
        /// The model that takes over.
        to: ModelId,
        /// What it failed with.
        error: String,
    },
    /// The answer is complete, or was ended by its caller.
    Done(Answer),
    /// There is no answer, or no more of it.
    Failed {
        /// Why.
        error: Error,
        /// The way the request took.
        report: Report,
    },
}

impl EngineEvent {
    /// Whether it is the last one.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed { .. })
    }
}

/// An answer, and how it came about.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// The tokens, the ending token not included.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub reason: FinishReason,
    /// The model that answered.
    pub model: ModelId,
    /// How sure the router was of that model, 0 to 1; 1 if the caller chose it.
    pub confidence: f32,
    /// Tokens counted.
    pub usage: Usage,
    /// Where the model's time went.
    pub timings: Timings,
    /// The way the request took: time in every state, models tried, the router's decision.
    pub report: Report,
}

/// The way a request took.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The request.
    pub request: RequestId,
    /// States, times and models.
    pub trace: Trace,
    /// What the router decided, if it was asked.
    pub decision: Option<Arc<Decision>>,
    /// Tokens counted, once the model said so.
    pub usage: Option<Usage>,
    /// Kind and message of the error it ended with.
    pub error: Option<(ErrorKind, String)>,
}

impl Report {
    /// Where it is, or how it ended.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.trace.state().phase
    }

    /// From its arrival to its first token, if there was one.
    #[must_use]
    pub fn ttft(&self) -> Option<Duration> {
        let visits = self.trace.visits();
        let first = visits.iter().position(|visit| visit.phase == Phase::Decoding)?;
        Some(visits[..first].iter().map(|visit| visit.stayed).sum())
    }
}

impl std::fmt::Display for Report {
    /// One line: outcome, model, time in each state.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.request, self.phase())?;
        if let Some(model) = self.trace.model() {
            write!(f, " by {model}")?;
        }
        for visit in self.trace.visits() {
            write!(f, ", {:?} {:.1?}", visit.phase, visit.stayed)?;
        }
        if let Some((_, message)) = &self.error {
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}
