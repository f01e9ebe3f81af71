//! Outputs that appear under their name only when they are complete.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use orion_core::{Digest, Error, ErrorKind, Result};
use rustix::fs::{CWD, RenameFlags};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// A file being written beside its destination.
#[derive(Debug)]
pub(crate) struct Output {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    overwrite: bool,
}

impl Output {
    /// Begins a file of about `bytes` bytes that will be called `path`.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it exists and is not to be overwritten, or the disk has less room
    /// than that; what the file system reports.
    pub(crate) fn create(path: &Path, overwrite: bool, bytes: u64) -> Result<Self> {
        refuse_existing(path, overwrite)?;
        if path.is_dir() {
            return Err(Error::invalid("is a directory, a file is to be written").about(shown(path)));
        }
        let directory = parent(path);
        check_space(directory, bytes)?;
        let file = tempfile::Builder::new()
            .prefix(".partial-")
            .permissions(plain_permissions())
            .tempfile_in(directory)
            .map_err(|error| Error::io(error, shown(directory)))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), path: path.to_owned(), overwrite })
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// What the file system reports; [`InvalidInput`](ErrorKind::InvalidInput) if the name was taken meanwhile.
    pub(crate) fn publish(self) -> Result<()> {
        let Self { file, path, overwrite } = self;
        let subject = shown(&path);
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

/// A directory being filled beside its destination. Dropped without being published it is removed, unless its work is
/// to be resumed.
#[derive(Debug)]
pub(crate) struct OutputDirectory {
    partial: PathBuf,
    path: PathBuf,
    overwrite: bool,
    /// What is half-made stays for the next attempt.
    resumable: bool,
    published: bool,
}

/// The file in a half-made directory that says of which work it is.
const FINGERPRINT: &str = ".orion-work";

impl OutputDirectory {
    /// Begins a directory of about `bytes` bytes that will be called `path`. With a fingerprint of the work, what an
    /// interrupted attempt at the same work has finished is kept; anything else that was begun there is discarded.
    ///
    /// # Errors
    /// As [`Output::create`].
    pub(crate) fn create(
        path: &Path,
        overwrite: bool,
        bytes: u64,
        fingerprint: Option<&str>,
    ) -> Result<Self> {
        refuse_existing(path, overwrite)?;
        if path.is_file() {
            return Err(Error::invalid("is a file, a directory is to be written").about(shown(path)));
        }
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::invalid("needs a name of its own").about(shown(path)))?;
        let partial = parent(path).join(format!(".{name}.partial"));
        let io = |error| Error::io(error, shown(&partial));
        let begun = fs::read_to_string(partial.join(FINGERPRINT)).ok();
        let resumed = fingerprint.is_some() && begun.as_deref() == fingerprint;
        if !resumed && partial.symlink_metadata().is_ok() {
            fs::remove_dir_all(&partial).map_err(io)?;
        }
        check_space(parent(path), bytes)?;
        fs::create_dir_all(&partial).map_err(io)?;
        if let Some(fingerprint) = fingerprint {
            fs::write(partial.join(FINGERPRINT), fingerprint).map_err(io)?;
        }
        let resumable = fingerprint.is_some();
        Ok(Self { partial, path: path.to_owned(), overwrite, resumable, published: false })
    }

    /// Begins a file of the directory that is not hashed.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn plain_file(&self, name: &str) -> Result<HashedFile> {
        Ok(HashedFile { hash: None, ..self.file(name, 1 << 26)? })
    }

    /// Begins a file of the directory.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn file(&self, name: &str, chunk_bytes: u64) -> Result<HashedFile> {
        let path = self.partial.join(name);
        fs::create_dir_all(parent(&path)).map_err(|error| Error::io(error, shown(&path)))?;
        let file = tempfile::Builder::new()
            .prefix(".partial-")
            .permissions(plain_permissions())
            .tempfile_in(&self.partial)
            .map_err(|error| Error::io(error, shown(&path)))?;
        Ok(HashedFile {
            file: BufWriter::with_capacity(1 << 20, file),
            path,
            hash: Some(Hashes::new(chunk_bytes)),
        })
    }

    /// Writes a whole file of the directory.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<Written> {
        let mut file = self.file(name, 1 << 26)?;
        let subject = shown(&file.path);
        file.write_all(bytes).map_err(|error| Error::io(error, subject))?;
        file.finish()
    }

    /// The file of that name and length, if an earlier attempt finished it.
    ///
    /// # Errors
    /// What the file system reports while it is read.
    pub(crate) fn finished(&self, name: &str, bytes: u64, chunk_bytes: u64) -> Result<Option<Written>> {
        let path = self.partial.join(name);
        let io = |error| Error::io(error, shown(&path));
        match path.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.len() == bytes => {}
            _ => return Ok(None),
        }
        let mut file = File::open(&path).map_err(io)?;
        let mut hash = Hashes::new(chunk_bytes);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match std::io::Read::read(&mut file, &mut buffer).map_err(io)? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        Ok(Some(hash.finish()))
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// What the file system reports; [`InvalidInput`](ErrorKind::InvalidInput) if the name was taken meanwhile.
    pub(crate) fn publish(mut self) -> Result<()> {
        let io = |error: std::io::Error| Error::io(error, shown(&self.path));
        if self.resumable {
            fs::remove_file(self.partial.join(FINGERPRINT)).map_err(io)?;
        }
        File::open(&self.partial).and_then(|directory| directory.sync_all()).map_err(io)?;
        let aside = self.partial.with_extension("replaced");
        let replaces = self.overwrite && self.path.symlink_metadata().is_ok();
        if replaces {
            fs::rename(&self.path, &aside).map_err(io)?;
        }
        let renamed = rename_to_new(&self.partial, &self.path);
        match renamed {
            Ok(()) => {}
            Err(error) => {
                if replaces {
                    fs::rename(&aside, &self.path).map_err(io)?;
                }
                return Err(match error.kind() {
                    std::io::ErrorKind::AlreadyExists => exists(&self.path),
                    _ => io(error),
                });
            }
        }
        if replaces {
            fs::remove_dir_all(&aside).map_err(io)?;
        }
        self.published = true;
        Ok(())
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        if !self.published && !self.resumable {
            // The failure that brought us here is the one to report.
            fs::remove_dir_all(&self.partial).ok();
        }
    }
}

/// Renames, unless the new name is taken.
fn rename_to_new(from: &Path, to: &Path) -> std::io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // File systems that cannot say so in one step.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.symlink_metadata().is_err() => {
            fs::rename(from, to)
        }
        Err(error) => Err(error.into()),
    }
}

/// A file of an [`OutputDirectory`], hashed as it is written.
pub(crate) struct HashedFile {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    hash: Option<Hashes>,
}

/// What was written: length and digests, of files that are hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) digest: Digest,
    pub(crate) chunks: Vec<Digest>,
}

impl Default for Written {
    fn default() -> Self {
        Self { bytes: 0, digest: Digest([0; 32]), chunks: Vec::new() }
    }
}

impl HashedFile {
    /// Makes the file durable and gives it its name within the directory.
    ///
    /// # Errors
    /// What the file system reports.
    pub(crate) fn finish(self) -> Result<Written> {
        let subject = shown(&self.path);
        let file = self.file.into_inner().map_err(|error| Error::io(error.into_error(), &*subject))?;
        file.as_file().sync_all().map_err(|error| Error::io(error, &*subject))?;
        file.persist(&self.path).map_err(|error| Error::io(error.error, subject))?;
        Ok(self.hash.map(Hashes::finish).unwrap_or_default())
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&bytes[..written]);
        }
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Digests of a file and of its chunks.
struct Hashes {
    whole: Sha256,
    chunk: Sha256,
    in_chunk: u64,
    chunk_bytes: u64,
    chunks: Vec<Digest>,
    bytes: u64,
}

impl Hashes {
    fn new(chunk_bytes: u64) -> Self {
        let (whole, chunk) = (Sha256::new(), Sha256::new());
        Self { whole, chunk, in_chunk: 0, chunk_bytes, chunks: Vec::new(), bytes: 0 }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = (self.chunk_bytes - self.in_chunk).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(room as usize);
            self.chunk.update(now);
            self.in_chunk += room;
            if self.in_chunk == self.chunk_bytes {
                self.end_chunk();
            }
            bytes = later;
        }
    }

    fn end_chunk(&mut self) {
        self.chunks.push(Digest(self.chunk.finalize_reset().into()));
        self.in_chunk = 0;
    }

    fn finish(mut self) -> Written {
        if self.in_chunk > 0 {
            self.end_chunk();
        }
        Written { bytes: self.bytes, digest: Digest(self.whole.finalize().into()), chunks: self.chunks }
    }
}

/// What the owner may read and write and others may read, as far as the process's mask allows: outputs are ordinary files.
fn plain_permissions() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Refuses an output that exists, unless it may be replaced.
pub(crate) fn refuse_existing(path: &Path, overwrite: bool) -> Result<()> {
    if !overwrite && path.symlink_metadata().is_ok() {
        return Err(exists(path));
    }
    Ok(())
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidInput, "exists already; allow overwriting or choose another name")
        .about(shown(path))
}

/// Refuses to begin what the disk has no room for.
fn check_space(directory: &Path, bytes: u64) -> Result<()> {
    let io = |error: rustix::io::Errno| Error::io(error.into(), shown(directory));
    let disk = rustix::fs::statvfs(directory).map_err(io)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if bytes > free {
        return Err(Error::new(
            ErrorKind::Io,
            format!("{bytes} bytes are to be written and the disk has {free} left; make room or choose another place"),
        )
        .about(shown(directory)));
    }
    Ok(())
}
