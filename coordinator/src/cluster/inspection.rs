//! Questions to `lorikeet inspect`: asked again after a restart, and after trouble that is ours and not the file's.

use super::{Action, Cluster, Inspect, Now, Subject, Trouble};
use crate::record::{Base, Dataset};
use lorikeet_protocol::{file::NamedFile, inspect::Inspection};
use std::{collections::BTreeMap, time::Duration};

/// A child that ended so often in a row without an answer will not give one: then its trouble is the verdict.
const TRIES: u32 = 5;

/// Inspections that brought no answer.
#[derive(Debug, Default)]
pub(super) struct Unanswered(BTreeMap<Subject, Tries>);

#[derive(Debug, Default)]
struct Tries {
    failed: u32,
    again: Option<Duration>,
}

impl Unanswered {
    /// When the first is asked again.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.0.values().filter_map(|tries| tries.again).min()
    }

    fn due(&mut self, now: Now) -> Vec<Subject> {
        let due = self.0.iter_mut().filter(|(_, tries)| tries.again.is_some_and(|again| again <= now.mono));
        due.map(|(subject, tries)| {
            tries.again = None;
            *subject
        })
        .collect()
    }
}

impl Cluster {
    pub(super) fn inspected(
        &mut self,
        subject: Subject,
        result: Result<Inspection, Trouble>,
        files: Vec<NamedFile>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let result = match result {
            Err(trouble) if self.will_ask_again(subject, &trouble, now) => return,
            Err(Trouble::Ours(message) | Trouble::Theirs(message)) => Err(message),
            Ok(found) => Ok(found),
        };
        self.unanswered.0.remove(&subject);
        match subject {
            Subject::Dataset(id) => self.dataset_inspected(id, result, now, out),
            Subject::Base(id) => self.base_inspected(id, result, files, now, out),
            Subject::Job(id) => self.job_inspected(id, result, now, out),
        }
    }

    /// What is the coordinator's own trouble says nothing of a file: it is asked again until that is over.
    fn will_ask_again(&mut self, subject: Subject, trouble: &Trouble, now: Now) -> bool {
        let tries = self.unanswered.0.entry(subject).or_default();
        tries.failed = tries.failed.saturating_add(1);
        let again = matches!(trouble, Trouble::Ours(_)) || tries.failed < TRIES;
        tries.again = again.then(|| now.mono + self.timers.wait(tries.failed));
        tries.again.is_some()
    }

    pub(super) fn ask_unanswered(&mut self, now: Now, out: &mut Vec<Action>) {
        for subject in self.unanswered.due(now) {
            out.extend(self.inspection(subject).map(Action::Inspect));
        }
    }

    /// Children of the last process died with it: what they were asked is asked again.
    pub(super) fn begin_again(&mut self, out: &mut Vec<Action>) {
        let datasets = self.datasets.keys().copied().map(Subject::Dataset);
        let subjects = datasets.chain(self.bases.keys().copied().map(Subject::Base));
        let subjects = subjects.chain(self.jobs.keys().copied().map(Subject::Job));
        out.extend(subjects.filter_map(|subject| self.inspection(subject)).map(Action::Inspect));
    }

    /// What has to be asked about it, if it is being judged.
    pub(super) fn inspection(&self, subject: Subject) -> Option<Inspect> {
        match subject {
            Subject::Dataset(id) => self.datasets.get(&id).and_then(Dataset::inspection),
            Subject::Base(id) => self.bases.get(&id).and_then(Base::inspection),
            Subject::Job(id) => self.jobs.get(&id).and_then(|job| self.job_inspection(&job.record)),
        }
    }
}
