//! The command line of ORION. Every command is a thin use of the library.

mod bar;
mod commands;
mod output;
mod registry;
mod source;

use std::process::ExitCode;

use clap::Parser;

use commands::Command;

/// Runs language models on this machine.
///
/// Every command takes --help. With --json it prints one JSON object for programs; an error is then
/// {"error":{"kind":…,"message":…}}. Exit status: 0 done, 2 bad input or bad file, 1 anything else.
#[derive(Debug, Parser)]
#[command(name = "orion", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            let message = error.render().to_string();
            let said = message.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>();
            let said = said.join(" ");
            return output::report(&orion::Error::invalid(said.trim_start_matches("error: ")), true);
        }
        Err(error) => error.exit(),
    };
    match cli.command.run() {
        Ok(status) => status,
        Err(error) => output::report(&error, json),
    }
}
