//! Two hundred agents with a job each lose the coordinator together and return together: nobody is requeued, nothing is lost.

use lorikeet_tests::{
    Lab,
    crowd::{Crowd, Member, Script},
    until,
};
use std::time::{Duration, Instant};

const AGENTS: usize = 200;

#[test]
fn a_crowd_that_returns_at_once_keeps_every_job() {
    let mut lab = Lab::start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let join_strings = (0..AGENTS).map(|_| lab.join_string()).collect();
    let members = runtime.block_on(members(join_strings));
    let script = Script { lasts: Duration::from_secs(20), step: Duration::from_millis(500), ..Script::default() };
    let script = Script { patience: (Duration::from_millis(50), Duration::from_millis(500)), ..script };
    let crowd = runtime.block_on(async { Crowd::start(lab.link(), members, &script) });
    let patience = Duration::from_secs(60);
    let began = Instant::now();
    runtime.block_on(crowd.until_welcomed(AGENTS, began, patience));
    // Were a reset lost, an agent would notice a coordinator that died by the idle time-out alone, 15 s; a job has to bear that.
    let file = lab.job_file_bearing("one-of-many", 10, 1_000, "60s");
    let jobs: Vec<_> = (0..20).map(|_| lab.submit(&file)).collect();
    for job in &jobs {
        lab.api.until_phase(job, &["running"]);
    }
    for round in 0..3 {
        let since = Instant::now();
        if round == 0 {
            crowd.drop_all()
        } else {
            lab.restart_coordinator()
        }
        let took = runtime.block_on(crowd.until_welcomed(AGENTS, since, patience));
        let longest = took[AGENTS - 1];
        eprintln!("round {round}: {AGENTS} agents are back after {longest:?}");
        assert!(longest < Duration::from_secs(30), "an agent waited {longest:?}");
    }
    for job in &jobs {
        let done = lab.api.until_phase(job, &["succeeded", "failed"]);
        assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".1")), "it was requeued: {done:#}");
        assert_eq!(crate::numbers(&lab, job), (1..=40).collect::<Vec<_>>());
    }
    until("every line to be acknowledged", || {
        let lines = crowd.board.read().lines;
        (lines.0 == lines.1).then_some(())
    });
    runtime.block_on(crowd.leave());
}

async fn members(join_strings: Vec<String>) -> Vec<Member> {
    let mut members = vec![];
    for (number, text) in join_strings.iter().enumerate() {
        members.push(Member::join(text, &format!("node {number}")).await.expect("it joins"));
    }
    members
}
