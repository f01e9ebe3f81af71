//! A content-addressed store of files: what is visible under a digest has that digest.
//!
//! ```text
//! blobs/<sha256>             whole and verified, never written again
//! refs/<sha256 of URL>.json  which blob a URL was, and its entity tag
//! partial/<key>.<nonce>.part downloads that are under way or were cut short, each of one process
//! partial/<key>.<nonce>.json the entity tag they belong to, and which bytes are there
//! marks/<sha256 of path>.json files elsewhere that were verified, and what they were then
//! quarantine/                blobs that no longer have their digest
//! ```
//!
//! Nothing here relies on locks: names in `partial` are unique, and a blob appears by rename. Locks only spare
//! downloads from being cleaned up while they run.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use orion_core::{Digest, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::http::shown;

/// Partial downloads nobody holds are kept this long.
const PARTIAL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The store.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A file of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Length.
    pub bytes: u64,
    /// When it was last opened.
    pub used: SystemTime,
    /// Where it was fetched from, without queries.
    pub urls: Vec<String>,
}

/// What [`Cache::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Blobs that have their digest.
    pub good: usize,
    /// Blobs that had not and were put into quarantine.
    pub bad: Vec<Digest>,
}

/// What a URL was when it was last fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ref {
    pub(crate) url: String,
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) etag: Option<String>,
}

/// What a file was when it was verified.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    digest: Digest,
    bytes: u64,
    device: u64,
    inode: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl Mark {
    fn of(file: &File, digest: &Digest) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            digest: *digest,
            bytes: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        })
    }
}

impl Cache {
    /// A store in that directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if it cannot be made or written.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let cache = Self { root: root.into() };
        for name in ["blobs", "refs", "marks", "partial", "quarantine"] {
            let path = cache.root.join(name);
            fs::create_dir_all(&path).map_err(|error| io_error(error, &path))?;
        }
        Ok(cache)
    }

    /// Where the blob of that digest is, if it is there with that length.
    pub(crate) fn find(&self, digest: &Digest, bytes: Option<u64>) -> Option<PathBuf> {
        let path = self.blob_path(digest);
        let metadata = fs::metadata(&path).ok()?;
        if bytes.is_some_and(|bytes| bytes != metadata.len()) {
            // Cut short by something that is not us.
            self.quarantine(digest);
            return None;
        }
        // Marks it as used; a read-only store is fine, it is only never cleaned by age.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(path)
    }

    /// All blobs, the longest unused first.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn list(&self) -> Result<Vec<Blob>> {
        let mut urls: HashMap<Digest, Vec<String>> = HashMap::new();
        for (path, _) in entries(&self.root.join("refs"))? {
            let found = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Ref>(&bytes).ok());
            if let Some(found) = found {
                urls.entry(found.digest).or_default().push(shown(&found.url));
            }
        }
        let mut blobs = Vec::new();
        for (path, metadata) in entries(&self.root.join("blobs"))? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(digest) = Digest::parse(name) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let urls = urls.remove(&digest).unwrap_or_default();
                blobs.push(Blob { digest, bytes: metadata.len(), used, urls });
            }
        }
        blobs.sort_by_key(|blob| (blob.used, blob.digest));
        Ok(blobs)
    }

    /// Reads every blob and puts those into quarantine that do not have their digest any more.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn verify(&self) -> Result<Verified> {
        let mut verified = Verified::default();
        for blob in self.list()? {
            let path = self.blob_path(&blob.digest);
            let found = File::open(&path).and_then(digest_of).map_err(|error| io_error(error, &path))?;
            if found == blob.digest {
                verified.good += 1;
            } else {
                self.quarantine(&blob.digest);
                verified.bad.push(blob.digest);
            }
        }
        Ok(verified)
    }

    /// Removes the longest unused blobs until at most `most_bytes` are left, what lies in quarantine, and partial
    /// downloads that nobody has touched for a week. Blobs that a process holds open are kept; where locks do
    /// nothing they may be removed, which does not disturb who holds them. Returns the bytes removed.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn clean(&self, most_bytes: u64) -> Result<u64> {
        let mut removed = 0;
        for (path, metadata) in entries(&self.root.join("quarantine"))? {
            removed += remove(&path, metadata.len());
        }
        let now = SystemTime::now();
        for (path, metadata) in entries(&self.root.join("partial"))? {
            let age =
                metadata.modified().ok().and_then(|time| now.duration_since(time).ok()).unwrap_or_default();
            if age > PARTIAL_LIFE && free(&path) {
                removed += remove(&path, metadata.len());
            }
        }
        let blobs = self.list()?;
        let mut total: u64 = blobs.iter().map(|blob| blob.bytes).sum();
        for blob in blobs {
            if total <= most_bytes {
                break;
            }
            let path = self.blob_path(&blob.digest);
            if free(&path) {
                let bytes = remove(&path, blob.bytes);
                removed += bytes;
                total -= bytes;
            }
        }
        Ok(removed)
    }

    /// Whether the file was verified against that digest and has the same inode, length and time since.
    pub(crate) fn is_marked(&self, path: &Path, file: &File, digest: &Digest) -> bool {
        let Ok(mark) = Mark::of(file, digest) else { return false };
        let found = fs::read(self.mark_path(path)).ok();
        found.and_then(|bytes| serde_json::from_slice::<Mark>(&bytes).ok()) == Some(mark)
    }

    /// Notes that the file was verified.
    pub(crate) fn mark(&self, path: &Path, file: &File, digest: &Digest) -> Result<()> {
        let mark = Mark::of(file, digest).map_err(|error| io_error(error, path))?;
        let bytes = serde_json::to_vec(&mark).expect("strings and numbers always serialise");
        self.replace(&self.mark_path(path), &bytes)
    }

    fn mark_path(&self, path: &Path) -> PathBuf {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.root.join("marks").join(format!("{}.json", key_of(&path.to_string_lossy())))
    }

    /// Puts a small file in another's place, durably and at once.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = self.root.join("partial").join(format!("{name}.{}.new", nonce()));
        write_durably(&partial, bytes)?;
        fs::rename(&partial, path).map_err(|error| {
            let _ = fs::remove_file(&partial);
            io_error(error, path)
        })?;
        sync_directory(path.parent().unwrap_or(&self.root))
    }

    fn quarantine(&self, digest: &Digest) {
        let to = self.root.join("quarantine").join(format!("{digest}.{}", nonce()));
        let from = self.blob_path(digest);
        if fs::rename(&from, to).is_err() {
            // Nothing may be served from there, even where it cannot be kept for a look.
            let _ = fs::remove_file(from);
        }
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.to_string())
    }

    /// A path in `partial` no other process or thread has.
    pub(crate) fn new_partial(&self, key: &Digest) -> PathBuf {
        self.root.join("partial").join(format!("{key}.{}.part", nonce()))
    }

    /// Partial downloads of `key` nobody is known to write, with what is noted of each, largest first.
    pub(crate) fn leftovers(&self, key: &Digest) -> Vec<(PathBuf, Option<Note>)> {
        let prefix = format!("{key}.");
        let mut found: Vec<_> = entries(&self.root.join("partial"))
            .unwrap_or_default()
            .into_iter()
            .filter(|(path, _)| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.starts_with(&prefix) && name.ends_with(".part") && free(path)
            })
            .collect();
        found.sort_by_key(|(_, metadata)| std::cmp::Reverse(metadata.len()));
        found
            .into_iter()
            .map(|(path, _)| {
                let note =
                    fs::read(tag_path(&path)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
                (path, note)
            })
            .collect()
    }

    /// Makes a finished partial visible under its digest, durably.
    pub(crate) fn install(&self, file: &File, partial: &Path, digest: &Digest) -> Result<PathBuf> {
        let path = self.blob_path(digest);
        file.sync_all().map_err(|error| io_error(error, partial))?;
        fs::rename(partial, &path).map_err(|error| io_error(error, &path))?;
        sync_directory(&self.root.join("blobs"))?;
        let _ = fs::remove_file(tag_path(partial));
        Ok(path)
    }

    pub(crate) fn read_ref(&self, url: &str) -> Option<Ref> {
        let bytes = fs::read(self.ref_path(url)).ok()?;
        let found: Ref = serde_json::from_slice(&bytes).ok()?;
        (found.url == url).then_some(found)
    }

    pub(crate) fn write_ref(&self, reference: &Ref) -> Result<()> {
        let path = self.ref_path(&reference.url);
        let bytes = serde_json::to_vec(reference).expect("strings and numbers always serialise");
        self.replace(&path, &bytes)
    }

    fn ref_path(&self, url: &str) -> PathBuf {
        self.root.join("refs").join(format!("{}.json", key_of(url)))
    }
}

/// The digest of a URL, which names what is kept about it.
pub(crate) fn key_of(url: &str) -> Digest {
    Digest(Sha256::digest(url.as_bytes()).into())
}

/// What is known of a partial download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The entity tag its bytes were sent under.
    pub(crate) etag: Option<String>,
    /// When the machine was running that wrote it: after a crash a file may hold zeros where bytes were written.
    pub(crate) boot: Option<String>,
    /// Which bytes it holds; `None` if it has no holes.
    pub(crate) have: Option<Vec<(u64, u64)>>,
}

/// Names the time since the machine was started, where the system does.
pub(crate) fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Where that is noted.
pub(crate) fn tag_path(partial: &Path) -> PathBuf {
    partial.with_extension("json")
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(path);
        io_error(error, path)
    })
}

pub(crate) fn digest_of(mut reader: impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(Digest(hasher.finalize().into())),
            read => hasher.update(&piece[..read]),
        }
    }
}

pub(crate) fn io_error(error: io::Error, path: &Path) -> Error {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if full {
        return Error::new(ErrorKind::Io, "no space left; free some or clean the cache")
            .about(path.display().to_string())
            .with_source(error);
    }
    Error::io(error, path.display().to_string())
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| io_error(error, path))
}

fn entries(directory: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| io_error(error, directory))? {
        let entry = entry.map_err(|error| io_error(error, directory))?;
        // What vanishes meanwhile was another process's.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            found.push((entry.path(), metadata));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Whether no process is known to hold the file.
fn free(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

fn remove(path: &Path, bytes: u64) -> u64 {
    if fs::remove_file(path).is_ok() { bytes } else { 0 }
}

/// Unique among processes and threads of this machine and, with high probability, of others.
fn nonce() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{:x}-{:x}-{:x}", std::process::id(), time, COUNT.fetch_add(1, Ordering::Relaxed))
}
