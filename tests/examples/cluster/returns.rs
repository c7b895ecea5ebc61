//! B6: how soon a crowd is back after its coordinator was killed. B12: and after all of it was cut off at once.

use crate::{
    Size,
    place::{Place, job, seconds},
    report::Report,
};
use lorikeet_tests::crowd::Script;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn restart_and_storm(size: Size, report: &mut Report) {
    for (agents, target) in [(size.of(20, 200), "≤ 5 s"), (size.of(40, 1_000), "≤ 30 s")] {
        let mut place = Place::new();
        let script = Script { lasts: Duration::from_secs(600), step: Duration::from_secs(1), ..Script::default() };
        let crowd = place.crowd(agents, &script);
        let jobs = agents / 4;
        place.submit(jobs, 16, &job());
        place.until("every job to run", PATIENCE, || crowd.board.read().running.len() >= jobs);
        let before = place.used();
        let dropped = Instant::now();
        crowd.drop_all();
        let (back, slowest) = storm(&place, &crowd, agents, dropped);
        report.row(
            "B12",
            &format!("{agents} agents drop at once"),
            format!("all back in {}, API p99 {slowest} ms meanwhile", seconds(back)),
            "nobody waits > 30 s",
            place.cost_since(before),
        );
        place.lab.kill_coordinator();
        let restarted = Instant::now();
        place.lab.start_coordinator();
        let back = place.runtime.block_on(crowd.until_welcomed(agents, restarted, PATIENCE));
        let disturbed = {
            let seen = crowd.board.read();
            seen.stopped.len() + seen.ended.len()
        };
        place.until("every line to be kept", PATIENCE, || {
            let lines = crowd.board.read().lines;
            lines.0 <= lines.1 + agents as u64
        });
        let kept = crowd.board.read().lines.1;
        let measured =
            format!("all back in {}, {disturbed} of {jobs} jobs disturbed, {kept} steps kept", seconds(back));
        let before = place.used();
        report.row("B6", &format!("{agents} agents, kill -9"), measured, target, place.cost_since(before));
        place.runtime.block_on(crowd.leave());
    }
}

/// How long until all are back, and the API's p99 in the meantime.
fn storm(place: &Place, crowd: &lorikeet_tests::crowd::Crowd, agents: usize, since: Instant) -> (Duration, String) {
    let client = place.client();
    place.runtime.block_on(async {
        let asking = tokio::spawn(async move {
            let mut times = vec![];
            loop {
                let asked = Instant::now();
                client.get("/api/jobs?pageSize=20").await;
                times.push(asked.elapsed());
                if asked.duration_since(since) > Duration::from_secs(10) {
                    return times;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let back = crowd.until_welcomed(agents, since, PATIENCE).await;
        let mut times = asking.await.expect("it asks on");
        times.sort();
        (back, crate::report::millis(times[(times.len() * 99 / 100).min(times.len() - 1)]))
    })
}
