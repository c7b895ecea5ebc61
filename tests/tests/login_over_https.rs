//! A coordinator beyond the loopback speaks HTTPS with a certificate of its own authority: who logs in pins that authority by its hash
//! before a token leaves the machine.

use lorikeet_tests::{
    process::{Process, lorikeet},
    until,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn the_right_hash_pins_the_coordinator_and_its_token_works_from_then_on() {
    let far = Far::start();
    let profile = far.path("profile.toml");
    let hash = far.hash();
    let (code, complaint) = far.login(&hash, &["--token-file", &far.admin_token_file()], &profile);
    assert_eq!(code, 0, "{complaint}");
    assert!(complaint.contains("you are"), "{complaint}");
    let (code, nodes, complaint) = lorikeet_says(&["--profile", &text(&profile), "nodes", "--output", "json"]);
    assert_eq!((code, nodes.trim()), (0, "[]"), "{complaint}");
    // Asked over the net the authority has the same hash; without a pinned authority nobody is believed.
    let (_, shown, _) = lorikeet_says(&["--server", &far.url, "ca", "show", "--output", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["hash"], hash.as_str());
    let (code, _, complaint) = lorikeet_says(&["--server", &far.url, "--token", &far.admin_token(), "nodes"]);
    assert!(code == 4 && complaint.contains("--ca-hash"), "{code} {complaint}");
}

#[test]
fn a_wrong_hash_is_told_before_the_token_leaves_and_nothing_is_written() {
    let far = Far::start();
    let profile = far.path("profile.toml");
    let (code, complaint) = far.login(&"0".repeat(64), &["--token-file", &far.admin_token_file()], &profile);
    assert!(code == 2 && complaint.contains("expected 0000") && complaint.contains(&far.hash()), "{code} {complaint}");
    assert!(!profile.exists());
    let log = fs::read_to_string(far.path("coordinator.log")).unwrap();
    assert!(!log.contains(&far.admin_token()), "{log}");
}

#[test]
fn a_token_that_is_wrong_or_has_expired_is_refused_and_nothing_is_written() {
    let far = Far::start();
    let profile = far.path("profile.toml");
    let (code, complaint) = far.login(&far.hash(), &["--token", "lk_wrong"], &profile);
    assert!(code == 3 && complaint.contains("refused"), "{code} {complaint}");
    let short = far.token_for_a_second();
    until("the token to expire", || {
        let (code, complaint) = far.login(&far.hash(), &["--token", &short], &profile);
        if code == 0 {
            fs::remove_file(&profile).unwrap();
            return None;
        }
        assert!(code == 3 && complaint.contains("refused"), "{code} {complaint}");
        Some(())
    });
    assert!(!profile.exists());
}

#[test]
fn a_login_follows_the_authority_to_the_next_one_and_one_that_was_never_here_meanwhile_pins_anew() {
    let far = Far::start();
    let (profile, idle) = (far.path("profile.toml"), far.path("idle.toml"));
    let older = far.hash();
    let (code, complaint) = far.login(&older, &["--token-file", &far.admin_token_file()], &profile);
    assert_eq!(code, 0, "{complaint}");
    fs::copy(&profile, &idle).expect("the folder is ours");
    let ask = |profile: &Path, words: &[&str]| lorikeet_says(&[&["--profile", &text(profile)], words].concat());
    let (code, _, complaint) = ask(&profile, &["ca", "rotate"]);
    assert!(code == 0 && complaint.contains("take a backup now"), "{code} {complaint}");
    let next = far.hash();
    assert_ne!(next, older);

    let (code, _, note) = ask(&profile, &["nodes"]);
    assert!(code == 0 && note.contains(&next) && note.contains("is pinned"), "{code} {note}");
    let (code, _, note) = ask(&profile, &["nodes"]);
    assert_eq!((code, note.as_str()), (0, ""), "it is told once");
    let pinned = fs::read_to_string(&profile).expect("it is there");
    let pem = fs::read_to_string(far.path("data/ca/next.pem")).expect("the rotation made it");
    let (kept, next_pem) = (pinned.replace("\r", ""), pem.replace("\r", ""));
    assert!(kept.contains(next_pem.lines().nth(1).expect("a certificate has lines")), "{kept}");
    assert!(kept.contains("token = "), "the rest of the profile is as it was: {kept}");
    // A new login pins the next one while both are trusted.
    let (code, complaint) = far.login(&next, &["--token-file", &far.admin_token_file()], &far.path("new.toml"));
    assert_eq!(code, 0, "{complaint}");

    let (code, _, complaint) = ask(&profile, &["ca", "finish"]);
    assert_eq!(code, 0, "{complaint}");
    assert_eq!(ask(&profile, &["nodes"]).0, 0);
    let (code, _, complaint) = ask(&idle, &["nodes"]);
    assert!(code == 4 && complaint.contains("--ca-hash"), "{code} {complaint}");
    let (code, complaint) = far.login(&next, &["--token-file", &far.admin_token_file()], &idle);
    assert_eq!((code, ask(&idle, &["nodes"]).0), (0, 0), "{complaint}");
}

/// A coordinator that listens on every address of this machine.
struct Far {
    folder: tempfile::TempDir,
    url: String,
    _coordinator: Process,
}

impl Far {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        let config = folder.path().join("coordinator.toml");
        let words = format!("data = {data:?}\n[http]\nlisten = \"0.0.0.0:0\"\n[link]\nlisten = \"127.0.0.1:0\"\n");
        fs::write(&config, words).expect("the folder is ours");
        let coordinator = Process::start(folder.path(), "coordinator", &["coordinator", "--config", &text(&config)]);
        let address = until("the coordinator to be ready", || {
            let addresses = fs::read(data.join("addresses.json")).ok()?;
            let addresses: Value = serde_json::from_slice(&addresses).ok()?;
            addresses["http"].as_str().map(str::to_owned)
        });
        assert!(address.starts_with("https://"), "{address}");
        // Reached by an address that its certificate does not name.
        let port = address.rsplit(':').next().expect("an address has a port");
        Self { url: format!("https://127.0.0.1:{port}"), folder, _coordinator: coordinator }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As the person at the coordinator reads it out.
    fn hash(&self) -> String {
        let (_, shown, _) = lorikeet_says(&["ca", "show", "--output", "json", "--data", &text(&self.path("data"))]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown["hash"].as_str().expect("a hash").to_owned()
    }

    fn admin_token_file(&self) -> String {
        text(&self.path("data/admin.token"))
    }

    fn admin_token(&self) -> String {
        fs::read_to_string(self.admin_token_file()).expect("the first start wrote it").trim().to_owned()
    }

    fn login(&self, hash: &str, token: &[&str], profile: &Path) -> (i32, String) {
        let profile = text(profile);
        let words = ["--profile", &profile, "login", &self.url, "--ca-hash", hash];
        let (code, _, complaint) = lorikeet_says(&[&words, token].concat());
        (code, complaint)
    }

    /// Made over HTTP: the pinned authority and the name `localhost`, as any other program would.
    fn token_for_a_second(&self) -> String {
        let pem = fs::read(self.path("data/ca/ca.pem")).expect("the first start wrote it");
        let authority = reqwest::Certificate::from_pem(&pem).expect("a certificate");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        runtime.block_on(async {
            let http = reqwest::Client::builder().tls_certs_only([authority]).build().expect("a client");
            let url = format!("{}/api/tokens", self.url.replace("127.0.0.1", "localhost"));
            let body = json!({ "name": "short", "ttlSeconds": 1 });
            let answer = http.post(url).bearer_auth(self.admin_token()).json(&body).send().await.expect("an answer");
            let answer: Value = answer.json().await.expect("JSON");
            answer["data"]["secret"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
        })
    }
}

/// Exit code, standard output, standard error.
fn lorikeet_says(words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(lorikeet());
    command.args(words).env_remove("LORIKEET_SERVER").env_remove("LORIKEET_TOKEN").env_remove("LORIKEET_PROFILE");
    let output = command.env("HOME", "/nonexistent").output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("the binary speaks UTF-8");
    (output.status.code().expect("it is not killed"), text(output.stdout), text(output.stderr))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
