//! A file on its way: who fetches it writes, who needs it waits for just the bytes it needs.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use orion_core::{CancelToken, Error, ErrorKind, Result};
use orion_formats::Reason;

use crate::intervals::Intervals;
use crate::order::JUMP;
use crate::transfer::Transfer;
use crate::window::Window;

/// Shared by those who fetch and any number of readers.
pub(crate) struct Arriving {
    state: Mutex<State>,
    changed: Condvar,
    cancel: CancelToken,
    window: Arc<Window>,
    url: String,
}

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    transfer: Option<Arc<Transfer>>,
    /// Bytes that may be used: verified as far as they can be before the end.
    usable: Intervals,
    total: Option<u64>,
    /// Bytes that somebody may have used.
    served: Intervals,
    /// Bytes that somebody waits for.
    demanded: Vec<Range<u64>>,
    /// Ranges in order of need.
    order: Vec<Range<u64>>,
    /// Nobody will say in which order it is needed, or somebody has.
    settled: bool,
    end: Option<Result<PathBuf, Arc<Error>>>,
}

impl Arriving {
    pub(crate) fn new(url: String, cancel: CancelToken, window: Arc<Window>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), cancel, window, url }
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Counts bytes that came, and waits while enough lies there unused.
    pub(crate) fn fetched(&self, bytes: u64) {
        self.window.fetched(bytes, &self.cancel);
    }

    // A panic elsewhere leaves numbers that are still true.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    pub(crate) fn begin(&self, transfer: &Arc<Transfer>) {
        self.change(|state| {
            state.file = Some(transfer.file());
            state.transfer = Some(Arc::clone(transfer));
        });
    }

    /// The fetch, while it runs.
    pub(crate) fn transfer(&self) -> Option<Arc<Transfer>> {
        self.lock().transfer.clone()
    }

    pub(crate) fn set_total(&self, total: u64) {
        self.change(|state| state.total = Some(total));
    }

    pub(crate) fn advance(&self, usable: Range<u64>) {
        self.change(|state| state.usable.insert(usable));
    }

    /// Says in which order the bytes will be needed.
    pub(crate) fn set_order(&self, order: Vec<Range<u64>>) {
        self.change(|state| {
            state.order = order;
            state.settled = true;
        });
    }

    /// Nobody will say in which order the bytes are needed.
    pub(crate) fn settle(&self) {
        self.lock().settled = true;
    }

    /// Whether it is known in which order the bytes are needed, as far as it will be.
    pub(crate) fn is_settled(&self) -> bool {
        self.lock().settled
    }

    /// What is needed, most urgent first: what somebody waits for and no order has foreseen, then the order. What stands
    /// shortly behind `next`, where the next bytes would be taken from, comes soon anyway.
    pub(crate) fn order(&self, next: u64) -> Vec<Range<u64>> {
        let state = self.lock();
        let foreseen = |range: &Range<u64>| {
            let holds = |run: &Range<u64>| run.start <= range.start && range.end <= run.end;
            state.order.iter().any(holds) || (next..=next.saturating_add(JUMP)).contains(&range.start)
        };
        let demanded = state.demanded.iter().filter(|range| !foreseen(range));
        demanded.chain(&state.order).cloned().collect()
    }

    /// Takes back what lies outside `keep`, unless somebody has used it.
    pub(crate) fn retract(&self, keep: &Intervals) -> Result<()> {
        let mut state = self.lock();
        if !state.served.ranges().iter().all(|used| keep.contains(used)) {
            return Err(Reason::HashMismatch
                .error("the file changed on the server while it was being loaded")
                .about(self.url.clone()));
        }
        let usable = std::mem::take(&mut state.usable);
        for range in keep.ranges() {
            usable.within(range).ranges().iter().for_each(|part| state.usable.insert(part.clone()));
        }
        Ok(())
    }

    pub(crate) fn finish(&self, end: Result<PathBuf>, file: Option<(Arc<File>, u64)>) {
        self.change(|state| {
            state.transfer = None;
            if let Some((file, len)) = file {
                state.file = Some(file);
                state.total = Some(len);
                state.usable.insert(0..len);
            } else {
                // Gives up the lock on what is left behind before anyone hears that it failed: they may try again at once.
                state.file = None;
            }
            state.end = Some(end.map_err(Arc::new));
        });
    }

    /// Waits until `ready` answers, or the fetch ends.
    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let mut state = self.lock();
        let mut waiting = None;
        loop {
            if let Some(Err(error)) = &state.end {
                return Err(again(error));
            }
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            if state.end.is_some() {
                return Err(Reason::Truncated
                    .error("the file is shorter than its header says")
                    .about(self.url.clone()));
            }
            waiting.get_or_insert_with(|| self.window.wait());
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the length of the whole.
    pub(crate) fn total(&self) -> Result<u64> {
        self.wait(|state| state.total)
    }

    /// Waits until the whole file is there, verified and in the cache.
    pub(crate) fn done(&self) -> Result<PathBuf> {
        self.wait(|state| state.end.as_ref().and_then(|end| end.as_ref().ok().cloned()))
    }

    /// The error the fetch ended with, without waiting.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.lock().end.as_ref().and_then(|end| end.as_ref().err().map(again))
    }

    /// Whether it is there and in the cache, without waiting.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.lock().end, Some(Ok(_)))
    }

    /// Whether these bytes are there, without waiting.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        self.lock().usable.contains(range)
    }

    /// The bytes of a range, once they are usable.
    pub(crate) fn range(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(bytes).ok_or_else(|| Error::corrupt("range exceeds the file"))?;
        let range = offset..end;
        let len = usize::try_from(bytes).map_err(|_| Error::corrupt("exceeds the address space"))?;
        let mut demanded = false;
        let file = self.wait(|state| {
            if !state.usable.contains(&range) {
                if !demanded {
                    state.demanded.push(range.clone());
                    demanded = true;
                }
                return None;
            }
            let file = state.file.clone()?;
            state.served.insert(range.clone());
            Some(file)
        });
        if demanded {
            let mut state = self.lock();
            if let Some(mine) = state.demanded.iter().position(|other| *other == range) {
                state.demanded.remove(mine);
            }
        }
        self.window.used(bytes);
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, format!("needs {len} bytes")).with_source(error)
        })?;
        data.resize(len, 0);
        file?.read_exact_at(&mut data, offset).map_err(|error| Error::io(error, self.url.clone()))?;
        Ok(data)
    }

    /// Notes that bytes were used that did not come through here.
    pub(crate) fn used(&self, bytes: u64) {
        self.window.used(bytes);
    }

    /// Reads from the start, waiting for what has not arrived.
    pub(crate) fn reader(&self) -> impl Read + '_ {
        ArrivingReader { arriving: self, offset: 0 }
    }
}

struct ArrivingReader<'a> {
    arriving: &'a Arriving,
    offset: u64,
}

impl Read for ArrivingReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let offset = self.offset;
        let found = self.arriving.wait(|state| {
            let there = state.usable.end_of(offset) - offset;
            if there > 0 {
                let take = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
                state.served.insert(offset..offset + take as u64);
                return Some((state.file.clone(), take));
            }
            (state.total == Some(offset) || state.end.is_some()).then_some((None, 0))
        });
        match found.map_err(io::Error::other)? {
            (Some(file), take) => {
                file.read_exact_at(&mut out[..take], offset)?;
                self.offset += take as u64;
                self.arriving.window.used(take as u64);
                Ok(take)
            }
            (None, _) => Ok(0),
        }
    }
}

/// The error of a fetch, for one more of those who wait for it.
fn again(error: &Arc<Error>) -> Error {
    Error::new(error.kind(), error.to_string()).with_source(Shared(Arc::clone(error)))
}

struct Shared(Arc<Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)
    }
}
