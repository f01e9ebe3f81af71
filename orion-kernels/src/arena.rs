//! Memory for the weights of one model, side by side.
//!
//! A decoding step streams through all weights. In small pages it pays for an address translation every 4 KB, in a
//! virtual machine for a nested one; most matrices of a small model are too short for a huge page of their own.
#![allow(unsafe_code, reason = "parts of a mapping are handed out, and the system is told how it is used")]

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};

use crate::aligned::{AlignedBuf, Plain, avoid_huge_pages, prefer_huge_pages};

const HUGE_PAGE: usize = 2 << 20;
/// Bytes taken from the system at a time. What is not written to costs addresses and no memory.
const REGION: usize = 32 << 20;

/// Clearing a huge page takes tenths of a millisecond, a few milliseconds where a hypervisor has to find it first. A system that
/// needs longer has none at hand, and moves others' memory to make one: whoever fills it would wait for that.
const AT_HAND: Duration = Duration::from_millis(4);

/// Hands out zeroed memory of the same regions, in huge pages as long as the system has some at hand; they go back to the
/// system with the last buffer in them.
#[derive(Default)]
pub struct Arena {
    regions: Mutex<Vec<Filling>>,
    /// Huge pages whatever that takes, for what is written to little by little and read often.
    huge: bool,
}

/// A region and the bytes of it that are handed out.
struct Filling {
    region: Arc<Region>,
    used: usize,
}

/// A mapping that begins with a huge page.
pub(crate) struct Region {
    map: MmapRaw,
    skip: usize,
}

impl Region {
    fn new(bytes: usize, huge: bool) -> Option<Self> {
        let map: MmapRaw = MmapOptions::new().len(bytes.checked_add(HUGE_PAGE)?).map_anon().ok()?.into();
        let skip = map.as_ptr().addr().wrapping_neg() % HUGE_PAGE;
        let region = Self { map, skip };
        let whole = region.len() / HUGE_PAGE * HUGE_PAGE;
        prefer_huge_pages(region.at(0), whole);
        if !huge && whole > 0 && region.begin() > AT_HAND {
            // What is written to from here on comes in small pages, and may settle later.
            avoid_huge_pages(region.at(0), whole);
        }
        Some(region)
    }

    /// How long the system takes for the first page.
    fn begin(&self) -> Duration {
        let began = Instant::now();
        // SAFETY: the region is not empty, and nobody else has it yet. It is zero as before.
        unsafe { self.at(0).write_volatile(0) };
        began.elapsed()
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(self.skip + offset)
    }

    fn len(&self) -> usize {
        self.map.len() - HUGE_PAGE
    }
}

impl Arena {
    /// An arena whose memory is in huge pages whatever that takes.
    pub(crate) fn huge() -> Self {
        Self { huge: true, ..Self::default() }
    }

    /// `len` zeroes that nobody else has, the first on a cache line; from the allocator if the system has no region left.
    pub(crate) fn zeroed<T: Plain>(&self, len: usize) -> AlignedBuf<T> {
        let bytes = (len * size_of::<T>()).next_multiple_of(64);
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if regions.last().is_none_or(|last| last.region.len() - last.used < bytes) {
            let Some(region) = Region::new(bytes.max(REGION), self.huge) else {
                return AlignedBuf::zeroed(len);
            };
            regions.push(Filling { region: Arc::new(region), used: 0 });
        }
        let Some(last) = regions.last_mut() else { return AlignedBuf::zeroed(len) };
        let offset = last.used;
        last.used += bytes;
        AlignedBuf::in_region(last.region.clone(), offset, len)
    }

    /// Has the system move what is written to huge pages, where it is in small ones, one after the other as long as `go_on`
    /// says so. It changes no content, and a system that cannot is left alone.
    pub fn settle(&self, mut go_on: impl FnMut() -> bool) {
        let regions: Vec<(Arc<Region>, usize)> = {
            let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
            regions.iter().map(|filling| (filling.region.clone(), filling.used)).collect()
        };
        for (region, used) in regions {
            // What was told to avoid them would not be moved.
            prefer_huge_pages(region.at(0), region.len() / HUGE_PAGE * HUGE_PAGE);
            // A last page that is hardly used would cost more memory than it saves time.
            for offset in (0..used.saturating_sub(HUGE_PAGE / 2)).step_by(HUGE_PAGE) {
                if !go_on() || !to_huge_page(region.at(offset)) {
                    return;
                }
            }
        }
    }
}

/// Takes the pages of what is about to be filled in one call, which costs a fraction of a fault for each. Where the system
/// cannot, they come one by one.
pub(crate) fn populate(bytes: &mut [u8]) {
    #[cfg(target_os = "linux")]
    {
        // Not yet a name in libc for every C library.
        const MADV_POPULATE_WRITE: libc::c_int = 23;
        // Where pages are larger the system refuses what does not begin with one, and nothing is lost.
        const PAGE: usize = 4 << 10;
        let before = bytes.as_ptr().addr() % PAGE;
        let start = bytes.as_mut_ptr().wrapping_sub(before);
        // SAFETY: these are the pages that hold the bytes, and the advice changes no content.
        unsafe { libc::madvise(start.cast(), before + bytes.len(), MADV_POPULATE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

/// Whether it is worth to go on with others.
#[cfg(target_os = "linux")]
fn to_huge_page(start: *mut u8) -> bool {
    // Not yet a name in libc for every C library.
    const MADV_COLLAPSE: libc::c_int = 25;
    // SAFETY: the range lies within a mapping of ours, and the advice changes none of its contents.
    let done = unsafe { libc::madvise(start.cast(), HUGE_PAGE, MADV_COLLAPSE) } == 0;
    done || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL)
}

#[cfg(not(target_os = "linux"))]
fn to_huge_page(_: *mut u8) -> bool {
    false
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Arena({} bytes)", regions.iter().map(|filling| filling.used).sum::<usize>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_apart_and_whole_after_they_settle() {
        let arena = Arena::default();
        let sizes = [1, 64, 100, 3 << 20, REGION, 0, 5 << 20, 7];
        let mut buffers: Vec<_> = sizes.iter().map(|&len| arena.zeroed::<u8>(len)).collect();
        for (value, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.iter().all(|&byte| byte == 0));
            assert_eq!(buffer.as_ptr().addr() % 64, 0);
            buffer.fill(value as u8 + 1);
        }
        let mut steps = 0;
        arena.settle(|| {
            steps += 1;
            true
        });
        assert!(steps > 0);
        drop(arena);
        for ((value, buffer), len) in buffers.iter().enumerate().zip(sizes) {
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&byte| byte == value as u8 + 1));
        }
    }

    #[test]
    fn settling_stops_when_it_is_told() {
        let arena = Arena::default();
        let _buffer = arena.zeroed::<u8>(20 << 20);
        let mut steps = 0;
        arena.settle(|| {
            steps += 1;
            steps < 3
        });
        assert!(steps <= 3);
    }
}
