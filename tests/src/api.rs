//! The HTTP API as a program without our types sees it: paths in, JSON out.

use serde_json::Value;
use std::path::Path;

/// A coordinator and a token.
#[derive(Debug, Clone)]
pub struct Api {
    /// `http://127.0.0.1:port`.
    pub server: String,
    /// The bearer token.
    pub token: String,
    runtime: std::sync::Arc<tokio::runtime::Runtime>,
    http: reqwest::Client,
}

impl Api {
    /// For a server that is up, or will be.
    pub fn new(server: String, token: String) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        Self { server, token, runtime: runtime.into(), http: reqwest::Client::new() }
    }

    /// `data` of the answer, if there is an answer and it is a good one.
    pub fn try_get(&self, path: &str) -> Option<Value> {
        let request = self.http.get(format!("{}{path}", self.server)).bearer_auth(&self.token);
        let answer = self
            .runtime
            .block_on(async { request.send().await.ok()?.error_for_status().ok()?.json::<Value>().await.ok() })?;
        Some(answer["data"].clone())
    }

    /// `data` of the answer; waits for a server that is restarting.
    pub fn get(&self, path: &str) -> Value {
        crate::until(format!("GET {path}"), || self.try_get(path))
    }

    /// Status and body of a POST.
    pub fn post(&self, path: &str, body: &Value, key: Option<&str>) -> Option<(u16, Value)> {
        let mut request = self.http.post(format!("{}{path}", self.server)).bearer_auth(&self.token).json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        self.runtime.block_on(async {
            let answer = request.send().await.ok()?;
            Some((answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null)))
        })
    }

    /// A job's record.
    pub fn job(&self, id: &str) -> Value {
        self.get(&format!("/api/jobs/{id}"))
    }

    /// Waits until a job is in one of these phases.
    pub fn until_phase(&self, id: &str, phases: &[&str]) -> Value {
        let seen = std::cell::RefCell::new(Value::Null);
        let what = std::fmt::from_fn(|f| write!(f, "job {id} to be {phases:?}; it is {:#}", seen.borrow()));
        crate::until(what, || {
            let job = self.try_get(&format!("/api/jobs/{id}"))?;
            let holds = job["phase"].as_str().is_some_and(|phase| phases.contains(&phase));
            seen.replace(job.clone());
            holds.then_some(job)
        })
    }

    /// Waits until a job says that its machine is silent.
    pub fn until_told_unreachable(&self, id: &str) -> Value {
        crate::until(format!("{id} to be unreachable"), || {
            let told = |job: &Value| job["reason"].as_str().is_some_and(|reason| reason.contains("has not been heard"));
            self.try_get(&format!("/api/jobs/{id}")).filter(told)
        })
    }

    /// Waits until a job has recorded at least this step.
    pub fn until_step(&self, id: &str, step: u64) {
        crate::until(format!("step {step} of {id}"), || {
            let job = self.try_get(&format!("/api/jobs/{id}"))?;
            assert!(job["phase"] != "failed" && job["phase"] != "rejected", "{job:#}");
            job["step"].as_u64().filter(|done| *done >= step)
        });
    }

    /// The steps that count, in order, with their losses to the last bit.
    pub fn steps(&self, id: &str) -> Vec<(u64, u64)> {
        let points = self.get(&format!("/api/jobs/{id}/metrics"));
        let points = points.as_array().expect("a list").iter().filter(|point| point["trainingLoss"].is_number());
        points
            .map(|point| {
                (point["step"].as_u64().expect("a step"), point["trainingLoss"].as_f64().expect("a loss").to_bits())
            })
            .collect()
    }
}

/// The steps of an attempt directory: of two lines for one step the later counts.
pub fn steps_of_directory(folder: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(folder.join("events.jsonl")).expect("the worker wrote it");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("whole lines"));
    let steps = lines.filter(|line| line["type"] == "step");
    let of = |line: Value| (line["step"].as_u64().expect("a step"), line["loss"].as_f64().expect("a loss").to_bits());
    steps.map(of).collect::<std::collections::BTreeMap<_, _>>().into_iter().collect()
}
