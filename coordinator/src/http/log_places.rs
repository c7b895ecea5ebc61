//! Where the words among an attempt's lines are, so that a page of them is read without the lines around it.

use super::{
    ends::Ends,
    failure::Failure,
    job_series::{log_line, parse},
    learnt::Learnt,
};
use crate::{
    history::Page,
    series::{Line, Series},
};
use lorikeet_api::job::{LogLine, MissingLines};
use lorikeet_protocol::id::{AttemptId, JobId};
use std::sync::Arc;

/// Words whose places are remembered, over all attempts: 32 MiB. Beyond that all are forgotten.
const WORDS: usize = 4 << 20;

/// Of each attempt the lines that are words.
#[derive(Debug)]
pub(crate) struct LogPlaces(Learnt<Arc<Vec<u64>>>);

impl Default for LogPlaces {
    fn default() -> Self {
        Self(Learnt::new(WORDS))
    }
}

impl LogPlaces {
    /// A page of a job's words, oldest first, how many there are, and the lines that cannot be read.
    pub(super) async fn page(
        &self,
        (series, ends): (&Series, &Ends),
        job: JobId,
        page: Page,
    ) -> Result<(Vec<LogLine>, usize, Vec<MissingLines>), Failure> {
        let (mut rows, mut total, mut missing) = (Vec::new(), 0, Vec::new());
        for attempt in ends.attempts(series, job).await? {
            let (seqs, gaps) = self.0.read((series, ends), attempt, word, add).await?;
            missing.extend(gaps);
            let skipped = page.offset.saturating_sub(total);
            for seq in seqs.iter().skip(skipped).take(page.limit - rows.len()) {
                let lines = series.read(attempt, seq - 1, 1).await?;
                rows.extend(
                    lines.iter().filter_map(|line| parse(&line.text)).filter_map(|line| log_line(attempt, line)),
                );
            }
            total += seqs.len();
        }
        Ok((rows, total, missing))
    }
}

/// Where a word is.
fn word(attempt: AttemptId, line: &Line) -> Option<u64> {
    is_word(attempt, line).then_some(line.seq)
}

fn add(seqs: &mut Arc<Vec<u64>>, fresh: Vec<u64>) -> usize {
    let seqs = Arc::make_mut(seqs);
    seqs.extend(fresh);
    seqs.len()
}

fn is_word(attempt: AttemptId, line: &Line) -> bool {
    // Most lines are steps, and reading one as JSON costs more than this look.
    line.text.contains("\"log\"") && parse(&line.text).and_then(|line| log_line(attempt, line)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::{agent::EventLines, id::AttemptToken};
    use uuid::Uuid;

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId(Uuid::from_u128(3)), token: AttemptToken { generation: 1, number } }
    }

    fn word(seq: u64) -> String {
        format!(r#"{{"seq":{seq},"time":1000,"type":"log","level":"INFO","message":"word {seq}"}}"#)
    }

    fn step(seq: u64) -> String {
        format!(r#"{{"seq":{seq},"time":1000,"type":"stage","stage":"training"}}"#)
    }

    #[tokio::test]
    async fn a_page_is_cut_from_the_words_of_all_attempts_and_new_lines_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (series, _thread) = Series::open(folder.path(), crate::series::Limits::default()).unwrap();
        let append = async |number, first, lines: Vec<String>| {
            series.append(EventLines { attempt: attempt(number), first, lines }).await.unwrap();
        };
        append(1, 1, vec![step(1), word(2), step(3), word(4)]).await;
        append(2, 1, vec![word(1)]).await;
        let places = LogPlaces::default();
        let page = async |offset, limit| {
            let of = (&series, &Ends::default());
            let (rows, total, missing) = places.page(of, attempt(1).job, Page { offset, limit }).await.unwrap();
            assert_eq!(missing, []);
            let found: Vec<_> = rows.iter().map(|row| (row.attempt.token.number, row.seq)).collect();
            (found, total)
        };
        assert_eq!(page(0, 2).await, (vec![(1, 2), (1, 4)], 3));
        assert_eq!(page(1, 9).await, (vec![(1, 4), (2, 1)], 3));
        append(2, 2, vec![step(2), word(3)]).await;
        assert_eq!(page(2, 9).await, (vec![(2, 1), (2, 3)], 4));
        assert_eq!(places.0.of(attempt(2)).through, 3);
    }
}
