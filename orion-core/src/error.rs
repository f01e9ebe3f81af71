//! The error that crosses the seams.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::seams::Refused;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What went wrong, coarse enough to decide what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something meaningless: a parameter out of range, an empty prompt.
    InvalidInput,
    /// A file, model or tensor that was named is not there.
    NotFound,
    /// Well-formed, but beyond what this build can do. Names the architecture, type or option.
    Unsupported,
    /// A file contradicts its format or itself.
    Corrupt,
    /// The prompt does not fit the model's context.
    ContextOverflow,
    /// The chat template failed or was refused.
    Template,
    /// The memory budget does not allow it.
    OutOfMemory,
    /// Reading or writing failed.
    Io,
    /// The network failed.
    Network,
    /// Refused before it started: queue full, breaker open, shutting down.
    Rejected,
    /// Ended by its caller.
    Cancelled,
    /// The deadline passed.
    DeadlineExceeded,
    /// A defect in this software: a panic that was caught, a broken invariant.
    Internal,
}

impl ErrorKind {
    /// Whether the cause lies in what was given (input or file) rather than in the machine or this software.
    #[must_use]
    pub fn is_bad_input(self) -> bool {
        use ErrorKind as K;
        matches!(
            self,
            K::InvalidInput | K::NotFound | K::Unsupported | K::Corrupt | K::ContextOverflow | K::Template
        )
    }

    /// The kind as it stands in JSON output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        use ErrorKind as K;
        match self {
            K::InvalidInput => "invalid_input",
            K::NotFound => "not_found",
            K::Unsupported => "unsupported",
            K::Corrupt => "corrupt",
            K::ContextOverflow => "context_overflow",
            K::Template => "template",
            K::OutOfMemory => "out_of_memory",
            K::Io => "io",
            K::Network => "network",
            K::Rejected => "rejected",
            K::Cancelled => "cancelled",
            K::DeadlineExceeded => "deadline_exceeded",
            K::Internal => "internal",
        }
    }
}

impl Serialize for ErrorKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// An error of any seam: a kind to act on, a message to read, the subject it is about, and its source.
///
/// ```
/// use orion_core::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Corrupt, "offset lies outside the file").about("tensor blk.0.attn_q.weight");
/// assert_eq!(error.to_string(), "tensor blk.0.attn_q.weight: offset lies outside the file");
/// assert_eq!(error.kind(), ErrorKind::Corrupt);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    subjects: Vec<String>,
    source: Option<Source>,
}

impl Error {
    /// An error with a message: lower case, no full stop, what to do if there is something to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), subjects: Vec::new(), source: None }))
    }

    /// Says what the error is about (a model, tensor, path, key); the outermost subject is printed first.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.0.subjects.push(subject.into());
        self
    }

    /// Keeps the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// How long whoever refused the call asked to wait, if a [`Refused`] is among the sources.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = self.source();
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref::<Refused>() {
                return refused.retry_after;
            }
            cause = error.source();
        }
        None
    }

    /// A bad parameter or prompt.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// Something this build cannot do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A file that contradicts its format or itself.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// A failed read or write, with the kind that fits the cause.
    pub fn io(source: std::io::Error, subject: impl Into<String>) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::IsADirectory | std::io::ErrorKind::NotADirectory => ErrorKind::InvalidInput,
            _ => ErrorKind::Io,
        };
        Self::new(kind, source.to_string()).about(subject).with_source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.subjects.iter().rev().try_for_each(|subject| write!(f, "{subject}: "))?;
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.to_string())
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::new(ErrorKind::Rejected, refused.to_string()).with_source(refused)
    }
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_retry_after_under_other_errors() {
        let wait = Some(Duration::from_secs(5));
        let refused = Error::from(Refused { retry_after: wait });
        assert_eq!(refused.kind(), ErrorKind::Rejected);
        assert_eq!(refused.to_string(), "calls are refused, try again in 5s");
        assert_eq!(Error::new(ErrorKind::Network, "429").with_source(refused).retry_after(), wait);
        assert_eq!(Error::invalid("x").retry_after(), None);
        let forced = Error::from(Refused { retry_after: None });
        assert_eq!(forced.to_string(), "calls are refused until someone permits them again");
    }

    #[test]
    fn subjects_print_outermost_first_and_the_source_is_kept() {
        let io = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = Error::io(io, "a.gguf").about("model m");
        assert!(error.to_string().starts_with("model m: a.gguf: "), "{error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.source().is_some());
        assert!(error.kind().is_bad_input());
    }
}
