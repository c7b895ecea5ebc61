//! What was made of each attempt's lines so far, kept in memory, so that whoever asks again reads only what came since: lines do not
//! change, so what was learnt of them is only ever added to.

use crate::series::Missing;
use lorikeet_protocol::id::AttemptId;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Of every attempt whose lines somebody asked for; `T` is cheap to clone, and its size is told by who makes it.
#[derive(Debug)]
pub(super) struct Learnt<T> {
    known: Mutex<HashMap<AttemptId, Known<T>>>,
    /// Of all attempts together. Beyond that all are forgotten.
    most: usize,
}

/// Of one attempt's lines up to `through`.
#[derive(Debug, Clone, Default)]
pub(super) struct Known<T> {
    /// The last line that was read.
    pub(super) through: u64,
    /// What was made of them.
    pub(super) what: T,
    /// Lines before `through` that cannot be read.
    pub(super) missing: Vec<Missing>,
    /// How much room that takes.
    pub(super) size: usize,
}

impl<T: Clone + Default> Learnt<T> {
    pub(super) fn new(most: usize) -> Self {
        Self { known: Mutex::default(), most }
    }

    /// What is known of an attempt; nothing at first.
    pub(super) fn of(&self, attempt: AttemptId) -> Known<T> {
        self.lock().get(&attempt).cloned().unwrap_or_default()
    }

    /// Keeps what was learnt, unless somebody else has come further meanwhile.
    pub(super) fn keep(&self, attempt: AttemptId, learnt: Known<T>) {
        let mut known = self.lock();
        if known.get(&attempt).is_some_and(|known| known.through >= learnt.through) {
            return;
        }
        let others: usize = known.iter().filter(|(id, _)| **id != attempt).map(|(_, known)| known.size).sum();
        if others + learnt.size > self.most {
            known.clear();
        }
        known.insert(attempt, learnt);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, Known<T>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::{AttemptToken, JobId};

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId(uuid::Uuid::nil()), token: AttemptToken { generation: 1, number } }
    }

    fn known(through: u64, size: usize) -> Known<u64> {
        Known { through, what: through, missing: vec![], size }
    }

    #[test]
    fn who_came_further_is_believed() {
        let learnt = Learnt::new(100);
        assert_eq!(learnt.of(attempt(1)).through, 0);
        learnt.keep(attempt(1), known(7, 1));
        learnt.keep(attempt(1), known(5, 1));
        assert_eq!(learnt.of(attempt(1)).what, 7);
    }

    #[test]
    fn what_would_be_too_much_forgets_the_others_and_an_attempt_does_not_count_twice() {
        let learnt = Learnt::new(100);
        learnt.keep(attempt(1), known(1, 40));
        learnt.keep(attempt(2), known(1, 40));
        learnt.keep(attempt(2), known(2, 60));
        assert_eq!((learnt.of(attempt(1)).what, learnt.of(attempt(2)).what), (1, 2), "100 are allowed");
        learnt.keep(attempt(3), known(1, 1));
        assert_eq!([1, 2, 3].map(|number| learnt.of(attempt(number)).what), [0, 0, 1]);
    }
}
