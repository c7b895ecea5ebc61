//! Complaint 12 of docs/complaints.md. Alone in its process, because it measures the process.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use lorikeet_dataset::{PrepareConfig, Tokenizer, prepare, train_tokenizer};

/// Six times as much as fills every buffer on the way.
const SMALL_MEGABYTES: usize = 6;
const LARGE_MEGABYTES: usize = 36;

#[test]
fn complaint_12_tokenising_a_large_set_takes_all_memory_or_hours_at_every_start() {
    let dir = tempfile::tempdir().expect("dir");
    train_tokenizer((0..2_000).map(line).collect::<Vec<_>>().iter(), 1_000, dir.path()).expect("trains");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let prepared = |file: &Path| {
        let mut looked = false;
        let config = PrepareConfig::new(file, &dir.path().join("cache"));
        let prepared = prepare(&config, &tokenizer, &mut |_| looked = true, &|| false).expect("prepares");
        (prepared.train.len(), looked)
    };
    let small = chats(dir.path(), SMALL_MEGABYTES);
    let (few, _) = prepared(&small);
    let before = peak_kib();
    let large = chats(dir.path(), LARGE_MEGABYTES);
    let (many, looked) = prepared(&large);
    assert!(many > 5 * few && looked, "{many} and {few} examples");
    let grown = (peak_kib() - before) >> 10;
    assert!(grown < LARGE_MEGABYTES as u64 / 2, "{LARGE_MEGABYTES} MB took {grown} MiB more than {SMALL_MEGABYTES} MB");
    let again = prepared(&large);
    assert_eq!(again, (many, false), "a second start tokenises nothing");
}

/// A file of so many megabytes, no two lines the same.
fn chats(dir: &Path, megabytes: usize) -> PathBuf {
    let path = dir.join(format!("{megabytes}.jsonl"));
    let mut out = BufWriter::new(File::create(&path).expect("creates"));
    let (mut written, mut number) = (0, 0);
    while written < megabytes * 1_000_000 {
        let text = format!("{{\"prompt\": \"{}\", \"completion\": \"{}\"}}\n", line(number), line(number + 1));
        out.write_all(text.as_bytes()).expect("writes");
        (written, number) = (written + text.len(), number + 2);
    }
    out.flush().expect("flushes");
    path
}

fn line(number: usize) -> String {
    (0..24)
        .map(|place| format!("word{} ", number.wrapping_mul(2_654_435_761).wrapping_add(place * 977) % 5_003))
        .collect()
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("number").parse().expect("number")
}
