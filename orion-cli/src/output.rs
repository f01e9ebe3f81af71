//! What the commands print, for people and for programs.

use std::io::{self, Write};
use std::process::ExitCode;

use orion::{Error, Result};
use serde::Serialize;

/// Prints an error where it is looked for and picks the exit status.
pub(crate) fn report(error: &Error, json: bool) -> ExitCode {
    if json {
        let value =
            serde_json::json!({ "error": { "kind": error.kind().as_str(), "message": error.to_string() } });
        // A reader that is gone cannot be told anything.
        writeln!(io::stdout(), "{value}").ok();
    } else {
        writeln!(io::stderr(), "orion: {error}").ok();
    }
    ExitCode::from(if error.kind().is_bad_input() { 2 } else { 1 })
}

/// Prints one JSON object on a line of its own.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|error| Error::new(orion::ErrorKind::Internal, error.to_string()).with_source(error))?;
    print(&format!("{text}\n"))
}

/// A value as JSON that can still be added to.
pub(crate) fn to_value(value: &impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value)
        .map_err(|error| Error::new(orion::ErrorKind::Internal, error.to_string()).with_source(error))
}

/// Rows in columns as wide as their widest cell; the last is not padded.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Prints text at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::io(error, "standard output"))
}

/// The process's largest resident set so far, in MiB, where the system tells.
pub(crate) fn peak_rss_mb() -> Option<f64> {
    orion::logging::memory_use().map(|memory| memory.peak as f64 / f64::from(1 << 20))
}
