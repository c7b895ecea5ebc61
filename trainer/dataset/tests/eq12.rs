//! A real brightrun-lora-v4 file where `LORIKEET_SAMPLES` names a directory that holds one, else a generated one of the same
//! shape: both encodings, all traps.

mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use lorikeet_dataset::{
    Example, Format, Item, PrepareConfig, Prepared, Record, Role, Tokenizer, check, prepare, read, train_tokenizer,
};
use samples::{Files, generated};
use tempfile::TempDir;

#[test]
fn both_encodings_hold_the_same_records() {
    let files = files();
    let (from_document, without_target) = records(&files.json);
    let (from_lines, none) = records(&files.jsonl);
    assert_eq!((from_document.len(), from_lines.len()), (44, 44));
    assert_eq!((without_target, none), (45, 0));
    let plain =
        |records: &[Record]| records.iter().map(|r| (r.key.clone(), r.messages().to_vec())).collect::<BTreeMap<_, _>>();
    assert_eq!(plain(&from_document), plain(&from_lines));
    assert_eq!(from_document.iter().map(|r| &r.key.conversation).collect::<BTreeSet<_>>().len(), 12);
}

#[test]
fn the_current_input_stands_once_and_the_target_last() {
    for record in records(&files().json).0 {
        let roles: Vec<Role> = record.messages().iter().map(|message| message.role).collect();
        assert_eq!(roles[0], Role::System);
        for (i, role) in roles[1..].iter().enumerate() {
            assert_eq!(*role, if i % 2 == 0 { Role::User } else { Role::Assistant }, "message {i} of {:?}", record.key);
        }
        assert_eq!(roles.last(), Some(&Role::Assistant));
    }
}

#[test]
fn a_check_counts_what_is_there() {
    let files = files();
    let document = check(&files.json, None, &mut |_| {}, &|| false).expect("checks");
    assert_eq!(document.format, Format::BrightrunLoraV4);
    assert_eq!((document.conversations, document.pairs, document.trainable_pairs), (12, 89, 44));
    assert_eq!((document.error_count, document.tokens), (0, None));
    assert!(document.warnings.iter().any(|warning| warning.contains("45 of 89 pairs have no target")));
    assert_eq!(document.samples.len(), 3);
    let lines = check(&files.jsonl, None, &mut |_| {}, &|| false).expect("checks");
    assert_eq!((lines.conversations, lines.trainable_pairs, lines.error_count), (12, 44, 0));
}

#[test]
fn both_encodings_give_the_same_examples_split_without_leakage() {
    let files = files();
    let (dir, tokenizer) = tokenizer(&files);
    let prepared =
        |file: &Path| prepare(&config(file, dir.path(), 1024), &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    let (document, lines) = (prepared(&files.json), prepared(&files.jsonl));
    assert_eq!(examples(&document), examples(&lines));
    assert_eq!(document.train.len() + document.validation.len(), 44);
    assert_eq!((document.report.train_conversations, document.report.validation_conversations), (11, 1));
    let names = |side: &lorikeet_dataset::Examples| -> BTreeSet<String> {
        (0..side.len()).map(|i| side.get(i).expect("sound").key.conversation).collect()
    };
    assert!(names(&document.train).is_disjoint(&names(&document.validation)));
}

#[test]
fn only_the_target_and_its_end_of_turn_are_learnt() {
    let files = files();
    let (dir, tokenizer) = tokenizer(&files);
    let all = prepare(&config(&files.json, dir.path(), 1 << 20), &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    let targets: BTreeMap<_, _> = records(&files.json)
        .0
        .into_iter()
        .map(|record| (record.key.clone(), record.messages().last().expect("messages").text().to_owned()))
        .collect();
    let end = tokenizer.encode("<|im_end|>").expect("encodes");
    for example in examples(&all).into_values() {
        let learnt: Vec<u32> =
            example.tokens.iter().zip(&example.supervised).filter(|(_, on)| **on).map(|(token, _)| *token).collect();
        assert_eq!(learnt.last(), end.first());
        assert_eq!(tokenizer.decode(&learnt).expect("decodes"), targets[&example.key]);
    }
}

#[test]
fn long_examples_lose_history_and_never_the_target() {
    let files = files();
    let (dir, tokenizer) = tokenizer(&files);
    let whole =
        prepare(&config(&files.json, dir.path(), 1 << 20), &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    let limit = whole.report.longest_example as usize * 3 / 4;
    let cut = prepare(&config(&files.json, dir.path(), limit), &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    let (whole, after) = (examples(&whole), examples(&cut));
    assert!(
        cut.report.cut.examples > 0 && cut.report.cut.messages >= 2 * cut.report.cut.examples,
        "{:?}",
        cut.report.cut
    );
    for (key, example) in &after {
        assert!(example.tokens.len() <= limit);
        assert_eq!(example.tokens.len() + example.cut.tokens as usize, whole[key].tokens.len());
        assert_eq!(example.supervised_count(), whole[key].supervised_count());
    }
}

#[test]
fn a_second_preparation_reads_the_cache() {
    let files = files();
    let (dir, tokenizer) = tokenizer(&files);
    let config = config(&files.jsonl, dir.path(), 1024);
    let first = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    let mut read_anything = false;
    let second = prepare(&config, &tokenizer, &mut |_| read_anything = true, &|| false).expect("prepares");
    assert!(!read_anything);
    assert_eq!(first.report, second.report);
    assert_eq!(examples(&first), examples(&second));
}

fn config(file: &Path, dir: &Path, max_seq_length: usize) -> PrepareConfig {
    PrepareConfig { max_seq_length, ..PrepareConfig::new(file, &dir.join("cache")) }
}

fn files() -> Files {
    let Some(dir) = std::env::var_os("LORIKEET_SAMPLES") else { return generated() };
    let stem = Path::new(&dir).join("eq-12/EQ-12-conversations-demo");
    Files { json: stem.with_extension("json"), jsonl: stem.with_extension("jsonl"), _kept: None }
}

fn records(file: &Path) -> (Vec<Record>, usize) {
    let (mut records, mut without) = (Vec::new(), 0);
    read(file, &mut |item, _| {
        match item {
            Item::Record(record) => records.push(record),
            Item::NoTarget(_) => without += 1,
            Item::Fault(fault) => panic!("{fault:?}"),
        }
        ControlFlow::Continue(())
    })
    .expect("reads");
    (records, without)
}

fn examples(prepared: &Prepared) -> BTreeMap<lorikeet_dataset::Key, Example> {
    let both = [&prepared.train, &prepared.validation];
    both.into_iter()
        .flat_map(|side| (0..side.len()).map(|i| side.get(i).expect("sound")))
        .map(|example| (example.key.clone(), example))
        .collect()
}

fn tokenizer(files: &Files) -> (TempDir, Tokenizer) {
    let dir = tempfile::tempdir().expect("dir");
    let texts = records(&files.json)
        .0
        .into_iter()
        .flat_map(|record| record.messages().to_vec())
        .map(|message| message.text().to_owned());
    let entries = train_tokenizer(texts, 49_152, dir.path()).expect("trains");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    assert_eq!(tokenizer.entries(), entries);
    assert!(tokenizer.check_fits(entries - 1).is_err());
    tokenizer.check_fits(49_152).expect("fits");
    (dir, tokenizer)
}
