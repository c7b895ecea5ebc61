//! B2: what each job of no length costs from its offer to its recorded end. B3: how fast thousands are placed on thousands of devices.

use crate::{
    Size,
    place::{Place, job},
    report::{Report, percentiles},
};
use lorikeet_api::Timestamp;
use lorikeet_protocol::id::UnixMillis;
use lorikeet_tests::crowd::{Crowd, Script};
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PATIENCE: Duration = Duration::from_secs(240);
/// What submitting a job takes at most, by 32 clients at once.
const EACH: Duration = Duration::from_millis(3);

pub(crate) fn overhead(size: Size, report: &mut Report) {
    // Agents × devices; stretch: a hundred microseconds.
    for (agents, gpus, jobs, target) in [
        (8, 8, size.of(64, 100), ""),
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
        let life = percentiles(lives(&crowd));
        let measured =
            format!("{each:.3} ms per job, {cpu:.0} µs of it CPU of the coordinator; offer to recorded end {life}");
        report.row("B2", &format!("{jobs} jobs, {} slots", agents * gpus), measured, target, place.cost_since(before));
        place.runtime.block_on(crowd.leave());
    }
}

/// From each offer until its end was acknowledged.
fn lives(crowd: &Crowd) -> Vec<Duration> {
    let seen = crowd.board.read();
    let life = |(attempt, end): (_, &Instant)| seen.offered.get(attempt).map(|offer| end.duration_since(*offer));
    seen.ended.iter().filter_map(life).collect()
}

pub(crate) fn placement_curve(size: Size, report: &mut Report) {
    for (agents, jobs, target) in [
        (10, size.of(40, 80), ""),
        (100, size.of(80, 800), ""),
        (size.of(100, 1_000), size.of(80, 8_000), "≥ 3,000/s, last tenth ≥ 80 % of the first"),
    ] {
        let place = Place::new();
        let members = place.members(agents);
        // They run on, so that each placement finds fewer free devices than the one before.
        let script = Script { gpus: 8, lasts: Duration::from_secs(3_600), ..Script::default() };
        let crowd = place.connect(members, &script);
        // Everybody is there; then all begin to wait for a device at one moment.
        let (due, moment) = in_future(Duration::from_secs(5) + jobs as u32 * EACH);
        let mut body = job();
        body["not_before"] = json!(moment);
        place.submit(jobs, 32, &body);
        assert!(Instant::now() < due, "submitting took longer than was thought: {jobs} jobs");
        let before = place.used();
        place.until("every job to be offered", PATIENCE, || crowd.board.read().offered.len() >= jobs);
        place.until("every job to run", PATIENCE, || crowd.board.read().running.len() >= jobs);
        let (offered, running, back) = {
            let seen = crowd.board.read();
            let back = seen.welcomed.values().filter(|(_, times)| *times > 1).count();
            (since(seen.offered.values(), due), since(seen.running.values(), due), back)
        };
        let measured = format!(
            "assigned {}/s (by tenths {}; {}), running {}/s; {back} agents came back meanwhile",
            rate(&offered),
            tenths(&offered),
            percentiles(offered.clone()),
            rate(&running),
        );
        report.row("B3", &format!("{jobs} jobs on {agents} agents × 8"), measured, target, place.cost_since(before));
        place.runtime.block_on(crowd.leave());
    }
}

/// From the moment at which all might begin, the soonest first.
fn since<'a>(times: impl Iterator<Item = &'a Instant>, due: Instant) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.map(|time| time.saturating_duration_since(due)).collect();
    times.sort();
    times
}

/// Of all, per second.
fn rate(times: &[Duration]) -> String {
    per_second(times.len(), times[times.len() - 1])
}

/// Each tenth of the jobs by itself, the first from the moment at which all might begin.
fn tenths(times: &[Duration]) -> String {
    let ends: Vec<Duration> = (1..=10).map(|tenth| times[times.len() * tenth / 10 - 1]).collect();
    let begins = [Duration::ZERO].into_iter().chain(ends.iter().copied());
    let rates = begins.zip(&ends).map(|(begin, end)| per_second(times.len() / 10, end.saturating_sub(begin)));
    rates.collect::<Vec<_>>().join(" ")
}

fn per_second(jobs: usize, took: Duration) -> String {
    format!("{:.0}", jobs as f64 / took.as_secs_f64().max(1e-6))
}

fn in_future(time: Duration) -> (Instant, Timestamp) {
    let since = (SystemTime::now() + time).duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now() + time, Timestamp(UnixMillis(since.as_millis() as u64)))
}

/// The newest is judged last: once it waits for a device, all do.
fn until_queued(place: &Place, jobs: usize) {
    let client = place.client();
    place.until(&format!("{jobs} jobs to be judged"), PATIENCE, || {
        let page = place.runtime.block_on(client.get("/api/jobs?pageSize=100"));
        page.as_array().is_some_and(|list| list.iter().all(|job| job["phase"] == "queued"))
    });
}
