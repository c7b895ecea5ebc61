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
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
    assert_eq!(series.append(lines(1, 1, &["a", "b"])).await.unwrap(), 2);
    assert_eq!(series.append(lines(1, 1, &["a", "b", "c"])).await.unwrap(), 3);
    assert_eq!(series.append(lines(1, 2, &["b"])).await.unwrap(), 3);
    assert_eq!(all(&series, 1).await, numbered(&["a", "b", "c"]));
}

#[tokio::test]
async fn a_gap_is_not_filled_and_the_answer_says_where_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
    assert_eq!(series.append(lines(1, 1, &["a"])).await.unwrap(), 1);
    assert_eq!(series.append(lines(1, 3, &["c"])).await.unwrap(), 1);
    assert_eq!(series.append(lines(1, 0, &["zero"])).await.unwrap(), 1);
    assert_eq!(all(&series, 1).await, numbered(&["a"]));
}

#[tokio::test]
async fn a_torn_tail_is_left_as_it_lies_and_writing_goes_on_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let (series, thread) = Series::open(folder.path(), Limits::default()).unwrap();
    series.append(lines(1, 1, &["a", "b"])).await.unwrap();
    drop(series);
    thread.join().unwrap();

    let path = super::folder(folder.path(), attempt(1)).join(segment::name(1));
    let torn = segment::record(3, &["c".to_owned()]);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&torn[..torn.len() - 1]).unwrap();

    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
    assert_eq!(series.through(attempt(1)).await.unwrap(), 2);
    assert_eq!(series.append(lines(1, 3, &["c", "d"])).await.unwrap(), 4);
    assert_eq!(all(&series, 1).await, numbered(&["a", "b", "c", "d"]));
    assert_eq!(missing(&series, 0).await, [], "the node has sent them again");
}

/// What whoever reads on from there is told to be missing, as long as there are lines and behind them.
async fn missing(series: &Series, mut after: u64) -> Vec<(u64, Option<u64>)> {
    let mut missing = Vec::new();
    loop {
        let part = series.read_as(attempt(1), after, 1, |line| line.seq).await.unwrap();
        missing.extend(part.missing.iter().map(|missing| (missing.from, missing.through)));
        let Some(last) = part.lines.last() else { return missing };
        after = *last;
    }
}

/// Turns a bit of the line's first letter.
fn damage(segment: &Path, text: &str) {
    let mut bytes = std::fs::read(segment).unwrap();
    let place = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    bytes[place] ^= 1;
    std::fs::write(segment, bytes).unwrap();
}

#[tokio::test]
async fn lines_that_the_disk_has_not_kept_are_told_to_who_reads() {
    let root = tempfile::tempdir().unwrap();
    let folder = super::folder(root.path(), attempt(1));
    std::fs::create_dir_all(&folder).unwrap();
    let segment = |first: u64, texts: &[&str]| {
        let records = (first..).zip(texts).flat_map(|(seq, text)| segment::record(seq, &[(*text).to_owned()]));
        let path = folder.join(segment::name(first));
        std::fs::write(&path, segment::MAGIC.iter().copied().chain(records).collect::<Vec<_>>()).unwrap();
        path
    };
    let first = segment(1, &["one", "two", "three"]);
    // Four and five were not to be kept.
    let last = segment(6, &["six", "seven"]);
    let (series, thread) = Series::open(root.path(), Limits::default()).unwrap();
    assert_eq!(missing(&series, 0).await, [], "of what is whole nothing is missing");
    damage(&first, "two");
    let part = series.read_as(attempt(1), 0, usize::MAX, |line| line.seq).await.unwrap();
    assert_eq!((part.lines, part.missing), (vec![1, 6, 7], vec![Missing { from: 2, through: Some(5) }]));
    assert_eq!(missing(&series, 0).await, [(2, Some(5))], "line by line as well, and once");
    assert_eq!(missing(&series, 6).await, []);
    damage(&last, "seven");
    assert_eq!(missing(&series, 0).await, [(2, Some(5)), (7, Some(7))]);
    drop(series);
    thread.join().unwrap();
    // Nobody knows any more how many there were.
    let damaged = std::fs::read(&last).unwrap();
    let (series, thread) = Series::open(root.path(), Limits::default()).unwrap();
    assert_eq!(missing(&series, 0).await, [(2, Some(5)), (7, None)]);
    assert_eq!(missing(&series, 6).await, [(7, None)]);
    assert_eq!(series.append(lines(1, 7, &["seven", "eight"])).await.unwrap(), 8);
    assert_eq!(missing(&series, 0).await, [(2, Some(5))]);
    assert_eq!(std::fs::read(&last).unwrap(), damaged, "what may be wanted yet is left as it lies");
    drop(series);
    thread.join().unwrap();
    let (series, _thread) = Series::open(root.path(), Limits::default()).unwrap();
    assert_eq!(missing(&series, 0).await, [(2, Some(5))]);
    series.remove(attempt(1).job).await.unwrap();
    assert_eq!(missing(&series, 0).await, [], "what nobody keeps is not missing");
}

#[tokio::test]
async fn a_file_that_somebody_took_is_missed() {
    let root = tempfile::tempdir().unwrap();
    let (series, thread) = Series::open(root.path(), Limits::default()).unwrap();
    series.append(lines(1, 1, &["one", "two"])).await.unwrap();
    let folder = super::folder(root.path(), attempt(1));
    let first = folder.join(segment::name(1));
    let kept = std::fs::read(&first).unwrap();
    std::fs::remove_file(&first).unwrap();
    assert_eq!(missing(&series, 0).await, [(1, Some(2))], "nobody asked for it to go");
    assert_eq!(missing(&series, 1).await, [(2, Some(2))]);
    drop(series);
    thread.join().unwrap();
    std::fs::write(&first, kept).unwrap();
    let third = [segment::MAGIC.as_slice(), &segment::record(3, &["three".to_owned()])].concat();
    std::fs::write(folder.join(segment::name(3)), third).unwrap();
    let (series, _thread) = Series::open(root.path(), Limits::default()).unwrap();
    assert_eq!(missing(&series, 0).await, []);
    std::fs::remove_file(&first).unwrap();
    assert_eq!(missing(&series, 0).await, [(1, Some(2))]);
    assert_eq!(missing(&series, 2).await, []);
    series.remove(attempt(1).job).await.unwrap();
    assert_eq!(missing(&series, 0).await, []);
}

#[tokio::test]
async fn a_segment_of_which_no_line_can_be_read_is_kept_aside_and_missed_until_its_lines_come_again() {
    let root = tempfile::tempdir().unwrap();
    let (series, thread) = Series::open(root.path(), Limits::default()).unwrap();
    series.append(lines(1, 1, &["one"])).await.unwrap();
    drop(series);
    thread.join().unwrap();
    let segment = super::folder(root.path(), attempt(1)).join(segment::name(1));
    damage(&segment, "one");
    for start in 1..=2 {
        let (series, thread) = Series::open(root.path(), Limits::default()).unwrap();
        assert_eq!(missing(&series, 0).await, [(1, None)], "start {start}");
        drop(series);
        thread.join().unwrap();
    }
    let (series, _thread) = Series::open(root.path(), Limits::default()).unwrap();
    assert_eq!(series.append(lines(1, 1, &["one"])).await.unwrap(), 1);
    assert_eq!((all(&series, 1).await, missing(&series, 0).await), (numbered(&["one"]), vec![]));
    assert!(segment.with_extension("torn").exists());
    // The disk gives nothing of it, before a start and after it.
    std::fs::remove_file(&segment).unwrap();
    std::fs::create_dir(&segment).unwrap();
    assert_eq!(missing(&series, 0).await, [(1, Some(1))]);
    std::fs::remove_file(segment.with_extension("torn")).unwrap();
    drop(series);
    let (series, _thread) = Series::open(root.path(), Limits::default()).unwrap();
    assert_eq!(missing(&series, 0).await, [(1, None)]);
    assert_eq!(series.append(lines(1, 1, &["one"])).await.unwrap(), 1);
}

#[tokio::test]
async fn a_segment_torn_at_any_byte_loses_only_what_is_behind_the_tear() {
    let folder = tempfile::tempdir().unwrap();
    let (series, thread) = Series::open(folder.path(), Limits::default()).unwrap();
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
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
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
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
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
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
    for number in [10, 2, 1] {
        series.append(lines(number, 1, &["a"])).await.unwrap();
    }
    let listed = series.attempts(attempt(1).job).await.unwrap();
    assert_eq!(listed, [attempt(1), attempt(2), attempt(10)]);
}

#[tokio::test]
async fn a_write_that_fails_is_named_and_not_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
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
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
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
    let (series, thread) = Series::open(folder.path(), Limits::default()).unwrap();
    series.append(lines(1, 1, &["a"])).await.unwrap();
    drop(series);
    thread.join().unwrap();
    let (series, _thread) = Series::open(folder.path(), Limits { keep_free: u64::MAX, ..Limits::default() }).unwrap();
    assert!(matches!(series.append(lines(1, 2, &["b"])).await, Err(SeriesError::NoSpace(_))));
    assert_eq!(all(&series, 1).await, numbered(&["a"]));
}

fn event(kind: &str, bytes: usize) -> String {
    format!(r#"{{"seq":1,"time":7,"type":"{kind}","message":"{}"}}"#, "x".repeat(bytes))
}

/// How many lines of each kind are there, and whether one says that others are not.
async fn kinds(series: &Series, number: u32) -> (usize, usize, bool) {
    let texts: Vec<String> = all(series, number).await.into_iter().map(|(_, text)| text).collect();
    let count =
        |kind: &str| texts.iter().filter(|text| text.contains(&format!(r#""type":"{kind}","message":"x"#))).count();
    (count("step"), count("log"), texts.iter().any(|text| text.contains("storage.series_limit")))
}

#[tokio::test]
async fn a_job_that_writes_without_end_loses_its_words_first_then_its_numbers_and_no_other_job_loses_any() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { job: 40 << 10, ..Limits::default() };
    let (series, thread) = Series::open(folder.path(), limits).unwrap();
    let mut first = 1;
    for round in 1..=100 {
        let both = [event("step", 500), event("log", 500)];
        let through = series.append(EventLines { attempt: attempt(1), first, lines: both.to_vec() }).await.unwrap();
        first += 2;
        assert_eq!(through, first - 1, "all of them are acknowledged: round {round}");
    }
    let (steps, words, told) = kinds(&series, 1).await;
    // 30 KiB of both, ten more of numbers alone.
    assert!((26..=28).contains(&words) && (42..=46).contains(&steps) && told, "{words} words, {steps} steps, {told}");
    let other = AttemptId { job: JobId(Uuid::from_u128(8)), token: AttemptToken { generation: 1, number: 1 } };
    series.append(EventLines { attempt: other, first: 1, lines: vec![event("log", 5)] }).await.unwrap();
    assert_eq!(series.read(other, 0, 9).await.unwrap().len(), 1);
    drop(series);
    thread.join().unwrap();
    // The next start knows how far the attempt was, and how much there is.
    let (series, _thread) = Series::open(folder.path(), limits).unwrap();
    assert_eq!(series.through(attempt(1)).await.unwrap(), 200);
    assert_eq!(series.append(lines(1, 201, &["a", "b"])).await.unwrap(), 202);
    assert_eq!(kinds(&series, 1).await, (steps, words, true));
}

#[tokio::test]
async fn a_job_that_writes_on_beyond_its_limit_takes_no_more_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let size = || {
        let files = std::fs::read_dir(super::folder(folder.path(), attempt(1))).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let limits = Limits { job: 4 << 10, ..Limits::default() };
    let (mut first, mut sizes) = (1, Vec::new());
    for _ in 0..3 {
        let (series, thread) = Series::open(folder.path(), limits).unwrap();
        for _ in 0..100 {
            let both = vec![event("step", 500), event("log", 500)];
            let through = series.append(EventLines { attempt: attempt(1), first, lines: both }).await.unwrap();
            first += 2;
            assert_eq!(through, first - 1);
        }
        sizes.push(size());
        drop(series);
        thread.join().unwrap();
    }
    assert!(sizes.iter().all(|size| *size == sizes[0] && *size < 6 << 10), "{sizes:?}");
    // Where there is room again, lines follow the number.
    let (series, _thread) = Series::open(folder.path(), Limits::default()).unwrap();
    assert_eq!(series.through(attempt(1)).await.unwrap(), 600);
    assert_eq!(series.append(lines(1, 601, &["a", "b"])).await.unwrap(), 602);
    let kept = all(&series, 1).await;
    assert!(kept.is_sorted_by_key(|(seq, _)| *seq), "{kept:?}");
    assert_eq!(kept[kept.len() - 2..], [(601, "a".into()), (602, "b".into())]);
    assert_eq!(missing(&series, 0).await, [], "what was not to be kept is not missing");
    let behind = series.read(attempt(1), 300, usize::MAX).await.unwrap();
    assert_eq!(behind.iter().map(|line| line.seq).collect::<Vec<_>>(), [601, 602]);
}

#[tokio::test]
async fn what_all_jobs_have_together_is_bounded_and_a_job_that_goes_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let (series, _thread) = Series::open(folder.path(), Limits { all: 20 << 10, ..Limits::default() }).unwrap();
    let lines: Vec<_> = (0..40).map(|_| event("step", 1000)).collect();
    for first in 1..=40 {
        let one = lines[..1].to_vec();
        assert_eq!(series.append(EventLines { attempt: attempt(1), first, lines: one }).await.unwrap(), first);
    }
    assert_eq!(kinds(&series, 1).await.0, 20, "20 KiB hold no more");
    series.remove(attempt(1).job).await.unwrap();
    assert_eq!(
        series.append(EventLines { attempt: attempt(2), first: 1, lines: lines[..1].to_vec() }).await.unwrap(),
        1
    );
    assert_eq!(kinds(&series, 2).await.0, 1);
}
