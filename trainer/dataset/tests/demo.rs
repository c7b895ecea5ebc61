//! The demo's conversations: valid, short, and no word that is asked for stands in those that are trained on, so that an exact
//! match means something.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::PathBuf;

use lorikeet_dataset::{
    Format, Item, PrepareConfig, Record, Role, Tokenizer, check, prepare, read, write_byte_tokenizer,
};

#[test]
fn both_files_are_sound_chats_of_the_stated_sizes() {
    for (name, conversations) in [("demo.jsonl", 1600), ("demo_held_out.jsonl", 100)] {
        let found = check(&asset(name), None, &mut |_| {}, &|| false).expect("checks");
        assert_eq!((found.format, found.error_count, found.conversations), (Format::ChatMessages, 0, conversations));
        assert_eq!(found.warnings, [""; 0]);
    }
}

#[test]
fn no_word_that_is_asked_for_is_trained_on() {
    let words = |name: &str| -> HashSet<String> {
        let said = records(name).into_iter().flat_map(|record| record.messages().to_vec());
        let asked = said.filter(|message| message.role == Role::User).map(|message| message.text().to_owned());
        let quoted = asked.map(|text| text.split('"').nth(1).expect("a question quotes what it is about").to_owned());
        quoted.flat_map(|phrase| phrase.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    let (trained, asked) = (words("demo.jsonl"), words("demo_held_out.jsonl"));
    assert_eq!(trained.intersection(&asked).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(asked.len(), 100);
}

#[test]
fn every_conversation_is_at_most_a_hundred_bytes() {
    for record in ["demo.jsonl", "demo_held_out.jsonl"].into_iter().flat_map(records) {
        let bytes: usize = record.messages().iter().map(|message| message.text().len()).sum();
        assert!(bytes <= 100, "{bytes} bytes: {:?}", record.messages());
    }
}

#[test]
fn a_split_of_the_training_file_alone_holds_out_whole_conversations() {
    let dir = tempfile::tempdir().expect("dir");
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let config = PrepareConfig::new(&asset("demo.jsonl"), dir.path());
    let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    assert_eq!((prepared.train.len(), prepared.validation.len()), (1440, 160));
    assert!(prepared.report.longest_example <= 128, "{}", prepared.report.longest_example);
    assert_eq!(prepared.report.cut.examples, 0);
}

fn records(name: &str) -> Vec<Record> {
    let mut records = Vec::new();
    read(&asset(name), &mut |item, _| {
        let Item::Record(record) = item else { panic!("{item:?}") };
        records.push(record);
        ControlFlow::Continue(())
    })
    .expect("reads");
    records
}

fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../cli/assets").join(name)
}
