//! The bytes of one fetch: into a file of its own, hashed on the way, compared with what is there already.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use orion_core::{Digest, Error, ErrorKind, Result};
use orion_formats::Reason;
use sha2::{Digest as _, Sha256};

use crate::arriving::Arriving;
use crate::cache::{Cache, io_error, tag_path, write_durably};
use crate::fetch::Wanted;
use crate::file::PositionalReader;
use crate::http::{Failure, shown};

/// A download into a partial file of this process alone.
pub(crate) struct Transfer<'a> {
    cache: &'a Cache,
    wanted: &'a Wanted,
    key: Digest,
    path: PathBuf,
    file: Arc<File>,
    etag: Option<String>,
    total: Option<u64>,
    /// Bytes hashed.
    position: u64,
    /// Bytes in the file. Beyond `position` they are compared with what arrives.
    len: u64,
    hasher: Sha256,
    chunk: Sha256,
    /// Where the current chunk began, and the hash of everything before it.
    chunk_start: u64,
    before_chunk: Sha256,
}

impl<'a> Transfer<'a> {
    pub(crate) fn begin(cache: &'a Cache, key: Digest, wanted: &'a Wanted) -> Result<Self> {
        let path = cache.new_partial(&key);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| io_error(error, &path))?;
        // Tells others that it is in use. Where locks do nothing, nothing depends on it.
        let _ = file.try_lock();
        Ok(Self {
            cache,
            wanted,
            key,
            path,
            file: Arc::new(file),
            etag: None,
            total: wanted.bytes,
            position: 0,
            len: 0,
            hasher: Sha256::new(),
            chunk: Sha256::new(),
            chunk_start: 0,
            before_chunk: Sha256::new(),
        })
    }

    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// Whether all bytes are there and a digest will tell whether they are right.
    pub(crate) fn is_whole(&self) -> bool {
        self.wanted.digest.is_some() && self.total == Some(self.position) && self.position > 0
    }

    /// Bytes that may be used: whole chunks where chunks have digests.
    pub(crate) fn usable(&self) -> u64 {
        if self.wanted.chunks.is_some() { self.chunk_start } else { self.position }
    }

    /// Copies what an earlier fetch left behind, hashing it. The leftover itself is not touched: it may be another
    /// process's after all.
    pub(crate) fn adopt_leftover(&mut self) -> Result<()> {
        for (path, tag) in self.cache.leftovers(&self.key) {
            // Without version or digest nothing could tell whether the rest belongs to it.
            if tag.is_none() && self.wanted.digest.is_none() {
                continue;
            }
            let Ok(mut leftover) = File::open(&path) else { continue };
            self.etag = tag;
            let mut piece = vec![0; 1 << 20];
            let most = self.total.unwrap_or(self.wanted.most);
            while let Ok(read) = leftover.read(&mut piece) {
                let read = read.min(usize::try_from(most - self.position).unwrap_or(usize::MAX));
                if read == 0 || !self.take(&piece[..read])? {
                    break;
                }
            }
            if let Some(tag) = self.etag.clone() {
                self.note(&tag)?;
            }
            return Ok(());
        }
        Ok(())
    }

    /// What the server says it sends; bytes of another version are not continued.
    pub(crate) fn set_version(&mut self, etag: Option<String>, total: Option<u64>) -> Result<()> {
        if total.is_some() {
            self.total = total;
        }
        if etag.is_some() && etag != self.etag {
            self.note(etag.as_deref().expect("just tested"))?;
            self.etag = etag;
        }
        Ok(())
    }

    fn note(&self, etag: &str) -> Result<()> {
        let path = tag_path(&self.path);
        let _ = fs::remove_file(&path);
        write_durably(&path, &serde_json::to_vec(etag).expect("a string always serialises"))
    }

    /// Back to the first byte. What the file holds stays and is compared with what comes.
    pub(crate) fn rewind(&mut self) {
        self.position = 0;
        self.hasher = Sha256::new();
        self.begin_chunk();
    }

    fn begin_chunk(&mut self) {
        self.chunk = Sha256::new();
        self.chunk_start = self.position;
        self.before_chunk = self.hasher.clone();
    }

    /// Throws away what the file holds.
    pub(crate) fn start_over(&mut self) -> Result<()> {
        self.rewind();
        self.etag = None;
        self.cut(0)
    }

    fn cut(&mut self, len: u64) -> Result<()> {
        self.len = len;
        self.file.set_len(len).map_err(|error| io_error(error, &self.path))
    }

    /// Takes the bytes that follow. A chunk without its digest is taken back, to be fetched again.
    pub(crate) fn accept(&mut self, data: &[u8], arriving: &Arriving) -> Result<(), Failure> {
        let overlap = usize::try_from((self.len - self.position).min(data.len() as u64))
            .expect("at most a slice's length");
        if overlap > 0 {
            let mut there = vec![0; overlap];
            self.file
                .read_exact_at(&mut there, self.position)
                .map_err(|error| io_error(error, &self.path))?;
            if there != data[..overlap] {
                arriving.retract(self.position)?;
                self.cut(self.position)?;
            }
        }
        if self.take(data)? {
            return Ok(());
        }
        Err(self.bad_chunk())
    }

    fn bad_chunk(&self) -> Failure {
        let error = Reason::HashMismatch
            .error(format!("the chunk at byte {} does not have its digest", self.chunk_start))
            .about(shown(&self.wanted.url));
        Failure { error, retry: true, retry_after: None }
    }

    /// Writes and hashes; `false` if a chunk was wrong and has been taken back.
    fn take(&mut self, mut data: &[u8]) -> Result<bool> {
        while !data.is_empty() {
            let room = match &self.wanted.chunks {
                Some((bytes, _)) => bytes - (self.position - self.chunk_start),
                None => u64::MAX,
            };
            let (now, later) = data.split_at(usize::try_from(room).unwrap_or(usize::MAX).min(data.len()));
            self.file.write_all_at(now, self.position).map_err(|error| {
                let error = io_error(error, &self.path);
                self.remove();
                error
            })?;
            self.hasher.update(now);
            self.position += now.len() as u64;
            self.len = self.len.max(self.position);
            if self.wanted.chunks.is_some() {
                self.chunk.update(now);
                if now.len() as u64 == room && !self.end_chunk()? {
                    return Ok(false);
                }
            }
            data = later;
        }
        Ok(true)
    }

    /// Checks the chunk that ends here.
    fn end_chunk(&mut self) -> Result<bool> {
        let Some((bytes, digests)) = &self.wanted.chunks else { return Ok(true) };
        let number = usize::try_from(self.chunk_start / bytes).unwrap_or(usize::MAX);
        let found: [u8; 32] = std::mem::take(&mut self.chunk).finalize().into();
        if digests.get(number) == Some(&Digest(found)) {
            self.begin_chunk();
            return Ok(true);
        }
        self.position = self.chunk_start;
        self.hasher = self.before_chunk.clone();
        self.cut(self.chunk_start)?;
        Ok(false)
    }

    /// Checks the last chunk, which may be short.
    pub(crate) fn finish_chunk(&mut self, arriving: &Arriving) -> Result<(), Failure> {
        if self.wanted.chunks.is_some() && self.position > self.chunk_start && !self.end_chunk()? {
            return Err(self.bad_chunk());
        }
        arriving.advance(self.usable());
        Ok(())
    }

    /// The digest of all bytes, if it is the one that was announced, by us first or by the server.
    pub(crate) fn verify(&mut self, announced: Option<Digest>) -> Result<Digest> {
        let found = Digest(self.hasher.clone().finalize().into());
        if self.len > self.position {
            self.cut(self.position)?;
        }
        match self.wanted.digest.or(announced) {
            Some(expected) if expected != found => Err(Reason::HashMismatch
                .error(format!("the digest is {found}, expected {expected}"))
                .about(shown(&self.wanted.url))),
            _ => Ok(found),
        }
    }

    /// Makes it visible, and removes what earlier fetches of it left behind.
    pub(crate) fn install(self, digest: Digest) -> Result<PathBuf> {
        let path = match self.cache.install(&self.file, &self.path, &digest) {
            Ok(path) => path,
            // Where locks do nothing another process may have taken this for a leftover. The bytes are still held.
            Err(error) if error.kind() == ErrorKind::NotFound => self.install_copy(&digest)?,
            Err(error) => {
                self.remove();
                return Err(error);
            }
        };
        for (leftover, _) in self.cache.leftovers(&self.key) {
            let _ = fs::remove_file(tag_path(&leftover));
            let _ = fs::remove_file(leftover);
        }
        Ok(path)
    }

    fn install_copy(&self, digest: &Digest) -> Result<PathBuf> {
        let path = self.cache.new_partial(&self.key);
        let copy = || {
            let mut copy = File::create_new(&path)?;
            let mut from = PositionalReader::new(&self.file);
            std::io::copy(&mut from, &mut copy)?;
            Ok(copy)
        };
        let copy = copy().map_err(|error| {
            let _ = fs::remove_file(&path);
            io_error(error, &path)
        })?;
        self.cache.install(&copy, &path, digest)
    }

    fn remove(&self) {
        let _ = fs::remove_file(tag_path(&self.path));
        let _ = fs::remove_file(&self.path);
    }

    pub(crate) fn discard(self) {
        self.remove();
    }

    /// Leaves what has arrived to a later fetch, if that could use it.
    pub(crate) fn keep_or_discard(self) {
        if self.len == 0 || (self.etag.is_none() && self.wanted.digest.is_none()) {
            self.remove();
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}
