//! B10: a coordinator with a long past is killed and starts again.

use crate::{
    Size,
    place::{Place, job, seconds},
    report::Report,
};
use lorikeet_tests::crowd::Script;
use std::time::{Duration, Instant};

pub(crate) fn cold_start(size: Size, report: &mut Report) {
    let full = size.of(200, 100_000);
    for (jobs, target) in [(size.of(50, 1_000), ""), (size.of(100, 10_000), ""), (full, "≤ 3 s for 100,000")] {
        let mut place = Place::new();
        let crowd = place.crowd(16, &Script { gpus: 32, ..Script::default() });
        place.submit(jobs, 64, &job());
        place.until("every job to end", Duration::from_secs(560), || crowd.board.ended() >= jobs);
        place.runtime.block_on(crowd.leave());
        place.lab.kill_coordinator();
        let began = Instant::now();
        place.lab.start_coordinator();
        let took = began.elapsed();
        let size = std::fs::metadata(place.lab.root().join("coordinator/state.redb")).map_or(0, |file| file.len());
        let measured = format!("ready {} after kill -9; store of {} MiB", seconds(took), size >> 20);
        report.row("B10", &format!("{jobs} finished jobs"), measured, target, place.cost_of_start());
    }
}
