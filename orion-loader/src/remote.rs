//! Weights that arrive while they are used.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use orion_core::{CancelToken, Error, ErrorKind, ModelHeader, Result, TensorBytes, TensorInfo, WeightSource};
use orion_formats::Reason;

use crate::arriving::Arriving;
use crate::fetch::{Fetcher, Wanted};
use crate::http::shown;
use crate::idle::Busy;
use crate::mapped::Mapped;
use crate::memory::no_tensor;
use crate::order::{prioritise, runs};
use crate::rows;
use crate::window::Window;

/// The files of a model, each on its way or there already, fetched in order by a few threads.
pub(crate) struct Arrivals {
    pub(crate) files: Vec<Arc<Arriving>>,
    fetcher: Arc<Fetcher>,
    wanted: Arc<[Arc<Wanted>]>,
    /// Files nobody fetches yet, in order.
    pending: Arc<Mutex<VecDeque<usize>>>,
    cancel: CancelToken,
    workers: Vec<thread::JoinHandle<()>>,
}

impl Arrivals {
    /// Begins to fetch.
    pub(crate) fn start(
        fetcher: &Arc<Fetcher>,
        wanted: Vec<Wanted>,
        cancel: CancelToken,
        window: Window,
    ) -> Result<Self> {
        let (count, window) = (wanted.len(), Arc::new(window));
        let arriving = |wanted: &Wanted| {
            Arc::new(Arriving::new(shown(&wanted.url), cancel.clone(), Arc::clone(&window)))
        };
        let files: Vec<_> = wanted.iter().map(arriving).collect();
        // What is there already is not kept waiting behind what is not.
        let (there, missing): (Vec<_>, Vec<_>) = (0..count).partition(|&number| fetcher.has(&wanted[number]));
        let pending: Arc<Mutex<VecDeque<usize>>> =
            Arc::new(Mutex::new(there.into_iter().chain(missing).collect()));
        let wanted: Arc<[Arc<Wanted>]> = wanted
            .into_iter()
            .enumerate()
            .map(|(number, wanted)| Arc::new(Wanted { place: (number, count), ..wanted }))
            .collect();
        let mut arrivals = Self {
            files: files.clone(),
            fetcher: Arc::clone(fetcher),
            wanted: Arc::clone(&wanted),
            pending: Arc::clone(&pending),
            cancel,
            workers: Vec::new(),
        };
        let lanes = (fetcher.options.connections / count.max(1)).max(1);
        for _ in 0..fetcher.options.connections.min(count) {
            let (fetcher, wanted, pending) = (Arc::clone(fetcher), Arc::clone(&wanted), Arc::clone(&pending));
            let files = files.clone();
            let next = move || pending.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let work = move || {
                while let Some(number) = next() {
                    fetch_or_fail(&fetcher, &wanted[number], &files[number], lanes);
                }
            };
            let worker = thread::Builder::new().name("orion-fetch".into()).spawn(work);
            arrivals.workers.push(worker.map_err(|error| Error::io(error, "a thread that fetches"))?);
        }
        Ok(arrivals)
    }

    /// Has files fetched in this order, as far as that is not decided.
    fn reorder(&self, order: &[usize]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let rank = |number: &usize| order.iter().position(|other| other == number).unwrap_or(order.len());
        pending.make_contiguous().sort_by_key(rank);
    }

    /// Waits until all files are there and nobody works on them any more.
    pub(crate) fn all(mut self) -> Result<Vec<PathBuf>> {
        self.files.iter().for_each(|file| file.settle());
        let paths = self.files.iter().map(|file| file.done()).collect::<Result<_>>()?;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| Error::new(ErrorKind::Internal, "a fetching thread panicked"))?;
        }
        // Nothing is left to cancel, and the token may still be used for something else.
        self.cancel = CancelToken::new();
        Ok(paths)
    }
}

/// A panic while fetching must not leave others waiting for ever.
fn fetch_or_fail(fetcher: &Arc<Fetcher>, wanted: &Arc<Wanted>, arriving: &Arc<Arriving>, lanes: usize) {
    let fetch = std::panic::AssertUnwindSafe(|| fetcher.fetch(wanted, arriving, lanes));
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
/// as they arrive, and the last of each file is held back until the file's digest matches: no forward pass is complete
/// before that. Where an order was announced it is the last two: single rows of one may have been handed out before.
pub(crate) struct RemoteSource {
    header: ModelHeader,
    arrivals: Arrivals,
    known: Vec<Known>,
    /// The tensors of each file that are held back.
    held_back: Mutex<Vec<Vec<usize>>>,
    /// For shard sets: the files that are whole, mapped.
    mapped: Option<Vec<OnceLock<Arc<Mapped>>>>,
    _busy: Busy,
}

impl RemoteSource {
    pub(crate) fn new(
        header: ModelHeader,
        arrivals: Arrivals,
        known: Vec<Known>,
        chunked: bool,
        busy: Busy,
    ) -> Self {
        let count = arrivals.files.len();
        let mapped = chunked.then(|| (0..count).map(|_| OnceLock::new()).collect());
        let mut by_place: Vec<usize> = (0..header.tensors.len()).collect();
        by_place.sort_by_key(|&index| header.tensors[index].offset);
        let source = Self { header, arrivals, known, held_back: Mutex::default(), mapped, _busy: busy };
        source.hold_back(&by_place, 1);
        source
    }

    /// Holds back the last `count` tensors of each file, in the order they will be needed in.
    fn hold_back(&self, order: &[usize], count: usize) {
        let mut last = vec![Vec::new(); self.arrivals.files.len()];
        if self.mapped.is_none() {
            for &index in order.iter().rev() {
                let of_file = &mut last[self.header.tensors[index].file];
                if of_file.len() < count && !of_file.contains(&index) {
                    of_file.push(index);
                }
            }
        }
        *self.held_back.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    fn held_back(&self, file: usize) -> Vec<usize> {
        self.held_back.lock().unwrap_or_else(PoisonError::into_inner)[file].clone()
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

    /// The file of a tensor once it may be waited for: of those held back, when it is whole. The tensor itself where the
    /// file is mapped.
    fn begin(&self, index: usize, info: &TensorInfo) -> Result<(&Arriving, Option<TensorBytes>)> {
        let arriving = &self.arrivals.files[info.file];
        arriving.settle();
        if self.held_back(info.file).contains(&index) {
            arriving.done()?;
        }
        if let Some(mapped) = &self.mapped
            && arriving.is_done()
        {
            arriving.used(info.bytes);
            return Ok((arriving, Some(self.window(&mapped[info.file], &arriving.done()?, info)?)));
        }
        Ok((arriving, None))
    }

    fn bytes(&self, index: usize, info: &TensorInfo) -> Result<TensorBytes> {
        let (arriving, mapped) = self.begin(index, info)?;
        if let Some(bytes) = mapped {
            return Ok(bytes);
        }
        let bytes = arriving.range(info.offset, info.bytes)?;
        self.confirm(info.file)?;
        Ok(bytes.into())
    }

    fn pieces(
        &self,
        index: usize,
        info: &TensorInfo,
        piece: usize,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (arriving, mapped) = self.begin(index, info)?;
        if let Some(bytes) = mapped {
            return bytes.chunks(piece.max(1)).try_for_each(each);
        }
        let mut done = 0;
        while done < info.bytes {
            let bytes = arriving.range(info.offset + done, (info.bytes - done).min(piece.max(1) as u64))?;
            self.confirm(info.file)?;
            done += bytes.len() as u64;
            each(&bytes)?;
        }
        Ok(())
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
        Mapped::window(&map, info.range()?).map_err(|error| error.about(path.display().to_string()))
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

    fn read(&self, index: usize, piece: usize, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        self.pieces(index, info, piece, each).map_err(|error| error.about(format!("tensor {}", info.name)))
    }

    fn expect(&self, order: &[usize]) {
        let tensors = &self.header.tensors;
        let first = &self.arrivals.fetcher.options.priority_layers;
        let order: Vec<usize> =
            prioritise(tensors, order, first).into_iter().filter(|&index| index < tensors.len()).collect();
        self.hold_back(&order, 2);
        for (file, runs) in self.arrivals.files.iter().zip(runs(tensors, &order, self.arrivals.files.len())) {
            file.set_order(runs);
        }
        let files: Vec<usize> = order.iter().map(|&index| tensors[index].file).collect();
        self.arrivals.reorder(&files);
    }

    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        let about = |error: Error| error.about(format!("tensor {}", info.name));
        let ranges = rows::ranges(info, rows)?;
        let (arriving, wanted) = (&self.arrivals.files[info.file], &self.arrivals.wanted[info.file]);
        if self.mapped.is_none() && self.held_back(info.file).len() < 2 {
            arriving.done().map_err(about)?;
        }
        let missing: Vec<_> = ranges.iter().filter(|range| !arriving.has(range)).cloned().collect();
        self.arrivals.fetcher.ahead(wanted, arriving, &rows::joined(&missing));
        let mut data = Vec::new();
        for range in ranges {
            data.extend(arriving.range(range.start, range.end - range.start).map_err(about)?);
        }
        self.confirm(info.file).map_err(about)?;
        Ok(data.into())
    }
}

impl fmt::Debug for RemoteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = self.arrivals.files.iter().filter(|file| file.is_done()).count();
        write!(f, "RemoteSource({there} of {} files)", self.arrivals.files.len())
    }
}
