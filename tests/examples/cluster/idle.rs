//! B7: what an agent costs the coordinator that has nothing to do but to say how its devices feel.

use crate::{Size, place::Place, report::Report};
use lorikeet_tests::crowd::Script;
use std::time::Duration;

pub(crate) fn cost_of_an_agent(size: Size, report: &mut Report) {
    let watched = Duration::from_secs(size.of(3, 30));
    for (agents, target) in [(10, ""), (100, ""), (size.of(100, 1_000), "≤ 0.3 MB, ≤ 0.05 % of a core each")] {
        let place = Place::new();
        let members = place.members(agents);
        let empty = place.used();
        let crowd = place.connect(members, &Script { telemetry: Duration::from_secs(1), ..Script::default() });
        std::thread::sleep(Duration::from_secs(2));
        let before = place.used();
        std::thread::sleep(watched);
        let now = place.used();
        let memory = now.resident.saturating_sub(empty.resident) as f64 / 1e6 / agents as f64;
        let cpu = place.cpu_since(before).as_secs_f64() / watched.as_secs_f64() / agents as f64 * 100.0;
        let measured = format!("{memory:.3} MB and {cpu:.3} % of a core each");
        report.row("B7", &format!("{agents} idle agents, 1 Hz"), measured, target, place.cost_since(before));
        place.runtime.block_on(crowd.leave());
    }
}
