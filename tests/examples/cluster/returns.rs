//! B6: how soon a crowd is back after its coordinator was killed. B12: and after all of its connections were cut at once.

use crate::{
    Size,
    place::{Place, job, seconds},
    report::{Report, percentiles},
};
use lorikeet_tests::crowd::{Crowd, Script};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// Everybody may be longer about it than this; then the API's times are those of the whole return.
const ASKED: Duration = Duration::from_secs(10);

pub(crate) fn restart(size: Size, report: &mut Report) {
    for (agents, target) in
        [(10, ""), (size.of(20, 100), ""), (size.of(20, 200), "≤ 5 s"), (size.of(40, 1_000), "≤ 30 s")]
    {
        let mut at_work = AtWork::new(agents);
        let before = at_work.lines().1;
        at_work.place.lab.kill_coordinator();
        let killed = Instant::now();
        at_work.place.lab.start_coordinator();
        let (place, crowd) = (&at_work.place, &at_work.crowd);
        let took = place.runtime.block_on(crowd.until_welcomed(agents, killed, PATIENCE));
        // What was made while nobody listened comes now; what is made meanwhile may still be on its way.
        let made = at_work.lines().0;
        place.until("every step made until then to be kept", PATIENCE, || at_work.lines().1 >= made);
        let disturbed = at_work.disturbed();
        let (jobs, kept) = (at_work.jobs, at_work.lines().1 - before);
        let measured = format!(
            "all back in {} ({}), {disturbed} of {jobs} jobs disturbed, {kept} steps since the kill kept, none lost",
            seconds(took[took.len() - 1]),
            percentiles(took),
        );
        report.row("B6", &format!("{agents} agents, kill -9"), measured, target, place.cost_of_start());
        at_work.leave();
    }
}

pub(crate) fn storm(size: Size, report: &mut Report) {
    for (agents, target) in [(10, ""), (size.of(20, 100), ""), (size.of(40, 1_000), "nobody waits > 30 s")] {
        let at_work = AtWork::new(agents);
        let before = at_work.place.used();
        let dropped = Instant::now();
        at_work.crowd.drop_all();
        let (took, asked) = until_back(&at_work, agents, dropped);
        let measured = format!(
            "all back in {} ({}), {} of {} jobs disturbed; API meanwhile {}",
            seconds(took[took.len() - 1]),
            percentiles(took),
            at_work.disturbed(),
            at_work.jobs,
            percentiles(asked),
        );
        let load = format!("{agents} agents drop at once");
        report.row("B12", &load, measured, target, at_work.place.cost_since(before));
        at_work.leave();
    }
}

/// A crowd of which a quarter trains, a step a second each; all say how their devices feel, as real ones do.
struct AtWork {
    place: Place,
    crowd: Crowd,
    jobs: usize,
}

impl AtWork {
    fn new(agents: usize) -> Self {
        let place = Place::new();
        let second = Duration::from_secs(1);
        let script = Script { lasts: Duration::from_secs(600), step: second, telemetry: second, ..Script::default() };
        let crowd = place.crowd(agents, &script);
        let jobs = agents.div_ceil(4);
        place.submit(jobs, 16, &job());
        place.until("every job to run", PATIENCE, || crowd.board.read().running.len() >= jobs);
        Self { place, crowd, jobs }
    }

    /// Stopped, ended or placed anew.
    fn disturbed(&self) -> usize {
        let seen = self.crowd.board.read();
        seen.stopped.len() + seen.ended.len() + seen.offered.len().saturating_sub(self.jobs)
    }

    /// Steps made, and steps acknowledged.
    fn lines(&self) -> (u64, u64) {
        self.crowd.board.read().lines
    }

    fn leave(self) {
        self.place.runtime.block_on(self.crowd.leave());
    }
}

/// How long each agent took to be back, and each answer of the API in the meantime.
fn until_back(at_work: &AtWork, agents: usize, since: Instant) -> (Vec<Duration>, Vec<Duration>) {
    let client = at_work.place.client();
    at_work.place.runtime.block_on(async {
        let asking = tokio::spawn(async move {
            let mut times = vec![];
            loop {
                let asked = Instant::now();
                client.get("/api/jobs?pageSize=20").await;
                times.push(asked.elapsed());
                if asked.duration_since(since) > ASKED {
                    return times;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let back = at_work.crowd.until_welcomed(agents, since, PATIENCE).await;
        (back, asking.await.expect("it asks on"))
    })
}
