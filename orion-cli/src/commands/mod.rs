//! The commands, one file each.

mod bench;
mod cache;
mod chat;
mod convert;
mod embed;
mod eval;
mod footprint;
mod generate;
mod imatrix;
mod inspect;
mod logits;
mod merge;
mod model;
mod optimize;
mod pull;
mod quantize;
mod recipe;
mod registry;
mod route;
mod router;
mod shard;
mod tokenize;
mod unshard;
mod verify;
mod work;

use std::process::ExitCode;

use clap::Subcommand;
use orion::Result;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer one prompt
    Generate(generate::Generate),
    /// Talk with a model
    Chat(chat::Chat),
    /// Turn texts into vectors of length one
    Embed(embed::Embed),
    /// Say what a file is, and whether it could be loaded
    Inspect(inspect::Inspect),
    /// Turn text into token ids
    Tokenize(tokenize::Tokenize),
    /// Print the logits after each of the given tokens
    Logits(logits::Logits),
    /// Measure the perplexity of a text
    Eval(eval::Eval),
    /// Measure the speed of prefill and decode
    Bench(bench::Bench),
    /// Measure how much each column of each matrix matters, for `quantize --imatrix`
    Imatrix(imatrix::Imatrix),
    /// Make a model smaller
    Quantize(quantize::Quantize),
    /// Turn safetensors into GGUF, or GGUF into safetensors
    Convert(convert::Convert),
    /// Quantise, pack and shard a model in one pass
    Optimize(optimize::Optimize),
    /// Make one model of several
    Merge(merge::Merge),
    /// Cut a model into shards
    Shard(shard::Shard),
    /// Put a sharded model together
    Unshard(unshard::Unshard),
    /// Fetch a model into the cache
    Pull(pull::Pull),
    /// List, verify or clean what was fetched
    Cache(cache::Cache),
    /// Check, ask and extend the registry of models
    Registry(registry::Registry),
    /// Say which model of the registry should answer a prompt
    Route(route::Route),
    /// Train, measure and calibrate the router's heads
    Router(router::Router),
}

impl Command {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let done = match self {
            Self::Generate(command) => command.run(),
            Self::Chat(command) => command.run(),
            Self::Embed(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Tokenize(command) => command.run(),
            Self::Logits(command) => command.run(),
            Self::Eval(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Imatrix(command) => command.run(),
            Self::Quantize(command) => command.run(),
            Self::Convert(command) => command.run(),
            Self::Optimize(command) => command.run(),
            Self::Merge(command) => command.run(),
            Self::Shard(command) => command.run(),
            Self::Unshard(command) => command.run(),
            Self::Pull(command) => command.run(),
            Self::Cache(command) => command.run(),
            Self::Registry(command) => return command.run(),
            Self::Route(command) => command.run(),
            Self::Router(command) => command.run(),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}
