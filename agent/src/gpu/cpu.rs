//! The CPU slot: the processor and the machine's memory as one device.

use super::{Look, Seen};
use lorikeet_protocol::{
    agent::Telemetry,
    id::{DeviceId, UnixMillis},
    job::{Device, DeviceKind},
};
use procfs::{Current, CurrentSI};

/// Remembers the last look, for utilisation is a difference.
#[derive(Debug, Default)]
pub(super) struct Slot {
    last: Option<Ticks>,
}

/// Processor time since boot.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Slot {
    /// The slot at this moment. Where `/proc` says nothing, so does this.
    pub(super) fn look(&mut self, time: UnixMillis) -> Look {
        let Ok(memory) = procfs::Meminfo::current() else { return Look::none() };
        let free_bytes = memory.mem_available.unwrap_or(memory.mem_free).min(memory.mem_total);
        let device = Device {
            id: DeviceId::cpu(),
            name: processor_name(),
            kind: DeviceKind::Cpu,
            memory_bytes: memory.mem_total,
            free_bytes,
            usable: Ok(()),
        };
        let used_bytes = memory.mem_total - free_bytes;
        let telemetry = Telemetry {
            utilization_percent: self.utilization(),
            ..Telemetry::new(DeviceId::cpu(), time, used_bytes, memory.mem_total)
        };
        Look { seen: Seen { devices: vec![device], ..Seen::default() }, telemetry: vec![telemetry] }
    }

    /// Since the last look; of the first nothing is known.
    fn utilization(&mut self) -> Option<f32> {
        let now = ticks();
        let last = std::mem::replace(&mut self.last, now)?;
        let now = now?;
        let all = now.all.saturating_sub(last.all).max(1);
        Some((100.0 * now.busy.saturating_sub(last.busy) as f32 / all as f32).min(100.0))
    }
}

/// Main memory of this machine; where it does not say, no limit follows from it.
pub(super) fn machine_bytes() -> u64 {
    procfs::Meminfo::current().map_or(u64::MAX, |memory| memory.mem_total)
}

fn ticks() -> Option<Ticks> {
    let total = procfs::KernelStats::current().ok()?.total;
    let idle = total.idle + total.iowait.unwrap_or(0);
    let busy = total.user + total.nice + total.system + total.irq.unwrap_or(0) + total.softirq.unwrap_or(0);
    Some(Ticks { busy, all: busy + idle })
}

fn processor_name() -> String {
    let name = procfs::CpuInfo::current().ok().and_then(|info| info.model_name(0).map(str::to_owned));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
