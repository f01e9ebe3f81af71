//! Arguments that say which model to run and how.

use clap::{Args, ValueEnum};
use orion::runtime::{ComputePool, ExecutorKind, KvType, LocalModel, LocalRuntime, RuntimeOptions};
use orion::{Result, SamplingParams};

use crate::source::{FetchArgs, Named};

#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// An id or alias of the registry, a GGUF file, a safetensors file or index, a folder, a URL of one of these, or
    /// hf://org/name@revision/file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Threads that compute [default: as many as the machine gives this process]
    #[arg(long, short = 't', value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// What computes: the fast kernels or the portable reference
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub(crate) executor: Executor,
    /// What keys and values are kept as: 16 or 8.5 bits each
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub(crate) kv_type: Kv,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Kv {
    #[default]
    F16,
    Q8,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Executor {
    #[default]
    Cpu,
    Portable,
}

impl ModelArgs {
    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        threads(self.run.threads)
    }

    /// Says what `--model` names.
    pub(crate) fn find(&self) -> Result<Named> {
        self.fetch.find(&self.model)
    }

    pub(crate) fn open(&self) -> Result<LocalModel> {
        self.open_named(&self.find()?)
    }

    pub(crate) fn open_named(&self, named: &Named) -> Result<LocalModel> {
        let mut options = RuntimeOptions::default();
        options.executor = match self.run.executor {
            Executor::Cpu => ExecutorKind::Cpu,
            Executor::Portable => ExecutorKind::Portable,
        };
        options.kv_type = match self.run.kv_type {
            Kv::F16 => KvType::F16,
            Kv::Q8 => KvType::Q8,
        };
        if let Some(threads) = self.run.threads {
            options.pool = Some(ComputePool::new(threads.into())?);
        }
        LocalRuntime::new(options).open(self.fetch.open_named(named)?)
    }
}

/// As many threads as were asked for, or as the machine gives this process.
pub(crate) fn threads(asked: Option<u16>) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    asked.map_or_else(available, usize::from)
}

#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Choose among the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// Choose among the likeliest tokens that make up this share
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Leave out tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Above 1 avoids what was said before
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Less for each time a token was used before
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Less for a token that was used before
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

impl SamplingArgs {
    /// What was asked for, over what the registry says of the model, over `base`.
    pub(crate) fn over(&self, base: SamplingParams, named: &Named) -> SamplingParams {
        let mut params = match &named.registered {
            Some((registry, model)) => model.entry.sampling.over(registry.defaults().sampling.over(base)),
            None => base,
        };
        params.temperature = self.temperature.unwrap_or(params.temperature);
        params.top_k = self.top_k.unwrap_or(params.top_k);
        params.top_p = self.top_p.unwrap_or(params.top_p);
        params.min_p = self.min_p.unwrap_or(params.min_p);
        params.repetition_penalty = self.repetition_penalty.unwrap_or(params.repetition_penalty);
        params.frequency_penalty = self.frequency_penalty.unwrap_or(params.frequency_penalty);
        params.presence_penalty = self.presence_penalty.unwrap_or(params.presence_penalty);
        params.seed = self.seed.unwrap_or(params.seed);
        params
    }
}

/// Token ids as people type them: `1,2,3`.
pub(crate) fn parse_tokens(text: &str) -> Result<Vec<orion::TokenId>> {
    let bad = |part: &str| orion::Error::invalid(format!("{part:?} is no token id; give them as 1,2,3"));
    text.split(',').map(|part| part.trim().parse().map(orion::TokenId).map_err(|_| bad(part))).collect()
}
