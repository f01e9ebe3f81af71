//! Weights in local files, read tensor by tensor.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use orion_core::{Error, ErrorKind, ModelHeader, Result, TensorBytes, WeightSource};
use orion_formats::Reason;

use crate::memory::no_tensor;

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

    /// The bytes of a range.
    pub(crate) fn range(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let len = usize::try_from(bytes).map_err(|_| Error::corrupt("exceeds the address space"))?;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, format!("needs {len} bytes")).with_source(error)
        })?;
        data.resize(len, 0);
        match self.file.read_exact_at(&mut data, offset) {
            Ok(()) => Ok(data),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Reason::Truncated
                .error(format!(
                    "the file was truncated after it was opened; {bytes} bytes at {offset} are gone"
                ))
                .about(self.subject())),
            Err(error) => Err(self.io(error)),
        }
    }
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
}

impl FileSource {
    pub(crate) fn new(header: ModelHeader, files: Vec<OpenFile>) -> Self {
        Self { header, files }
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
        let data = self.files[info.file].range(info.offset, info.bytes);
        data.map(TensorBytes::from).map_err(|error| error.about(format!("tensor {}", info.name)))
    }
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.paths()).finish()
    }
}
