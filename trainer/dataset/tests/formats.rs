//! Every format and every way of packing one, read into the same records.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lorikeet_dataset::{Body, Filters, Format, Item, Json, Message, Record, Role, Target, check, check_job, read};
use lorikeet_dataset::{DatasetError, PrepareConfig, Tokenizer, write_byte_tokenizer};

#[test]
fn two_answers_to_one_question_are_one_conversation_in_every_format() {
    let chat = |answer: &str| format!("{{\"messages\": [{}, {}]}}\n", turn("user", "q"), turn("assistant", answer));
    let said = |from: &str, value: &str| format!("{{\"from\": \"{from}\", \"value\": \"{value}\"}}");
    let shared = |answer: &str| format!("{{\"conversations\": [{}, {}]}}\n", said("human", "q"), said("gpt", answer));
    let alpaca = |answer: &str| format!("{{\"instruction\": \"q\", \"output\": \"{answer}\"}}\n");
    let prompt = |answer: &str| format!("{{\"prompt\": \"q\", \"completion\": \"{answer}\"}}\n");
    for (file, conversations) in [
        (chat("a") + &chat("b"), 1),
        (shared("a") + &shared("b"), 1),
        (alpaca("a") + &alpaca("b"), 1),
        (prompt("a") + &prompt("b"), 1),
        // where nobody asks, each stands for itself
        (["a", "b"].map(|answer| format!("{{\"messages\": [{}]}}\n", turn("assistant", answer))).concat(), 2),
    ] {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("data.jsonl");
        fs::write(&path, &file).expect("writes");
        let found = check(&path, None, &mut |_| {}, &|| false).expect("checks");
        assert_eq!((found.conversations, found.pairs, found.error_count), (conversations, 2, 0), "{file}");
    }
}

#[test]
fn parts_of_text_are_one_text_and_calls_are_objects() {
    let line = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": null}"}}, {"name": "g", "arguments": {}}]},
        {"role": "tool", "content": "2", "tool_call_id": "1", "name": null}, {"role": "assistant", "content": "c"}],
        "tools": "[{\"name\": \"f\"}]", "id": 7}"#
        .replace('\n', " ");
    let (format, records) = records_of(line.as_bytes());
    assert_eq!((format, records.len()), (Format::ChatMessages, 1));
    let Body::Chat { messages, tools, target } = &records[0].body else { panic!("a chat") };
    assert_eq!((messages[0].text(), target, tools.len()), ("ab", &Target::AsSettings, 1));
    assert_eq!(messages[1].content, None);
    let calls = serde_json::to_string(&messages[1].tool_calls).expect("JSON");
    let expected = r#"[{"id":"1","type":"function","function":{"name":"f","arguments":{"z":1,"a":null}}},{"name":"g","arguments":{}}]"#;
    assert_eq!(calls, expected);
    assert_eq!(messages[2].further, [("tool_call_id".to_owned(), Json::String("1".to_owned()))]);
}

#[test]
fn sharegpt_speakers_become_roles() {
    let line = r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": \"{}\"}]"}, {"from": "observation", "value": "1"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "bye"}], "system": "s", "tools": ""}"#;
    let (format, records) = records_of(line.as_bytes());
    assert_eq!(format, Format::Sharegpt);
    let roles: Vec<Role> = records[0].messages().iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool, Role::Assistant]);
    assert_eq!(records[0].messages()[2].tool_calls.len(), 2);
    let warnings = summary_of(line.as_bytes());
    assert!(warnings[0].contains("go on after the last answer"), "{warnings:?}");
}

#[test]
fn the_list_of_messages_may_be_called_conversations() {
    let line = br#"{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let (format, records) = records_of(line);
    assert_eq!((format, records[0].messages()), (Format::ChatMessages, &two("a", "b")[..]));
}

#[test]
fn alpaca_asks_with_its_input_behind_an_empty_line() {
    let text = br#"[{"instruction": "Add.", "input": "1 2", "output": "3", "text": "rendered"}, {"instruction": "Hi", "input": "", "output": "Ho"}]"#;
    let (format, records) = records_of(text);
    assert_eq!(format, Format::Alpaca);
    assert_eq!(records[0].messages(), two("Add.\n\n1 2", "3"));
    assert_eq!(records[1].messages(), two("Hi", "Ho"));
    assert!(summary_of(text)[0].contains("1 record(s) hold a text beside their ALPACA"));
}

#[test]
fn prompts_may_be_conversations_whose_completion_alone_is_the_target() {
    let line = br#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}"#;
    let (format, records) = records_of(line);
    let Body::Chat { messages, target, .. } = &records[0].body else { panic!("a chat") };
    assert_eq!((format, messages.len(), *target), (Format::PromptCompletion, 4, Target::LastMessage));
}

#[test]
fn texts_are_no_conversations() {
    let (format, records) = records_of(b"{\"text\": \"a\"}\n{\"text\": \"b\", \"meta\": {}}\n");
    assert_eq!((format, records.len()), (Format::Text, 2));
    assert_eq!(records[1].body, Body::Text("b".into()));
}

#[test]
fn one_object_over_many_lines_is_a_dataset_of_one() {
    let object = "\n{\n \"prompt\": \"a\",\n \"completion\": \"b\"\n}\n";
    let (format, records) = records_of(object.as_bytes());
    assert_eq!((format, records.len(), records[0].line), (Format::PromptCompletion, 1, 2));
    let (_, records) = records_of(object.repeat(3).as_bytes());
    assert_eq!(records.iter().map(|record| record.line).collect::<Vec<_>>(), [2, 7, 12]);
}

#[test]
fn every_packing_holds_the_same_records() {
    let mut all = Vec::new();
    let names = [
        "chat.jsonl.gz",
        "chat.json.gz",
        "chat_none.parquet",
        "chat_snappy.parquet",
        "chat_gzip.parquet",
        "chat_zstd.parquet",
    ];
    for name in names {
        let (format, records) = read_all(&packed(name));
        assert_eq!(format, Format::ChatMessages, "{name}");
        all.push(records.into_iter().map(|record| (record.key, record.body)).collect::<Vec<_>>());
    }
    assert_eq!(all[0].len(), 3);
    for (name, records) in names.iter().zip(&all) {
        assert_eq!(records, &all[0], "{name}");
    }
    let (format, records) = read_all(&packed("pairs.parquet"));
    assert_eq!((format, records[2].messages(), records[2].line), (Format::PromptCompletion, &two("p2", "c2")[..], 3));
    let (format, records) = read_all(&packed("turns.parquet"));
    assert_eq!((format, records[0].messages()), (Format::Sharegpt, &two("a", "b")[..]));
}

#[test]
fn a_packed_file_tells_how_far_it_was_read() {
    let path = packed("chat.jsonl.gz");
    let (mut last, size) = (0, fs::metadata(&path).expect("metadata").len());
    check(&path, None, &mut |progress| last = progress.bytes, &|| false).expect("checks");
    assert_eq!(last, size);
}

#[test]
fn filters_are_refused_where_nothing_is_marked() {
    let dir = tempfile::tempdir().expect("dir");
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let filters = Filters { topics: vec!["x".into()], ..Filters::default() };
    let config = PrepareConfig { filters, ..PrepareConfig::new(&packed("pairs.parquet"), dir.path()) };
    let error = check_job(&config, &tokenizer, &mut |_| {}, &|| false).expect_err("refused");
    assert!(matches!(error, DatasetError::Filters { format: Format::PromptCompletion, .. }), "{error}");
}

fn two(question: &str, answer: &str) -> Vec<Message> {
    vec![Message::new(Role::User, question), Message::new(Role::Assistant, answer)]
}

fn packed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packed").join(name)
}

fn records_of(text: &[u8]) -> (Format, Vec<Record>) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("data");
    fs::write(&path, text).expect("writes");
    read_all(&path)
}

fn summary_of(text: &[u8]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("data");
    fs::write(&path, text).expect("writes");
    read(&path, &mut |_, _| ControlFlow::Continue(())).expect("reads").warnings
}

fn read_all(path: &Path) -> (Format, Vec<Record>) {
    let mut records = Vec::new();
    let summary = read(path, &mut |item, _| {
        let Item::Record(record) = item else { panic!("{item:?}") };
        records.push(record);
        ControlFlow::Continue(())
    })
    .expect("reads");
    (summary.format, records)
}

fn turn(role: &str, content: &str) -> String {
    format!("{{\"role\": \"{role}\", \"content\": \"{content}\"}}")
}
