//! What a catalogue says of a model, and what a router is told and answers.

use std::time::Duration;

use crate::id::{Digest, ModelId};
use crate::request::{Message, SamplingParams};
use crate::state::Residency;

/// Where a file of a model is, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileSpec {
    /// A local path or a URL.
    pub location: String,
    /// Size in bytes, if known.
    pub bytes: Option<u64>,
    /// SHA-256, if known.
    pub digest: Option<Digest>,
}

impl FileSpec {
    /// A file of unknown size and digest.
    pub fn new(location: impl Into<String>) -> Self {
        Self { location: location.into(), bytes: None, digest: None }
    }
}

/// A model and how to use it. Catalogues fill it; routers, loader and engine read it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelSpec {
    /// Its id.
    pub id: ModelId,
    /// A name for people.
    pub name: String,
    /// What it is good at, in a sentence.
    pub description: String,
    /// The files that hold it.
    pub files: Vec<FileSpec>,
    /// Longest context in tokens.
    pub context_length: u32,
    /// Bytes of its weights in memory.
    pub weight_bytes: u64,
    /// Bytes of keys and values per token of context.
    pub kv_bytes_per_token: u64,
    /// What it can do: `chat`, `code`, `reasoning`, … (an open set).
    pub capabilities: Vec<String>,
    /// Languages it speaks, as ISO 639-1 codes; empty for unknown.
    pub languages: Vec<String>,
    /// Prompts it should answer; routers learn from them.
    pub examples: Vec<String>,
    /// Words that point to it.
    pub keywords: Vec<String>,
    /// Higher wins a tie.
    pub priority: i32,
    /// Relative quality, 0 to 1.
    pub quality: f32,
    /// Never evicted.
    pub pinned: bool,
    /// Replaces the chat template of the file.
    pub chat_template: Option<String>,
    /// Put before every conversation that has no system turn of its own.
    pub system_prompt: Option<String>,
    /// Sampling defaults.
    pub sampling: SamplingParams,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Models to try when this one fails, in order.
    pub fallback: Vec<ModelId>,
    /// A small model that answers while this one arrives.
    pub first_responder: Option<ModelId>,
}

impl ModelSpec {
    /// A model of which nothing but id and files is known.
    #[must_use]
    pub fn new(id: ModelId, files: Vec<FileSpec>) -> Self {
        Self {
            name: id.as_str().to_owned(),
            id,
            description: String::new(),
            files,
            context_length: 0,
            weight_bytes: 0,
            kv_bytes_per_token: 0,
            capabilities: Vec::new(),
            languages: Vec::new(),
            examples: Vec::new(),
            keywords: Vec::new(),
            priority: 0,
            quality: 0.5,
            pinned: false,
            chat_template: None,
            system_prompt: None,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            fallback: Vec::new(),
            first_responder: None,
        }
    }
}

/// What a router looks at.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Query<'a> {
    /// The latest user turn.
    pub prompt: &'a str,
    /// The turns before it, oldest first.
    pub history: &'a [Message],
    /// The model that answered the turn before.
    pub current: Option<&'a ModelId>,
}

impl<'a> Query<'a> {
    /// A prompt without history.
    #[must_use]
    pub fn new(prompt: &'a str) -> Self {
        Self { prompt, history: &[], current: None }
    }
}

/// Whether a model may be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// Calls succeed.
    Healthy,
    /// Some calls fail.
    Degraded,
    /// Calls are refused for now.
    Down,
}

/// A model a router may choose, as the engine sees it now.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// Whether its weights are in memory.
    pub residency: Residency,
    /// Whether it may be called.
    pub health: Health,
    /// What bringing it into memory would cost, zero if it is there.
    pub switch_cost: Duration,
}

impl<'a> Candidate<'a> {
    /// A model that is resident and healthy.
    #[must_use]
    pub fn new(spec: &'a ModelSpec) -> Self {
        Self { spec, residency: Residency::Ready, health: Health::Healthy, switch_cost: Duration::ZERO }
    }
}

/// A candidate and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// The model.
    pub model: ModelId,
    /// Its score; higher is better. Probabilities where the router has them.
    pub score: f32,
}

/// What a router decided, and why.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Decision {
    /// All candidates, best first.
    pub ranked: Vec<Ranked>,
    /// How likely the first is right, 0 to 1.
    pub confidence: f32,
    /// Not sure enough to choose; the caller's default should answer.
    pub abstained: bool,
    /// Why, for people: the rule that matched, the nearest examples.
    pub reason: String,
    /// The router that decided.
    pub router: String,
}

impl Decision {
    /// A decision of its parts; the ranking is sorted here, best first, ties by id.
    #[must_use]
    pub fn new(
        mut ranked: Vec<Ranked>,
        confidence: f32,
        abstained: bool,
        reason: impl Into<String>,
        router: impl Into<String>,
    ) -> Self {
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.model.cmp(&b.model)));
        Self { ranked, confidence, abstained, reason: reason.into(), router: router.into() }
    }

    /// The model chosen, unless the router abstained.
    #[must_use]
    pub fn chosen(&self) -> Option<&ModelId> {
        if self.abstained { None } else { self.ranked.first().map(|first| &first.model) }
    }
}
