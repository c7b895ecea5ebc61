//! Who is asked about next. Everybody has a line of their own, and these are taken in turn, so that whoever asks ten thousand questions keeps
//! others waiting for one. Base models have lines beside those: a slow directory holds up no dataset and no job.
//!
//! Of one subject one question runs at a time, and of those that are the same but for their subject one as well: the others have its answer.
//! One that is asked again while it waits keeps its place, and the newest words.

use crate::cluster::{Inspect, Subject};
use lorikeet_protocol::id::{Hash, UserId};
use std::collections::{BTreeMap, VecDeque};

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

    /// `same`: which others it is the same as, if it may be.
    pub(super) fn join(&mut self, question: Inspect, same: Option<Hash>) {
        self.of(question.subject()).join(question, same);
    }

    /// Those that wait and are all this question, whose answer is known.
    pub(super) fn answered(&mut self, same: Hash) -> Vec<Inspect> {
        self.others.answered(same)
    }

    /// What is to be asked now; it runs until it is [`done`](Self::done).
    pub(super) fn next(&mut self) -> Option<Inspect> {
        self.bases.next().or_else(|| self.others.next())
    }

    /// Answers which others it is the same as.
    pub(super) fn done(&mut self, subject: Subject) -> Option<Hash> {
        self.of(subject).running.remove(&subject).flatten()
    }

    fn of(&mut self, subject: Subject) -> &mut Line {
        match subject {
            Subject::Base(_) => &mut self.bases,
            Subject::Dataset(_) | Subject::Job(_) => &mut self.others,
        }
    }
}

/// What stands in a line: of whom, and the same as which.
type Standing = (Subject, Option<Hash>);

#[derive(Debug)]
struct Line {
    at_once: usize,
    /// Of each owner what waits, oldest first; whose turn is next is first.
    owners: VecDeque<(Option<UserId>, VecDeque<Standing>)>,
    waiting: BTreeMap<Subject, Inspect>,
    running: BTreeMap<Subject, Option<Hash>>,
}

impl Line {
    fn new(at_once: usize) -> Self {
        Self { at_once, owners: VecDeque::new(), waiting: BTreeMap::new(), running: BTreeMap::new() }
    }

    fn join(&mut self, question: Inspect, same: Option<Hash>) {
        let (subject, owner) = (question.subject(), question.owner());
        if self.waiting.insert(subject, question).is_some() {
            let mut standing = self.owners.iter_mut().flat_map(|(_, line)| line);
            standing.find(|(known, _)| *known == subject).expect("what waits stands in a line").1 = same;
            return;
        }
        match self.owners.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, line)) => line.push_back((subject, same)),
            None => self.owners.push_back((owner, VecDeque::from([(subject, same)]))),
        }
    }

    fn next(&mut self) -> Option<Inspect> {
        if self.running.len() >= self.at_once {
            return None;
        }
        for _ in 0..self.owners.len() {
            let (owner, mut line) = self.owners.pop_front()?;
            let place = line.iter().position(|standing| self.may_run(standing));
            let found = place.and_then(|place| line.remove(place));
            if !line.is_empty() {
                self.owners.push_back((owner, line));
            }
            if let Some((subject, same)) = found {
                self.running.insert(subject, same);
                return self.waiting.remove(&subject);
            }
        }
        None
    }

    fn may_run(&self, (subject, same): &Standing) -> bool {
        let is_asked = same.is_some() && self.running.values().any(|running| running == same);
        !is_asked && !self.running.contains_key(subject)
    }

    fn answered(&mut self, answer: Hash) -> Vec<Inspect> {
        let mut answered = Vec::new();
        for (_, line) in &mut self.owners {
            line.retain(|(subject, same)| {
                let waits = *same != Some(answer) || self.running.contains_key(subject);
                answered.extend((!waits).then(|| self.waiting.remove(subject)).flatten());
                waits
            });
        }
        self.owners.retain(|(_, line)| !line.is_empty());
        answered
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
        (0..10_000).for_each(|n| lines.join(dataset(1, n, 0), None));
        lines.join(dataset(2, 20_000, 0), None);
        lines.join(dataset(3, 30_000, 0), None);
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
        lines.join(first.clone(), None);
        assert_eq!(lines.next(), Some(first.clone()));
        lines.join(second, None);
        lines.join(third.clone(), None);
        assert_eq!(lines.next(), None, "it runs");
        lines.join(dataset(1, 8, 4), None);
        assert_eq!(lines.next(), Some(dataset(1, 8, 4)), "the one behind it need not wait for that");
        lines.done(first.subject());
        assert_eq!((lines.next(), lines.next()), (Some(third), None));
    }

    #[test]
    fn of_one_question_about_several_subjects_one_runs_and_its_answer_is_for_all() {
        let (mut lines, same) = (Lines::new(2), Some(Hash([7; 32])));
        (1..=3).for_each(|id| lines.join(dataset(1, id, 0), same));
        lines.join(dataset(1, 4, 1), None);
        assert_eq!(lines.next(), Some(dataset(1, 1, 0)));
        assert_eq!(lines.next(), Some(dataset(1, 4, 1)), "the place is for another question");
        lines.join(dataset(1, 3, 9), Some(Hash([9; 32])));
        lines.done(dataset(1, 1, 0).subject());
        assert_eq!(lines.answered(Hash([7; 32])), [dataset(1, 2, 0)], "the third asks something else by now");
        assert_eq!((lines.next(), lines.next()), (Some(dataset(1, 3, 9)), None));
    }

    #[test]
    fn base_models_hold_up_nobody_else() {
        let mut lines = Lines::new(1);
        let base = |id| Inspect::Base { id: BaseId(Uuid::from_u128(id)), path: "/b".into() };
        lines.join(base(1), None);
        lines.join(base(2), None);
        lines.join(dataset(1, 1, 0), None);
        assert_eq!((lines.next(), lines.next(), lines.next()), (Some(base(1)), Some(dataset(1, 1, 0)), None));
        lines.done(base(1).subject());
        assert_eq!(lines.next(), Some(base(2)));
    }
}
