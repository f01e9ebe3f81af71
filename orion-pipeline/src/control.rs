//! How long work is watched and stopped.

use std::fmt;
use std::sync::Arc;

use orion_core::{CancelToken, Error, ErrorKind, Result};

/// Where long work stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// What is being worked on: a tensor or a file.
    pub item: &'a str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

type Watcher = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// Stops long work, and says how far it is. Work that is stopped ends with [`Cancelled`](ErrorKind::Cancelled) and
/// leaves nothing behind.
#[derive(Clone, Default)]
pub struct Control {
    cancel: CancelToken,
    watcher: Option<Watcher>,
}

impl Control {
    /// Work that this flag stops, and that nobody watches.
    #[must_use]
    pub fn new(cancel: CancelToken) -> Self {
        Self { cancel, watcher: None }
    }

    /// Calls `watcher` before each item and once at the end, from the thread that works.
    #[must_use]
    pub fn watched_by(mut self, watcher: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.watcher = Some(Arc::new(watcher));
        self
    }

    pub(crate) fn step(&self, item: &str, done: u64, total: u64) -> Result<()> {
        self.check()?;
        if let Some(watcher) = &self.watcher {
            watcher(Progress { item, done, total });
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.cancel.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled, "cancelled; nothing was written")),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}
