//! `lorikeet train` and the other commands that need no server, on a tiny random base.

use crate::support::{file, lorikeet, run};
use lorikeet_trainer::export::{StoredAs, init_base};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

#[test]
fn a_training_leaves_an_attempt_directory_and_says_what_came_of_it() {
    let place = Place::new();
    let (code, answer, notes) = run(place.train("run", &["training.max_steps=3"]).args(["--output", "json"]));
    assert_eq!(code, 0, "{notes}");
    let summary: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&summary["steps"], &summary["examples"]), (&json!(3), &json!(18)));
    assert!(summary["validation_loss_after"].as_f64() < summary["validation_loss_before"].as_f64(), "{summary}");
    for name in
        ["spec.json", "events.jsonl", "lock", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
    {
        assert!(place.path("run").join(name).exists(), "{name}");
    }
    let (code, again, note) = run(place.train("run", &["training.max_steps=3"]).args(["--output", "json"]));
    assert_eq!((code, again), (0, answer), "a finished training is told again, not done again");
    assert!(note.contains("was finished already"), "{note}");
    let (weights, data) = (place.path("run/adapter/adapter_model.safetensors"), place.path("data.jsonl"));
    let (whole, asked) = (fs::read(&weights).unwrap(), fs::read(&data).unwrap());
    let refused = |words: &str| {
        let (code, answer, complaint) = run(&mut place.train("run", &["training.max_steps=3"]));
        assert!((code, answer.as_str()) == (2, "") && complaint.contains(words), "{words}: {code} {complaint}");
    };
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    refused("adapter_model.safetensors is not what the finished training wrote");
    fs::remove_file(&weights).unwrap();
    refused("adapter_model.safetensors is gone");
    fs::write(&weights, &whole).unwrap();
    fs::write(&data, [&asked[..], conversation(21).as_bytes()].concat()).unwrap();
    refused("data.jsonl is not what the finished training in");
    fs::write(&data, asked).unwrap();
    let base = place.path("base/model.safetensors");
    let began_with = fs::read(&base).unwrap();
    fs::write(&base, other_numbers(&began_with)).unwrap();
    refused("has not the weights that the finished training in");
    fs::write(&base, began_with).unwrap();
    assert_eq!(run(&mut place.train("run", &["training.max_steps=3"])).0, 0);
}

/// A file of as many bytes, with one of its last numbers changed.
fn other_numbers(file: &[u8]) -> Vec<u8> {
    let mut other = file.to_vec();
    *other.last_mut().unwrap() ^= 1;
    other
}

#[test]
fn a_limit_on_the_size_of_files_is_told_as_a_full_disk_is() {
    let place = Place::new();
    let trained = place.train("run", &["training.max_steps=3"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 16; exec \"$0\" \"$@\""]).arg(trained.get_program()).args(trained.get_args());
    let (code, answer, complaint) = run(&mut limited);
    assert_eq!((code, answer.as_str()), (2, ""), "{complaint}");
    assert!(complaint.contains("File too large"), "{complaint}");
}

#[test]
fn another_training_in_the_same_directory_is_refused() {
    let place = Place::new();
    fs::write(place.path("data.jsonl"), "{broken\n").unwrap();
    assert_eq!(run(&mut place.train("run", &["training.max_steps=3"])).0, 2, "it never makes a step");
    fs::write(place.path("data.jsonl"), (0..20).map(conversation).collect::<String>()).unwrap();
    assert_eq!(run(&mut place.train("run", &["training.max_steps=1"])).0, 0, "so its folder is free");
    let (code, _, complaint) = run(&mut place.train("run", &["training.max_steps=2"]));
    assert_eq!(code, 2);
    assert!(complaint.contains("with other settings or files:\n  "), "{complaint}");
}

#[test]
fn a_training_that_was_interrupted_goes_on_to_the_same_adapter() {
    let place = Place::new();
    let steps = &["training.max_steps=200", "training.checkpoint_every=1000", "lora.dropout=0.1"];
    assert_eq!(run(&mut place.train("whole", steps)).0, 0);
    let mut child = place.train("broken", steps).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_a_step(&mut child);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130), "nothing failed, and it is not finished");
    let (data, more) = (fs::read_to_string(place.path("data.jsonl")).unwrap(), conversation(21));
    fs::write(place.path("data.jsonl"), format!("{data}{more}")).unwrap();
    let (code, _, complaint) = run(&mut place.train("broken", steps));
    assert!(
        code == 2 && complaint.contains("dataset is") && complaint.contains("only with the base, the data"),
        "{complaint}"
    );
    fs::write(place.path("data.jsonl"), data).unwrap();
    let base = place.path("base/model.safetensors");
    let began_with = fs::read(&base).unwrap();
    fs::write(&base, other_numbers(&began_with)).unwrap();
    let (code, _, complaint) = run(&mut place.train("broken", steps));
    assert!(code == 2 && complaint.contains("the base's weights are not those that it began with"), "{complaint}");
    fs::write(&base, began_with).unwrap();
    let (code, _, notes) = run(&mut place.train("broken", steps));
    assert_eq!(code, 0, "{notes}");
    assert!(notes.contains("going on from step "), "{notes}");
    let adapter = |out| fs::read(place.path(out).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("broken"), "bit for bit");
    let events = fs::read_to_string(place.path("broken").join("events.jsonl")).unwrap();
    let seqs: Vec<u64> =
        events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

/// Dropout, an order of its own for every epoch, several micro-batches a step, evaluations and checkpoints off the beat.
const SHAKEN: [&str; 6] = [
    "training.max_steps=60",
    "training.checkpoint_every=7",
    "training.eval_every=9",
    "training.micro_tokens=100",
    "lora.dropout=0.2",
    "training.early_stopping=100",
];

#[test]
fn a_training_killed_at_any_step_ends_in_the_same_bits() {
    let place = Place::drawn(0.4);
    assert_eq!(run(&mut place.train("whole", &SHAKEN)).0, 0);
    let whole = Left::of(&place, "whole");
    let seed = std::env::var("LORIKEET_SEED").map_or_else(|_| getrandom::u64().unwrap(), |seed| seed.parse().unwrap());
    eprintln!("LORIKEET_SEED={seed}");
    let mut chance = seed;
    let mut draw = |below: u64| {
        // Knuth's MMIX constants; the upper half is the good one
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 32) % below
    };
    for round in 0..3 {
        let name = format!("killed-{round}");
        let mut at = 0;
        for _ in 0..3 {
            at += 1 + draw(18);
            eprintln!("round {round}: killed at step {at} or a little later");
            let mut child = place.train(&name, &SHAKEN).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            wait_for_step(&place.path(&name), at, &mut child);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let (code, _, notes) = run(&mut place.train(&name, &SHAKEN));
        assert_eq!(code, 0, "{notes}");
        assert_eq!(Left::of(&place, &name), whole, "round {round} of seed {seed}");
    }
}

/// What a training left: hashes of the adapter, of the moments, and the state but for its seconds.
#[derive(Debug, PartialEq)]
struct Left {
    adapter: String,
    moments: String,
    state: Value,
    steps: Vec<Value>,
}

impl Left {
    fn of(place: &Place, name: &str) -> Self {
        let hash = |path: &str| blake3::hash(&fs::read(place.path(name).join(path)).unwrap()).to_hex().to_string();
        let without_seconds = |mut value: Value| {
            value.as_object_mut().unwrap().remove("seconds");
            value
        };
        let saved = "checkpoints/step-00000060";
        let state = fs::read(place.path(name).join(saved).join("state.json")).unwrap();
        let metrics = fs::read_to_string(place.path(name).join("metrics.jsonl")).unwrap();
        Self {
            adapter: hash("adapter/adapter_model.safetensors"),
            moments: hash(&format!("{saved}/optimizer.safetensors")),
            state: without_seconds(serde_json::from_slice::<Value>(&state).unwrap()["state"].take()),
            steps: metrics.lines().map(|line| without_seconds(serde_json::from_str(line).unwrap())).collect(),
        }
    }
}

/// Until a line of the metrics says so, or the training is over.
fn wait_for_step(out: &std::path::Path, at: u64, child: &mut Child) {
    let told = || {
        let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let steps = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        steps.filter_map(|line| line["step"].as_u64()).max()
    };
    while told() < Some(at) && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn a_training_begins_with_an_adapter_and_is_watched_on_a_file_of_its_own() {
    let place = Place::drawn(0.4);
    let held_out = file(place.folder.path(), "held-out.jsonl", &(20..24).map(conversation).collect::<String>());
    assert_eq!(run(&mut place.train("first", &["training.epochs=4"])).0, 0);
    let set = ["training.epochs=1", "training.sample_prompts=['what is 3?']", "training.grad_norms=true"];
    let mut second = place.train("second", &set);
    second.arg("--validation-dataset").arg(&held_out).arg("--init-adapter").arg(place.path("first/adapter"));
    let (code, _, notes) = run(&mut second);
    assert!(code == 0 && notes.contains("step 0: what is 3?"), "{code} {notes}");
    let events = fs::read_to_string(place.path("second/events.jsonl")).unwrap();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    assert_eq!((&of("plan")[0]["examples"], &of("plan")[0]["validation_examples"]), (&json!(20), &json!(4)));
    assert_eq!(of("sample").len(), 2, "before and after");
    let (before, base) = (of("eval")[0]["loss"].as_f64().unwrap(), of("eval")[0]["base_loss"].as_f64().unwrap());
    assert!(before < base, "it begins where the first ended: {before}, the base {base}");
    let metrics = fs::read_to_string(place.path("second/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"grad_norms\"") && place.path("second/tensorboard").is_dir());
    let mut none = place.train("third", &["data.validation_dataset=held-out"]);
    let (code, _, complaint) = run(&mut none);
    assert!(code == 2 && complaint.contains("--validation-dataset names the file"), "{complaint}");
}

#[test]
fn files_and_settings_that_cannot_be_are_the_persons_mistake() {
    let place = Place::new();
    for (set, words) in [
        (&["training.batch_size=0"][..], "training.batch_size is 0, expected a whole number 1…256"),
        (&["lora.rnk=8"], "lora.rnk is unknown"),
        (&["lora.target_modules=['w_proj']"], "w_proj"),
        (&["resources.gpus=1"], "only training.*, data.*, lora.* and name"),
    ] {
        let (code, _, complaint) = run(&mut place.train(&format!("bad-{}", words.len()), set));
        assert!(code == 2 && complaint.contains(words), "{set:?}: {code} {complaint}");
    }
    let (folder, pipe) = (place.path("folder"), place.path("pipe"));
    fs::create_dir(&folder).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for file in [&folder, &pipe] {
        let mut trained = lorikeet();
        trained.args(["train", "--base"]).arg(place.path("base")).arg("--out").arg(place.path("no-file"));
        let mut watched = place.train("no-file", &[]);
        let mut eval = lorikeet();
        eval.args(["eval", "--base"]).arg(place.path("base"));
        for (command, key) in
            [(&mut trained, "--dataset"), (&mut watched, "--validation-dataset"), (&mut eval, "--dataset")]
        {
            let (code, _, complaint) = run(command.arg(key).arg(file));
            assert!(code == 2 && complaint.contains("is not a regular file"), "{command:?}: {code} {complaint}");
        }
    }
    assert!(!place.path("no-file").exists(), "nothing is made for a training that cannot be");
    fs::write(place.path("base/config.json"), "{}").unwrap();
    let (code, _, complaint) = run(&mut place.train("no-config", &[]));
    assert!(code == 2 && complaint.contains("config.json"), "{code} {complaint}");
    let place = Place::new();
    fs::write(place.path("data.jsonl"), conversation(1) + "{broken\n").unwrap();
    let (code, _, complaint) = run(&mut place.train("no-data", &[]));
    let file = place.path("data.jsonl").display().to_string();
    assert_eq!(code, 2, "{complaint}");
    assert!(complaint.contains(&format!("{file}: line 2, $: broken JSON at column 2")), "{complaint}");
    let mut none = lorikeet();
    none.args(["train", "--base", "/nonexistent", "--dataset", "/nonexistent", "--out"]).arg(place.path("x"));
    let (code, _, complaint) = run(&mut none);
    assert!(code == 2 && complaint.contains("the base model's directory /nonexistent"), "{code} {complaint}");
    assert!(!place.path("x").exists(), "nothing is made for a training that cannot be");
}

#[test]
fn a_base_or_adapter_that_was_missed_by_a_level_is_guessed() {
    let place = Place::new();
    fs::create_dir_all(place.path("run/adapter")).unwrap();
    fs::write(place.path("run/adapter/adapter_config.json"), "{}").unwrap();
    let generate = |base: &str, adapter: Option<&str>| {
        let mut command = lorikeet();
        command.args(["generate", "--prompt", "x", "--base"]).arg(place.path(base));
        adapter.map(|adapter| command.arg("--adapter").arg(place.path(adapter)));
        let (code, _, complaint) = run(&mut command);
        assert_eq!(code, 2, "{complaint}");
        complaint
    };
    let meant = |name: &str| format!("hint: is {} meant?", place.path(name).display());
    let above = generate("", None);
    assert!(above.contains(&meant("base")), "{above}");
    let below = generate("base/config.json", None);
    assert!(below.contains(&meant("base")), "{below}");
    assert!(generate("Org/name", None).contains("nothing is fetched"));
    let run = generate("base", Some("run"));
    assert!(run.contains(&meant("run/adapter")), "{run}");
    let (code, _, complaint) = crate::support::run(&mut place.train("x", &["epochs=3"]));
    assert!(code == 2 && complaint.contains("did you mean training.epochs?"), "{complaint}");
}

#[test]
fn a_file_is_checked_without_any_server() {
    let place = Place::new();
    let (code, answer, _) =
        run(lorikeet().args(["dataset", "check", "--base"]).arg(place.path("base")).arg(place.path("data.jsonl")));
    assert!(code == 0 && answer.contains("CHAT_MESSAGES") && answer.contains("tokens"), "{answer}");
    let bad = file(place.folder.path(), "bad.jsonl", &(conversation(1) + "{\"messages\": 3}\nnot json\n"));
    let (code, answer, complaint) = run(lorikeet().args(["dataset", "check", "--output", "json"]).arg(&bad));
    let found: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, &found["error_count"], &found["errors"][1]["line"]), (2, &json!(2), &json!(3)), "{complaint}");
    let noise = file(place.folder.path(), "noise.bin", "\u{1}\u{2}\u{3}");
    assert_eq!(run(lorikeet().args(["dataset", "check"]).arg(&noise)).0, 2);
}

#[test]
fn an_inspection_is_always_one_object() {
    let place = Place::new();
    let inspect = |args: &[&str]| {
        let (code, answer, complaint) = run(lorikeet().arg("inspect").args(args).stdin(Stdio::null()));
        assert_eq!(code, 0, "{complaint}");
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let (base, data) = (place.path("base"), place.path("data.jsonl"));
    let (base, data) = (base.to_str().unwrap(), data.to_str().unwrap());
    assert_eq!(inspect(&["dataset", data])["conversations"], 20);
    assert_eq!(inspect(&["base", base])["architecture"], "LlamaForCausalLM");
    // As Hugging Face's cache keeps a base: links to files that lie elsewhere.
    let (inside, outside) = (place.path("base/model.safetensors"), place.path("blob"));
    fs::rename(&inside, &outside).and_then(|()| std::os::unix::fs::symlink(&outside, &inside)).unwrap();
    assert_eq!(inspect(&["base", base])["architecture"], "LlamaForCausalLM");
    assert_eq!(inspect(&["dataset", "/nonexistent"])["kind"], "refused");
    assert_eq!(inspect(&["base", "/nonexistent"])["kind"], "refused");
    fs::write(place.path("base/model.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
    let lie = inspect(&["base", base]);
    assert_eq!((&lie["kind"], &lie["faults"][0]["path"]), (&json!("refused"), &json!("model.safetensors")));
}

#[test]
fn a_coordinator_that_cannot_start_says_what_is_in_its_way() {
    const FREE: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[link]\nlisten = \"127.0.0.1:0\"\n";
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let start = |config: &str| {
        let path = file(folder.path(), "coordinator.toml", config);
        run(lorikeet().args(["coordinator", "--config"]).arg(path))
    };
    let data = folder.path().join("data");
    let listen = taken.local_addr().unwrap();
    let (code, _, complaint) =
        start(&format!("data = {data:?}\n[http]\nlisten = \"{listen}\"\n[link]\nlisten = \"127.0.0.1:0\"\n"));
    assert!(code == 2 && complaint.contains(&listen.to_string()), "{complaint}");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let link = taken.local_addr().unwrap();
    let (code, _, complaint) =
        start(&format!("data = {data:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[link]\nlisten = \"{link}\"\n"));
    assert!(code == 2 && complaint.contains(&link.to_string()), "{complaint}");
    let file = file(folder.path(), "file", "");
    // Nobody may make a folder in either, the administrator of the machine included.
    for place in [file.join("data"), PathBuf::from("/proc/lorikeet")] {
        let (code, _, complaint) = start(&format!("data = {place:?}\n{FREE}"));
        assert!(code == 2 && complaint.contains(&*place.to_string_lossy()), "{complaint}");
    }
    let (code, _, complaint) = start("dta = \"x\"\n");
    assert!(code == 2 && complaint.contains("dta"), "{complaint}");
}

/// A base of some thousand numbers and twenty conversations.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::drawn(0.02)
    }

    /// With weights of that deviation; a frozen head must be wide to say anything at all.
    pub(crate) fn drawn(deviation: f64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        let entries = lorikeet_dataset::write_byte_tokenizer(&base).unwrap();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": entries,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
            "initializer_range": deviation,
        });
        init_base(&base, &config, 7, StoredAs::F32).unwrap();
        fs::write(folder.path().join("data.jsonl"), (0..20).map(conversation).collect::<String>()).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn train(&self, out: &str, set: &[&str]) -> Command {
        self.train_on("base", out, set)
    }

    pub(crate) fn train_on(&self, base: &str, out: &str, set: &[&str]) -> Command {
        let mut command = lorikeet();
        command.args(["train", "--threads", "1", "--base"]).arg(self.path(base));
        command.arg("--dataset").arg(self.path("data.jsonl")).arg("--out").arg(self.path(out));
        command.args([
            "--set",
            "training.batch_size=4",
            "--set",
            "training.learning_rate=1e-2",
            "--set",
            "lora.rank=4",
        ]);
        set.iter().for_each(|set| _ = command.args(["--set", set]));
        command
    }
}

fn conversation(number: u32) -> String {
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    let messages =
        [turn("user", format!("what is {number}?")), turn("assistant", format!("it is the number {number}."))];
    format!("{}\n", json!({"messages": messages}))
}

/// Until the training has told of its first step.
fn wait_for_a_step(child: &mut Child) {
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(notes.any(|line| line.starts_with("step 1/")), "no step ever came");
    // It goes on talking to whoever reads the rest.
    std::thread::spawn(move || notes.for_each(drop));
}

pub(crate) fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}
