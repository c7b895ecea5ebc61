//! When a job may start: after other jobs, when somebody lets it go, not before a moment. It is the scheduler's business alone and
//! never travels to an agent; so it stands beside `JobSpec`, not in it.

use super::{FieldError, JobFile, range, range::quoted};
use lorikeet_protocol::id::UnixMillis;
use serde::{Deserialize, Serialize};
use std::fmt;
use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// Jobs that one job may wait for: each is looked at whenever one of them ends.
pub(super) const AFTER: usize = 64;

/// What keeps a job from its queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Jobs that have to end first.
    pub after: Vec<After>,
    /// Until somebody lets it go.
    pub hold: bool,
    /// Until this moment.
    pub not_before: Option<UnixMillis>,
}

/// A job that has to end first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// By id, or by name as long as it is not over.
    pub job: String,
    /// And how.
    pub wants: Wants,
}

/// How another job has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wants {
    /// With its adapter.
    Ok,
    /// However it likes.
    Any,
    /// Failed, rejected or out of time.
    Fail,
}

impl fmt::Display for Wants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Any => "any",
            Self::Fail => "fail",
        })
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.job, self.wants)
    }
}

/// `job_…:ok`; without a word behind the colon, `ok`. A name may hold colons itself.
fn after(text: &str) -> After {
    let wants = |word: &str| match word {
        "ok" => Some(Wants::Ok),
        "any" => Some(Wants::Any),
        "fail" => Some(Wants::Fail),
        _ => None,
    };
    let split = text.rsplit_once(':').and_then(|(job, word)| Some((job, wants(word)?)));
    let (job, wants) = split.unwrap_or((text, Wants::Ok));
    After { job: job.to_owned(), wants }
}

pub(super) fn start(file: &JobFile, faults: &mut Vec<FieldError>) -> Start {
    let texts = file.after.as_deref().unwrap_or_default();
    let named = |text: &String| crate::name::is_name(&after(text).job);
    if texts.len() > AFTER || !texts.iter().all(named) {
        faults.push(FieldError::new("after", serde_json::to_string(texts).unwrap_or_default(), range::AFTER));
    }
    let not_before = file.not_before.as_deref().and_then(|text| {
        let parsed = moment(text);
        if parsed.is_none() {
            faults.push(FieldError::new("not_before", quoted(text), range::NOT_BEFORE));
        }
        parsed
    });
    Start { after: texts.iter().map(|text| after(text)).collect(), hold: file.hold.unwrap_or(false), not_before }
}

/// RFC 3339, or a day: then its midnight, UTC.
fn moment(text: &str) -> Option<UnixMillis> {
    let day = || Some(Date::parse(text, format_description!("[year]-[month]-[day]")).ok()?.midnight().assume_utc());
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok().or_else(day)?;
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok().map(UnixMillis)
}

impl JobFile {
    /// When the job may start.
    pub fn start(&self) -> Result<Start, Vec<FieldError>> {
        let mut faults = Vec::new();
        let start = start(self, &mut faults);
        if faults.is_empty() { Ok(start) } else { Err(faults) }
    }

    /// The same job with these conditions.
    #[must_use]
    pub fn starting(self, start: &Start) -> Self {
        let after: Vec<_> = start.after.iter().map(ToString::to_string).collect();
        Self {
            after: Some(after).filter(|after| !after.is_empty()),
            hold: start.hold.then_some(true),
            not_before: start.not_before.map(|moment| crate::Timestamp(moment).to_string()),
            ..self
        }
    }
}
