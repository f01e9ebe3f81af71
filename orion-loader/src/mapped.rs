//! Files of our own cache, mapped.
#![allow(unsafe_code, reason = "mapping a file is unsafe; this module is the only one that does")]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// A mapped file of the cache, and the file, whose lock tells others that it is in use.
pub(crate) struct Mapped {
    map: Mmap,
    file: File,
}

impl Mapped {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let _ = file.try_lock_shared();
        // SAFETY: the map must not change while it is borrowed. Blobs of the cache are never written again after the
        // rename that made them visible; they are only unlinked, which leaves their pages in place. A user who
        // writes into the cache's own directory is beyond what can be defended against.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map, file })
    }

    /// Bytes that can be read now: somebody may have cut the file since it was mapped.
    pub(crate) fn len_now(&self) -> u64 {
        let now = self.file.metadata().map_or(0, |metadata| metadata.len());
        now.min(self.map.len() as u64)
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
