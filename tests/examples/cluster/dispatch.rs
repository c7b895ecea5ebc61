//! B2: what each job of no length costs from its offer to its recorded end. B3: how fast thousands are placed on thousands of devices.

use crate::{
    Size,
    place::{Place, job},
    report::Report,
};
use lorikeet_api::Timestamp;
use lorikeet_protocol::id::UnixMillis;
use lorikeet_tests::crowd::Script;
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(240);
/// What an agent, and its eight jobs, take to be there.
const EACH: Duration = Duration::from_millis(50);

pub(crate) fn overhead(size: Size, report: &mut Report) {
    // Agents × devices; stretch: a hundred microseconds.
    for (agents, gpus, jobs, target) in [
        (8, 8, size.of(100, 1_000), ""),
        (8, 8, size.of(200, 10_000), "≤ 0.5 ms"),
        (64, 8, size.of(200, 10_000), "≤ 0.25 ms, stretch 0.1"),
    ] {
        let place = Place::new();
        // They are queued before anybody is there to take them, so that submitting is not measured.
        place.submit(jobs, 32, &job());
        until_queued(&place, jobs);
        let members = place.members(agents);
        let (before, began) = (place.used(), Instant::now());
        let crowd = place.connect(members, &Script { gpus, ..Script::default() });
        place.until("every job to end", PATIENCE, || crowd.board.ended() >= jobs);
        let took = began.elapsed();
        let each = took.as_secs_f64() * 1e3 / jobs as f64;
        let cpu = place.cpu_since(before).as_secs_f64() * 1e6 / jobs as f64;
        let measured = format!("{each:.3} ms per job, {cpu:.0} µs of it CPU of the coordinator");
        report.row("B2", &format!("{jobs} jobs, {} slots", agents * gpus), measured, target, place.cost_since(before));
        place.runtime.block_on(crowd.leave());
    }
}

pub(crate) fn placement_curve(size: Size, report: &mut Report) {
    for (agents, jobs, target) in [
        (10, size.of(40, 80), ""),
        (100, size.of(80, 800), ""),
        (size.of(100, 1_000), size.of(80, 8_000), "≥ 3,000/s, last tenth ≥ 80 % of the first"),
    ] {
        let place = Place::new();
        // All begin to wait for a device at one moment, when everybody is there.
        let mut body = job();
        body["not_before"] = json!(moment_in(Duration::from_secs(10) + agents as u32 * EACH));
        place.submit(jobs, 32, &body);
        let members = place.members(agents);
        let before = place.used();
        // They run on, so that each placement finds fewer free devices than the one before.
        let script = Script { gpus: 8, lasts: Duration::from_secs(3_600), ..Script::default() };
        let crowd = place.connect(members, &script);
        place.until("every job to be offered", PATIENCE, || crowd.board.read().offered.len() >= jobs);
        place.until("every job to run", PATIENCE, || crowd.board.read().running.len() >= jobs);
        let (offered, running) = {
            let seen = crowd.board.read();
            (rates(seen.offered.values()), rates(seen.running.values()))
        };
        let measured = format!(
            "assigned {:.0}/s (first tenth {:.0}, last {:.0}), running {:.0}/s",
            offered.0, offered.1, offered.2, running.0
        );
        report.row("B3", &format!("{jobs} jobs on {agents} agents × 8"), measured, target, place.cost_since(before));
        place.runtime.block_on(crowd.leave());
    }
}

/// Per second: all, the first tenth, the last tenth.
fn rates<'a>(times: impl Iterator<Item = &'a Instant>) -> (f64, f64, f64) {
    let mut times: Vec<Instant> = times.copied().collect();
    times.sort();
    let tenth = (times.len() / 10).max(2);
    let rate = |part: &[Instant]| {
        let took = part.last().zip(part.first()).map_or(Duration::ZERO, |(last, first)| *last - *first);
        (part.len() - 1) as f64 / took.as_secs_f64().max(1e-6)
    };
    (rate(&times), rate(&times[..tenth]), rate(&times[times.len() - tenth..]))
}

fn moment_in(time: Duration) -> Timestamp {
    let since = (SystemTime::now() + time).duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(UnixMillis(since.as_millis() as u64))
}

/// The newest is judged last: once it waits for a device, all do.
fn until_queued(place: &Place, jobs: usize) {
    let client = place.client();
    place.until(&format!("{jobs} jobs to be judged"), PATIENCE, || {
        let page = place.runtime.block_on(client.get("/api/jobs?pageSize=100"));
        page.as_array().is_some_and(|list| list.iter().all(|job| job["phase"] == "queued"))
    });
}
