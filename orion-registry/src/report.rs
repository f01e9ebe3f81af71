//! Problems, each with its place and what to do about it.

use std::fmt;

use serde::Serialize;

/// Problems kept per report; the rest is counted.
const MAX_PROBLEMS: usize = 1000;

/// Whether a problem keeps the catalogue from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; the catalogue is used.
    Warning,
    /// The catalogue is not used.
    Error,
}

/// The step that found a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stage {
    /// Reading the file.
    Io,
    /// The text is not JSON.
    Syntax,
    /// A value breaks the schema.
    Schema,
    /// A value fits the schema and makes no sense.
    Meaning,
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct Place {
    /// The file.
    pub file: String,
    /// JSON pointer (RFC 6901); empty for the whole document.
    pub pointer: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// Whether it keeps the catalogue from being used.
    pub severity: Severity,
    /// The step that found it.
    pub stage: Stage,
    /// A stable name for programs: `unknown-field`, `fallback-cycle`, …
    pub code: &'static str,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// The other entry it is about, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub related: Option<Place>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{}: {severity}[{}]: {}", self.place, self.code, self.message)?;
        if !self.place.pointer.is_empty() {
            write!(f, "\n  at {}", self.place.pointer)?;
        }
        if let Some(related) = &self.related {
            write!(f, "\n  see {related}")?;
        }
        write!(f, "\n  help: {}", self.help)
    }
}

/// Everything that was found, in file order within each step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Number of errors.
    pub errors: usize,
    /// Number of warnings.
    pub warnings: usize,
    /// The problems; the first thousand.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether the catalogue can be used.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.errors == 0
    }

    /// Exit code of a validating command: 0, or 2 if there is an error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.is_ok() { 0 } else { 2 }
    }

    /// The report as indented JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers always serialise")
    }

    pub(crate) fn push(&mut self, problem: Problem) {
        match problem.severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// Whether so much is wrong already that further suggestions would only cost time.
    pub(crate) fn is_long(&self) -> bool {
        self.errors + self.warnings >= 50
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|problem| writeln!(f, "{problem}"))?;
        let left = self.errors + self.warnings - self.problems.len();
        if left > 0 {
            writeln!(f, "and {left} more")?;
        }
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let (errors, warnings) = (self.errors, self.warnings);
        write!(f, "{errors} error{}, {warnings} warning{}", plural(errors), plural(warnings))
    }
}

impl std::error::Error for Report {}

impl From<Report> for orion_core::Error {
    fn from(report: Report) -> Self {
        use orion_core::{Error, ErrorKind};
        let first = report.problems.iter().find(|problem| problem.severity == Severity::Error);
        let kind = match first {
            Some(problem) if problem.code == "not-found" => ErrorKind::NotFound,
            Some(problem) if problem.stage == Stage::Io => ErrorKind::Io,
            _ => ErrorKind::Corrupt,
        };
        let message = match first {
            Some(problem) if report.errors > 1 => {
                format!("{}: {} (and {} more errors)", problem.place, problem.message, report.errors - 1)
            }
            Some(problem) => format!("{}: {}", problem.place, problem.message),
            None => report.to_string(),
        };
        Error::new(kind, message).about("registry").with_source(report)
    }
}
