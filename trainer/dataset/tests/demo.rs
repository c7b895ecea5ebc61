//! The demo's conversations: valid, short, and no two of them share a sentence, so that held-out loss means something.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use lorikeet_dataset::{Format, Item, PrepareConfig, Record, Tokenizer, check, prepare, read, write_byte_tokenizer};

#[test]
fn both_files_are_sound_chats_of_the_stated_sizes() {
    for (name, conversations) in [("demo.jsonl", 300), ("demo_held_out.jsonl", 40)] {
        let found = check(&asset(name), None, &mut |_| {}, &|| false).expect("checks");
        assert_eq!((found.format, found.error_count, found.conversations), (Format::ChatMessages, 0, conversations));
        assert_eq!(found.warnings, [""; 0]);
    }
}

#[test]
fn no_two_conversations_share_a_sentence() {
    let mut owners: HashMap<String, String> = HashMap::new();
    for record in records() {
        for message in record.messages() {
            for sentence in message.text().split(['.', '!', '?', '\n']).map(str::trim).filter(|text| !text.is_empty()) {
                let owner = owners.entry(sentence.to_lowercase()).or_insert_with(|| record.key.conversation.clone());
                assert_eq!(*owner, record.key.conversation, "{sentence:?} stands in two conversations");
            }
        }
    }
    assert!(owners.len() > 680);
}

#[test]
fn every_conversation_is_at_most_two_hundred_bytes() {
    for record in records() {
        let bytes: usize = record.messages().iter().map(|message| message.text().len()).sum();
        assert!(bytes <= 200, "{bytes} bytes: {:?}", record.messages());
    }
}

#[test]
fn a_split_of_the_training_file_alone_holds_out_whole_conversations() {
    let dir = tempfile::tempdir().expect("dir");
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let config = PrepareConfig::new(&asset("demo.jsonl"), dir.path());
    let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    assert_eq!((prepared.train.len(), prepared.validation.len()), (270, 30));
    assert!(prepared.report.longest_example <= 400, "{}", prepared.report.longest_example);
    assert_eq!(prepared.report.cut.examples, 0);
}

fn records() -> Vec<Record> {
    let mut records = Vec::new();
    for name in ["demo.jsonl", "demo_held_out.jsonl"] {
        read(&asset(name), &mut |item, _| {
            let Item::Record(record) = item else { panic!("{item:?}") };
            records.push(record);
            ControlFlow::Continue(())
        })
        .expect("reads");
    }
    records
}

fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../cli/assets").join(name)
}
