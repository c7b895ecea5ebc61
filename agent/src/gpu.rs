//! Which devices there are and how they feel.
//!
//! A machine without NVIDIA's library is a normal machine: it has one device, its CPU slot. Every device says whether this
//! binary can train on it and, if not, why; only usable ones are offered work. [`Probe`] blocks for some milliseconds: it lives
//! on a thread of its own.

mod cpu;
mod fake;
mod health;
mod nvml;
mod reading;
mod reports;

pub use reading::{Driver, Reading, Silence, readings};

use crate::{
    clock,
    config::{Choice, Devices},
    host::Seen,
    supervisor::stray::Strays,
};
use lorikeet_protocol::{
    agent::Telemetry,
    id::{DeviceId, UnixMillis},
    job::Device,
};
use std::{
    fmt::Display,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Between two tries to open NVIDIA's library where there was none.
const OPEN_AGAIN: Duration = Duration::from_secs(60);

/// One look at the devices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Look {
    /// What there is, and who holds memory of it.
    pub(crate) seen: Seen,
    /// How they feel.
    pub(crate) telemetry: Vec<Telemetry>,
}

/// Looks at the devices that the config names.
pub(crate) struct Probe {
    config: Devices,
    nvml: Late<nvml::Gpus>,
    declared: fake::Declared,
    cpu: cpu::Slot,
    strays: Strays,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("config", &self.config).field("nvml", &self.nvml.it.is_some()).finish()
    }
}

impl Probe {
    /// Opens NVIDIA's library where it is there and wanted.
    pub(crate) fn new(config: &Devices) -> Self {
        let (nvml, declared, cpu, strays) = Default::default();
        let mut probe = Self { config: config.clone(), nvml, declared, cpu, strays };
        let is_there = probe.gpus().is_some();
        if !is_there && config.fake.is_empty() && config.kind == Choice::Gpu {
            tracing::warn!("devices.kind is \"gpu\" and no NVIDIA driver answers: this machine offers nothing");
        }
        probe
    }

    /// What NVIDIA's library says, where it is wanted and there by now: a machine may start its agent before the driver is loaded.
    fn gpus(&mut self) -> Option<&mut nvml::Gpus> {
        let (wants, config) = (self.config.fake.is_empty() && self.config.kind != Choice::Cpu, &self.config);
        let open = || nvml::Gpus::open(config.gpus_unusable.clone().map_or(Ok(()), Err));
        if wants { self.nvml.get(Instant::now(), open) } else { None }
    }

    /// On a machine where workers are that nobody knows.
    pub(crate) fn beside(self, strays: Strays) -> Self {
        Self { strays, ..self }
    }

    /// The devices at this moment.
    pub(crate) fn look(&mut self, time: UnixMillis) -> Look {
        let mut look = self.look_at_devices(time);
        self.strays.keep_out(&mut look.seen.devices);
        look
    }

    fn look_at_devices(&mut self, time: UnixMillis) -> Look {
        if !self.config.fake.is_empty() {
            return self.declared.look(&self.config.fake, time);
        }
        let mut look = self.gpus().map_or_else(Look::none, |gpus| gpus.look(time));
        look.keep(&self.config.only);
        // beside GPUs it is offered where none of them proves fit: the host's decision
        if self.config.kind != Choice::Gpu {
            look.add(self.cpu.look(time));
        }
        look
    }
}

impl Look {
    fn none() -> Self {
        Self { seen: Seen::default(), telemetry: Vec::new() }
    }

    fn keep(&mut self, only: &[String]) {
        let named = |id: &DeviceId| only.is_empty() || only.contains(&id.0);
        self.seen.devices.retain(|device| named(&device.id));
        self.seen.faults.retain(|id, _| named(id));
        self.seen.drawn.retain(|id, _| named(id));
        self.telemetry.retain(|telemetry| named(&telemetry.device));
    }

    fn add(&mut self, other: Self) {
        self.seen.devices.extend(other.seen.devices);
        self.seen.holders.extend(other.seen.holders);
        self.seen.faults.extend(other.seen.faults);
        self.seen.drawn.extend(other.seen.drawn);
        self.telemetry.extend(other.telemetry);
    }
}

/// What may come later than the agent. A machine without a driver is a normal machine.
struct Late<T> {
    it: Option<T>,
    tried: Option<Instant>,
}

impl<T> Default for Late<T> {
    fn default() -> Self {
        Self { it: None, tried: None }
    }
}

impl<T> Late<T> {
    /// It, opened if need be, once in a while.
    fn get<E: Display>(&mut self, now: Instant, open: impl FnOnce() -> Result<T, E>) -> Option<&mut T> {
        if self.it.is_none() && self.tried.is_none_or(|tried| now.duration_since(tried) >= OPEN_AGAIN) {
            let is_first = self.tried.replace(now).is_none();
            match open() {
                Ok(it) => self.it = Some(it),
                Err(error) => tracing::debug!(%error, "NVIDIA's library does not open"),
            }
            match (is_first, self.it.is_some()) {
                (true, false) => tracing::info!("no NVIDIA driver on this machine"),
                (false, true) => tracing::info!("there is an NVIDIA driver on this machine by now"),
                (true, true) | (false, false) => {}
            }
        }
        self.it.as_mut()
    }
}

/// Looks again and again, until nobody wants to know or `cancel`.
pub(crate) async fn watch(mut probe: Probe, every: Duration, looks: mpsc::Sender<Look>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let looked = tokio::task::spawn_blocking(move || {
            let look = probe.look(clock::wall());
            (probe, look)
        });
        let (again, look) = match looked.await {
            Ok(looked) => looked,
            Err(error) => return tracing::error!(%error, "a look at the devices broke off"),
        };
        probe = again;
        if looks.send(look).await.is_err() {
            // The driver is gone, and is what is named.
            return cancel.cancelled().await;
        }
    }
}

/// Main memory of this machine.
pub(crate) fn machine_bytes() -> u64 {
    cpu::machine_bytes()
}

/// Whether two looks differ in something other than free memory.
pub(crate) fn changed(old: &[Device], new: &[Device]) -> bool {
    let still = |device: &Device| Device { free_bytes: 0, ..device.clone() };
    !old.iter().map(still).eq(new.iter().map(still))
}

/// What a worker is told to see: GPUs by UUID, and none for the CPU slot. Those of its offer, whatever the last look showed: a worker that
/// was promised a GPU never trains on less without a word.
pub(crate) fn visible(devices: &[DeviceId]) -> String {
    let gpus = devices.iter().filter(|id| **id != DeviceId::cpu());
    gpus.map(|id| id.0.as_str()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Fake;
    use lorikeet_protocol::job::DeviceKind;

    #[test]
    fn a_machine_without_gpus_offers_its_cpu_slot() {
        let look = Probe::new(&Devices { kind: Choice::Cpu, ..Devices::default() }).look(UnixMillis(1));
        let [device] = &look.seen.devices[..] else { panic!("expected one device, found {look:?}") };
        assert_eq!((&device.id, device.kind, &device.usable), (&DeviceId::cpu(), DeviceKind::Cpu, &Ok(())));
        assert!(0 < device.free_bytes && device.free_bytes <= device.memory_bytes);
        assert_eq!(look.telemetry.len(), 1);
    }

    #[test]
    fn a_driver_that_comes_after_the_agent_is_found_and_one_that_does_not_is_asked_for_once_a_minute() {
        let (mut late, start, mut tries) = (Late::default(), Instant::now(), 0);
        let mut get = |seconds, is_there: bool| {
            let open = || {
                tries += 1;
                if is_there { Ok(7) } else { Err("the driver is not loaded") }
            };
            let got = late.get(start + Duration::from_secs(seconds), open).copied();
            (got, tries)
        };
        assert_eq!([get(0, false), get(59, true), get(60, false)], [(None, 1), (None, 1), (None, 2)]);
        assert_eq!([get(120, true), get(125, false), get(600, false)], [(Some(7), 3); 3], "it is opened once");
    }

    #[test]
    fn declared_devices_take_the_place_of_real_ones() {
        let fake = vec![
            Fake {
                id: "GPU-a".into(),
                name: "NVIDIA H200".into(),
                memory: 1 << 37,
                compute: Some((9, 0)),
                unusable: None,
                held_by: None,
                signs: None,
                power_watts: None,
            },
            Fake {
                id: "cpu".into(),
                name: "a CPU".into(),
                memory: 1 << 30,
                compute: None,
                unusable: Some("why".into()),
                held_by: None,
                signs: None,
                power_watts: None,
            },
        ];
        let look = Probe::new(&Devices { fake, ..Devices::default() }).look(UnixMillis(1)).seen;
        assert_eq!(look.devices[0].kind, DeviceKind::Cuda { compute: (9, 0), driver: None });
        assert_eq!(look.devices[1].usable, Err("why".into()));
        assert_eq!(visible(&[DeviceId("GPU-a".into()), DeviceId("MIG-b".into())]), "GPU-a,MIG-b");
        assert_eq!(visible(&[DeviceId::cpu()]), "");
    }

    #[test]
    fn free_memory_alone_is_no_change() {
        let old = [fake_gpu("GPU-0")];
        let less = [Device { free_bytes: 3, ..old[0].clone() }];
        let broken = [Device { usable: Err("fell off the bus".into()), ..old[0].clone() }];
        assert!(!changed(&old, &less));
        assert!(changed(&old, &broken));
        assert!(changed(&old, &[]));
    }

    fn fake_gpu(id: &str) -> Device {
        Device {
            id: DeviceId(id.into()),
            name: "NVIDIA H200".into(),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
            memory_bytes: 10,
            free_bytes: 10,
            usable: Ok(()),
        }
    }
}
