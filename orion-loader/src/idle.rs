//! What can wait waits: prefetching rests while a model is being loaded.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use orion_core::{CancelToken, Error, ErrorKind, ModelHeader, Result, TensorBytes, WeightSource};

/// How often who waits looks whether it was cancelled.
const POLL: Duration = Duration::from_millis(20);
/// Bytes read between two looks at who else needs the disk.
const PIECE: usize = 1 << 20;

/// Counts the models that are being loaded.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    busy: Mutex<usize>,
    changed: Condvar,
}

impl Idle {
    /// A model is being loaded until the answer is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Busy(Arc::clone(self))
    }

    /// Waits until none is, or `cancel`.
    pub(crate) fn wait(&self, cancel: &CancelToken) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while *busy > 0 && !cancel.is_cancelled() {
            (busy, _) = self.changed.wait_timeout(busy, POLL).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends being busy when it is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Idle>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}

/// A source that is busy as long as it lives: who loads a model lets go of its source when it is done.
pub(crate) struct Foreground {
    pub(crate) source: Arc<dyn WeightSource>,
    pub(crate) _busy: Busy,
}

impl WeightSource for Foreground {
    fn header(&self) -> &ModelHeader {
        self.source.header()
    }
    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        self.source.tensor(index)
    }
    fn read(&self, index: usize, piece: usize, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.source.read(index, piece, each)
    }
    fn read_at(&self, index: usize, offset: u64, out: &mut [u8], wait: bool) -> Result<bool> {
        self.source.read_at(index, offset, out, wait)
    }
    fn release(&self, index: usize) {
        self.source.release(index);
    }
    fn expect(&self, order: &[usize]) {
        self.source.expect(order);
    }
    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        self.source.rows(index, rows)
    }
}

impl fmt::Debug for Foreground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Foreground")
    }
}

/// Reads a file so that the system keeps it in memory.
pub(crate) fn warm(path: &Path, idle: &Idle, cancel: &CancelToken) -> Result<()> {
    let file = File::open(path).map_err(|error| crate::cache::io_error(error, path))?;
    let (mut at, mut piece) = (0, vec![0; PIECE]);
    loop {
        idle.wait(cancel);
        if cancel.is_cancelled() {
            let error = Error::new(ErrorKind::Cancelled, "the prefetch was cancelled");
            return Err(error.about(path.display().to_string()));
        }
        match file.read_at(&mut piece, at).map_err(|error| crate::cache::io_error(error, path))? {
            0 => return Ok(()),
            read => at += read as u64,
        }
    }
}
