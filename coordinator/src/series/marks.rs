//! Where records begin, as far as readers have seen: so that reading on begins where reading ended, and not at the beginning of a
//! segment each time.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Bytes between two marks of a segment: more are read and checked in less than a millisecond.
const SPARSE: u64 = 64 << 10;
/// Segments that are remembered; beyond that all are forgotten, and learnt again by who reads on.
const SEGMENTS: usize = 4_096;

/// Of each segment, where some of its records begin.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<HashMap<PathBuf, Segment>>);

#[derive(Debug, Default)]
struct Segment {
    /// Offsets by the first line's `seq`.
    sparse: BTreeMap<u64, u64>,
    /// The last record that was read: where a follower goes on.
    last: (u64, u64),
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Segment>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a record begins at or before which the line `seq` is to be looked for.
    pub(super) fn before(&self, path: &Path, seq: u64) -> Option<u64> {
        let segments = self.lock();
        let segment = segments.get(path)?;
        let (first, offset) = segment.last;
        let last = (first <= seq).then_some(offset);
        last.max(segment.sparse.range(..=seq).next_back().map(|(_, offset)| *offset))
    }

    /// Another segment may come to have this name.
    pub(super) fn forget(&self, path: &Path) {
        self.lock().remove(path);
    }

    /// A good record, synced, begins here.
    pub(super) fn put(&self, path: &Path, first: u64, offset: u64) {
        let mut segments = self.lock();
        if segments.len() >= SEGMENTS && !segments.contains_key(path) {
            segments.clear();
        }
        let segment = segments.entry(path.to_owned()).or_default();
        segment.last = (first, offset);
        let farthest = segment.sparse.last_key_value().map_or(0, |(_, offset)| *offset);
        if offset >= farthest + SPARSE {
            segment.sparse.insert(first, offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_record_is_found_and_never_one_behind() {
        let (marks, path) = (Marks::default(), Path::new("a.seg"));
        assert_eq!(marks.before(path, 1), None);
        for (first, offset) in [(1, 8), (10, 100_000), (20, 100_100), (30, 200_000), (40, 200_010)] {
            marks.put(path, first, offset);
        }
        let found = |seq| marks.before(path, seq);
        assert_eq!(
            [9, 10, 29, 35, 40, 99].map(found),
            [None, Some(100_000), Some(100_000), Some(200_000), Some(200_010), Some(200_010)]
        );
        // Somebody read at the beginning again: what is known of the rest stays.
        marks.put(path, 1, 8);
        assert_eq!(marks.before(path, 35), Some(200_000));
        marks.forget(path);
        assert_eq!(marks.before(path, 35), None);
    }
}
