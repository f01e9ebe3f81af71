//! How far fetching may run ahead of who uses what is fetched.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orion_core::CancelToken;

use crate::idle::Idle;

/// How often a fetch that waits looks whether it was cancelled.
const POLL: Duration = Duration::from_millis(20);

/// Shared by the files of one model. As long as somebody waits for bytes, nothing is held back: there is no order of
/// asking in which it could come to a standstill.
#[derive(Debug)]
pub(crate) struct Window {
    /// Bytes that may be there unused; `None` for any number.
    ahead: Option<u64>,
    /// Rests while this is busy.
    behind: Option<Arc<Idle>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    fetched: u64,
    used: u64,
    waiting: usize,
}

impl Window {
    pub(crate) fn new(ahead: Option<u64>) -> Self {
        Self { ahead, behind: None, state: Mutex::default(), changed: Condvar::new() }
    }

    /// For what nobody waits for: it rests while something else is loaded.
    pub(crate) fn behind(idle: Arc<Idle>) -> Self {
        Self { behind: Some(idle), ..Self::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has taken so many bytes.
    pub(crate) fn used(&self, bytes: u64) {
        self.lock().used += bytes;
        self.changed.notify_all();
    }

    /// Somebody waits for bytes until the answer is dropped.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.lock().waiting += 1;
        self.changed.notify_all();
        Waiting(self)
    }

    /// Counts bytes that came, and holds their fetch back while enough lies there.
    pub(crate) fn fetched(&self, bytes: u64, cancel: &CancelToken) {
        if let Some(idle) = &self.behind {
            idle.wait(cancel);
        }
        let mut state = self.lock();
        state.fetched += bytes;
        let Some(ahead) = self.ahead else { return };
        while state.waiting == 0 && state.fetched > state.used.saturating_add(ahead) && !cancel.is_cancelled()
        {
            (state, _) = self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends waiting when it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a Window);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}
