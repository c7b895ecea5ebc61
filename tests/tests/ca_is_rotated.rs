//! The cluster's own CA is replaced while it works: no agent is started anew, no job notices, a coordinator that dies in the middle goes
//! on; and who missed it all is named before it is cut off, and told what to do.

use lorikeet_tests::{Lab, chance, process::Process, seed, until};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

const ROTATION: &str = "/api/ca/rotation";

#[test]
fn a_running_job_and_its_agent_go_on_under_a_new_ca_and_the_older_one_lets_nobody_in() {
    let mut lab = Lab::start();
    let mut agent = lab.agent("only");
    let pid = agent.process.pid();
    let job = lab.submit(&lab.job_file("kept", 240, 1_000));
    lab.api.until_step(&job, 3);
    let worker = agent.workers();
    assert_eq!(worker.len(), 1);
    until("the agent to say what it trusts", || standing(&lab).filter(|told| told["nodes"][0]["behind"].is_null()));
    let older = agent.data.join("identity");
    let thief = lab.root().join("thief/identity");
    fs::create_dir_all(&thief).expect("the folder is ours");
    for name in ["node.key", "node.crt", "node.json"] {
        fs::copy(older.join(name), thief.join(name)).expect("joining made it");
    }

    let began: Value = serde_json::from_str(&lab.cli(&["ca", "rotate", "--output", "json"])).expect("JSON");
    let next = began["next"]["hash"].clone();
    assert!(began["phase"] == "OVERLAP" && next != began["current"]["hash"], "{began:#}");
    // Killed in the middle: whoever has not followed yet does so afterwards.
    lab.restart_coordinator();
    let followed = until("the node to hold a certificate of the next CA", || {
        standing(&lab).filter(|told| told["phase"] == "OVERLAP" && told["nodes"][0]["behind"].is_null())
    });
    assert_eq!((&followed["next"]["hash"], &followed["nodes"][0]["holds"]), (&next, &next), "{followed:#}");
    let second = lab.agent("second");
    until("the new node to be here", || standing(&lab).filter(|told| node(told, "second")["holds"] == next));

    let finished: Value = serde_json::from_str(&lab.cli(&["ca", "finish", "--output", "json"])).expect("JSON");
    assert_eq!((&finished["phase"], &finished["current"]["hash"]), (&json!("SETTLED"), &next), "{finished:#}");
    let forgotten = |identity: &Path| (!identity.join("ca.next.crt").exists()).then_some(());
    until("the agent to forget the older CA", || forgotten(&older));
    until("the new one as well, if it heard of it", || forgotten(&second.data.join("identity")));
    assert!(agent.process.runs() && agent.process.pid() == pid, "nobody started it anew");
    assert_eq!(agent.workers(), worker, "the same process trains");
    lab.restart_coordinator();
    until("both nodes to be back", || {
        let nodes = lab.api.try_get("/api/nodes")?;
        nodes.as_array()?.iter().all(|node| node["status"] == "ONLINE").then_some(())
    });

    // Somebody with the key and the certificate of before; its serial number is no secret.
    fs::copy(older.join("ca.crt"), thief.join("ca.crt")).expect("it is there");
    let config = lab.root().join("thief.toml");
    fs::write(&config, format!("data_dir = {:?}\n[devices]\nkind = \"cpu\"\n", lab.root().join("thief")))
        .expect("ours");
    let _thief = Process::start(lab.root(), "thief", &["agent", "--config", &config.display().to_string()]);
    until("the certificate of before to be refused", || {
        log(&lab, "thief").contains("refuses this node's certificate").then_some(())
    });

    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".1")), "{done:#}");
    assert_eq!(lab.api.steps(&job).iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=240).collect::<Vec<_>>());
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}

#[test]
fn a_machine_that_is_away_is_named_comes_back_in_time_or_is_told_to_join_again() {
    let lab = Lab::start();
    let (mut prompt, mut late) = (lab.agent("prompt"), lab.agent("late"));
    let here =
        |told: &Value| told["nodes"].as_array().is_some_and(|all| all.iter().all(|node| node["behind"].is_null()));
    until("both to say what they trust", || standing(&lab).filter(here));
    prompt.process.kill();
    late.process.kill();
    lab.cli(&["ca", "rotate"]);
    let (status, refused) = lab.api.post(&format!("{ROTATION}/finish"), &json!({}), None).expect("it is up");
    let words = refused.to_string();
    assert!(status == 409 && words.contains("prompt (") && words.contains("late ("), "{status} {refused:#}");

    // It knows the older CA alone, and follows it to the next one.
    prompt.restart();
    until("the one that came back to follow", || {
        standing(&lab).filter(|told| node(told, "prompt")["behind"].is_null())
    });
    let told = standing(&lab).expect("it is up");
    assert!(told["waitsFor"][0].as_str().is_some_and(|words| words.starts_with("late: ")), "{told:#}");
    let finished: Value =
        serde_json::from_str(&lab.cli(&["ca", "finish", "--force", "--output", "json"])).expect("JSON");
    assert_eq!(finished["phase"], "SETTLED", "{finished:#}");
    late.restart();
    until("the late one to be told", || log(&lab, "late").contains("join again with a new join string").then_some(()));
    assert!(late.process.runs(), "it goes on asking: a person may mend it");
    until("the other to stay", || {
        let nodes = lab.api.try_get("/api/nodes")?;
        nodes.as_array()?.iter().any(|node| node["name"] == "prompt" && node["status"] == "ONLINE").then_some(())
    });
    // As it was told.
    late.process.kill();
    fs::rename(late.data.join("identity"), late.data.join("identity.before")).expect("it is there");
    let again = lab.agent("late");
    until("it to be a node again", || {
        let nodes = lab.api.try_get("/api/nodes")?;
        let online = |node: &&Value| node["name"] == "late" && node["status"] == "ONLINE";
        (nodes.as_array()?.iter().filter(online).count() == 1).then_some(())
    });
    drop(again);
}

#[test]
fn a_coordinator_killed_at_any_moment_of_a_rotation_goes_on_with_one_ca_or_with_both() {
    let mut seed = seed();
    let mut lab = Lab::start();
    let agent = lab.agent("only");
    let mut former = until("the node to be here", || followed(&lab));
    for round in 0..8 {
        let (path, body) = if former["phase"] == "SETTLED" {
            (ROTATION.to_owned(), json!({}))
        } else {
            (format!("{ROTATION}/finish"), json!({}))
        };
        // The answer may come, or nobody is there to give it: both are right, as long as what was said holds.
        let (api, delay) = (lab.api.clone(), Duration::from_micros(chance(&mut seed, 12_000)));
        let asking = std::thread::spawn(move || api.post(&path, &body, None));
        let start = Instant::now();
        while start.elapsed() < delay {
            std::thread::yield_now();
        }
        lab.kill_coordinator();
        let answered = asking.join().expect("it asks and no more").filter(|(status, _)| *status == 200);
        lab.start_coordinator();
        let now = until("the node to follow", || followed(&lab));
        let (before, after) = (newest(&former), newest(&now));
        match (former["phase"].as_str(), now["phase"].as_str()) {
            (Some("SETTLED"), Some("OVERLAP")) => assert_eq!(now["current"]["hash"], before, "round {round}: {now:#}"),
            (Some("OVERLAP"), Some("SETTLED")) => assert_eq!(after, before, "round {round}: {now:#}"),
            _ => assert_eq!(after, before, "round {round}: {now:#}"),
        }
        if let Some((_, said)) = answered {
            assert_eq!(said["data"]["phase"], now["phase"], "round {round}: what was said holds");
        }
        former = now;
    }
    drop(agent);
}

/// Where the rotation is, once every node is here and has followed.
fn followed(lab: &Lab) -> Option<Value> {
    let online = |node: &Value| node["status"] == "ONLINE";
    lab.api.try_get("/api/nodes")?.as_array().filter(|nodes| nodes.iter().all(online))?;
    standing(lab).filter(|told| told["nodes"][0]["behind"].is_null())
}

/// The hash of the CA that signs.
fn newest(told: &Value) -> Value {
    if told["next"].is_null() { told["current"]["hash"].clone() } else { told["next"]["hash"].clone() }
}

/// Where the rotation is, if the coordinator answers.
fn standing(lab: &Lab) -> Option<Value> {
    lab.api.try_get(ROTATION)
}

fn node<'a>(told: &'a Value, name: &str) -> &'a Value {
    let nodes = told["nodes"].as_array().expect("a list");
    nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("{told:#}"))
}

fn log(lab: &Lab, name: &str) -> String {
    fs::read_to_string(lab.root().join(format!("{name}.log"))).unwrap_or_default()
}
