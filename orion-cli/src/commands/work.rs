//! What commands that write models have in common: progress, Ctrl-C, sizes, where things are.

use std::io::{IsTerminal, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, UNIX_EPOCH};

use clap::Args;
use orion::pipeline::{Control, Progress};
use orion::{CancelToken, Error, ErrorKind, Result};

#[derive(Debug, Args)]
pub(crate) struct WorkArgs {
    /// Replace OUT if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Threads that work [default: as many as the machine gives this process]
    #[arg(long, short = 't', value_name = "N")]
    pub(crate) threads: Option<NonZero<usize>>,
    /// Say what would be done and how large it would be, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl WorkArgs {
    /// Refuses an output that exists before any work is done for it.
    pub(crate) fn refuse_existing(&self, output: &Path) -> Result<()> {
        if self.force || self.dry_run { Ok(()) } else { refuse_existing(output) }
    }

    /// Stops on Ctrl-C, and shows a bar where somebody watches.
    pub(crate) fn control(&self) -> Result<Control> {
        let cancel = CancelToken::new();
        stops_on_ctrl_c(&cancel)?;
        let control = Control::new(cancel);
        if self.json || !std::io::stderr().is_terminal() {
            return Ok(control);
        }
        let bar = Bar { began: Instant::now(), drawn: Mutex::new(None) };
        Ok(control.watched_by(move |progress| bar.draw(progress)))
    }
}

/// Refuses an output that exists.
pub(crate) fn refuse_existing(output: &Path) -> Result<()> {
    match output.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) => {
            Err(Error::invalid("exists already; --force replaces it").about(output.display().to_string()))
        }
    }
}

/// Lets Ctrl-C cancel work instead of ending the process.
pub(crate) fn stops_on_ctrl_c(cancel: &CancelToken) -> Result<()> {
    let flag = cancel.clone();
    ctrlc::set_handler(move || flag.cancel())
        .map_err(|error| Error::new(ErrorKind::Internal, "cannot listen for Ctrl-C").with_source(error))
}

/// A line that says how far work is, how fast it goes and how long it will take.
struct Bar {
    began: Instant,
    drawn: Mutex<Option<Instant>>,
}

impl Bar {
    fn draw(&self, progress: Progress<'_>) {
        const WIDTH: usize = 24;
        let Ok(mut drawn) = self.drawn.lock() else { return };
        let finished = progress.done >= progress.total;
        if !finished && drawn.is_some_and(|at| at.elapsed() < Duration::from_millis(100)) {
            return;
        }
        *drawn = Some(Instant::now());
        let seconds = self.began.elapsed().as_secs_f64();
        let share = progress.done as f64 / progress.total.max(1) as f64;
        let filled = (WIDTH as f64 * share) as usize;
        let rate = progress.done as f64 / seconds.max(1e-9);
        let left =
            if rate > 0.0 { (progress.total - progress.done.min(progress.total)) as f64 / rate } else { 0.0 };
        let item: String = progress.item.chars().take(32).collect();
        let end = if finished { "\n" } else { "" };
        eprint!(
            "\r\x1b[K[{}{}] {:>3.0} %  {}/s  {left:.0} s left  {item}{end}",
            "#".repeat(filled),
            ".".repeat(WIDTH - filled),
            share * 100.0,
            size(rate as u64),
        );
        // A terminal that is gone needs no bar.
        std::io::stderr().flush().ok();
    }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b if b >= 1e3 => format!("{:.1} kB", b / 1e3),
        b => format!("{b} B"),
    }
}

/// `150MB`, `1.5 GiB`, `2G`, `1048576`: units of a thousand, with an i of 1024.
pub(crate) fn parse_size(text: &str) -> std::result::Result<NonZero<u64>, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..digits].parse::<f64>(), text[digits..].trim().to_ascii_lowercase());
    let factor = match unit.as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err("expected a size as 150MB, 1.5GiB or 1048576".to_owned()),
    };
    number
        .ok()
        .map(|number| (number * factor).round())
        .filter(|bytes| *bytes >= 1.0 && *bytes < 1e18)
        .and_then(|bytes| NonZero::new(bytes as u64))
        .ok_or_else(|| "expected a size as 150MB, 1.5GiB or 1048576".to_owned())
}

/// Refuses to write where is read.
pub(crate) fn refuse_same(input: &Path, output: &Path) -> Result<()> {
    let same = match (input.canonicalize(), output.canonicalize()) {
        (Ok(input), Ok(output)) => input == output || input.parent() == Some(&output),
        _ => false,
    };
    match same {
        true => Err(Error::invalid("input and output are the same").about(output.display().to_string())),
        false => Ok(()),
    }
}

/// What changes when the files at `path` change: names, lengths, times.
pub(crate) fn fingerprint(path: &Path) -> Result<String> {
    let io = |error| Error::io(error, path.display().to_string());
    let mut files: Vec<PathBuf> = if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(io)?;
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>().map_err(io)?
    } else {
        vec![path.canonicalize().map_err(io)?]
    };
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let metadata = file.metadata().map_err(io)?;
        let time = metadata.modified().map_err(io)?.duration_since(UNIX_EPOCH).unwrap_or_default();
        lines.push(format!("{} {} {}", file.display(), metadata.len(), time.as_nanos()));
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let bytes = |text: &str| parse_size(text).map(NonZero::get);
        assert_eq!(bytes("150MB"), Ok(150_000_000));
        assert_eq!(bytes("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(bytes("2g"), Ok(2_000_000_000));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "0", "MB", "-1MB", "1 XB", "1e3", "nan", "99999999999TB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
