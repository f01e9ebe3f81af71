//! The registry: check it, ask it, add to it.

mod add;
mod ask;
mod check;

use std::process::ExitCode;

pub(crate) use add::enrol_shard_set;
use clap::{Args, Subcommand};
use orion::Result;

#[derive(Debug, Args)]
pub(crate) struct Registry {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say everything that is wrong with a registry, each with its place and what to do; exit status 2 if anything is
    Validate(check::Validate),
    /// List the models
    List(ask::List),
    /// Show one model
    Show(ask::Show),
    /// Say which models to take on this machine, and why
    Recommend(ask::Recommend),
    /// Add a model file, or bring its entry up to date
    Add(add::Add),
    /// Add all models of a folder
    Scan(add::Scan),
    /// Say what a running program would make of the files as they are now
    ReloadCheck(check::ReloadCheck),
}

impl Registry {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        match &self.command {
            Command::Validate(command) => command.run(),
            Command::List(command) => command.run().map(|()| ExitCode::SUCCESS),
            Command::Show(command) => command.run().map(|()| ExitCode::SUCCESS),
            Command::Recommend(command) => command.run().map(|()| ExitCode::SUCCESS),
            Command::Add(command) => command.run().map(|()| ExitCode::SUCCESS),
            Command::Scan(command) => command.run(),
            Command::ReloadCheck(command) => command.run(),
        }
    }
}
