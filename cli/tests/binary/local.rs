//! Commands on a model of this machine: what it says, how well it predicts, and what it becomes in other files.

use crate::support::{file, lorikeet, run};
use crate::train::Place;
use lorikeet_api::name::shown;
use serde_json::{Value, json};
use std::{fs, process::Command};

#[test]
fn a_model_says_the_same_for_the_same_seed_and_streams_what_json_holds() {
    let place = Place::new();
    let (code, said, notes) = run(&mut generate(&place, &["--prompt", "it is", "--seed", "7", "--max-tokens", "12"]));
    assert!(code == 0 && notes.contains("tokens/s"), "{code} {notes}");
    let again = |seed: &str, more: &[&str]| {
        let asked = [&["--prompt", "it is", "--seed", seed, "--max-tokens", "12", "--output", "json"], more].concat();
        let (code, answer, complaint) = run(&mut generate(&place, &asked));
        assert_eq!(code, 0, "{complaint}");
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let answer = again("7", &[]);
    assert_eq!((&answer["prompt"], &answer["prompt_tokens"]), (&"it is".into(), &5.into()));
    assert!(answer["tokens"].as_u64().is_some_and(|tokens| tokens <= 12));
    // what a terminal would obey is shown and not sent
    assert_eq!(said, format!("{}\n", shown(answer["text"].as_str().unwrap())));
    assert_eq!(answer["text"], again("7", &[])["text"]);
    let others: Vec<_> = ["1", "2", "3"].map(|seed| again(seed, &["--temperature", "2"])["text"].clone()).into();
    assert!(others.iter().any(|text| *text != others[0]), "{others:?}");
    let greedy = again("1", &["--temperature", "0"]);
    assert_eq!(greedy["text"], again("2", &["--temperature", "0"])["text"]);
    assert_eq!(greedy["text"], again("3", &["--top-k", "1"])["text"]);
}

#[test]
fn an_adapter_answers_what_it_was_taught_and_eval_sees_it() {
    let place = Place::drawn(0.4);
    let set = ["training.epochs=40", "training.learning_rate=1e-2", "lora.rank=16", "lora.dropout=0.0"];
    assert_eq!(run(&mut place.train("run", &set)).0, 0);
    let adapter = place.path("run/adapter");
    let ask = |place: &Place, more: &[&str]| {
        let mut command = generate(place, &["--chat", "what is 7?", "--temperature", "0", "--output", "json"]);
        command.args(more);
        let (code, answer, complaint) = run(&mut command);
        assert_eq!(code, 0, "{complaint}");
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let taught = ask(&place, &["--adapter", adapter.to_str().unwrap()]);
    assert!(taught["text"].as_str().unwrap().starts_with("it is the number") && taught["end"] == "turn", "{taught}");
    assert!(taught["prompt"].as_str().unwrap().contains("<|im_start|>user\nwhat is 7?"), "{taught}");
    assert_ne!(ask(&place, &[])["text"], taught["text"]);

    let data = place.path("data.jsonl");
    let eval = |more: &[&str]| {
        let mut command = lorikeet();
        command.args(["eval", "--base"]).arg(place.path("base")).args(more);
        if !more.contains(&"--dataset") {
            command.arg("--dataset").arg(&data);
        }
        let (code, answer, complaint) = run(&mut command);
        assert_eq!(code, 0, "{complaint}");
        answer
    };
    let found: Value =
        serde_json::from_str(&eval(&["--adapter", adapter.to_str().unwrap(), "--output", "json"])).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(found["examples"] == 20 && number(&found["loss"]) < 0.5 * number(&found["base_loss"]), "{found}");
    assert!((number(&found["loss"]).exp() - number(&found["perplexity"])).abs() < 1e-9);
    assert_eq!(found["exact_match"], Value::Null, "it was not asked for");
    let alone: Value = serde_json::from_str(&eval(&["--output", "json"])).unwrap();
    assert_eq!((&alone["loss"], &alone["base_loss"]), (&found["base_loss"], &Value::Null));
    let table = eval(&["--adapter", adapter.to_str().unwrap()]);
    assert!(table.contains("base's loss") && table.contains("perplexity"), "{table}");

    let line = |answer: &Value| {
        let turn = |role: &str, content: &Value| json!({"role": role, "content": content});
        format!("{}\n", json!({"messages": [turn("user", &json!("what is 7?")), turn("assistant", answer)]}))
    };
    let own = line(&taught["text"]) + &line(&json!("it is the number"));
    let own = file(&place.path(""), "own.jsonl", &own);
    let of_own = [
        "--adapter",
        adapter.to_str().unwrap(),
        "--exact-match",
        "--output",
        "json",
        "--dataset",
        own.to_str().unwrap(),
    ];
    let found: Value = serde_json::from_str(&eval(&of_own)).unwrap();
    assert_eq!(found["exact_match"], json!({"asked": 2, "right": 1}), "the other only begins with it: {found}");
    assert_eq!(found["base_exact_match"], json!({"asked": 2, "right": 0}), "{found}");
}

#[test]
fn an_adapter_becomes_a_model_and_files_for_llama_cpp() {
    let place = Place::new();
    assert_eq!(run(&mut place.train("run", &["training.epochs=2"])).0, 0);
    let command = |name: &str, more: &[&str]| {
        let mut command = lorikeet();
        command.args(["adapter", name, "--output", "json", "--base"]).arg(place.path("base"));
        command.arg("--adapter").arg(place.path("run/adapter")).args(more);
        // so that a bare name is one in that folder
        run(command.current_dir(place.path("")))
    };
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let (code, answer, complaint) = command("merge", &["--out", "merged"]);
    let merged: Value = serde_json::from_str(&answer).unwrap_or_default();
    assert!(code == 0 && merged["changed"] == 14 && merged["tensors"] == 21, "{complaint}{answer}");
    let ask = |base: &str, adapter: Option<&str>| {
        let mut command = lorikeet();
        command.args([
            "generate",
            "--temperature",
            "0",
            "--chat",
            "what is 3?",
            "--output",
            "json",
            "--base",
            &path(base),
        ]);
        adapter.iter().for_each(|adapter| _ = command.args(["--adapter", &path(adapter)]));
        serde_json::from_str::<Value>(&run(&mut command).1).unwrap()["text"].clone()
    };
    assert_eq!(ask("merged", None), ask("base", Some("run/adapter")));
    let (code, _, complaint) = command("merge", &["--out", &path("merged")]);
    assert!(code == 2 && complaint.contains("is not empty"), "{complaint}");

    let (code, _, complaint) = command("merge", &["--out", "new/.."]);
    assert!(code == 2 && complaint.contains("ends in the directory's name"), "{code} {complaint}");
    fs::create_dir(place.path("here")).unwrap();
    let mut here = lorikeet();
    here.args(["adapter", "merge", "--out", ".", "--base"]).arg(place.path("base"));
    here.arg("--adapter").arg(place.path("run/adapter")).current_dir(place.path("here"));
    let (code, _, complaint) = run(&mut here);
    assert!(code == 2 && complaint.contains("is the working directory"), "{complaint}");
    std::os::unix::fs::symlink("here", place.path("link")).unwrap();
    let (code, _, complaint) = command("merge", &["--out", "link"]);
    assert!(code == 0 && place.path("here/model.safetensors").exists(), "{complaint}");
    assert!(place.path("link").is_symlink(), "it still leads there");

    let (code, answer, complaint) = command("export", &["--gguf", "a.gguf"]);
    assert!(code == 0 && answer.contains("\"tensors\": 28"), "{complaint}{answer}");
    let (code, answer, complaint) = command("export", &["--gguf", &path("m.gguf"), "--merged", "--type", "f16"]);
    assert!(code == 0 && answer.contains("\"tensors\": 21"), "{complaint}{answer}");
    assert!(
        fs::metadata(place.path("m.gguf")).unwrap().len()
            < fs::metadata(place.path("base/model.safetensors")).unwrap().len()
    );
    let (code, _, complaint) = command("export", &["--gguf", &path("a.gguf")]);
    assert!(code == 2 && complaint.contains("is there already"), "{complaint}");
}

#[test]
fn what_cannot_be_asked_of_a_model_is_told_in_one_line() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    let long = "a".repeat(600);
    let empty = place.path("empty");
    for (asked, words) in [
        (&["--prompt", "a", "--chat", "b"][..], "cannot be used with"),
        (&[], "required"),
        (&["--prompt", ""], "the prompt is empty"),
        (&["--prompt", &long], "600 tokens, expected fewer than 512"),
        (&["--prompt", "a", "--temperature=-1"], "expected a number 0…100"),
        (&["--prompt", "a", "--top-p", "0"], "expected a number 0.000001…1"),
        (&["--prompt", "a", "--adapter", empty.to_str().unwrap()], "adapter_config.json"),
        (&["--prompt", "a", "--adapter", "/nonexistent"], "open the adapter's directory"),
    ] {
        let (code, _, complaint) = run(&mut generate(&place, asked));
        assert!(code == 2 && complaint.contains(words), "{asked:?}: {code} {complaint}");
    }
    let (code, _, complaint) = run(lorikeet().args(["generate", "--base", "/nonexistent", "--prompt", "a"]));
    assert!(code == 2 && complaint.contains("open the base model's directory /nonexistent"), "{complaint}");
    let mut eval = lorikeet();
    eval.args(["eval", "--dataset", "/nonexistent", "--base"]).arg(place.path("base"));
    let (code, _, complaint) = run(&mut eval);
    assert!(code == 2 && complaint.contains("/nonexistent"), "{complaint}");
}

fn generate(place: &Place, asked: &[&str]) -> Command {
    let mut command = lorikeet();
    command.args(["generate", "--base"]).arg(place.path("base")).args(asked);
    command
}
