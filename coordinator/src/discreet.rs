//! What of a machine's words is told to whom. Why a node is closed quotes the job that ended badly on it last, and why a device is out names the
//! attempt that left it so: administrators read that as it was said, everybody else what concerns a machine and nothing of another's job.

use crate::{access::Actor, record::TRIED_AGAIN};
use lorikeet_protocol::id::{AttemptId, JobId};

/// How much somebody is told of the reasons of machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// As they were said.
    Everything,
    /// Without the words and names of jobs.
    Machines,
}

impl Told {
    /// What this one may read.
    pub(crate) fn to(actor: Actor) -> Self {
        if actor.sees_everything() { Self::Everything } else { Self::Machines }
    }

    /// Why a node is closed.
    pub(crate) fn closed(self, reason: String) -> String {
        match reason.rsplit_once(TRIED_AGAIN) {
            Some((_, at)) if self == Self::Machines => {
                format!("several jobs in a row ended badly on it{TRIED_AGAIN}{at}")
            }
            Some(_) | None => reason,
        }
    }

    /// Why a device takes no work.
    pub(crate) fn unusable(self, reason: String) -> String {
        match self {
            Self::Everything => reason,
            Self::Machines => without_names(&reason, None),
        }
    }
}

/// A text without the names of attempts and jobs, but those of `own`.
pub(crate) fn without_names(text: &str, own: Option<JobId>) -> String {
    let (mut told, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(place) = rest.find(JobId::PREFIX) {
        let (before, named) = rest.split_at(place);
        told.push_str(before);
        let (name, job) = name_at(named);
        match job {
            Some(job) if own != Some(job) => told.push_str("another attempt"),
            Some(_) | None => told.push_str(name),
        }
        rest = &named[name.len()..];
    }
    told.push_str(rest);
    told
}

/// The name of an attempt or a job that a text begins with, and of which job; or what only begins like one.
fn name_at(text: &str) -> (&str, Option<JobId>) {
    let ends = text.find(|letter: char| !letter.is_ascii_alphanumeric() && !"_-.".contains(letter));
    // A full stop behind a name is the sentence's.
    let word = text[..ends.unwrap_or(text.len())].trim_end_matches(['-', '.']);
    if let Ok(attempt) = word.parse::<AttemptId>() {
        return (word, Some(attempt.job));
    }
    let job = text.get(..JobId::PREFIX.len() + 32).and_then(|name| Some((name, name.parse().ok()?)));
    job.map_or((JobId::PREFIX, None), |(name, job)| (name, Some(job)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::AttemptToken;
    use uuid::Uuid;

    fn attempt(job: u128) -> AttemptId {
        AttemptId { job: JobId(Uuid::from_u128(job)), token: AttemptToken { generation: 1, number: 3 } }
    }

    #[test]
    fn names_of_others_are_left_out_and_ones_own_stay() {
        let (mine, other) = (attempt(1), attempt(2));
        let held = |by: AttemptId| format!("device cpu is held by {by}.");
        assert_eq!(without_names(&held(other), Some(mine.job)), "device cpu is held by another attempt.");
        assert_eq!(without_names(&held(mine), Some(mine.job)), held(mine));
        assert_eq!(without_names(&held(mine), None), "device cpu is held by another attempt.");
        let two = format!("{} and {}, job_x of job_", other.job, other);
        assert_eq!(without_names(&two, Some(mine.job)), "another attempt and another attempt, job_x of job_");
        assert_eq!(without_names("a device of ä", None), "a device of ä");
        let torn = format!("ä{}-9ä", other.job);
        assert_eq!(without_names(&torn, None), "äanother attempt-9ä");
    }

    #[test]
    fn only_an_administrator_reads_the_words_of_the_job_that_closed_a_node() {
        let at = format!("{TRIED_AGAIN}2026-01-02T03:04:05Z");
        let reason = format!("3 jobs in a row ended badly on it, the last one: my secret{TRIED_AGAIN}never{at}");
        assert_eq!(Told::Everything.closed(reason.clone()), reason);
        assert_eq!(Told::Machines.closed(reason), format!("several jobs in a row ended badly on it{at}"));
        assert_eq!(Told::Machines.closed("it is drained".into()), "it is drained");
    }
}
