//! What is acknowledged stays, once each, whatever tore or came twice.

use super::*;
use std::{fs::OpenOptions, io::Write};
use uuid::Uuid;

fn attempt(number: u32) -> AttemptId {
    AttemptId { job: JobId(Uuid::from_u128(7)), token: AttemptToken { generation: 1, number } }
}

fn lines(number: u32, first: u64, texts: &[&str]) -> EventLines {
    EventLines { attempt: attempt(number), first, lines: texts.iter().map(|text| (*text).to_owned()).collect() }
}

async fn all(series: &Series, number: u32) -> Vec<(u64, String)> {
    let lines = series.read(attempt(number), 0, usize::MAX).await.unwrap();
    lines.into_iter().map(|line| (line.seq, line.text)).collect()
}

fn numbered(texts: &[&str]) -> Vec<(u64, String)> {
    (1..).zip(texts.iter().map(|text| (*text).to_owned())).collect()
}

#[tokio::test]
async fn lines_that_come_twice_are_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    assert_eq!(series.append(lines(1, 1, &["a", "b"])).await.unwrap(), 2);
    assert_eq!(series.append(lines(1, 1, &["a", "b", "c"])).await.unwrap(), 3);
    assert_eq!(series.append(lines(1, 2, &["b"])).await.unwrap(), 3);
    assert_eq!(all(&series, 1).await, numbered(&["a", "b", "c"]));
}

#[tokio::test]
async fn a_gap_is_not_filled_and_the_answer_says_where_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    assert_eq!(series.append(lines(1, 1, &["a"])).await.unwrap(), 1);
    assert_eq!(series.append(lines(1, 3, &["c"])).await.unwrap(), 1);
    assert_eq!(series.append(lines(1, 0, &["zero"])).await.unwrap(), 1);
    assert_eq!(all(&series, 1).await, numbered(&["a"]));
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_writing_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (series, thread) = Series::open(folder.path(), 0).unwrap();
    series.append(lines(1, 1, &["a", "b"])).await.unwrap();
    drop(series);
    thread.join().unwrap();

    let path = super::folder(folder.path(), attempt(1)).join(segment::name(1));
    let torn = segment::record(3, &["c".to_owned()]);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&torn[..torn.len() - 1]).unwrap();

    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    assert_eq!(series.through(attempt(1)).await.unwrap(), 2);
    assert_eq!(series.append(lines(1, 3, &["c", "d"])).await.unwrap(), 4);
    assert_eq!(all(&series, 1).await, numbered(&["a", "b", "c", "d"]));
}

#[tokio::test]
async fn a_segment_torn_at_any_byte_loses_only_what_is_behind_the_tear() {
    let folder = tempfile::tempdir().unwrap();
    let (series, thread) = Series::open(folder.path(), 0).unwrap();
    series.append(lines(1, 1, &["first"])).await.unwrap();
    series.append(lines(1, 2, &["second"])).await.unwrap();
    drop(series);
    thread.join().unwrap();
    let path = super::folder(folder.path(), attempt(1)).join(segment::name(1));
    let whole = std::fs::read(&path).unwrap();
    let first_end = 8 + segment::record(1, &["first".to_owned()]).len();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let extent = segment::extent(&path).unwrap();
        assert_eq!(extent.last, (length >= first_end).then_some(1), "cut at {length}");
    }
    for index in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[index] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        assert_ne!(segment::extent(&path).unwrap().last, Some(2), "a flipped bit at {index} went unseen");
    }
}

#[tokio::test]
async fn a_follower_wakes_after_the_lines_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    let mut news = series.follow(attempt(1).job);
    let writer = series.clone();
    let writing = tokio::spawn(async move { writer.append(lines(1, 1, &["a"])).await });
    news.changed().await.unwrap();
    assert_eq!(all(&series, 1).await, numbered(&["a"]));
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn ranges_come_in_order_from_many_segments() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    let long = "x".repeat(1 << 19);
    for first in (1..=80).step_by(2) {
        series.append(lines(1, first, &[&long, &long])).await.unwrap();
    }
    let segments = segment::list(&super::folder(folder.path(), attempt(1))).unwrap();
    assert!(segments.len() > 1, "40 MiB should not be one segment");
    let range = series.read(attempt(1), 30, 7).await.unwrap();
    assert_eq!(range.iter().map(|line| line.seq).collect::<Vec<_>>(), (31..=37).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_attempts_of_a_job_are_listed_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    for number in [10, 2, 1] {
        series.append(lines(number, 1, &["a"])).await.unwrap();
    }
    let listed = series.attempts(attempt(1).job).await.unwrap();
    assert_eq!(listed, [attempt(1), attempt(2), attempt(10)]);
}

#[tokio::test]
async fn a_write_that_fails_is_named_and_not_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    // A file where the job's folder should be.
    let place = folder.path().join(attempt(1).job.to_string());
    std::fs::write(&place, "in the way").unwrap();
    let error = series.append(lines(1, 1, &["a"])).await.unwrap_err().to_string();
    assert!(error.contains(place.to_str().unwrap()), "{error}");
    std::fs::remove_file(&place).unwrap();
    assert_eq!(series.append(lines(1, 1, &["a"])).await.unwrap(), 1);
}

#[tokio::test]
async fn reading_on_begins_where_reading_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), 0).unwrap();
    for first in 1..=4 {
        series.append(lines(1, first, &["line"])).await.unwrap();
    }
    let read =
        async |after| series.read(attempt(1), after, 2).await.unwrap().iter().map(|line| line.seq).collect::<Vec<_>>();
    assert_eq!(read(0).await, [1, 2]);
    // Whoever began at the beginning again would stop here.
    let path = super::folder(folder.path(), attempt(1)).join(segment::name(1));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[segment::MAGIC.len() + 4] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(read(2).await, [3, 4]);
    assert_eq!(read(0).await, Vec::<u64>::new());
}

#[tokio::test]
async fn lines_that_would_take_what_is_kept_free_are_refused_and_the_others_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (series, thread) = Series::open(folder.path(), 0).unwrap();
    series.append(lines(1, 1, &["a"])).await.unwrap();
    drop(series);
    thread.join().unwrap();
    let (series, _thread) = Series::open(folder.path(), u64::MAX).unwrap();
    assert!(matches!(series.append(lines(1, 2, &["b"])).await, Err(SeriesError::NoSpace(_))));
    assert_eq!(all(&series, 1).await, numbered(&["a"]));
}
