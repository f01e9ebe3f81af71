//! The file `models.json` as Rust types. The JSON Schema is generated from them: a doc comment here is what an
//! editor shows there, and the ranges here are the ranges the schema step checks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inherit::{Inherit, inherit_fields};

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The models an installation knows, and how to use them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "models.json", extend("required" = ["version"]))]
#[non_exhaustive]
pub struct Document {
    /// Where editors find the schema of this file.
    #[serde(rename = "$schema", skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Version of the file format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// What holds where nothing else is said.
    #[serde(skip_serializing_if = "is_default")]
    pub defaults: Defaults,
    /// The models, in the order they are listed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelEntry>,
    /// Other names: alias → model id or another alias.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
    /// Named sets of models.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Group>,
    /// Named answers to "which model should I take for …": `low-memory`, `coding`, …
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub recommendations: BTreeMap<String, Group>,
    /// How prompts are routed to models.
    #[serde(skip_serializing_if = "is_default")]
    pub router: RouterConfig,
    /// Figures measured on this host, by model id. Benchmarks write them, into a file of their own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub measured: BTreeMap<String, Measured>,
    /// For people; not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// What holds where nothing else is said.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Defaults {
    /// The model that answers when none is named and the router abstains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The model that turns texts into vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedder: Option<String>,
    /// Sampling of models that set none of their own.
    #[serde(skip_serializing_if = "is_default")]
    pub sampling: Sampling,
}

/// A model and how to use it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["id"]))]
#[non_exhaustive]
pub struct ModelEntry {
    /// Its id, unique in the file. An entry of the same id in a file layered on top replaces this one.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[a-z0-9][a-z0-9._-]*$"))]
    pub id: String,
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another entry whose files and facts this one shares; what is set here wins. Name, routing, fallback chain,
    /// priority, pinning and first responder are never taken over. Entries that share files share the weights in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Architecture family as the weights name it: `llama`, `gemma3`, `bert`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub architecture: Option<String>,
    /// Format of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The files, in shard order. Required unless `base` has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ModelFile>,
    /// How the weights are quantised: `Q4_1`, `Q4_K_M`, `F16`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub quantization: Option<String>,
    /// Longest context in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub context_length: Option<u32>,
    /// Number of parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000_000_000_u64))]
    pub parameters: Option<u64>,
    /// Size of all files in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_u64))]
    pub disk_bytes: Option<u64>,
    /// Memory it needs.
    #[serde(skip_serializing_if = "is_default")]
    pub memory: Memory,
    /// What it can do: `chat`, `code`, `reasoning`, `creative`, `multilingual`, `translation`, `summarising`,
    /// `vision`, `embedding`, … The set is open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1, max = 64), regex(pattern = r"^[a-z0-9][a-z0-9_-]*$")))]
    pub capabilities: Vec<String>,
    /// Languages it speaks, as ISO 639-1 codes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^[a-z]{2,3}$")))]
    pub languages: Vec<String>,
    /// How good its answers are, against the other models of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// How fast it answers, against the other models of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// Least memory a machine should have, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_u64))]
    pub min_ram_bytes: Option<u64>,
    /// Licence of the weights: an SPDX identifier or a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub licence: Option<String>,
    /// Where the files can be had, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How a conversation becomes a prompt; unset, the template in the model's files is used.
    #[serde(skip_serializing_if = "is_default")]
    pub prompt: PromptFormat,
    /// Put before every conversation that has no system turn of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Sampling defaults.
    #[serde(skip_serializing_if = "is_default")]
    pub sampling: Sampling,
    /// Stop strings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1, max = 256)))]
    pub stop: Vec<String>,
    /// What routers learn from.
    #[serde(skip_serializing_if = "is_default")]
    pub routing: Routing,
    /// Models to try when this one fails, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<String>,
    /// A small model that answers while this one arrives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_responder: Option<String>,
    /// Higher wins a tie.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: Option<i32>,
    /// Never evicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
    /// For people; not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

impl ModelEntry {
    /// An entry of which nothing but the id is known.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), ..Self::default() }
    }
}

impl Inherit for ModelEntry {
    fn inherit(&mut self, base: &Self) {
        inherit_fields!(self, base; architecture, format, files, quantization, context_length, parameters, disk_bytes,
            memory, capabilities, languages, quality, speed, min_ram_bytes, licence, source, prompt, system_prompt,
            sampling, stop);
    }
}

/// Format of a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Format {
    /// GGUF, single or split.
    Gguf,
    /// safetensors with side files, single or sharded.
    Safetensors,
    /// A shard set written by ORION.
    OrionShards,
}

/// A file of a model. Either `path` or `url` must be given; with both, the path is where the download is kept.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelFile {
    /// Relative to the folder this file is in, with forward slashes; it may not lead out of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub path: Option<String>,
    /// `https:` or `http:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub url: Option<String>,
    /// Size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_u64))]
    pub bytes: Option<u64>,
    /// SHA-256: 64 lower-case hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// What it holds; weights unless said.
    #[serde(skip_serializing_if = "is_default")]
    pub role: FileRole,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FileRole {
    /// Weights: the whole, or one shard.
    #[default]
    Weights,
    /// The index of a shard set.
    Index,
    /// `config.json`.
    Config,
    /// `tokenizer.json` or what stands for it.
    Tokenizer,
    /// Any other file that stands beside the weights.
    Other,
}

/// Memory a model needs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Memory {
    /// Bytes of its weights in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_u64))]
    pub weight_bytes: Option<u64>,
    /// Bytes of keys and values per token of context; 0 for encoders.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000_u64))]
    pub kv_bytes_per_token: Option<u64>,
}

impl Inherit for Memory {
    fn inherit(&mut self, base: &Self) {
        inherit_fields!(self, base; weight_bytes, kv_bytes_per_token);
    }
}

/// How good a model's answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Quality {
    /// Short answers to simple questions.
    Basic,
    /// Everyday questions.
    Fair,
    /// Most tasks.
    Good,
    /// The hardest tasks of this installation.
    Best,
}

impl Quality {
    /// The class as a number between 0 and 1, as routers weigh it.
    #[must_use]
    pub fn score(self) -> f32 {
        match self {
            Self::Basic => 0.25,
            Self::Fair => 0.5,
            Self::Good => 0.75,
            Self::Best => 1.0,
        }
    }
}

/// How fast a model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Speed {
    /// Slower than people read.
    Slow,
    /// About as fast as people read.
    Medium,
    /// Faster than people read.
    Fast,
}

/// How a conversation becomes a prompt: a template, or the strings around each turn.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PromptFormat {
    /// A Jinja chat template, in place of the one in the model's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub template: Option<String>,
    /// Put before a system turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prefix: Option<String>,
    /// Put before a turn of the person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_prefix: Option<String>,
    /// Put before a turn of the model, and at the end, where it shall go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant_prefix: Option<String>,
    /// Put after every turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_end: Option<String>,
    /// Tokens that end the model's turn; they count as stop strings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1, max = 256)))]
    pub end_tokens: Vec<String>,
}

impl PromptFormat {
    /// Whether it is given by strings around the turns.
    pub(crate) fn has_prefixes(&self) -> bool {
        [&self.system_prefix, &self.user_prefix, &self.assistant_prefix, &self.turn_end]
            .iter()
            .any(|part| part.is_some())
    }
}

impl Inherit for PromptFormat {
    /// Taken over as a whole: half of one format and half of another is none.
    fn inherit(&mut self, base: &Self) {
        if *self == Self::default() {
            *self = base.clone();
        }
    }
}

/// Sampling defaults; what is not set keeps ORION's default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub temperature: Option<f32>,
    /// Keeps the most likely tokens; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub top_k: Option<u32>,
    /// Keeps the fewest tokens whose probabilities sum to at least this; 1 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.000_001, max = 1.0))]
    pub top_p: Option<f32>,
    /// Drops tokens less likely than this share of the most likely one; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of recent tokens; 1 does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01, max = 100.0))]
    pub repetition_penalty: Option<f32>,
    /// Subtracted once per occurrence of a recent token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -100.0, max = 100.0))]
    pub frequency_penalty: Option<f32>,
    /// Subtracted once from every recent token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -100.0, max = 100.0))]
    pub presence_penalty: Option<f32>,
    /// How many of the latest tokens the penalties look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16_777_216))]
    pub penalty_last_n: Option<u32>,
    /// Seed of the draws.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_u64))]
    pub seed: Option<u64>,
}

impl Inherit for Sampling {
    fn inherit(&mut self, base: &Self) {
        inherit_fields!(self, base; temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty,
            presence_penalty, penalty_last_n, seed);
    }
}

/// What routers learn from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Routing {
    /// What the model is good at, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Prompts it should answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1, max = 4096)))]
    pub examples: Vec<String>,
    /// Words that point to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1, max = 128)))]
    pub keywords: Vec<String>,
}

/// A named set of models, best first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["models"]))]
#[non_exhaustive]
pub struct Group {
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Model ids or aliases.
    #[schemars(length(min = 1))]
    pub models: Vec<String>,
}

/// How prompts are routed to models.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RouterConfig {
    /// Which router decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// The encoder of embedding routers; unset, the default embedder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    /// A trained head, whose labels are model ids or aliases; unset, the models' examples decide. Relative to the folder
    /// this file is in, with forward slashes; it may not lead out of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub head: Option<String>,
    /// The model that answers when the router abstains; unset, the default model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Below this confidence the router abstains.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_confidence: Option<f32>,
    /// Below this similarity to every example the router abstains.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1.0, max = 1.0))]
    pub min_similarity: Option<f32>,
    /// How much the time to bring a model into memory counts against it; 0 ignores it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub switch_cost_weight: Option<f32>,
}

/// Which router decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Strategy {
    /// By the words of the prompt.
    Keyword,
    /// By likeness to the example prompts.
    Embedding,
    /// By likeness, corrected by feedback.
    Learning,
    /// Keywords first, likeness where they leave it open.
    Cascade,
}

/// Figures measured on one host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Measured {
    /// Tokens generated per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000_000.0))]
    pub tokens_per_second: Option<f64>,
    /// Prompt tokens per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000_000.0))]
    pub prefill_tokens_per_second: Option<f64>,
    /// Time to the first token in milliseconds, the model resident.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000_000.0))]
    pub ttft_ms: Option<f64>,
    /// Time to the first token in milliseconds, the model not in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000_000.0))]
    pub cold_ttft_ms: Option<f64>,
    /// Most memory the process took, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000_000_000_u64))]
    pub peak_rss_bytes: Option<u64>,
    /// The processor, its instruction set, the number of threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// When, as a date: `2026-01-31`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"))]
    pub date: Option<String>,
}
