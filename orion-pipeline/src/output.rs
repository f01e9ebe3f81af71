//! A file that appears under its name only when it is complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use orion_core::{Error, ErrorKind, Result};
use tempfile::NamedTempFile;

/// A file being written beside its destination.
#[derive(Debug)]
pub(crate) struct Output {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    overwrite: bool,
}

impl Output {
    /// Begins a file that will be called `path`.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it exists and is not to be overwritten; what the file system reports.
    pub(crate) fn create(path: &Path, overwrite: bool) -> Result<Self> {
        if !overwrite && path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".partial-")
            .tempfile_in(directory)
            .map_err(|error| Error::io(error, directory.display().to_string()))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), path: path.to_owned(), overwrite })
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// What the file system reports; [`InvalidInput`](ErrorKind::InvalidInput) if the name was taken meanwhile.
    pub(crate) fn publish(self) -> Result<()> {
        let Self { file, path, overwrite } = self;
        let subject = path.display().to_string();
        let file = file.into_inner().map_err(|error| Error::io(error.into_error(), &*subject))?;
        file.as_file().sync_all().map_err(|error| Error::io(error, &*subject))?;
        let published: std::result::Result<File, _> =
            if overwrite { file.persist(&path) } else { file.persist_noclobber(&path) };
        match published {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(&path)),
            Err(error) => Err(Error::io(error.error, subject)),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidInput, "exists already; allow overwriting or choose another name")
        .about(path.display().to_string())
}
