//! A coordinator in a folder with a base model and a dataset, simulated agents around it, and what all that costs the coordinator.

use lorikeet_tests::{
    Lab,
    crowd::{Crowd, Member, Script},
};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// Joins under way at once.
const JOINS: usize = 16;

/// See the module. Timers are the product's own.
pub(crate) struct Place {
    pub(crate) lab: Lab,
    pub(crate) runtime: Runtime,
    http: reqwest::Client,
}

/// What the coordinator's process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    cpu: Duration,
    pub(crate) resident: u64,
    peak: u64,
}

impl Place {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self {
            lab: Lab::start_as_in_production(),
            runtime: runtime.expect("a runtime starts"),
            http: reqwest::Client::new(),
        }
    }

    /// So many nodes that are connected, each following the script.
    pub(crate) fn crowd(&self, many: usize, script: &Script) -> Crowd {
        let members = self.members(many);
        self.connect(members, script)
    }

    pub(crate) fn members(&self, many: usize) -> Vec<Member> {
        self.runtime.block_on(async {
            let permits = Arc::new(tokio::sync::Semaphore::new(JOINS));
            let join = |number: usize| {
                let (permits, this) = (Arc::clone(&permits), self.client());
                tokio::spawn(async move {
                    let _permit = permits.acquire_owned().await.expect("it is never closed");
                    let (_, token) = this.post("/api/nodes/join-tokens", &json!({})).await;
                    let text = token["data"]["joinString"].as_str().expect("a join string").to_owned();
                    let mut tries = 0;
                    loop {
                        match Member::join(&text, &format!("node {number}")).await {
                            Ok(member) => return member,
                            Err(error) if tries > 20 => panic!("node {number} does not join: {error}"),
                            Err(_) => tries += 1,
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                })
            };
            let joins: Vec<_> = (0..many).map(join).collect();
            let mut members = vec![];
            for joining in joins {
                members.push(joining.await.expect("it joins"));
            }
            members
        })
    }

    pub(crate) fn connect(&self, members: Vec<Member>, script: &Script) -> Crowd {
        let (many, began) = (members.len(), Instant::now());
        let crowd = self.runtime.block_on(async { Crowd::start(self.lab.link(), members, script) });
        self.runtime.block_on(crowd.until_welcomed(many, began, Duration::from_secs(120)));
        crowd
    }

    pub(crate) fn client(&self) -> Client {
        Client { server: self.lab.api.server.clone(), token: self.lab.api.token.clone(), http: self.http.clone() }
    }

    pub(crate) fn used(&self) -> Used {
        let process = procfs::process::Process::new(self.lab.coordinator.pid().cast_signed()).expect("it runs");
        let (stat, status) = (process.stat().expect("it runs"), process.status().expect("it runs"));
        let ticks = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        let bytes = |kib: Option<u64>| kib.unwrap_or(0) << 10;
        Used { cpu: Duration::from_secs_f64(ticks), resident: bytes(status.vmrss), peak: bytes(status.vmhwm) }
    }

    /// Since then, in words.
    pub(crate) fn cost_since(&self, before: Used) -> String {
        let now = self.used();
        format!("{:.1} CPU s, peak {} MiB", (now.cpu - before.cpu).as_secs_f64(), now.peak >> 20)
    }

    /// Of a process that has just begun, in words.
    pub(crate) fn cost_of_start(&self) -> String {
        let Used { cpu, peak, .. } = self.used();
        format!("{:.1} CPU s, peak {} MiB", cpu.as_secs_f64(), peak >> 20)
    }

    pub(crate) fn cpu_since(&self, before: Used) -> Duration {
        self.used().cpu - before.cpu
    }

    /// Jobs by so many clients at once, as fast as they are acknowledged; how long each took, and all together.
    pub(crate) fn submit(&self, jobs: usize, clients: usize, body: &Value) -> (Vec<Duration>, Duration) {
        let began = Instant::now();
        let times = self.runtime.block_on(async {
            let left = Arc::new(std::sync::atomic::AtomicUsize::new(jobs));
            let work = |_| {
                let (client, left, body) = (self.client(), Arc::clone(&left), body.clone());
                tokio::spawn(async move {
                    let mut times = vec![];
                    while left
                        .fetch_update(
                            std::sync::atomic::Ordering::Relaxed,
                            std::sync::atomic::Ordering::Relaxed,
                            |left| left.checked_sub(1),
                        )
                        .is_ok()
                    {
                        let asked = Instant::now();
                        let (status, answer) = client.post("/api/jobs", &body).await;
                        assert_eq!(status, 201, "{answer}");
                        times.push(asked.elapsed());
                    }
                    times
                })
            };
            let mut times = vec![];
            for client in (0..clients).map(work).collect::<Vec<_>>() {
                times.extend(client.await.expect("a client goes on"));
            }
            times
        });
        (times, began.elapsed())
    }

    /// Waits for something that is looked at often.
    pub(crate) fn until(&self, what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < limit, "waited {limit:?} for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
        began.elapsed()
    }
}

/// One HTTP client.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) server: String,
    pub(crate) token: String,
    pub(crate) http: reqwest::Client,
}

impl Client {
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.http.post(format!("{}{path}", self.server)).bearer_auth(&self.token).json(body);
        let answer = request.send().await.expect("it answers");
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.server)).bearer_auth(&self.token);
        let answer = request.send().await.expect("it answers");
        answer.json::<Value>().await.expect("JSON")["data"].clone()
    }
}

/// A job on one GPU.
pub(crate) fn job() -> Value {
    json!({ "base": "tiny", "dataset": "chats", "policy": { "lost_after": "5m" } })
}

/// With its unit.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
