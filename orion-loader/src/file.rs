//! Weights in local files, read tensor by tensor.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;
use orion_core::{Error, ErrorKind, ModelHeader, Result, TensorBytes, WeightSource};
use orion_formats::Reason;

use crate::memory::no_tensor;
use crate::{page_cache, rows};

/// Bytes the system is asked to have read before they are asked for.
const READ_AHEAD: u64 = 16 << 20;
/// About as many tensors as a layer has.
const LAYER: usize = 10;
/// Formats put the next tensor on a multiple of this at most.
const PADDING: u64 = 4 << 10;

/// A regular file that is open for reading, and what it is called.
pub(crate) struct OpenFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) len: u64,
}

impl OpenFile {
    /// Opens a regular file: never a device, and never waiting for the other end of a pipe.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let subject = || path.display().to_string();
        let file = File::options()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open(path)
            .map_err(|error| Error::io(error, subject()))?;
        let metadata = file.metadata().map_err(|error| Error::io(error, subject()))?;
        if !metadata.is_file() {
            return Err(Error::invalid("not a regular file").about(subject()));
        }
        Ok(Self { path: path.to_owned(), file, len: metadata.len() })
    }

    /// Reads from the start, without the file's own cursor.
    pub(crate) fn reader(&self) -> impl Read + '_ {
        PositionalReader::new(&self.file)
    }

    /// The first bytes, at most `most`.
    pub(crate) fn start(&self, most: u64) -> Result<Vec<u8>> {
        let mut start = Vec::new();
        self.reader().take(most).read_to_end(&mut start).map_err(|error| self.io(error))?;
        Ok(start)
    }

    /// The whole file, if it has at most `most` bytes.
    pub(crate) fn all(&self, most: u64) -> Result<Vec<u8>> {
        if self.len > most {
            return Err(Error::corrupt(format!("has {} bytes, at most {most} are read", self.len))
                .about(self.subject()));
        }
        self.start(most)
    }

    pub(crate) fn subject(&self) -> String {
        self.path.display().to_string()
    }

    pub(crate) fn io(&self, error: io::Error) -> Error {
        Error::io(error, self.subject())
    }

    /// The bytes of several ranges, one behind the other.
    pub(crate) fn ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<u8>> {
        for piece in rows::joined(ranges) {
            page_cache::will_need(&self.file, &piece);
        }
        let mut data = Vec::new();
        for range in ranges {
            data.extend(self.range(range.start, range.end - range.start)?);
        }
        Ok(data)
    }

    /// The bytes of a range.
    pub(crate) fn range(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let mut data = room(bytes)?;
        self.append(offset, bytes, &mut data)?;
        Ok(data)
    }

    /// Adds so many bytes to what `data` holds, into room that it has and that need not be zeroed before.
    fn append(&self, offset: u64, bytes: u64, data: &mut Vec<u8>) -> Result<()> {
        let before = data.len();
        let wanted = usize::try_from(bytes).map_or(usize::MAX, |bytes| before.saturating_add(bytes));
        while data.len() < wanted {
            let at = offset + (data.len() - before) as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(data), at) {
                Ok(0) => return Err(self.short(offset, bytes)),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.io(error.into())),
            }
        }
        // There may have been more room than was asked for.
        data.truncate(wanted);
        Ok(())
    }

    fn short(&self, offset: u64, bytes: u64) -> Error {
        let what = format!("the file was truncated after it was opened; {bytes} bytes at {offset} are gone");
        Reason::Truncated.error(what).about(self.subject())
    }

    fn fill(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(data, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.short(offset, data.len() as u64),
            _ => self.io(error),
        })
    }

    /// [`fill`](Self::fill), if all of it is in the page cache.
    fn fill_now(&self, offset: u64, data: &mut [u8]) -> bool {
        #[cfg(target_os = "linux")]
        {
            let mut done = 0;
            while done < data.len() {
                let rest = &mut [io::IoSliceMut::new(&mut data[done..])];
                match rustix::io::preadv2(
                    &self.file,
                    rest,
                    offset + done as u64,
                    rustix::io::ReadWriteFlags::NOWAIT,
                ) {
                    Ok(0) => return false,
                    Ok(read) => done += read,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
            true
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (offset, data);
            false
        }
    }

    /// The bytes of a range, the first of them on a page of its own. Such pages come zeroed, so that nothing is written
    /// but what is read.
    pub(crate) fn aligned(&self, offset: u64, bytes: u64) -> Result<TensorBytes> {
        let len = usize::try_from(bytes).map_err(|_| Error::corrupt("exceeds the address space"))?;
        if len == 0 {
            return Ok(Vec::new().into());
        }
        let mut pages = MmapMut::map_anon(len).map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, format!("needs {len} bytes")).with_source(error)
        })?;
        // All at once costs half of one by one. Where the system cannot, they come one by one.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::PopulateWrite);
        self.fill(offset, &mut pages)?;
        Ok(TensorBytes::shared(Arc::new(pages), 0..len))
    }
}

/// An empty list with room for so many bytes.
fn room(bytes: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(bytes).map_err(|_| Error::corrupt("exceeds the address space"))?;
    let mut data = Vec::new();
    data.try_reserve_exact(len).map_err(|error| {
        Error::new(ErrorKind::OutOfMemory, format!("needs {len} bytes")).with_source(error)
    })?;
    Ok(data)
}

// The value on every Linux architecture Rust has but sparc64 and mips; on others opening a pipe may wait.
#[cfg(any(target_os = "linux", target_os = "android"))]
const O_NONBLOCK: i32 = 0o4000;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const O_NONBLOCK: i32 = 4;

/// Reads from the start, without the file's own cursor.
pub(crate) struct PositionalReader<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> PositionalReader<'a> {
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for PositionalReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(out, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// A model in local files. Tensors are read when they are asked for and not kept.
pub struct FileSource {
    header: ModelHeader,
    files: Vec<OpenFile>,
    ahead: Mutex<Ahead>,
}

/// What will be read, and how far the system was told.
#[derive(Default)]
struct Ahead {
    /// Tensors in order of need.
    order: Vec<usize>,
    /// Of these, how many have been asked for, and how many the system was told of.
    asked: usize,
    told: usize,
    /// Bytes told of and not yet asked for.
    bytes: u64,
}

/// What is needed one after the other, in pieces as long as the file allows. The order of need stays, roughly: a layer's
/// tensors lie together, in an order of their own.
fn side_by_side(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut pieces: Vec<Range<u64>> = Vec::new();
    for some in ranges.chunks(LAYER) {
        let mut some = some.to_vec();
        some.sort_by_key(|range| range.start);
        for range in some {
            match pieces.last_mut() {
                Some(last) if range.start >= last.end && range.start - last.end <= PADDING => {
                    last.end = range.end
                }
                _ => pieces.push(range),
            }
        }
    }
    pieces
}

impl FileSource {
    pub(crate) fn new(header: ModelHeader, files: Vec<OpenFile>) -> Self {
        Self { header, files, ahead: Mutex::default() }
    }

    /// Lets the system read what comes next while this is used.
    fn read_ahead(&self, index: usize) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let Ahead { order, asked, told, bytes } = &mut *ahead;
        if order.get(*asked) != Some(&index) {
            return;
        }
        *asked += 1;
        *bytes = bytes.saturating_sub(self.header.tensors[index].bytes);
        // Not for a little at a time: what lies side by side is asked for in one piece.
        if *bytes > READ_AHEAD - READ_AHEAD / 4 {
            return;
        }
        let mut ranges: Vec<Vec<Range<u64>>> = vec![Vec::new(); self.files.len()];
        while *bytes < READ_AHEAD
            && let Some(next) = order.get((*told).max(*asked)).and_then(|&next| self.header.tensors.get(next))
        {
            *told = (*told).max(*asked) + 1;
            *bytes += next.bytes;
            ranges[next.file].push(next.offset..next.offset + next.bytes);
        }
        for (file, ranges) in self.files.iter().zip(&ranges) {
            side_by_side(ranges).iter().for_each(|range| page_cache::will_need(&file.file, range));
        }
    }

    /// The files that hold the weights, as [`TensorInfo::file`](orion_core::TensorInfo::file) counts them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }
}

impl WeightSource for FileSource {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        self.read_ahead(index);
        let data = self.files[info.file].range(info.offset, info.bytes);
        data.map(TensorBytes::from).map_err(|error| error.about(format!("tensor {}", info.name)))
    }

    fn read(&self, index: usize, piece: usize, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        self.read_ahead(index);
        let end = info.offset + info.bytes;
        let piece = piece.max(1) as u64;
        let mut data = room(piece.min(info.bytes))?;
        let mut at = info.offset;
        while at < end {
            let bytes = piece.min(end - at);
            data.clear();
            self.files[info.file]
                .append(at, bytes, &mut data)
                .map_err(|error| error.about(format!("tensor {}", info.name)))?;
            each(&data)?;
            at += bytes;
        }
        Ok(())
    }

    fn read_at(&self, index: usize, offset: u64, out: &mut [u8], wait: bool) -> Result<bool> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        let about = |error: Error| error.about(format!("tensor {}", info.name));
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > info.bytes) {
            return Err(about(Error::invalid(format!("{} bytes at {offset} of {}", out.len(), info.bytes))));
        }
        if offset == 0 {
            self.read_ahead(index);
        }
        let (file, at) = (&self.files[info.file], info.offset + offset);
        match wait {
            true => file.fill(at, out).map(|()| true).map_err(about),
            false => Ok(file.fill_now(at, out)),
        }
    }

    fn expect(&self, order: &[usize]) {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) =
            Ahead { order: order.to_vec(), ..Ahead::default() };
    }

    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        self.files[info.file].ranges(&rows::ranges(info, rows)?).map(TensorBytes::from)
    }
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.paths()).finish()
    }
}
