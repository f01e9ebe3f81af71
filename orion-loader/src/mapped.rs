//! Files of our own cache, and of directories whose owner promises the same, mapped.
#![allow(unsafe_code, reason = "mapping a file is unsafe; this module is the only one that does")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use orion_core::{Result, TensorBytes};
use orion_formats::Reason;

/// A mapped file, and the file, whose lock tells others that it is in use.
pub(crate) struct Mapped {
    map: Mmap,
    file: File,
}

impl Mapped {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let _ = file.try_lock_shared();
        // SAFETY: the map must not change while it is borrowed. Blobs of the cache are never written again after the
        // rename that made them visible; they are only unlinked, which leaves their pages in place. A user who
        // writes into the cache's own directory is beyond what can be defended against. Of other directories a
        // program promises the same by `LoaderOptions::map_shard_sets`.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map, file })
    }

    /// A part of it, unless somebody has cut the file since it was mapped: reading pages that are gone would end the
    /// process.
    pub(crate) fn window(map: &Arc<Self>, range: Range<usize>) -> Result<TensorBytes> {
        let now = map.file.metadata().map_or(0, |metadata| metadata.len());
        if range.end as u64 > now.min(map.map.len() as u64) {
            return Err(Reason::Truncated.error("the shard was cut short"));
        }
        Ok(TensorBytes::shared(Arc::<Self>::clone(map), range))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
