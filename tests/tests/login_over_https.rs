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
