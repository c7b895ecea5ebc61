//! Who becomes a node and who does not, with real programs: a secret that another machine used, a coordinator that is not the one
//! the join string names, a folder that keeps nothing, and two machines that are one.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as loudly as tests")]

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use lorikeet_protocol::{
    codec,
    id::Hash,
    join::{JoinTicket, PREFIX},
};
use lorikeet_tests::{
    Lab,
    process::{Process, lorikeet},
    until,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn a_join_string_makes_one_machine_a_node_and_no_other() {
    let lab = Lab::start();
    let join = join_string(&lab);
    let (first, second) = (config(&lab, "first"), config(&lab, "second"));
    let (code, said) = try_join(&join, &first);
    assert_eq!(code, 0, "{said}");

    let (code, said) = try_join(&join, &second);
    assert!(code == 3 && said.contains("this join secret was used by another key"), "{code} {said}");
    assert!(said.contains("hint: ") && said.contains("lorikeet node token"), "{said}");
    let (code, said) = try_join(&join, &first);
    assert!(code == 2 && said.contains("already"), "a node does not join twice: {code} {said}");
    assert_eq!(nodes(&lab).len(), 1);
}

#[test]
fn a_machine_that_cannot_join_is_told_why_and_leaves_the_string_unused() {
    let lab = Lab::start();
    let join = join_string(&lab);
    let mut ticket = read(&join);
    ticket.ca_hash = Hash([7; 32]);
    let (code, said) = try_join(&written(&ticket), &config(&lab, "another-authority"));
    assert!(
        code == 2 && said.contains(&ticket.ca_hash.to_string()) && said.contains("lorikeet ca show"),
        "{code} {said}"
    );

    let mut ticket = read(&join);
    ticket.secret = [7; 32];
    let (code, said) = try_join(&written(&ticket), &config(&lab, "unknown-secret"));
    assert!(code == 3 && said.contains("this join secret is unknown"), "{code} {said}");

    let mut ticket = read(&join);
    ticket.address = "127.0.0.1:9".into();
    let (code, said) = try_join(&written(&ticket), &config(&lab, "nobody-there"));
    assert!(code == 4 && said.contains("127.0.0.1:9"), "{code} {said}");

    let (code, said) = try_join("LK1.nonsense", &config(&lab, "nonsense"));
    assert!(code == 2 && said.contains("join string"), "{code} {said}");

    let nowhere = config(&lab, "nowhere");
    fs::write(lab.root().join("nowhere"), "a file where the folder should be").unwrap();
    let (code, said) = try_join(&join, &nowhere);
    assert!(code == 2 && said.contains(&lab.path("nowhere")), "{code} {said}");

    assert!(nodes(&lab).is_empty());
    let (code, said) = try_join(&join, &config(&lab, "sound"));
    assert_eq!(code, 0, "the string still works: {said}");
}

#[test]
fn two_agents_with_one_identity_are_told_so_and_one_folder_has_one_agent() {
    let lab = Lab::start();
    let first = config(&lab, "first");
    let (code, said) = try_join(&join_string(&lab), &first);
    assert_eq!(code, 0, "{said}");
    // The disk of one machine, put into another.
    let second = config(&lab, "second");
    copy(&lab.root().join("first"), &lab.root().join("second"));
    let start = |name: &str, config: &Path| Process::start(lab.root(), name, &["agent", "--config", &text(config)]);
    let (mut one, mut two) = (start("one", &first), start("two", &second));
    let log = |name: &str| fs::read_to_string(lab.root().join(format!("{name}.log"))).unwrap_or_default();
    let words = "two machines alternate under this identity; both stay out until one of them joins anew";
    until("both agents to be kept out", || (log("one").contains(words) && log("two").contains(words)).then_some(()));
    assert!(one.runs() && two.runs(), "an agent goes on asking: a person may mend it");
    let node = until("the node to be shown so", || nodes(&lab).pop().filter(|node| node["status"] == "QUARANTINED"));
    assert_eq!(nodes(&lab).len(), 1, "{node}");

    let (code, said) = says(&["agent", "--config", &text(&first)]);
    assert!(code == 2 && said.contains("another agent runs there"), "{code} {said}");
}

fn join_string(lab: &Lab) -> String {
    let token: Value = serde_json::from_str(&lab.cli(&["node", "token", "--output", "json"])).unwrap();
    token["joinString"].as_str().unwrap().to_owned()
}

fn read(join: &str) -> JoinTicket {
    codec::decode(&BASE64_URL_SAFE_NO_PAD.decode(join.strip_prefix(PREFIX).unwrap()).unwrap()).unwrap()
}

fn written(ticket: &JoinTicket) -> String {
    let body = &codec::encode(ticket).unwrap()[codec::HEADER_BYTES..];
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(body))
}

fn nodes(lab: &Lab) -> Vec<Value> {
    lab.api.get("/api/nodes").as_array().unwrap().clone()
}

/// The config of a machine whose files lie in a folder of its name.
fn config(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.root().join(format!("{name}.toml"));
    let data = lab.root().join(name);
    let words = format!(
        "data_dir = {data:?}\nname = {name:?}\n[devices]\nkind = \"cpu\"\n[link]\nbackoff_first = \"20ms\"\nbackoff_longest = \"100ms\"\nconnect_timeout = \"2s\"\n"
    );
    fs::write(&path, words).unwrap();
    path
}

fn try_join(join: &str, config: &Path) -> (i32, String) {
    says(&["agent", "join", join, "--config", &text(config)])
}

/// Exit code and standard error.
fn says(words: &[&str]) -> (i32, String) {
    let output = Command::new(lorikeet()).args(words).env("NO_COLOR", "1").output().unwrap();
    (output.status.code().expect("it is not killed"), String::from_utf8(output.stderr).unwrap())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            _ = fs::copy(entry.path(), target).unwrap()
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
