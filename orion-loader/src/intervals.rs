//! Sets of byte ranges: what has arrived, what is on its way.

use std::ops::Range;

/// Disjoint ranges in ascending order, never touching each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Intervals(Vec<Range<u64>>);

impl Intervals {
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end < range.start);
        let behind = self.0.partition_point(|other| other.start <= range.end);
        let merged = match self.0.get(first..behind) {
            Some([from, .., to]) => from.start.min(range.start)..to.end.max(range.end),
            Some([only]) => only.start.min(range.start)..only.end.max(range.end),
            _ => range,
        };
        self.0.splice(first..behind, [merged]);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let old = std::mem::take(&mut self.0);
        for other in old {
            self.0.extend(
                [other.start..other.end.min(range.start), other.start.max(range.end)..other.end]
                    .into_iter()
                    .filter(|part| !part.is_empty()),
            );
        }
    }

    pub(crate) fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.end_of(range.start) >= range.end
    }

    /// The end of the range that holds `at`, or `at` itself.
    pub(crate) fn end_of(&self, at: u64) -> u64 {
        let index = self.0.partition_point(|other| other.end <= at);
        self.0.get(index).filter(|other| other.start <= at).map_or(at, |other| other.end)
    }

    /// The first part of `within` that is not in the set.
    pub(crate) fn gap(&self, within: &Range<u64>) -> Option<Range<u64>> {
        let start = self.end_of(within.start);
        if start >= within.end {
            return None;
        }
        let index = self.0.partition_point(|other| other.start <= start);
        let end = self.0.get(index).map_or(within.end, |next| next.start.min(within.end));
        Some(start..end)
    }

    /// What of the set lies in a range.
    pub(crate) fn within(&self, range: &Range<u64>) -> Self {
        let cut = self.0.iter().map(|other| other.start.max(range.start)..other.end.min(range.end));
        Self(cut.filter(|part| !part.is_empty()).collect())
    }

    /// Bytes in all.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    pub(crate) fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the set of all numbers below 24, one by one.
    #[test]
    fn a_set_of_ranges_is_a_set_of_numbers() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut set, mut reference) = (Intervals::default(), [false; 24]);
        for _ in 0..20_000 {
            let (a, b) = (random(24), random(24));
            let range = a.min(b)..a.max(b);
            let insert = random(2) == 0;
            range.clone().for_each(|n| reference[n as usize] = insert);
            if insert {
                set.insert(range)
            } else {
                set.remove(range)
            };
            assert!(set.ranges().windows(2).all(|pair| pair[0].end < pair[1].start), "{set:?}");
            assert_eq!(set.total(), reference.iter().filter(|there| **there).count() as u64);
            let (c, d) = (random(24), random(24));
            let asked = c.min(d)..c.max(d);
            let missing: Vec<u64> = asked.clone().filter(|&n| !reference[n as usize]).collect();
            assert_eq!(set.contains(&asked), missing.is_empty(), "{set:?} {asked:?}");
            let gap = missing.first().map(|&first| {
                first..(first..asked.end).find(|&n| reference[n as usize]).unwrap_or(asked.end)
            });
            assert_eq!(set.gap(&asked), gap, "{set:?} {asked:?}");
            assert_eq!(set.within(&asked).total(), asked.end - asked.start - missing.len() as u64);
        }
    }
}
