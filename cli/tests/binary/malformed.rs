//! Every malformed file of the dataset's tests through the command line: one clear line, and the exit code of a person's mistake.

use crate::support::{lorikeet, run};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

const CHAT: &str = r#"{"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "tell"}]}"#;

#[test]
fn every_malformed_file_gives_one_clear_line_and_exit_code_2() {
    let list = fs::read_to_string(malformed("expected.tsv")).unwrap();
    let mut wrong = Vec::new();
    for row in list.lines() {
        let cells: Vec<&str> = row.split('\t').collect();
        let [name, line, path, words] = cells[..] else { panic!("{row}") };
        let (code, _, said) = run(lorikeet().args(["dataset", "check"]).arg(malformed(name)));
        let place = if line.is_empty() { path.to_owned() } else { format!("line {line}, {path}: ") };
        let lines = said.lines().filter(|line| line.starts_with("error: ")).count();
        if code != 2
            || lines != 1
            || said.lines().count() != 1
            || ![name, &place, words].iter().all(|part| said.contains(part))
        {
            wrong.push(format!("{name}: {code} {said}"));
        }
    }
    assert!(wrong.is_empty() && list.lines().count() >= 50, "{}", wrong.join("\n"));
}

#[test]
fn a_line_of_a_hundred_megabytes_is_one_line_of_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.jsonl");
    let mut file = fs::File::create(&path).unwrap();
    writeln!(file, "{CHAT}").unwrap();
    for _ in 0..100 {
        file.write_all(&[b'x'; 1 << 20]).unwrap();
    }
    let (code, _, said) = run(lorikeet().args(["dataset", "check"]).arg(&path));
    assert_eq!(code, 2);
    assert!(said.contains("line 2, $: the line is 104857600 bytes long, expected at most 8388608"), "{said}");
}

#[test]
fn a_template_that_cannot_be_used_is_one_line_of_complaint() {
    let said = [
        ("raises", "line 1, $: sample"),
        ("looks_ahead", "otherwise alone than as a part of the whole"),
        ("prints_no_answer", "no token of this sample is a target"),
        ("syntax_error", "line 2 of the template"),
        ("unknown_filter", "to_yaml"),
    ];
    for (name, words) in said {
        let folder = base(&fs::read_to_string(malformed(&format!("templates/{name}.jinja"))).unwrap());
        let file = folder.path().join("chat.jsonl");
        fs::write(&file, CHAT).unwrap();
        let (code, _, complaint) =
            run(lorikeet().args(["dataset", "preview"]).arg(&file).arg("--base").arg(folder.path()));
        assert_eq!(code, 2, "{name}: {complaint}");
        assert!(complaint.lines().count() == 1 && complaint.contains(words), "{name}: {complaint}");
    }
}

#[test]
fn a_preview_marks_what_is_learnt() {
    let folder = base(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    );
    let file = folder.path().join("chat.jsonl");
    fs::write(&file, [CHAT; 5].join("\n")).unwrap();
    let preview = |more: &[&str]| {
        run(lorikeet().args(["dataset", "preview"]).arg(&file).arg("--base").arg(folder.path()).args(more))
    };
    let (code, shown, said) = preview(&[]);
    assert_eq!((code, shown.matches("── example").count()), (0, 3), "{said}");
    assert!(shown.contains("<user>ask<|im_end|><assistant>⟦tell<|im_end|>⟧"), "{shown}");
    let (_, json, _) = preview(&["--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let sample = &json["samples"][0];
    let text: Vec<char> = sample["text"].as_str().unwrap().chars().collect();
    let place = |key: &str| sample["spans"][0][key].as_u64().unwrap() as usize;
    assert_eq!(text[place("start")..place("end")].iter().collect::<String>(), "tell<|im_end|>");
    assert_eq!((json["format"].as_str(), sample["supervisedTokens"].as_u64()), (Some("CHAT_MESSAGES"), Some(5)));
    let (_, all, _) = preview(&["--supervise", "all"]);
    assert!(all.contains("<⟦user>ask"), "all but the first token: {all}");
}

/// A base's texts with a template of its own.
fn base(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    lorikeet_dataset::write_byte_tokenizer(folder.path()).unwrap();
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

fn malformed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/dataset/tests/malformed").join(name)
}
