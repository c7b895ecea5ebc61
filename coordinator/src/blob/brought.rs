//! Which files each attempt has brought here: those it sent, and those of its own job that were here already. A report counts only with files
//! that its attempt has brought, because who knows the hash of a file need not know what is in it.
//!
//! It is in memory alone. After a restart a file that no report has named yet is offered again, and sent again.

use super::lock;
use lorikeet_protocol::id::{AttemptId, Hash};
use std::{collections::HashMap, sync::Mutex, time::SystemTime};

/// Files of one attempt that are remembered: some checkpoints' worth, and more than four reports may name.
pub(super) const FILES: usize = 1_024;

/// Of every attempt that brought any.
#[derive(Debug, Default)]
pub(super) struct Brought(Mutex<HashMap<AttemptId, HashMap<Hash, File>>>);

/// What it took to bring one.
#[derive(Debug, Clone, Copy)]
struct File {
    /// Bytes that were written for it.
    size: u64,
    /// Whether a report has named it, and so records say whose it is.
    is_reported: bool,
    since: SystemTime,
}

impl Brought {
    pub(super) fn has(&self, attempt: AttemptId, file: Hash) -> bool {
        lock(&self.0).get(&attempt).is_some_and(|files| files.contains_key(&file))
    }

    /// Files that no report has named yet, and their bytes.
    pub(super) fn unreported(&self, attempt: AttemptId) -> (usize, u64) {
        let brought = lock(&self.0);
        let files = brought.get(&attempt).into_iter().flat_map(HashMap::values).filter(|file| !file.is_reported);
        files.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.size))
    }

    /// It is here whole, and so many bytes were written for that. Of the attempts of a job only one goes on.
    pub(super) fn note(&self, attempt: AttemptId, file: Hash, size: u64) {
        let mut brought = lock(&self.0);
        brought.retain(|other, _| other.job != attempt.job || other.token >= attempt.token);
        let files = brought.entry(attempt).or_default();
        if files.len() >= FILES {
            files.retain(|_, file| !file.is_reported);
        }
        files.entry(file).or_insert(File { size, is_reported: false, since: SystemTime::now() });
    }

    /// A report names these.
    pub(super) fn reported(&self, attempt: AttemptId, named: &[Hash]) {
        let mut brought = lock(&self.0);
        let Some(files) = brought.get_mut(&attempt) else { return };
        for hash in named {
            if let Some(file) = files.get_mut(hash) {
                file.is_reported = true;
            }
        }
    }

    /// Nothing more is heard of these.
    pub(super) fn forget(&self, attempt: AttemptId) {
        lock(&self.0).remove(&attempt);
    }

    /// What was brought before then is not waited for any longer.
    pub(super) fn sweep(&self, before: SystemTime) {
        lock(&self.0).retain(|_, files| {
            files.retain(|_, file| file.since >= before);
            !files.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::{AttemptToken, JobId};
    use std::time::Duration;

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId(uuid::Uuid::from_u128(1)), token: AttemptToken { generation: 1, number } }
    }

    #[test]
    fn what_was_reported_counts_no_more_and_is_known_still() {
        let (brought, [one, two]) = (Brought::default(), [Hash([1; 32]), Hash([2; 32])]);
        brought.note(attempt(1), one, 5);
        brought.note(attempt(1), two, 7);
        brought.reported(attempt(1), &[one, Hash([9; 32])]);
        assert_eq!(brought.unreported(attempt(1)), (1, 7));
        assert!(brought.has(attempt(1), one) && !brought.has(attempt(1), Hash([9; 32])));
        assert!(!brought.has(attempt(2), one), "it is the attempt's, not the job's");
        brought.note(attempt(2), one, 5);
        assert!(!brought.has(attempt(1), one), "the one before is over");
    }

    #[test]
    fn no_attempt_is_remembered_for_ever_nor_without_end() {
        let brought = Brought::default();
        for file in 0..FILES as u64 + 9 {
            let hash = Hash(*blake3::hash(&file.to_le_bytes()).as_bytes());
            brought.note(attempt(1), hash, 1);
            brought.reported(attempt(1), &[hash]);
        }
        assert!(lock(&brought.0)[&attempt(1)].len() <= FILES);
        brought.sweep(SystemTime::now() + Duration::from_secs(9));
        assert!(lock(&brought.0).is_empty());
    }
}
