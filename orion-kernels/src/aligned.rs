//! Buffers that start on a cache line.
#![allow(unsafe_code, reason = "a vector of integers is viewed as a slice of plain numbers")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;

use crate::arena::Region;

/// Values per allocation unit; arrays of integers are what the allocator can hand out zeroed without touching them.
type Unit = [u64; 8];

mod sealed {
    /// Types of which every bit pattern is a value.
    pub trait Plain: Copy + Send + Sync + 'static {}
    impl Plain for u8 {}
    impl Plain for i8 {}
    impl Plain for u16 {}
    impl Plain for i16 {}
    impl Plain for i32 {}
    impl Plain for f32 {}
}
pub(crate) use sealed::Plain;

/// A fixed number of numbers, the first of them 64-byte aligned, all zero at first. Memory is taken as it is touched.
pub struct AlignedBuf<T> {
    storage: Storage,
    /// Bytes before the first aligned one.
    skip: usize,
    len: usize,
    of: PhantomData<T>,
}

enum Storage {
    Heap(Vec<Unit>),
    /// A mapping of its own goes back to the system as soon as it is dropped; what the allocator gets back it may keep.
    Mapping(MmapMut),
    /// A part that no other buffer has.
    Part(Arc<Region>, usize),
}

impl Storage {
    fn zeroed(bytes: usize) -> Self {
        if bytes >= OWN_MAPPING
            && let Ok(mapping) = MmapMut::map_anon(bytes)
        {
            return Self::Mapping(mapping);
        }
        Self::Heap(vec![[0; 8]; bytes.div_ceil(size_of::<Unit>())])
    }

    fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Heap(units) => units.as_ptr().cast(),
            Self::Mapping(mapping) => mapping.as_ptr(),
            Self::Part(region, offset) => region.at(*offset),
        }
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Self::Heap(units) => units.as_mut_ptr().cast(),
            Self::Mapping(mapping) => mapping.as_mut_ptr(),
            Self::Part(region, offset) => region.at(*offset),
        }
    }
}

impl<T: Plain> AlignedBuf<T> {
    /// `len` zeroes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        // The allocation itself is only aligned to eight bytes, so room to move up is added.
        let align = if bytes >= LARGE { HUGE_PAGE } else { size_of::<Unit>() };
        let storage = Storage::zeroed(bytes + align);
        let skip = storage.as_ptr().addr().wrapping_neg() % align;
        let mut buffer = Self { storage, skip, len, of: PhantomData };
        if bytes >= LARGE {
            prefer_huge_pages(buffer.as_mut_ptr().cast(), bytes / HUGE_PAGE * HUGE_PAGE);
        }
        buffer
    }

    /// The `len` values from `offset` bytes on, a multiple of 64: the caller's alone, and within the region.
    pub(crate) fn in_region(region: Arc<Region>, offset: usize, len: usize) -> Self {
        Self { storage: Storage::Part(region, offset), skip: 0, len, of: PhantomData }
    }
}

/// Sizes from which on a buffer is a mapping of its own: matrices, not what a step of them needs.
const OWN_MAPPING: usize = 128 << 10;
/// Sizes from which on huge pages pay: fewer faults while packing, fewer address translations while streaming.
const LARGE: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages; what the system makes of it changes no result.
#[cfg(target_os = "linux")]
pub(crate) fn prefer_huge_pages(start: *mut u8, bytes: usize) {
    // SAFETY: the range lies within one allocation of ours, and the advice changes none of its contents.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// Takes that back for what has not been written to yet.
#[cfg(target_os = "linux")]
pub(crate) fn avoid_huge_pages(start: *mut u8, bytes: usize) {
    // SAFETY: as above.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_NOHUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn prefer_huge_pages(_: *mut u8, _: usize) {}

#[cfg(not(target_os = "linux"))]
pub(crate) fn avoid_huge_pages(_: *mut u8, _: usize) {}

impl<T: Plain> Clone for AlignedBuf<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Plain> Default for AlignedBuf<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Plain> Deref for AlignedBuf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: behind `skip` bytes there is room for `len` values of `T`, any bits are a `T`, and 64 bytes suit its
        // alignment. The storage is never resized, so it stays where it was.
        unsafe { std::slice::from_raw_parts(self.storage.as_ptr().byte_add(self.skip).cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for AlignedBuf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(self.storage.as_mut_ptr().byte_add(self.skip).cast(), self.len)
        }
    }
}

impl AsRef<[u8]> for AlignedBuf<u8> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<T> fmt::Debug for AlignedBuf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} values)", self.len)
    }
}
