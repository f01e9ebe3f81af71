//! Where the answer to one request is put, exactly once.

use orion_core::{CancelToken, Result};

use crate::sync::{Condvar, Mutex, lock, wait};

#[derive(Debug)]
pub(crate) struct Slot<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<R> {
    stage: Stage<R>,
    /// Someone sleeps: waking is a system call, so it is only done for someone.
    awaited: bool,
}

#[derive(Debug)]
enum Stage<R> {
    Queued,
    Running(CancelToken),
    Answered(Result<R>),
    Taken,
}

impl<R> Slot<R> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { stage: Stage::Queued, awaited: false }), changed: Condvar::new() }
    }

    /// A worker has it now.
    pub(crate) fn start(&self, cancel: CancelToken) {
        let mut state = lock(&self.state);
        if let Stage::Queued = state.stage {
            state.stage = Stage::Running(cancel);
        }
    }

    /// Sets the flag of a running request. Answers whether it was running.
    pub(crate) fn cancel(&self) -> bool {
        let state = lock(&self.state);
        if let Stage::Running(cancel) = &state.stage {
            cancel.cancel();
            return true;
        }
        false
    }

    /// The first answer stands; answers whether this was it.
    pub(crate) fn answer(&self, answer: Result<R>) -> bool {
        let mut state = lock(&self.state);
        if let Stage::Answered(_) | Stage::Taken = state.stage {
            return false;
        }
        state.stage = Stage::Answered(answer);
        if state.awaited {
            drop(state);
            self.changed.notify_all();
        }
        true
    }

    /// The answer, if it is there. It is there for one taker only.
    pub(crate) fn take(&self) -> Option<Result<R>> {
        let mut state = lock(&self.state);
        Self::take_from(&mut state)
    }

    fn take_from(state: &mut State<R>) -> Option<Result<R>> {
        match std::mem::replace(&mut state.stage, Stage::Taken) {
            Stage::Answered(answer) => Some(answer),
            other => {
                state.stage = other;
                None
            }
        }
    }

    /// Waits for the answer.
    pub(crate) fn wait(&self) -> Result<R> {
        let mut state = lock(&self.state);
        loop {
            if let Some(answer) = Self::take_from(&mut state) {
                return answer;
            }
            state.awaited = true;
            state = wait(&self.changed, state);
        }
    }

    /// Waits for the answer for so long.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn wait_timeout(&self, time: std::time::Duration) -> Option<Result<R>> {
        let mut state = lock(&self.state);
        state.awaited = true;
        let pending = |state: &mut State<R>| matches!(state.stage, Stage::Queued | Stage::Running(_));
        let waited = self.changed.wait_timeout_while(state, time, pending);
        let (mut state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::take_from(&mut state)
    }
}
