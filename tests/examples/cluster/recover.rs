//! B5: how soon a job goes on after its worker, its agent or its machine is gone – with real agents and real training; only machines
//! that start anew are simulated, because that takes a boot id of their own.

use crate::{
    Size,
    place::{Place, job, seconds},
    report::Report,
};
use lorikeet_tests::{
    Lab,
    crowd::Script,
    lab::{Agent, Machine},
    process::signal,
    until,
};
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// The silence that the measured job bears: longer than a lease, before whose end no node is taken for silent.
const LOST_AFTER: Duration = Duration::from_secs(40);

pub(crate) fn recovery(size: Size, report: &mut Report) {
    processes(report);
    reboots(size, report);
}

fn processes(report: &mut Report) {
    let lab = Lab::start_as_in_production();
    let machine = Machine { as_in_production: true, ..Machine::default() };
    let mut agents = [lab.agent_on("first", &machine), lab.agent_on("second", &machine)];
    let id = lab.submit(&lab.job_file_bearing("measured", 100_000, 20, &format!("{}s", LOST_AFTER.as_secs())));
    lab.api.until_step(&id, 25);
    let mut row = |load: &str, took: Duration, target: &str| {
        report.row("B5", load, seconds(took), target, "–".into());
    };

    let holder = holder(&agents);
    let (attempt, began) = (attempt(&lab, &id), Instant::now());
    agents[holder].workers().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    row("worker killed → requeued", until_left(&lab, &id, &attempt, began), "≤ 10 s");
    until_on_another(&lab, &id, &attempt);

    let holder = self::holder(&agents);
    let workers = agents[holder].workers();
    let began = Instant::now();
    agents[holder].restart();
    let seen = lab.api.job(&id)["step"].as_u64().unwrap_or(0);
    lab.api.until_step(&id, seen + 1);
    assert_eq!(agents[holder].workers(), workers, "the same process trains");
    row("agent killed and restarted → steps come in again", began.elapsed(), "≤ 10 s");

    let (attempt, began) = (self::attempt(&lab, &id), Instant::now());
    agents[holder].destroy();
    let took = until_left(&lab, &id, &attempt, began);
    row("machine gone, lost_after 40 s → requeued", took, "≤ 45 s");
    until_on_another(&lab, &id, &attempt);
    lab.cli(&["job", "cancel", &id]);
    lab.api.until_phase(&id, &["cancelled"]);
    until("its worker to leave", || agents.iter().all(|agent| agent.workers().is_empty()).then_some(()));
}

fn holder(agents: &[Agent]) -> usize {
    until("a worker", || agents.iter().position(|agent| !agent.workers().is_empty()))
}

fn attempt(lab: &Lab, id: &str) -> Value {
    lab.api.job(id)["attempt"].clone()
}

/// Until the job waits again, or has gone on already.
fn until_left(lab: &Lab, id: &str, attempt: &Value, began: Instant) -> Duration {
    until("the job to be requeued", || {
        let job = lab.api.job(id);
        (job["phase"] == "queued" || job["attempt"] != *attempt).then_some(())
    });
    began.elapsed()
}

fn until_on_another(lab: &Lab, id: &str, attempt: &Value) {
    until("the job to train again", || {
        let job = lab.api.job(id);
        (job["phase"] == "running" && job["attempt"] != *attempt).then_some(())
    });
}

/// New agents under the same identities that know of no attempt.
fn reboots(size: Size, report: &mut Report) {
    let place = Place::new();
    let script = Script { lasts: Duration::from_secs(3_600), ..Script::default() };
    let members = place.members(size.of(4, 16));
    let crowd = place.connect(members.clone(), &script);
    place.submit(members.len(), 8, &job());
    place.until("every job to run", PATIENCE, || crowd.board.read().running.len() >= members.len());
    place.runtime.block_on(crowd.leave());
    let (before, began) = (place.used(), Instant::now());
    let crowd = place.connect(members.clone(), &script);
    place.until("every job to run again", PATIENCE, || crowd.board.read().running.len() >= members.len());
    let load = format!("{} machines start anew", members.len());
    report.row(
        "B5",
        &load,
        format!("running again {} after their hello", seconds(began.elapsed())),
        "≤ 10 s",
        place.cost_since(before),
    );
    place.runtime.block_on(crowd.leave());
}
