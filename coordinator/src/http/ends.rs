//! Which line of each attempt was its last, as the record of its end says: of lines that are gone with the file that held them nothing else tells.

use super::{App, failure::Failure};
use crate::{
    access::Actor,
    clock,
    record::{Attempt, AttemptEnd},
    series::{Missing, Series},
};
use lorikeet_api::job::MissingLines;
use lorikeet_protocol::id::{AttemptId, JobId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The last lines of an attempt come behind its end; those of an agent that is gone never do.
pub(super) const LAST_LINES: Duration = Duration::from_secs(10);

/// Whether whatever comes behind this end has come.
pub(super) fn is_long_over(end: &AttemptEnd) -> bool {
    u128::from(clock::now().0.saturating_sub(end.at.0)) >= LAST_LINES.as_millis()
}

/// Of each attempt that is over and had lines.
#[derive(Debug, Default)]
pub(super) struct Ends(BTreeMap<AttemptId, u64>);

impl Ends {
    /// Those whose last lines should have come by now.
    pub(super) async fn of(app: &App, actor: Actor, job: JobId) -> Result<Self, Failure> {
        Ok(Self::among(&app.driver.attempts(actor, job).await?, is_long_over))
    }

    /// Those of these attempts whose ends are such.
    pub(super) fn among(attempts: &[Attempt], counts: impl Fn(&AttemptEnd) -> bool) -> Self {
        let ended = |row: &Attempt| {
            let end = row.end.as_ref().filter(|end| end.last_event > 0 && counts(end))?;
            Some((row.id, end.last_event))
        };
        Self(attempts.iter().filter_map(ended).collect())
    }

    /// The attempts of which lines are here or should be, oldest first. Of a job that has none at all nothing is expected: they went in their
    /// time (`storage.keep_series`), or a backup without them was restored.
    pub(super) async fn attempts(&self, series: &Series, job: JobId) -> Result<Vec<AttemptId>, Failure> {
        let here = series.attempts(job).await?;
        if here.is_empty() {
            return Ok(here);
        }
        let all: BTreeSet<_> = here.into_iter().chain(self.0.keys().copied()).collect();
        Ok(all.into_iter().collect())
    }

    /// What is missing behind an attempt's last line; `torn` is what the files themselves tell of that.
    pub(super) async fn missing(
        &self,
        series: &Series,
        attempt: AttemptId,
        torn: Option<Missing>,
    ) -> Result<Option<MissingLines>, Failure> {
        let Some(last) = self.0.get(&attempt) else { return Ok(torn.map(|torn| torn.of(attempt))) };
        let from = match torn {
            Some(torn) => torn.from,
            None => series.through(attempt).await? + 1,
        };
        Ok((from <= *last).then(|| Missing { from, through: Some(*last) }.of(attempt)))
    }
}
