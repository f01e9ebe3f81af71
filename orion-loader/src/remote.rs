//! Weights that arrive while they are used.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use orion_core::{CancelToken, Error, ErrorKind, ModelHeader, Result, TensorBytes, TensorInfo, WeightSource};
use orion_formats::Reason;

use crate::arriving::Arriving;
use crate::fetch::{Fetcher, Wanted};
use crate::http::shown;
use crate::mapped::Mapped;
use crate::memory::no_tensor;

/// The files of a model, each on its way or there already, fetched in order by a few threads.
pub(crate) struct Arrivals {
    pub(crate) files: Vec<Arc<Arriving>>,
    cancel: CancelToken,
    workers: Vec<thread::JoinHandle<()>>,
}

impl Arrivals {
    /// Begins to fetch.
    pub(crate) fn start(fetcher: &Arc<Fetcher>, wanted: Vec<Wanted>, cancel: CancelToken) -> Result<Self> {
        let count = wanted.len();
        let files: Vec<_> =
            wanted.iter().map(|wanted| Arc::new(Arriving::new(shown(&wanted.url), cancel.clone()))).collect();
        let next = Arc::new(AtomicUsize::new(0));
        // What is there already is not kept waiting behind what is not.
        let (there, missing): (Vec<_>, Vec<_>) = (0..count).partition(|&number| fetcher.has(&wanted[number]));
        let order: Arc<[usize]> = there.into_iter().chain(missing).collect();
        let wanted: Arc<[Wanted]> = wanted
            .into_iter()
            .enumerate()
            .map(|(number, wanted)| Wanted { place: (number, count), ..wanted })
            .collect();
        let mut arrivals = Self { files: files.clone(), cancel, workers: Vec::new() };
        for _ in 0..fetcher.options.connections.min(count) {
            let (fetcher, wanted, order) = (Arc::clone(fetcher), Arc::clone(&wanted), Arc::clone(&order));
            let (files, next) = (files.clone(), Arc::clone(&next));
            let work = move || {
                while let Some(&number) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    fetch_or_fail(&fetcher, &wanted[number], &files[number]);
                }
            };
            let worker = thread::Builder::new().name("orion-fetch".into()).spawn(work);
            arrivals.workers.push(worker.map_err(|error| Error::io(error, "a thread that fetches"))?);
        }
        Ok(arrivals)
    }

    /// Waits until all files are there and nobody works on them any more.
    pub(crate) fn all(mut self) -> Result<Vec<PathBuf>> {
        let paths = self.files.iter().map(|file| file.done()).collect::<Result<_>>()?;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| Error::new(ErrorKind::Internal, "a fetching thread panicked"))?;
        }
        Ok(paths)
    }
}

/// A panic while fetching must not leave others waiting for ever.
fn fetch_or_fail(fetcher: &Fetcher, wanted: &Wanted, arriving: &Arriving) {
    let fetch = std::panic::AssertUnwindSafe(|| fetcher.fetch(wanted, arriving));
    if std::panic::catch_unwind(fetch).is_err() {
        let error = Error::new(ErrorKind::Internal, "fetching panicked").about(shown(&wanted.url));
        arriving.finish(Err(error), None);
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Compares what a file says when it is there with what was said of it before.
type Check = Box<dyn Fn(&Arriving) -> Result<()> + Send + Sync>;

/// How the header of one file is known.
pub(crate) enum Known {
    /// From a manifest, or from the file that is fetched itself.
    Surely,
    /// From another request: before its tensors are used, the file must say the same.
    ToConfirm(Check, OnceLock<Option<Error>>),
}

/// A model whose files are on their way. Its tensors can be asked for at once, in any order.
///
/// Where chunks have digests, a tensor comes when its chunks are verified. Where only the file has one, tensors come
/// as they arrive, and the last one of each file is held back until the file's digest matches: no forward pass is
/// complete before that.
pub(crate) struct RemoteSource {
    header: ModelHeader,
    arrivals: Arrivals,
    known: Vec<Known>,
    /// The tensor of each file that is held back.
    held_back: Vec<Option<usize>>,
    /// For shard sets: the files that are whole, mapped.
    mapped: Option<Vec<OnceLock<Arc<Mapped>>>>,
}

impl RemoteSource {
    pub(crate) fn new(header: ModelHeader, arrivals: Arrivals, known: Vec<Known>, chunked: bool) -> Self {
        let count = arrivals.files.len();
        let mut held_back: Vec<Option<usize>> = vec![None; count];
        if !chunked {
            for (index, tensor) in header.tensors.iter().enumerate() {
                let last = &mut held_back[tensor.file];
                if last.is_none_or(|last| header.tensors[last].offset <= tensor.offset) {
                    *last = Some(index);
                }
            }
        }
        let mapped = chunked.then(|| (0..count).map(|_| OnceLock::new()).collect());
        Self { header, arrivals, known, held_back, mapped }
    }

    fn confirm(&self, file: usize) -> Result<()> {
        let Known::ToConfirm(check, outcome) = &self.known[file] else { return Ok(()) };
        match outcome.get_or_init(|| check(&self.arrivals.files[file]).err()) {
            None => Ok(()),
            Some(error) => {
                let reason = Reason::of(error).unwrap_or(Reason::HashMismatch);
                Err(reason.error(error.to_string()))
            }
        }
    }

    fn bytes(&self, index: usize, info: &TensorInfo) -> Result<TensorBytes> {
        let arriving = &self.arrivals.files[info.file];
        if self.held_back[info.file] == Some(index) {
            arriving.done()?;
        }
        if let Some(mapped) = &self.mapped
            && arriving.is_done()
        {
            return self.window(&mapped[info.file], &arriving.done()?, info);
        }
        let bytes = arriving.range(info.offset, info.bytes)?;
        self.confirm(info.file)?;
        Ok(bytes.into())
    }

    fn window(&self, mapped: &OnceLock<Arc<Mapped>>, path: &Path, info: &TensorInfo) -> Result<TensorBytes> {
        let map = match mapped.get() {
            Some(map) => Arc::clone(map),
            None => {
                let file = File::open(path).map_err(|error| crate::cache::io_error(error, path))?;
                let map = Arc::new(Mapped::new(file).map_err(|error| crate::cache::io_error(error, path))?);
                Arc::clone(mapped.get_or_init(|| map))
            }
        };
        let range = info.range()?;
        let bytes: &[u8] = (*map).as_ref();
        if range.end > bytes.len() {
            return Err(Reason::Truncated
                .error("the cached shard was cut short")
                .about(path.display().to_string()));
        }
        Ok(TensorBytes::shared(map, range))
    }
}

impl WeightSource for RemoteSource {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        self.bytes(index, info).map_err(|error| error.about(format!("tensor {}", info.name)))
    }
}

impl fmt::Debug for RemoteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = self.arrivals.files.iter().filter(|file| file.is_done()).count();
        write!(f, "RemoteSource({there} of {} files)", self.arrivals.files.len())
    }
}
