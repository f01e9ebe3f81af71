//! What the engine remembers of requests that ended.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use orion_core::state::Phase;

use crate::answer::Report;
use crate::flight::Archive;

/// Requests by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Outcomes {
    /// Ended with a whole answer.
    pub done: u64,
    /// Ended by their callers.
    pub cancelled: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Refused before they had a place.
    pub rejected: u64,
    /// Models that were tried in vain before another took over.
    pub fallbacks: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Of these, tokens that were not computed again.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    keep: usize,
    state: Mutex<(Outcomes, VecDeque<Report>)>,
}

impl Ledger {
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, (Outcomes, VecDeque<Report>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn outcomes(&self) -> Outcomes {
        self.lock().0
    }

    /// The latest reports, oldest first.
    pub(crate) fn recent(&self) -> Vec<Report> {
        self.lock().1.iter().cloned().collect()
    }
}

impl Archive for Ledger {
    fn ended(&self, report: &Report) {
        let mut state = self.lock();
        let (outcomes, recent) = &mut *state;
        match report.phase() {
            Phase::Done => outcomes.done += 1,
            Phase::Cancelled => outcomes.cancelled += 1,
            Phase::Rejected => outcomes.rejected += 1,
            _ => outcomes.failed += 1,
        }
        outcomes.fallbacks += u64::from(report.trace.state().fallbacks);
        if let Some(usage) = report.usage {
            outcomes.prompt_tokens += u64::from(usage.prompt_tokens);
            outcomes.cached_tokens += u64::from(usage.cached_tokens);
            outcomes.completion_tokens += u64::from(usage.completion_tokens);
        }
        if self.keep > 0 {
            if recent.len() >= self.keep {
                recent.pop_front();
            }
            recent.push_back(report.clone());
        }
    }
}
