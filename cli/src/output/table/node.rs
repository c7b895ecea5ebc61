//! Nodes and their devices as tables.

use super::{fields, grid, moment, short, size, with_below, word};
use crate::output::View;
use lorikeet_api::{
    node::{DeviceRows, DeviceTelemetry, DeviceView, DrainedAttempt, Node, NodeCache, NodeDrain, NodeStatus},
    token::JoinToken,
};
use lorikeet_protocol::agent::ThrottleReason;

impl View for Vec<Node> {
    /// One line a device; a node without any has a line of its own.
    fn table(&self) -> String {
        let rows = self.iter().flat_map(|node| {
            let devices: Vec<_> = node.devices.iter().map(Some).collect();
            let devices = if devices.is_empty() { vec![None] } else { devices };
            devices.into_iter().map(|device| row(node, device))
        });
        grid(["node", "name", "status", "device", "memory", "free", "runs", "last heard"], rows)
    }
}

impl View for Node {
    fn table(&self) -> String {
        let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let table = fields([
            ("id", Some(self.id.to_string())),
            ("name", Some(self.name.clone())),
            ("status", Some(status(self))),
            ("reason", self.reason.clone()),
            ("version", self.version.clone()),
            ("labels", Some(labels.join(", ")).filter(|labels| !labels.is_empty())),
            ("cache", self.cache.as_ref().map(cache)),
            ("joined", Some(moment(self.joined_at))),
            ("last heard", self.last_seen.map(moment)),
            ("silent since", self.unreachable_since.map(moment)),
        ]);
        let device = |device: &DeviceView| {
            let attempts = device.attempts.iter().map(ToString::to_string).collect::<Vec<_>>();
            [
                device.id.to_string(),
                short(&device.name, 32),
                device.compute.clone().unwrap_or_default(),
                device.driver.clone().unwrap_or_default(),
                size(device.memory_bytes),
                size(device.free_bytes),
                device.unusable.clone().unwrap_or_else(|| attempts.join(", ")),
            ]
        };
        let devices = grid(
            ["device", "name", "compute", "driver", "memory", "free", "runs, or why not"],
            self.devices.iter().map(device),
        );
        let table = with_below(table, "devices:", (!self.devices.is_empty()).then_some(devices));
        let table = with_below(table, "as they feel:", feelings(&self.devices));
        with_below(table, "drained:", self.drain.as_ref().map(drain))
    }
}

/// A line for each device that says anything of itself.
fn feelings(devices: &[DeviceView]) -> Option<String> {
    let said = devices.iter().filter_map(|device| Some((device, device.telemetry.as_ref()?)));
    let rows: Vec<_> = said.map(|(device, said)| [device.id.to_string(), feeling(said)]).collect();
    (!rows.is_empty()).then(|| grid(["device", "says of itself"], rows))
}

/// `93 % busy, 61 °C, 512 W, SM 1755 MHz, memory 3201 MHz, held back by sw_power_cap, 2 uncorrected memory errors, 1 other process (3.0 GiB)`
fn feeling(said: &DeviceTelemetry) -> String {
    let mut parts = Vec::new();
    parts.extend(said.utilization_percent.map(|percent| format!("{percent:.0} % busy")));
    parts.extend(said.temperature_celsius.map(|celsius| format!("{celsius:.0} °C")));
    parts.extend(said.power_watts.map(|watts| format!("{watts:.0} W")));
    parts.extend(said.sm_clock_mhz.map(|mhz| format!("SM {mhz} MHz")));
    parts.extend(said.memory_clock_mhz.map(|mhz| format!("memory {mhz} MHz")));
    let reasons = said.throttle_reasons.iter().flatten().filter(|reason| **reason != ThrottleReason::GpuIdle);
    let reasons: Vec<_> = reasons.map(word).collect();
    parts.extend((!reasons.is_empty()).then(|| format!("held back by {}", reasons.join(", "))));
    let errors = [(said.corrected_errors, "corrected"), (said.uncorrected_errors, "uncorrected")];
    let errors = errors.into_iter().filter_map(|(count, kind)| Some((count.filter(|count| *count > 0)?, kind)));
    parts.extend(errors.map(|(count, kind)| format!("{count} {kind} memory errors")));
    parts.extend(said.remapped_rows.and_then(rows));
    parts.extend(said.foreign.filter(|foreign| foreign.processes > 0).map(|foreign| {
        let processes = if foreign.processes == 1 { "process" } else { "processes" };
        format!("{} other {processes} ({})", foreign.processes, size(foreign.bytes))
    }));
    parts.join(", ")
}

/// Of a memory without faulty rows nothing.
fn rows(rows: DeviceRows) -> Option<String> {
    let replaced = rows.corrected.saturating_add(rows.uncorrected);
    let mut parts = Vec::new();
    parts.extend((replaced > 0).then(|| format!("rows replaced: {replaced}")));
    parts.extend(rows.pending.then(|| "a row waits for a reset".to_owned()));
    parts.extend(rows.failed.then(|| "a row could not be replaced".to_owned()));
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// `9 files, given at 192.0.2.7:7172; 2.0 GiB from the coordinator, 14.0 GiB from nodes, 0 B to nodes`
fn cache(cache: &NodeCache) -> String {
    let given = cache.gives_at.as_ref().map(|address| format!(", given at {address}")).unwrap_or_default();
    format!(
        "{} files{given}; {} from the coordinator, {} from nodes, {} to nodes",
        cache.files,
        size(cache.from_coordinator_bytes),
        size(cache.from_nodes_bytes),
        size(cache.to_nodes_bytes)
    )
}

/// What became of each, below when it began and ended.
fn drain(drain: &NodeDrain) -> String {
    let ended =
        drain.ended_at.map_or_else(|| format!("until {}", moment(drain.until)), |at| format!("ended {}", moment(at)));
    let head = format!("began {}, {ended}", moment(drain.started_at));
    let row = |drained: &DrainedAttempt| {
        [
            drained.attempt.to_string(),
            word(&drained.result),
            drained.checkpoint_step.map(|step| step.to_string()).unwrap_or_default(),
            drained.left_at.map(moment).unwrap_or_default(),
        ]
    };
    if drain.attempts.is_empty() {
        return format!("{head}; nothing ran there");
    }
    format!("{head}\n{}", grid(["attempt", "became", "goes on from step", "left"], drain.attempts.iter().map(row)))
}

/// Its word; of one that is closed also whether it is not connected, so that opening it is not enough.
fn status(node: &Node) -> String {
    let is_closed = matches!(node.status, NodeStatus::Cordoned | NodeStatus::Draining | NodeStatus::Quarantined);
    let away = if is_closed && node.version.is_none() { ", away" } else { "" };
    format!("{}{away}", word(&node.status))
}

fn row(node: &Node, device: Option<&DeviceView>) -> [String; 8] {
    let runs = device.map(|device| match (&device.unusable, device.attempts.as_slice()) {
        (Some(why), _) => format!("unusable: {}", short(why, 40)),
        (None, []) => {
            node.reason.as_ref().map_or_else(|| "idle".to_owned(), |why| format!("closed: {}", short(why, 40)))
        }
        (None, attempts) => attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    });
    [
        node.id.to_string(),
        short(&node.name, 24),
        status(node),
        device.map(|device| short(&device.name, 32)).unwrap_or_default(),
        device.map(|device| size(device.memory_bytes)).unwrap_or_default(),
        device.map(|device| size(device.free_bytes)).unwrap_or_default(),
        runs.unwrap_or_default(),
        node.last_seen.map(moment).unwrap_or_default(),
    ]
}

impl View for JoinToken {
    fn table(&self) -> String {
        self.join_string.clone().unwrap_or_else(|| "the join string was shown once, to the first request".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_says_what_it_knows_and_nothing_of_what_it_does_not() {
        let all = r#"{"time":"2026-01-01T10:00:00.000Z","utilizationPercent":93.0,"usedBytes":1,"temperatureCelsius":61.0,"powerWatts":512.4,
            "smClockMhz":1755,"memoryClockMhz":3201,"throttleReasons":["gpu_idle","sw_power_cap","hw_slowdown"],"correctedErrors":0,"uncorrectedErrors":2,
            "remappedRows":{"corrected":1,"uncorrected":0,"pending":true,"failed":false},"foreign":{"processes":1,"bytes":3221225472}}"#;
        assert_eq!(
            feeling(&serde_json::from_str(all).unwrap()),
            "93 % busy, 61 °C, 512 W, SM 1755 MHz, memory 3201 MHz, held back by sw_power_cap, hw_slowdown, 2 uncorrected memory errors, \
             rows replaced: 1, a row waits for a reset, 1 other process (3.0 GiB)"
        );
        let of_before = r#"{"time":"2026-01-01T10:00:00.000Z","utilizationPercent":null,"usedBytes":1,"temperatureCelsius":null,"powerWatts":null}"#;
        assert_eq!(feeling(&serde_json::from_str(of_before).unwrap()), "");
    }
}
