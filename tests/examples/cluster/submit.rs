//! B1: jobs acknowledged after their commit, by one client and by many; then the same many with ten times the jobs, and again.

use crate::{
    Size,
    place::{Place, job},
    report::{Report, percentiles},
};

const TARGET: &str = "≥ 3,000/s, p99 < 50 ms";

pub(crate) fn durable_submit(size: Size, report: &mut Report) {
    for (clients, jobs, target) in [
        (1, size.of(50, 2_000), ""),
        (8, size.of(100, 8_000), ""),
        (64, size.of(64, 100), ""),
        (64, size.of(100, 1_000), ""),
        (64, size.of(200, 10_000), ""),
        (64, size.of(400, 30_000), TARGET),
    ] {
        let place = Place::new();
        // Warm: the first request compiles nothing, but opens connections and pages.
        place.submit(clients * 2, clients, &job());
        let before = place.used();
        let (times, took) = place.submit(jobs, clients, &job());
        let rate = jobs as f64 / took.as_secs_f64();
        let measured = format!("{rate:.0}/s, {}", percentiles(times));
        report.row("B1", &format!("{clients} clients, {jobs} submits"), measured, target, place.cost_since(before));
    }
}
