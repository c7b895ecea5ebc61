//! Which lines are kept when a job's metrics and logs, or all of them, come to what they may take.
//!
//! Words go before numbers: the last quarter of either limit is for what curves and outcomes are made of. Beyond a limit nothing is
//! kept. Lines that are not kept are acknowledged all the same, for their sender could do no better; they stand in `events.jsonl` on
//! the node for as long as the attempt's directory does.

use super::{SeriesError, segment};
use lorikeet_protocol::{
    id::{JobId, UnixMillis},
    worker::{EventLine, Level, WorkerEvent},
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// What metrics and logs may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that stay free on their disk.
    pub keep_free: u64,
    /// Bytes of one job.
    pub job: u64,
    /// Bytes of all jobs.
    pub all: u64,
}

impl Default for Limits {
    /// Whatever the disk holds.
    fn default() -> Self {
        Self { keep_free: 0, job: u64::MAX, all: u64::MAX }
    }
}

/// Of a limit, the share that words do not get.
const FOR_NUMBERS: u64 = 4;

/// Jobs whose size is remembered; beyond that all are looked at again.
const JOBS: usize = 1_024;

/// What is kept of lines that come now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    All,
    Numbers,
    Nothing,
}

/// How much there is.
#[derive(Debug)]
pub(super) struct Shed {
    limits: Limits,
    root: PathBuf,
    jobs: HashMap<JobId, u64>,
    /// Of all jobs; looked at with the first line.
    all: Option<u64>,
}

impl Shed {
    pub(super) fn new(root: PathBuf, limits: Limits) -> Self {
        Self { limits, root, jobs: HashMap::new(), all: None }
    }

    /// What is kept of a job's lines now.
    pub(super) fn judge(&mut self, job: JobId) -> Result<Kept, SeriesError> {
        let (job, all) = (self.of(job)?, self.all()?);
        let beyond = |share: u64| {
            let limit = |most: u64| most - most / FOR_NUMBERS * share;
            job >= limit(self.limits.job) || all >= limit(self.limits.all)
        };
        Ok(match (beyond(0), beyond(1)) {
            (true, _) => Kept::Nothing,
            (false, true) => Kept::Numbers,
            (false, false) => Kept::All,
        })
    }

    /// Bytes of a job were written.
    pub(super) fn took(&mut self, job: JobId, bytes: u64) {
        self.jobs.entry(job).and_modify(|size| *size += bytes);
        self.all = self.all.map(|all| all + bytes);
    }

    /// Everything of a job is about to go.
    pub(super) fn forget(&mut self, job: JobId) -> Result<(), SeriesError> {
        let size = self.of(job)?;
        self.all = self.all.map(|all| all.saturating_sub(size));
        self.jobs.remove(&job);
        Ok(())
    }

    /// It did not go, or not wholly: all are looked at again.
    pub(super) fn recount(&mut self) {
        self.all = None;
    }

    fn of(&mut self, job: JobId) -> Result<u64, SeriesError> {
        if let Some(size) = self.jobs.get(&job) {
            return Ok(*size);
        }
        if self.jobs.len() >= JOBS {
            self.jobs.clear();
        }
        let size = size(&self.root.join(job.to_string()))?;
        self.jobs.insert(job, size);
        Ok(size)
    }

    fn all(&mut self) -> Result<u64, SeriesError> {
        if let Some(all) = self.all {
            return Ok(all);
        }
        let mut all = 0;
        for job in folders(&self.root)? {
            all += size(&job)?;
        }
        self.all = Some(all);
        Ok(all)
    }
}

/// Bytes of a job's segments, those that cannot be read too.
fn size(job: &Path) -> Result<u64, SeriesError> {
    let mut size = 0;
    for attempt in folders(job)? {
        let segments = segment::list(&attempt)?.into_iter().chain(segment::list_torn(&attempt)?);
        size += segments.filter_map(|(_, path)| Some(path.metadata().ok()?.len())).sum::<u64>();
    }
    Ok(size)
}

fn folders(of: &Path) -> Result<Vec<PathBuf>, SeriesError> {
    let entries = match std::fs::read_dir(of) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(SeriesError::disk("list", of))?,
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.is_dir()).collect())
}

/// What every line has.
#[derive(Deserialize)]
struct Head<'a> {
    time: u64,
    #[serde(borrow)]
    r#type: std::borrow::Cow<'a, str>,
}

/// Whether a line is something that a curve, a plan or an outcome is made of. What cannot be read is not.
fn is_number(line: &str) -> bool {
    serde_json::from_str::<Head<'_>>(line).is_ok_and(|head| !["log", "sample", "stage"].contains(&&*head.r#type))
}

/// Runs of consecutive lines that are kept, each with its first `seq`. In the place of the first one that is missing a word says so, unless that was
/// `told` before.
pub(super) fn sift(first: u64, lines: &[String], kept: Kept, told: &mut bool) -> Vec<(u64, Vec<String>)> {
    let mut runs: Vec<(u64, Vec<String>)> = Vec::new();
    for (seq, line) in (first..).zip(lines) {
        let stays = kept == Kept::All || (kept == Kept::Numbers && is_number(line));
        let text = match stays {
            true => line.clone(),
            false if !std::mem::replace(told, true) => note(seq, line),
            false => continue,
        };
        match runs.last_mut().filter(|(begin, run)| begin + run.len() as u64 == seq) {
            Some((_, run)) => run.push(text),
            None => runs.push((seq, vec![text])),
        }
    }
    runs
}

fn note(seq: u64, line: &str) -> String {
    let time = serde_json::from_str::<Head<'_>>(line).map_or(0, |head| head.time);
    let message = "lines are missing from here on: metrics and logs have come to what the coordinator keeps of them (`storage.series_limit`, \
                   `storage.series_total`); they stand in events.jsonl on the node";
    let event = WorkerEvent::Log { level: Level::Warning, message: message.into() };
    serde_json::to_string(&EventLine { seq, time: UnixMillis(time), event }).expect("a log line is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_before_numbers() {
        let line = |kind: &str| format!(r#"{{"seq":1,"time":7,"type":"{kind}"}}"#);
        let lines = ["step", "log", "eval", "step", "log", "sample"].map(line);
        let places = |kept, mut told| -> Vec<(u64, usize)> {
            sift(10, &lines, kept, &mut told).into_iter().map(|(first, run)| (first, run.len())).collect()
        };
        assert_eq!(places(Kept::All, false), [(10, 6)]);
        assert_eq!(places(Kept::Numbers, true), [(10, 1), (12, 2)]);
        assert_eq!(places(Kept::Nothing, true), []);
    }

    #[test]
    fn in_the_place_of_the_first_line_that_is_missing_a_word_says_so_once() {
        let line = |kind: &str| format!(r#"{{"seq":1,"time":7,"type":"{kind}"}}"#);
        let lines = ["step", "log", "log", "step"].map(line);
        let says_so = |text: &String| text.contains("storage.series_limit");
        let mut told = false;
        assert_eq!(sift(1, &lines[..1], Kept::Numbers, &mut told).len(), 1);
        assert!(!told, "nothing is missing yet");
        let runs = sift(2, &lines[1..], Kept::Numbers, &mut told);
        assert!(told && says_so(&runs[0].1[0]), "though the last line is a number: {runs:?}");
        assert_eq!(runs.iter().flat_map(|(_, run)| run).filter(|text| says_so(text)).count(), 1);
        let again = sift(5, &lines, Kept::Numbers, &mut told);
        assert!(!again.iter().flat_map(|(_, run)| run).any(says_so), "{again:?}");
    }
}
