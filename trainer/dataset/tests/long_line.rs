//! A line that would not fit in memory. Alone in its process, because it measures the process.

use std::fs::{self, File};
use std::io::{BufWriter, Write};

use lorikeet_dataset::check;

const CHAT: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;

#[test]
fn a_line_of_a_hundred_megabytes_is_a_fault_of_that_line_and_never_held() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("long.jsonl");
    let mut file = BufWriter::new(File::create(&path).expect("creates"));
    writeln!(file, "{}", CHAT).expect("writes");
    for _ in 0..100 {
        file.write_all(&[b'x'; 1 << 20]).expect("writes");
    }
    write!(file, "\n{}", CHAT).expect("writes");
    file.flush().expect("flushes");
    let before = peak_kib();
    let found = check(&path, None, &mut |_| {}, &|| false).expect("checks");
    assert_eq!((found.trainable_pairs, found.error_count), (2, 1));
    assert_eq!(found.errors[0].line, 2);
    assert!(found.errors[0].message.contains("104857600 bytes long"), "{:?}", found.errors);
    let grown = peak_kib().saturating_sub(before);
    assert!(grown < 60 << 10, "the check grew by {grown} KiB");
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("number").parse().expect("number")
}
