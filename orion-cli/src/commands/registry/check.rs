use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use clap::{Args, ValueEnum};
use orion::registry::{Changes, LiveRegistry, MissingFiles, Reload, Report, validate};
use orion::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::output;
use crate::registry::{RegistryArgs, sources};

/// How often files are looked at while they are watched.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Missing {
    Ignore,
    #[default]
    Warn,
    Error,
}

impl From<Missing> for MissingFiles {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Ignore => Self::Ignore,
            Missing::Warn => Self::Warn,
            Missing::Error => Self::Error,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// The file, in place of --registry
    #[arg(value_name = "FILE", conflicts_with = "registry")]
    file: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// What to make of model files that are not there
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    missing: Missing,
    /// Print one JSON object with every problem
    #[arg(long)]
    json: bool,
}

impl Validate {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let base = self.file.clone().unwrap_or_else(|| self.registry.path());
        let report = validate(&sources(&base).missing_files(self.missing.into()));
        if self.json {
            output::print_json(&report_json(&report)?)?;
        } else {
            output::print(&format!("{report}\n"))?;
        }
        Ok(ExitCode::from(report.exit_code()))
    }
}

fn report_json(report: &Report) -> Result<Value> {
    let mut value = output::to_value(report)?;
    value["valid"] = report.is_ok().into();
    Ok(value)
}

#[derive(Debug, Args)]
pub(crate) struct ReloadCheck {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Compare with this file instead, as if it took the registry's place
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
    /// Watch for SECONDS and report every reload, a line each
    #[arg(long, value_name = "SECONDS", conflicts_with = "with")]
    watch: Option<u64>,
    /// Print one JSON object per reload
    #[arg(long)]
    json: bool,
}

impl ReloadCheck {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let of = |path: &PathBuf| sources(path).missing_files(MissingFiles::Ignore);
        let live = LiveRegistry::open(of(&self.registry.path()))?;
        if let Some(seconds) = self.watch {
            return self.watch(&live, Duration::from_secs(seconds));
        }
        let outcome = match &self.with {
            None => live.reload(),
            Some(path) => {
                orion::registry::Registry::load(&of(path)).map(|new| Changes::between(&live.current(), &new))
            }
        };
        self.tell(&outcome, live.version())?;
        Ok(ExitCode::from(if outcome.is_ok() { 0 } else { 2 }))
    }

    fn watch(&self, live: &std::sync::Arc<LiveRegistry>, time: Duration) -> Result<ExitCode> {
        let (sender, ended) = std::sync::mpsc::channel::<()>();
        let sender = Mutex::new(Some(sender));
        ctrlc::set_handler(move || drop(sender.lock().map(|mut sender| sender.take()))).map_err(|error| {
            Error::new(ErrorKind::Internal, "cannot listen for Ctrl-C").with_source(error)
        })?;
        let (reloads, reloaded) = std::sync::mpsc::channel();
        // A receiver that is gone has stopped listening, which is no failure.
        live.on_reload(move |outcome| drop(reloads.send(outcome.clone())));
        let watch = live.watch(LOOK_EVERY);
        if !self.json {
            eprintln!("watching; Ctrl-C ends");
        }
        let began = std::time::Instant::now();
        let mut broken = false;
        while began.elapsed() < time
            && !matches!(ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected))
        {
            if let Ok(outcome) = reloaded.recv_timeout(LOOK_EVERY) {
                broken = outcome.is_err();
                self.tell(&outcome, live.version())?;
            }
        }
        drop(watch);
        Ok(ExitCode::from(if broken { 2 } else { 0 }))
    }

    fn tell(&self, outcome: &Reload, in_force: u64) -> Result<()> {
        if self.json {
            return output::print_json(&match outcome {
                Ok(changes) => json!({
                    "reloaded": true,
                    "version": changes.version.max(in_force),
                    "added": changes.added,
                    "removed": changes.removed,
                    "changed": changes.changed,
                }),
                Err(report) => json!({
                    "reloaded": false,
                    "version": in_force,
                    "report": report_json(report)?,
                }),
            });
        }
        output::print(&match outcome {
            Ok(changes)
                if changes.added.is_empty() && changes.removed.is_empty() && changes.changed.is_empty() =>
            {
                "the files are sound; no model changes\n".to_owned()
            }
            Ok(changes) => {
                let line = |what: &str, ids: &[String]| match ids {
                    [] => String::new(),
                    ids => format!("{what} {}\n", ids.join(", ")),
                };
                line("added  ", &changes.added)
                    + &line("removed", &changes.removed)
                    + &line("changed", &changes.changed)
            }
            Err(report) => format!("{report}\nthe version in force stays\n"),
        })
    }
}
