//! What a job draws: the energy of its devices from the moment an agent takes it to its end, in all of its attempts, each once.

use lorikeet_tests::{
    Lab,
    lab::{Machine, WATTS},
    stand_in::{Script, run_if_asked},
    until,
};
use std::time::Instant;

const STEPS: u64 = 300;

/// Not a story: this program again, as the worker of the other.
#[test]
fn a_stand_in_does_nothing_unless_asked() {
    run_if_asked();
}

#[test]
fn a_job_knows_the_energy_of_its_attempts_over_a_restart_of_its_agent() {
    let lab = Lab::start();
    let script = Script { steps: STEPS, step_millis: 20, every: 50 };
    let mut agent = lab.agent_on("only", &Machine { gpus: 1, worker: script.command(), ..Machine::default() });
    let (began, job) = (Instant::now(), lab.submit(&lab.job_file("measured", STEPS, 50)));
    lab.api.until_step(&job, 60);
    assert!(lab.api.job(&job)["energyKwh"].is_null(), "its attempt is not over");
    agent.restart();
    lab.api.until_step(&job, 120);
    lab.cli(&["job", "pause", &job]);
    lab.api.until_phase(&job, &["paused"]);
    let first = energy(&lab, &job);
    lab.cli(&["job", "resume", &job]);
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    let (both, most) = (energy(&lab, &job), began.elapsed().as_secs_f64() * f64::from(WATTS) / 3.6e6);
    // The steps alone last six seconds, of which the agent was away for one or so.
    let least = STEPS as f64 * 0.02 * f64::from(WATTS) / 3.6e6;
    assert!(
        (least..most).contains(&both) && first < both,
        "{least} kWh at least, {most} at most, found {first} and {both}"
    );
    assert!(lab.cli(&["job", "show", &job]).contains(" Wh"));
    let points = lab.api.get(&format!("/api/jobs/{job}/metrics"));
    let points = points.as_array().expect("a list");
    let told = points.iter().filter(|point| point["gpuPowerWatts"] == f64::from(WATTS)).count();
    assert!(told > points.len() / 2, "{told} of {} points say how the GPU was", points.len());
    let said = lab.cli(&["node", "show", &node(&lab)]);
    assert!(said.contains("50 % busy, 40 °C, 300 W"), "{said}");
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}

fn node(lab: &Lab) -> String {
    lab.api.get("/api/nodes")[0]["id"].as_str().expect("an id").to_owned()
}

fn energy(lab: &Lab, job: &str) -> f64 {
    let job = lab.api.job(job);
    job["energyKwh"].as_f64().unwrap_or_else(|| panic!("expected an energy, found {job:#}"))
}
