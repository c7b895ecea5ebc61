//! A file for every way in which data can be wrong, each with the one line that is said of it; `malformed/expected.tsv` lists them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lorikeet_dataset::{
    DatasetError, Encoder, Fault, Filters, Supervise, Tokenizer, check, preview, write_byte_tokenizer,
};
use serde_json::json;

#[test]
fn every_malformed_file_is_named_by_line_path_and_reason() {
    let wrong: Vec<String> = expected().iter().filter_map(|expected| judge(expected).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_names_every_file_that_is_there() {
    let listed: BTreeSet<String> = expected().into_iter().map(|expected| expected.name).collect();
    let entries = fs::read_dir(folder()).expect("folder").map(|entry| entry.expect("entry"));
    let files =
        entries.filter(|entry| entry.path().is_file()).map(|entry| entry.file_name().into_string().expect("UTF-8"));
    let there: BTreeSet<String> = files.filter(|name| name != "expected.tsv").collect();
    assert_eq!(listed, there);
    assert!(there.len() >= 50);
}

#[test]
fn a_mark_and_carriage_returns_are_no_fault() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("windows.jsonl");
    let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    fs::write(&path, format!("\u{feff}{line}\r\n\r\n{line}\r\n")).expect("writes");
    let found = check(&path, None, &mut |_| {}, &|| false).expect("checks");
    assert_eq!((found.trainable_pairs, found.error_count), (2, 0));
}

#[test]
fn a_template_that_cannot_be_used_says_why() {
    let said = [
        ("raises", "a system message must come first"),
        ("looks_ahead", "renders the conversation up to message 1 otherwise alone"),
        ("prints_no_answer", "no token of this sample is a target"),
    ];
    let endless = Tokenizer::load(base("never_ends").path()).expect_err("it is tried before anybody waits for it");
    assert!(endless.to_string().contains("(line 1 of the template)"), "{endless}");
    for (name, words) in said {
        let dir = base(name);
        let tokenizer = Tokenizer::load(dir.path()).expect(name);
        let encoder = Encoder { tokenizer: &tokenizer, supervise: Supervise::Assistant, max_seq_length: 1000 };
        let file = dir.path().join("chat.jsonl");
        let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        fs::write(&file, line).expect("writes");
        let found = preview(&file, &Filters::default(), encoder).expect(name);
        let fault = &found.faults.listed[0];
        assert!(fault.line == 1 && fault.path == "$" && fault.message.contains(words), "{name}: {fault:?}");
    }
    for (name, words) in [("syntax_error", "line 2 of the template"), ("unknown_filter", "to_yaml")] {
        let dir = base(name);
        let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        fs::write(dir.path().join("chat.jsonl"), line).expect("writes");
        let error = match Tokenizer::load(dir.path()) {
            Err(error) => error.to_string(),
            Ok(tokenizer) => tokenizer.render(&[], false).expect_err(name).to_string(),
        };
        assert!(error.contains(words), "{name}: {error}");
    }
}

/// What is said of one file.
struct Expected {
    name: String,
    line: Option<u64>,
    path: String,
    words: String,
}

fn expected() -> Vec<Expected> {
    let text = fs::read_to_string(folder().join("expected.tsv")).expect("list");
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [name, line, path, words] = cells[..] else { panic!("four cells: {line}") };
        Expected { name: name.into(), line: line.parse().ok(), path: path.into(), words: words.into() }
    };
    text.lines().map(row).collect()
}

/// Checks one file against its line.
fn judge(expected: &Expected) -> Result<(), String> {
    let Expected { name, line, path, words } = expected;
    match (check(&folder().join(name), None, &mut |_| {}, &|| false), line) {
        (Ok(found), Some(line)) => match found.errors.first() {
            Some(Fault { line: at, path: place, message, .. })
                if at == line && place == path && message.contains(words) =>
            {
                Ok(())
            }
            other => Err(format!("{name}: expected line {line}, {path}: {words}; found {other:?}")),
        },
        (Err(error @ DatasetError::UnknownFormat { .. }), None) if error.to_string().contains(words) => Ok(()),
        (other, _) => Err(format!("{name}: expected {line:?} {words}; found {other:?}")),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed")
}

/// A directory with a tokenizer and one of the templates.
fn base(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("dir");
    write_byte_tokenizer(dir.path()).expect("writes");
    let template = fs::read_to_string(folder().join("templates").join(format!("{name}.jinja"))).expect("template");
    fs::write(dir.path().join("tokenizer_config.json"), json!({"chat_template": template}).to_string())
        .expect("writes");
    dir
}
