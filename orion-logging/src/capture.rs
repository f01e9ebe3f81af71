//! The latest events, kept in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tracing::Level;

/// A bounded ring of events, each as the JSON line it was written as, redacted.
#[derive(Debug)]
pub(crate) struct Ring {
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Box<str>>,
    total: u64,
    levels: [u64; 5],
    /// Components are parts of targets, which are literals: there are few.
    components: Vec<(Box<str>, u64)>,
}

/// What was captured, counted from the start, what has left the ring included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CaptureStatistics {
    /// Events in all.
    pub total: u64,
    /// Of these, no longer in the ring.
    pub overwritten: u64,
    /// Events by level: `ERROR`, `WARN`, …
    pub by_level: BTreeMap<String, u64>,
    /// Events by component: `router`, `loader`, …
    pub by_component: BTreeMap<String, u64>,
}

const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, level: Level, component: &str, line: &str) {
        if self.capacity == 0 {
            return;
        }
        let line: Box<str> = line.trim_end().into();
        let mut inner = self.lock();
        inner.total += 1;
        if let Some(place) = LEVELS.iter().position(|known| *known == level) {
            inner.levels[place] += 1;
        }
        match inner.components.iter_mut().find(|(known, _)| **known == *component) {
            Some((_, count)) => *count += 1,
            None => inner.components.push((component.into(), 1)),
        }
        let left = if inner.events.len() == self.capacity { inner.events.pop_front() } else { None };
        inner.events.push_back(line);
        drop(inner);
        // Freed outside the lock.
        drop(left);
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.lock().events.iter().map(|line| line.to_string()).collect()
    }

    pub(crate) fn statistics(&self) -> CaptureStatistics {
        let inner = self.lock();
        let by_level = LEVELS.iter().zip(inner.levels).filter(|(_, count)| *count > 0);
        CaptureStatistics {
            total: inner.total,
            overwritten: inner.total - inner.events.len() as u64,
            by_level: by_level.map(|(level, count)| (level.to_string(), count)).collect(),
            by_component: inner.components.iter().map(|(name, count)| (name.to_string(), *count)).collect(),
        }
    }

    /// `{"statistics": …, "events": […]}`.
    pub(crate) fn export(&self) -> String {
        let statistics = serde_json::to_string(&self.statistics()).expect("numbers always serialise");
        format!("{{\"statistics\":{statistics},\"events\":[{}]}}", self.events().join(","))
    }
}
