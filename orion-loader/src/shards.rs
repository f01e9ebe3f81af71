//! Shard sets in local directories: read or mapped, and verified chunk by chunk when they are first used.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use orion_core::{Digest, Error, ModelHeader, Result, TensorBytes, WeightSource};
use orion_formats::{FileEntry, Reason, ShardSet, gguf};
use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::file::OpenFile;
use crate::mapped::Mapped;
use crate::memory::no_tensor;
use crate::open::{LONGEST_INDEX, inside, parent};
use crate::rows;

/// Most bytes of a side file or of the metadata.
pub(crate) const LONGEST_SIDE_FILE: u64 = 256 << 20;

/// A shard set in a directory that is not ours. Nothing is mapped unless that is asked for, and no byte is handed out
/// that was not verified: by its chunk's digest, or because the shard was verified before and has the same inode, length
/// and time since.
pub(crate) struct ShardSource {
    header: ModelHeader,
    set: ShardSet,
    files: Vec<OpenFile>,
    /// Per shard: which chunks are still to be verified.
    unverified: Vec<Mutex<Unverified>>,
    /// The shards, where they are mapped.
    maps: Option<Vec<Arc<Mapped>>>,
    cache: Option<Cache>,
}

struct Unverified {
    chunks: Vec<bool>,
    left: usize,
}

impl ShardSource {
    /// Opens a set by its manifest. With a cache, what was verified before is not verified again.
    pub(crate) fn open(manifest: &OpenFile, cache: Option<&Cache>, map: bool) -> Result<Self> {
        let set = ShardSet::parse(&manifest.all(LONGEST_INDEX)?)
            .map_err(|error| error.about(manifest.subject()))?;
        let directory = parent(&manifest.path);
        let files =
            set.shards.iter().map(|shard| open_entry(directory, &shard.entry)).collect::<Result<Vec<_>>>()?;
        let mut metadata = Default::default();
        if let Some(entry) = &set.metadata {
            let bytes = read_entry(directory, entry)?;
            let header =
                gguf::parse(&bytes, bytes.len() as u64).map_err(|error| error.about(entry.file.clone()))?;
            metadata = header.model.metadata;
        }
        let mut header = set.model(metadata);
        header.digest = Some(set_digest(&set));
        for entry in &set.side_files {
            header.side_files.insert(entry.file.clone(), read_entry(directory, entry)?.into());
        }
        let unverified = set.shards.iter().zip(&files).map(|(shard, file)| {
            let known =
                cache.is_some_and(|cache| cache.is_marked(&file.path, &file.file, &shard.entry.digest));
            let left = if known { 0 } else { shard.chunks.len() };
            Mutex::new(Unverified { chunks: vec![!known; shard.chunks.len()], left })
        });
        let unverified = unverified.collect();
        let map_one = |file: &OpenFile| -> Result<Arc<Mapped>> {
            let mapped = file.file.try_clone().and_then(Mapped::new);
            mapped.map(Arc::new).map_err(|error| file.io(error))
        };
        let maps = map.then(|| files.iter().map(map_one).collect::<Result<_>>()).transpose()?;
        Ok(Self { header, set, files, unverified, maps, cache: cache.cloned() })
    }

    /// Verifies the chunks that hold a range of a shard, those that were not yet.
    fn verify(&self, number: usize, range: &Range<u64>) -> Result<()> {
        let mut unverified = self.unverified[number].lock().unwrap_or_else(PoisonError::into_inner);
        if unverified.left == 0 || range.is_empty() {
            return Ok(());
        }
        let (shard, file) = (&self.set.shards[number], &self.files[number]);
        let (first, last) = (range.start / self.set.chunk_bytes, (range.end - 1) / self.set.chunk_bytes);
        for number in first..=last {
            let index = usize::try_from(number).map_err(|_| Error::corrupt("exceeds the address space"))?;
            if !unverified.chunks[index] {
                continue;
            }
            let start = number * self.set.chunk_bytes;
            let chunk = file.range(start, self.set.chunk_bytes.min(shard.entry.bytes - start))?;
            if Digest(Sha256::digest(&chunk).into()) != shard.chunks[index] {
                return Err(Reason::HashMismatch
                    .error(format!("the chunk at byte {start} does not have its digest"))
                    .about(file.subject()));
            }
            unverified.chunks[index] = false;
            unverified.left -= 1;
        }
        if unverified.left == 0
            && let Some(cache) = &self.cache
        {
            cache.mark(&file.path, &file.file, &shard.entry.digest)?;
        }
        Ok(())
    }
}

impl WeightSource for ShardSource {
    fn header(&self) -> &ModelHeader {
        &self.header
    }

    fn tensor(&self, index: usize) -> Result<TensorBytes> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        let read = || {
            self.verify(info.file, &(info.offset..info.offset + info.bytes))?;
            match &self.maps {
                Some(maps) => Mapped::window(&maps[info.file], info.range()?)
                    .map_err(|error| error.about(self.files[info.file].subject())),
                None => self.files[info.file].aligned(info.offset, info.bytes),
            }
        };
        read().map_err(|error| error.about(format!("tensor {}", info.name)))
    }

    fn rows(&self, index: usize, rows: &[u32]) -> Result<TensorBytes> {
        let info = self.header.tensors.get(index).ok_or_else(|| no_tensor(index, &self.header))?;
        let ranges = rows::ranges(info, rows)?;
        ranges.iter().try_for_each(|range| self.verify(info.file, range))?;
        self.files[info.file].ranges(&ranges).map(TensorBytes::from)
    }
}

impl fmt::Debug for ShardSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.files.iter().map(|file| &file.path)).finish()
    }
}

/// The digest of all weights of a set: of its shards' digests in order.
pub(crate) fn set_digest(set: &ShardSet) -> Digest {
    let mut hasher = Sha256::new();
    set.shards.iter().for_each(|shard| hasher.update(shard.entry.digest.0));
    Digest(hasher.finalize().into())
}

fn path_of(directory: &Path, entry: &FileEntry) -> Result<PathBuf> {
    inside(directory, &entry.file)
}

fn open_entry(directory: &Path, entry: &FileEntry) -> Result<OpenFile> {
    let file = OpenFile::open(&path_of(directory, entry)?)?;
    if file.len != entry.bytes {
        return Err(Reason::HashMismatch
            .error(format!("has {} bytes, the manifest says {}", file.len, entry.bytes))
            .about(file.subject()));
    }
    Ok(file)
}

fn read_entry(directory: &Path, entry: &FileEntry) -> Result<Vec<u8>> {
    let file = open_entry(directory, entry)?;
    let bytes = file.all(LONGEST_SIDE_FILE)?;
    if Digest(Sha256::digest(&bytes).into()) == entry.digest {
        return Ok(bytes);
    }
    Err(Reason::HashMismatch.error("does not have the digest the manifest says").about(file.subject()))
}
