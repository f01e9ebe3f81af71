//! A file on its way: who fetches it writes, who needs it waits for just the bytes it needs.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use orion_core::{CancelToken, Error, ErrorKind, Result};
use orion_formats::Reason;

/// Shared by one fetching thread and any number of readers.
pub(crate) struct Arriving {
    state: Mutex<State>,
    changed: Condvar,
    cancel: CancelToken,
    url: String,
}

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    /// Bytes from the start that may be used: verified as far as they can be before the end.
    usable: u64,
    total: Option<u64>,
    /// Bytes from the start that somebody may have used.
    served: u64,
    end: Option<Result<PathBuf, Arc<Error>>>,
}

impl Arriving {
    pub(crate) fn new(url: String, cancel: CancelToken) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), cancel, url }
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    // A panic elsewhere leaves numbers that are still true.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    pub(crate) fn begin(&self, file: Arc<File>) {
        self.change(|state| state.file = Some(file));
    }

    pub(crate) fn set_total(&self, total: u64) {
        self.change(|state| state.total = Some(total));
    }

    pub(crate) fn advance(&self, usable: u64) {
        self.change(|state| state.usable = state.usable.max(usable));
    }

    /// Takes back what lies beyond `usable`, unless somebody has used it.
    pub(crate) fn retract(&self, usable: u64) -> Result<()> {
        let mut state = self.lock();
        if state.served > usable {
            return Err(Reason::HashMismatch
                .error("the file changed on the server while it was being loaded")
                .about(self.url.clone()));
        }
        state.usable = state.usable.min(usable);
        Ok(())
    }

    pub(crate) fn finish(&self, end: Result<PathBuf>, file: Option<(Arc<File>, u64)>) {
        self.change(|state| {
            if let Some((file, len)) = file {
                state.file = Some(file);
                state.total = Some(len);
                state.usable = len;
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
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the length of the whole.
    pub(crate) fn total(&self) -> Result<u64> {
        self.wait(|state| state.total)
    }

    /// Waits until the whole file is there and verified.
    pub(crate) fn done(&self) -> Result<PathBuf> {
        self.wait(|state| state.end.as_ref().and_then(|end| end.as_ref().ok().cloned()))
    }

    /// The error the fetch ended with, without waiting.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.lock().end.as_ref().and_then(|end| end.as_ref().err().map(again))
    }

    /// Whether it is there and verified, without waiting.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.lock().end, Some(Ok(_)))
    }

    /// The bytes of a range, once they are usable.
    pub(crate) fn range(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(bytes).ok_or_else(|| Error::corrupt("range exceeds the file"))?;
        let file = self.wait(|state| {
            let file = state.file.clone().filter(|_| state.usable >= end)?;
            state.served = state.served.max(end);
            Some(file)
        })?;
        let len = usize::try_from(bytes).map_err(|_| Error::corrupt("exceeds the address space"))?;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, format!("needs {len} bytes")).with_source(error)
        })?;
        data.resize(len, 0);
        file.read_exact_at(&mut data, offset).map_err(|error| Error::io(error, self.url.clone()))?;
        Ok(data)
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
            if state.usable > offset {
                let take = usize::try_from(state.usable - offset).unwrap_or(usize::MAX).min(out.len());
                state.served = state.served.max(offset + take as u64);
                return Some((state.file.clone(), take));
            }
            (state.total == Some(offset) || state.end.is_some()).then_some((None, 0))
        });
        match found.map_err(io::Error::other)? {
            (Some(file), take) => {
                file.read_exact_at(&mut out[..take], offset)?;
                self.offset += take as u64;
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
