//! What was made of each attempt's lines so far, kept in memory, so that whoever asks again reads only what came since: lines do not
//! change, so what was learnt of them is only ever added to.

use super::{ends::Ends, failure::Failure};
use crate::series::{Line, Missing, Series};
use lorikeet_api::job::MissingLines;
use lorikeet_protocol::id::AttemptId;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Lines that are read at once, on a thread of their own: a megabyte or two.
const READ_LINES: usize = 8_192;

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
    what: T,
    /// Lines before `through` that cannot be read.
    missing: Vec<Missing>,
    /// How much room that takes.
    size: usize,
}

impl<T: Clone + Default> Learnt<T> {
    pub(super) fn new(most: usize) -> Self {
        Self { known: Mutex::default(), most }
    }

    /// What an attempt's lines come to, and those that cannot be read; only what came since the last time is read. `make` says on the thread that
    /// reads what is of use in a line, and `add` adds that and answers how much room all of it takes.
    pub(super) async fn read<S: Send + 'static>(
        &self,
        (series, ends): (&Series, &Ends),
        attempt: AttemptId,
        make: fn(AttemptId, &Line) -> Option<S>,
        add: impl Fn(&mut T, Vec<S>) -> usize,
    ) -> Result<(T, Vec<MissingLines>), Failure> {
        let mut known = self.of(attempt);
        let before = known.through;
        let behind = loop {
            let made = move |line: Line| (line.seq, make(attempt, &line));
            let part = series.read_as(attempt, known.through, READ_LINES, made).await?;
            let Some((last, _)) = part.lines.last() else { break part.missing };
            known.through = *last;
            known.missing.extend(part.missing);
            known.size = add(&mut known.what, part.lines.into_iter().filter_map(|(_, made)| made).collect());
        };
        if known.through > before {
            self.keep(attempt, known.clone());
        }
        // How far what is missing at the end goes the files do not tell.
        let (open, closed): (Vec<_>, Vec<_>) = behind.into_iter().partition(|missing| missing.through.is_none());
        let mut missing: Vec<_> = known.missing.into_iter().chain(closed).map(|missing| missing.of(attempt)).collect();
        missing.extend(ends.missing(series, attempt, open.first().copied()).await?);
        Ok((known.what, missing))
    }

    /// What is known of an attempt; nothing at first.
    pub(super) fn of(&self, attempt: AttemptId) -> Known<T> {
        self.lock().get(&attempt).cloned().unwrap_or_default()
    }

    /// Keeps what was learnt, unless somebody else has come further meanwhile.
    fn keep(&self, attempt: AttemptId, learnt: Known<T>) {
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
