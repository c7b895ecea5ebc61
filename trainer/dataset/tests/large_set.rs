//! A set that is large beside what preparing it may hold. Alone in its process, because it measures the process.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use lorikeet_dataset::{PrepareConfig, Tokenizer, prepare, write_byte_tokenizer};
use serde_json::json;

/// Conversations of 64 kB each.
const CONVERSATIONS: u64 = 500;

#[test]
fn complaint_12_tokenising_a_large_set_takes_all_memory() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("large.jsonl");
    let size = write(&file);
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("a tokenizer");
    let config = PrepareConfig { max_seq_length: 1 << 17, ..PrepareConfig::new(&file, &dir.path().join("cache")) };
    let warm = PrepareConfig { file: few(dir.path()), ..config.clone() };
    prepare(&warm, &tokenizer, &mut |_| {}, &|| false).expect("threads and tables are there from now on");

    let before = peak_kib();
    let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    let grown = peak_kib().saturating_sub(before) << 10;
    assert_eq!(prepared.train.len() + prepared.validation.len(), CONVERSATIONS as usize);
    assert!(
        prepared.report.train_tokens > size / 2,
        "a token for every byte: its tokens alone are larger than the file"
    );
    assert!(grown < size / 2, "{size} bytes of text grew the process by {grown}");

    let calls = std::cell::Cell::new(0);
    let again = prepare(&config, &tokenizer, &mut |_| calls.set(calls.get() + 1), &|| false).expect("finds them");
    assert_eq!((calls.get(), &again.report), (0, &prepared.report), "nothing is tokenised a second time");
    assert_eq!(again.train.get(3).expect("an example"), prepared.train.get(3).expect("an example"));
}

fn write(path: &Path) -> u64 {
    let mut file = BufWriter::new(File::create(path).expect("creates"));
    for number in 0..CONVERSATIONS {
        writeln!(file, "{}", conversation(number, 64_000)).expect("writes");
    }
    file.flush().expect("flushes");
    fs::metadata(path).expect("is there").len()
}

fn few(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("few.jsonl");
    let lines: String = (0..8).map(|number| format!("{}\n", conversation(number, 64_000))).collect();
    fs::write(&path, lines).expect("writes");
    path
}

fn conversation(number: u64, bytes: usize) -> serde_json::Value {
    let answer: String = format!("the answer to {number}, at length; ").chars().cycle().take(bytes).collect();
    json!({"messages": [{"role": "user", "content": format!("what of {number}?")}, {"role": "assistant", "content": answer}]})
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("number").parse().expect("number")
}
