//! What a run tells, collected; and its directory.

#![expect(unreachable_pub, reason = "shared by test programs, each of which is a crate of its own")]
#![allow(dead_code, reason = "not every test program asks for everything")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use lorikeet_trainer::event::{CheckpointKind, Eval, Event, Outcome, Plan, Sample, Step};
use lorikeet_trainer::{Config, Stop, TrainError, Wish, follow, lead};

/// Everything a run told.
#[derive(Debug)]
pub struct Told {
    pub outcome: Outcome,
    pub plan: Option<Plan>,
    pub steps: Vec<Step>,
    pub evals: Vec<Eval>,
    pub checkpoints: Vec<(u64, CheckpointKind)>,
    pub logs: Vec<String>,
    pub samples: Vec<Sample>,
    pub grad_norms: Vec<BTreeMap<String, f64>>,
}

impl Default for Told {
    fn default() -> Told {
        let outcome = Outcome::Stopped { step: 0, checkpoint: None };
        Told {
            outcome,
            plan: None,
            steps: vec![],
            evals: vec![],
            checkpoints: vec![],
            logs: vec![],
            samples: vec![],
            grad_norms: vec![],
        }
    }
}

impl Told {
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Plan(plan) => self.plan = Some(plan),
            Event::Step(step) => self.steps.push(step),
            Event::Eval(eval) => self.evals.push(eval),
            Event::Checkpoint(saved) => self.checkpoints.push((saved.step, saved.kind)),
            Event::Log { message, .. } => self.logs.push(message),
            Event::Sample(sample) => self.samples.push(sample),
            Event::GradNorms { norms, .. } => self.grad_norms.push(norms),
            Event::Stage(_) => {}
        }
    }

    pub fn plan(&self) -> &Plan {
        self.plan.as_ref().expect("a run tells its plan")
    }

    pub fn adapter_hash(&self) -> String {
        let Outcome::Finished { files, .. } = &self.outcome else { panic!("{:?}", self.outcome) };
        files.iter().find(|file| file.path == "adapter_model.safetensors").expect("written").blake3.clone()
    }
}

pub fn run(config: &Config) -> Result<Told, TrainError> {
    run_until(config, u64::MAX, Wish::Run)
}

/// Runs and makes the wish once step `at` was told.
pub fn run_until(config: &Config, at: u64, wish: Wish) -> Result<Told, TrainError> {
    told_of(config, Vec::new(), at, wish)
}

/// As [`run_until`] with so many ranks, the others in threads; all of them end.
pub fn run_on(ranks: usize, config: &Config, at: u64, wish: Wish) -> Result<Told, TrainError> {
    std::thread::scope(|scope| {
        let start = |_| {
            let (leader, follower) = UnixStream::pair().expect("a pair");
            (leader, scope.spawn(|| follow(config, follower, &Stop::new())))
        };
        let (wires, followers): (Vec<_>, Vec<_>) = (1..ranks).map(start).unzip();
        let told = told_of(config, wires, at, wish);
        followers.into_iter().for_each(|follower| follower.join().expect("no panic").expect("follows to the end"));
        told
    })
}

fn told_of(config: &Config, followers: Vec<UnixStream>, at: u64, wish: Wish) -> Result<Told, TrainError> {
    let (stop, mut told) = (Stop::new(), Told::default());
    let outcome = lead(config, followers, &stop, &mut |event| {
        if matches!(&event, Event::Step(step) if step.step == at) {
            stop.ask(wish);
        }
        told.take(event);
        Ok(())
    })?;
    Ok(Told { outcome, ..told })
}

/// The same steps but for rounding: 1e-5 of losses and norms.
pub fn assert_close(one: &[Step], other: &[Step]) {
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(other) {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs();
        let counts = |step: &Step| (step.step, step.tokens, step.supervised_tokens);
        assert_eq!(counts(one), counts(other));
        assert!(near(one.loss, other.loss) && near(one.grad_norm, other.grad_norm), "{one:?} and {other:?}");
    }
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("a name of ours")).collect();
    names.sort();
    names
}
