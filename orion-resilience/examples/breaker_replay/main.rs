//! Replays rows of the conformance table against the circuit breaker:
//! `cargo run -p orion-resilience --example breaker_replay -- FILE`, one row a line `id|config|script|anchor`.
//!
//! Prints `id pass` or `id FAIL at step k: expected …, got …` and a total. Exit status 0 if all rows pass, 1 if one
//! fails, 2 if the file cannot be read or a line is not a row. `script.rs` describes the language.

mod script;

use std::process::ExitCode;

#[allow(clippy::print_stdout, reason = "printing is what this tool is for")]
fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: breaker_replay FILE");
        return ExitCode::from(2);
    };
    let path = std::path::Path::new(&path);
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let report = script::report(&path.display().to_string(), &text);
            print!("{}", report.output);
            eprint!("{}", report.errors);
            ExitCode::from(report.status)
        }
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::from(2)
        }
    }
}
