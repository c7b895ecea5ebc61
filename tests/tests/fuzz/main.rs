//! Every decoder against bytes that nobody meant: mutated from what is valid, from the pinned files and from a kept corpus.
//!
//! A decoder may refuse; it may not panic, hang or ask for memory that its input does not account for. What it accepts says the
//! same again when it is written and read. `LORIKEET_FUZZ_SECONDS` says how long each is looked at, `LORIKEET_SEED` where chance
//! begins. An input that breaks one is kept in `corpus/<target>/`, and every later run begins with it.

mod given;
mod memory;
mod mutate;
mod stored;
mod targets;

use lorikeet_tests::seed;
use mutate::Mutator;
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Enough for every push: some forty decoders in a minute of one core.
const SECONDS: f64 = 1.5;
/// One input takes longer only when something in it is taken at its word.
const PATIENCE: Duration = Duration::from_secs(20);
/// Inputs that behaved in a way of their own; more would only repeat them.
const POOL: usize = 4_096;
/// Longer ones tell nothing new and take longer.
const LONGEST: usize = 64 << 10;
/// Inputs of one thread: tokenizers keeps a row for every tokenizer that a thread has loaded, which in two hundred thousand is more than a
/// decoder may ask for.
const A_THREAD: usize = 20_000;

/// A decoder under test: what it made of the bytes, in a few words. Different words, different ways through it.
pub(crate) type Decoder<'a> = &'a (dyn Fn(&[u8]) -> String + Sync);

/// Looks at one decoder for its time.
pub(crate) fn fuzz(target: &str, valid: Vec<Vec<u8>>, words: &[&str], decode: Decoder<'_>) {
    let seconds = std::env::var("LORIKEET_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut mutator = Mutator::new(seed(), words);
    let (mut pool, mut ways, mut refused) = (vec![], BTreeSet::new(), 0_u64);
    // A library's panic that is caught is an answer like any other: without this, its backtrace would be what asks for most memory.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    assert!(!valid.is_empty(), "{target}: nothing valid to begin with");
    for input in valid.into_iter().chain(kept(&folder)) {
        ways.insert(way(&look(target, &folder, &input, decode)));
        pool.push(input);
    }
    let (deadline, mut looked) = (Instant::now() + Duration::from_secs_f64(seconds), 0_u64);
    while Instant::now() < deadline {
        in_a_thread(|| {
            for _ in (0..A_THREAD).take_while(|_| Instant::now() < deadline) {
                let mut input = mutator.next(&pool);
                input.truncate(LONGEST);
                let answer = look(target, &folder, &input, decode);
                refused += u64::from(!answer.starts_with("ok"));
                looked += 1;
                if pool.len() < POOL && ways.insert(way(&answer)) {
                    pool.push(input);
                }
            }
        });
    }
    eprintln!("{target}: {looked} inputs, {refused} refused, {} ways through it", ways.len());
    assert!(looked > 50, "{target}: only {looked} inputs in {seconds} s");
}

/// Does the work in a thread of its own and fails as it does.
fn in_a_thread(work: impl FnOnce() + Send) {
    if let Err(panic) = thread::scope(|scope| scope.spawn(work).join()) {
        resume_unwind(panic);
    }
}

/// One input; a decoder that breaks leaves it in the corpus.
fn look(target: &str, folder: &Path, input: &[u8], decode: Decoder<'_>) -> String {
    let begun = Instant::now();
    let (answer, most) = memory::peak(|| catch_unwind(AssertUnwindSafe(|| decode(input))));
    let allowed = memory::allowed(input);
    let fault = match &answer {
        Err(_) => Some("it panicked".to_owned()),
        Ok(_) if most > allowed => Some(format!("it asked for {most} bytes, {allowed} are allowed")),
        Ok(_) if begun.elapsed() > PATIENCE => Some(format!("it took {:?}", begun.elapsed())),
        Ok(_) => None,
    };
    if let Some(fault) = fault {
        let path = keep(folder, input);
        panic!("{target}: {fault} at {} bytes, kept in {}", input.len(), path.display());
    }
    answer.unwrap_or_default()
}

/// An answer without what differs from input to input: numbers, and whatever it quotes.
fn way(answer: &str) -> String {
    let unquoted: String = answer.split(['"', '`']).step_by(2).collect();
    unquoted.chars().filter(|c| !c.is_ascii_digit()).take(80).collect()
}

fn kept(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file of the corpus can be read")).collect()
}

fn keep(folder: &Path, input: &[u8]) -> PathBuf {
    let path = folder.join(&blake3::hash(input).to_hex()[..16]);
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, input));
    written.expect("the corpus can be added to");
    path
}
