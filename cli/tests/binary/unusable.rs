//! Bases, adapters, settings and job files that cannot be used, each through the command that reads it: one clear line, the exit code of
//! a person's mistake, and nothing left behind. `tests/malformed/` holds what differs from a sound base or adapter; a name
//! that ends in `.gone` takes a file away. What is said of each stands in `tests/pins/malformed/`.

use crate::support::{lorikeet, pin, run};
use crate::train::Place;
use lorikeet_plan::ModelConfig;
use lorikeet_trainer::lora::{self, AdapterMeta, LoraConfig, LoraLayout, Targets};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn every_base_that_cannot_be_used_is_named_with_its_reason() {
    let place = Place::new();
    let said = judge_all("base", |case| {
        let base = place.path("spoilt");
        overlay(&place.path("base"), &case, &base);
        drop(fs::remove_dir_all(place.path("out")));
        (place.train_on("spoilt", "out", &["training.max_steps=1"]), base)
    });
    pin("malformed/base.txt", &said);
}

#[test]
fn every_adapter_that_cannot_be_begun_with_is_named_with_its_reason() {
    let place = Place::new();
    let sound = place.path("adapter");
    write_adapter(&place.path("base"), &sound);
    let settings = ["training.max_steps=1", "lora.rank=4", "lora.alpha=8", "lora.target_modules=['q_proj']"];
    let begin_with = |adapter: &Path, out: &str| {
        let mut command = place.train(out, &settings);
        command.arg("--init-adapter").arg(adapter);
        command
    };
    let (code, _, notes) = run(&mut begin_with(&sound, "sound"));
    assert_eq!(code, 0, "{notes}");
    let said = judge_all("adapter", |case| {
        let adapter = place.path("spoilt");
        overlay(&sound, &case, &adapter);
        drop(fs::remove_dir_all(place.path("out")));
        (begin_with(&adapter, "out"), adapter)
    });
    pin("malformed/adapter.txt", &said);
}

#[test]
fn every_setting_that_does_not_fit_the_model_is_named_with_its_reason() {
    let place = Place::new();
    let said = judge_all("settings", |case| {
        let set = fs::read_to_string(&case).unwrap();
        (place.train("out", &set.lines().chain(["training.max_steps=1"]).collect::<Vec<_>>()), case)
    });
    pin("malformed/settings.txt", &said);
}

#[test]
fn every_job_file_that_cannot_be_one_is_named_with_its_reason() {
    let said = judge_all("job", |case| {
        let mut command = lorikeet();
        // Nobody listens there: what is wrong with the file itself is said before anybody is asked.
        command.args(["--server", "http://127.0.0.1:9", "submit"]).arg(&case);
        (command, case)
    });
    pin("malformed/job.txt", &said);
}

#[test]
fn more_than_a_hundred_malformed_files_are_kept() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/dataset/tests/malformed/expected.tsv");
    let counts: Vec<usize> = ["base", "adapter", "settings", "job"].map(|kind| cases(kind).len()).into();
    assert!(counts.iter().sum::<usize>() + fs::read_to_string(data).unwrap().lines().count() >= 100, "{counts:?}");
}

/// What is said of each case of a kind, its place left out.
fn judge_all(kind: &str, command: impl Fn(PathBuf) -> (Command, PathBuf)) -> String {
    let (mut said, mut wrong) = (String::new(), Vec::new());
    for case in cases(kind) {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let (mut command, place) = command(case);
        let (code, answer, notes) = run(&mut command);
        let complaint = complaint(&notes);
        if (code, answer.as_str()) != (2, "")
            || notes.lines().filter(|line| is_error(line)).count() != 1
            || notes.contains("panicked")
        {
            wrong.push(format!("{name}: {code} {answer}{notes}"));
        }
        let complaint = complaint.replace(&format!("{}/", place.parent().unwrap().display()), "");
        said.push_str(&format!("{name}\n{complaint}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    said
}

fn is_error(line: &str) -> bool {
    line.starts_with("error: ")
}

/// The line of complaint, with the faults that it lists where there are several.
fn complaint(notes: &str) -> String {
    let lines = notes.lines().skip_while(|line| !is_error(line));
    lines.take_while(|line| is_error(line) || line.starts_with("  ")).map(|line| format!("    {line}\n")).collect()
}

/// In the order of their names.
fn cases(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed").join(kind);
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// `to` becomes what `sound` is, with what `case` holds instead.
fn overlay(sound: &Path, case: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    fs::create_dir(to).unwrap();
    for from in [sound, case] {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            match name.strip_suffix(".gone") {
                Some(gone) => fs::remove_file(to.join(gone)).unwrap(),
                None => _ = fs::copy(entry.path(), to.join(&name)).unwrap(),
            }
        }
    }
}

fn write_adapter(base: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let config = ModelConfig::parse(&fs::read_to_string(base.join("config.json")).unwrap()).unwrap();
    let settings =
        LoraConfig { target_modules: Targets::Names(vec!["q_proj".into()]), ..LoraConfig::plain(4, 8.0, 0.0) };
    let layout = LoraLayout::new(&config, &settings).unwrap();
    lora::save(to, &layout, &lora::init(&layout, 1), &AdapterMeta::default()).unwrap();
}
