//! Which files each attempt has brought here: those it sent, and those of its own job that were here already. A report counts only with files
//! that its attempt has brought, because who knows the hash of a file need not know what is in it.
//!
//! It is in memory alone. After a restart a file that no report has named yet is offered again, and sent again.
//!
//! A file *waits* from when it is here until a report names it, or one that was brought later: it was given up then, or is of a report
//! that is as good as here.

use super::lock;
use lorikeet_protocol::id::{AttemptId, Hash};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Files of one attempt that are remembered: some checkpoints' worth, and more than four reports may name.
pub(super) const FILES: usize = 1_024;

/// Of every attempt that brought any.
#[derive(Debug, Default)]
pub(super) struct Brought {
    attempts: Mutex<HashMap<AttemptId, HashMap<Hash, File>>>,
    /// How many were noted.
    noted: AtomicU64,
}

/// What it took to bring one.
#[derive(Debug, Clone, Copy)]
struct File {
    /// Bytes that were written for it.
    size: u64,
    /// How many were noted before it.
    order: u64,
    /// Whether a report may name it yet for the first time.
    waits: bool,
}

impl Brought {
    pub(super) fn has(&self, attempt: AttemptId, file: Hash) -> bool {
        lock(&self.attempts).get(&attempt).is_some_and(|files| files.contains_key(&file))
    }

    /// Files that wait for a report, and their bytes.
    pub(super) fn waiting(&self, attempt: AttemptId) -> (usize, u64) {
        let brought = lock(&self.attempts);
        let files = brought.get(&attempt).into_iter().flat_map(HashMap::values).filter(|file| file.waits);
        files.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.size))
    }

    /// It is here whole, and so many bytes were written for that. Of the attempts of a job only one goes on.
    pub(super) fn note(&self, attempt: AttemptId, file: Hash, size: u64) {
        let order = self.noted.fetch_add(1, Ordering::Relaxed);
        let mut brought = lock(&self.attempts);
        brought.retain(|other, _| other.job != attempt.job || other.token >= attempt.token);
        let files = brought.entry(attempt).or_default();
        if files.len() >= FILES {
            files.retain(|_, file| file.waits);
        }
        files.entry(file).or_insert(File { size, order, waits: true });
    }

    /// A report names these.
    pub(super) fn reported(&self, attempt: AttemptId, named: &[Hash]) {
        let mut brought = lock(&self.attempts);
        let Some(files) = brought.get_mut(&attempt) else { return };
        let last = named.iter().filter_map(|hash| files.get(hash)).map(|file| file.order).max();
        files.values_mut().filter(|file| Some(file.order) <= last).for_each(|file| file.waits = false);
    }

    /// Attempts that brought any.
    pub(super) fn attempts(&self) -> BTreeSet<AttemptId> {
        lock(&self.attempts).keys().copied().collect()
    }

    /// Nothing more is heard of these.
    pub(super) fn forget(&self, attempt: AttemptId) {
        lock(&self.attempts).remove(&attempt);
    }

    /// It is here no longer: who brought it would have to bring it again.
    pub(super) fn gone(&self, file: Hash) {
        lock(&self.attempts).values_mut().for_each(|files| files.retain(|hash, _| *hash != file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::{AttemptToken, JobId};

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId(uuid::Uuid::from_u128(1)), token: AttemptToken { generation: 1, number } }
    }

    #[test]
    fn what_was_reported_or_given_up_before_counts_no_more_and_is_known_still() {
        let (brought, [given_up, one, two]) = (Brought::default(), [0, 1, 2].map(|byte| Hash([byte; 32])));
        for (file, size) in [(given_up, 3), (one, 5), (two, 7)] {
            brought.note(attempt(1), file, size);
        }
        brought.reported(attempt(1), &[Hash([9; 32])]);
        assert_eq!(brought.waiting(attempt(1)), (3, 15), "it has brought no such file");
        brought.reported(attempt(1), &[one, Hash([9; 32])]);
        assert_eq!(brought.waiting(attempt(1)), (1, 7), "the one that came later has a report to come");
        assert!([given_up, one].iter().all(|file| brought.has(attempt(1), *file)));
        assert!(!brought.has(attempt(1), Hash([9; 32])));
        assert!(!brought.has(attempt(2), one), "it is the attempt's, not the job's");
        brought.note(attempt(2), one, 5);
        assert!(!brought.has(attempt(1), one), "the one before is over");
    }

    #[test]
    fn no_attempt_is_remembered_without_end_nor_a_file_that_is_gone() {
        let brought = Brought::default();
        for file in 0..FILES as u64 + 9 {
            let hash = Hash(*blake3::hash(&file.to_le_bytes()).as_bytes());
            brought.note(attempt(1), hash, 1);
            brought.reported(attempt(1), &[hash]);
        }
        assert!(lock(&brought.attempts)[&attempt(1)].len() <= FILES);
        brought.note(attempt(1), Hash([1; 32]), 5);
        brought.gone(Hash([1; 32]));
        assert_eq!(brought.waiting(attempt(1)), (0, 0));
        brought.forget(attempt(1));
        assert!(brought.attempts().is_empty());
    }
}
