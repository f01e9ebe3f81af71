//! Hints to the system about what of a file will be read.

use std::fs::File;
use std::ops::Range;

/// Has the system begin to read a range. Only a hint: nothing depends on it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn will_need(file: &File, range: &Range<u64>) {
    use rustix::fs::{Advice, fadvise};
    let len = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
    if len.is_some() {
        let _ = fadvise(file, range.start, len, Advice::WillNeed);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn will_need(_: &File, _: &Range<u64>) {}
