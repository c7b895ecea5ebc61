//! Time and memory of preparing a large dataset: `cargo xtask bench data [megabytes] [bytes per conversation]` (1000, 1500).
//!
//! A seeded file of chat messages is written, a tokenizer of 8,192 entries trained on its beginning, and then, each in a process
//! of its own so that its peak memory is its own: `check` without a base, the first preparation, and a second start, which
//! finds file and cache unchanged and reads a thousand examples from anywhere in it.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use lorikeet_dataset::{PrepareConfig, Tokenizer, check, prepare, train_tokenizer};

const SYLLABLES: [&str; 24] = [
    "ka", "lo", "ri", "ke", "et", "mon", "sta", "ver", "pel", "tin", "gra", "sol", "den", "hu", "fi", "qua", "bre",
    "ton", "ly", "zan", "wo", "mi", "cer", "nu",
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [part, dir] = &arguments[..]
        && part.parse::<u64>().is_err()
    {
        return measure(part, Path::new(dir));
    }
    let number = |i: usize, default: u64| arguments.get(i).map_or(Ok(default), |text| text.parse());
    let (megabytes, bytes) = (number(0, 1000)?, number(1, 1500)?);
    let dir = std::env::temp_dir().join(format!("lorikeet-data-{megabytes}-{bytes}"));
    make(&dir, megabytes, bytes as usize)?;
    for part in ["check", "prepare", "again"] {
        let status = Command::new(std::env::current_exe()?).arg(part).arg(&dir).status()?;
        if !status.success() {
            return Err(format!("{part} ended with {status}").into());
        }
    }
    Ok(fs::remove_dir_all(dir)?)
}

/// One part, in this process alone.
fn measure(part: &str, dir: &Path) -> Result<(), Box<dyn Error>> {
    let file = dir.join("chats.jsonl");
    let (began, megabytes) = (Instant::now(), fs::metadata(&file)?.len() as f64 / 1e6);
    let said = if part == "check" {
        let found = check(&file, None, &mut |_| {}, &|| false)?;
        format!("{} conversations, {} faults", found.conversations, found.error_count)
    } else {
        let tokenizer = Tokenizer::load(dir)?;
        let config = PrepareConfig::new(&file, &dir.join("cache"));
        let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false)?;
        let examples = prepared.train;
        let opened = began.elapsed().as_secs_f64();
        let mut tokens = 0;
        for index in (0..1000).map(|i| i * 7919 % examples.len()) {
            tokens += examples.get(index)?.tokens.len();
        }
        let (epoch, read) = (prepared.report.train_tokens, began.elapsed().as_secs_f64() - opened);
        format!(
            "{} examples, {epoch} tokens; 1000 examples anywhere, {tokens} tokens, in {:.1} ms",
            examples.len(),
            read * 1e3
        )
    };
    let seconds = began.elapsed().as_secs_f64();
    let (peak, private) = (status_megabytes("VmHWM:")?, status_megabytes("RssAnon:")?);
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{part:>8}: {seconds:.2} s, {:.1} MB/s, {peak} MB resident at most, {private} MB private at its end; {said}",
        megabytes / seconds
    )?;
    Ok(())
}

/// The file and a tokenizer that knows its words.
fn make(dir: &Path, megabytes: u64, bytes: usize) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir)?;
    let mut state = 42;
    let mut out = BufWriter::new(File::create(dir.join("chats.jsonl"))?);
    let mut written = 0;
    let mut texts = Vec::new();
    while written < megabytes * 1_000_000 {
        let (question, answer) = (words(&mut state, bytes / 4), words(&mut state, bytes * 3 / 4));
        let line = format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{question}\"}}, {{\"role\": \"assistant\", \"content\": \"{answer}\"}}]}}\n"
        );
        out.write_all(line.as_bytes())?;
        written += line.len() as u64;
        if texts.len() < 2000 {
            texts.push(answer);
        }
    }
    out.flush()?;
    train_tokenizer(texts.iter(), 8192, dir)?;
    // a file that has just changed is never taken for unchanged
    std::thread::sleep(std::time::Duration::from_secs(4));
    Ok(())
}

/// Words of one to four syllables, sentences of a dozen.
fn words(state: &mut u64, bytes: usize) -> String {
    let mut text = String::new();
    let mut count = 0;
    while text.len() < bytes {
        for _ in 0..=draw(state, 4) {
            text.push_str(SYLLABLES[draw(state, SYLLABLES.len() as u64) as usize]);
        }
        count += 1;
        text.push_str(if count % 12 == 0 { ". " } else { " " });
    }
    text
}

fn draw(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

fn status_megabytes(name: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
