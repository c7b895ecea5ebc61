//! Who is asked about next. Everybody has a line of their own, and these are taken in turn, so that whoever asks ten thousand questions keeps
//! others waiting for one. Base models have lines beside those: a slow directory holds up no dataset and no job.
//!
//! Of one subject one question runs at a time. One that is asked again while it waits keeps its place, and the newest words.

use crate::cluster::{Inspect, Subject};
use lorikeet_protocol::id::UserId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Base models that are read at once: each is hashed whole, from one disk mostly.
const BASES: usize = 1;

/// All that wait, and what runs.
#[derive(Debug)]
pub(super) struct Lines {
    bases: Line,
    others: Line,
}

impl Lines {
    /// So many datasets and jobs are looked at at once.
    pub(super) fn new(at_once: usize) -> Self {
        Self { bases: Line::new(BASES), others: Line::new(at_once) }
    }

    pub(super) fn join(&mut self, question: Inspect) {
        self.of(question.subject()).join(question);
    }

    /// What is to be asked now; it runs until it is [`done`](Self::done).
    pub(super) fn next(&mut self) -> Option<Inspect> {
        self.bases.next().or_else(|| self.others.next())
    }

    pub(super) fn done(&mut self, subject: Subject) {
        self.of(subject).running.remove(&subject);
    }

    fn of(&mut self, subject: Subject) -> &mut Line {
        match subject {
            Subject::Base(_) => &mut self.bases,
            Subject::Dataset(_) | Subject::Job(_) => &mut self.others,
        }
    }
}

#[derive(Debug)]
struct Line {
    at_once: usize,
    /// Of each owner what waits, oldest first; whose turn is next is first.
    owners: VecDeque<(Option<UserId>, VecDeque<Subject>)>,
    waiting: BTreeMap<Subject, Inspect>,
    running: BTreeSet<Subject>,
}

impl Line {
    fn new(at_once: usize) -> Self {
        Self { at_once, owners: VecDeque::new(), waiting: BTreeMap::new(), running: BTreeSet::new() }
    }

    fn join(&mut self, question: Inspect) {
        let (subject, owner) = (question.subject(), question.owner());
        if self.waiting.insert(subject, question).is_some() {
            return;
        }
        match self.owners.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, line)) => line.push_back(subject),
            None => self.owners.push_back((owner, VecDeque::from([subject]))),
        }
    }

    fn next(&mut self) -> Option<Inspect> {
        if self.running.len() >= self.at_once {
            return None;
        }
        for _ in 0..self.owners.len() {
            let (owner, mut line) = self.owners.pop_front()?;
            let place = line.iter().position(|subject| !self.running.contains(subject));
            let subject = place.and_then(|place| line.remove(place));
            if !line.is_empty() {
                self.owners.push_back((owner, line));
            }
            if let Some(subject) = subject {
                self.running.insert(subject);
                return self.waiting.remove(&subject);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::{BaseId, DatasetId, Hash};
    use uuid::Uuid;

    fn dataset(owner: u128, id: u128, file: u8) -> Inspect {
        let (id, owner) = (DatasetId(Uuid::from_u128(id)), UserId(Uuid::from_u128(owner)));
        Inspect::Dataset { id, owner, file: Hash([file; 32]), format: None }
    }

    #[test]
    fn owners_take_turns_however_many_questions_one_of_them_has() {
        let mut lines = Lines::new(1);
        (0..10_000).for_each(|n| lines.join(dataset(1, n, 0)));
        lines.join(dataset(2, 20_000, 0));
        lines.join(dataset(3, 30_000, 0));
        let mut owners = vec![];
        for _ in 0..5 {
            let question = lines.next().unwrap();
            assert_eq!(lines.next(), None, "one at once");
            lines.done(question.subject());
            owners.push(question.owner().unwrap().0.as_u128());
        }
        assert_eq!(owners, [1, 2, 3, 1, 1]);
    }

    #[test]
    fn of_one_subject_one_question_runs_and_one_waits_with_the_newest_words() {
        let mut lines = Lines::new(2);
        let [first, second, third] = [1, 2, 3].map(|file| dataset(1, 7, file));
        lines.join(first.clone());
        assert_eq!(lines.next(), Some(first.clone()));
        lines.join(second);
        lines.join(third.clone());
        assert_eq!(lines.next(), None, "it runs");
        lines.join(dataset(1, 8, 4));
        assert_eq!(lines.next(), Some(dataset(1, 8, 4)), "the one behind it need not wait for that");
        lines.done(first.subject());
        assert_eq!((lines.next(), lines.next()), (Some(third), None));
    }

    #[test]
    fn base_models_hold_up_nobody_else() {
        let mut lines = Lines::new(1);
        let base = |id| Inspect::Base { id: BaseId(Uuid::from_u128(id)), path: "/b".into() };
        lines.join(base(1));
        lines.join(base(2));
        lines.join(dataset(1, 1, 0));
        assert_eq!((lines.next(), lines.next(), lines.next()), (Some(base(1)), Some(dataset(1, 1, 0)), None));
        lines.done(base(1).subject());
        assert_eq!(lines.next(), Some(base(2)));
    }
}
