//! NVIDIA GPUs, through the driver's own library, opened at run time.
//!
//! A card that is cut into MIG instances is as many devices as it has instances, each by its own UUID; the card itself is not
//! offered then. Its health counts for all of them.

use super::{
    Look,
    health::{Health, Signs},
    reading::Reading,
    reports::{self, Reports},
};
use crate::host::{Drawn, Holders};
use lorikeet_protocol::{
    agent::{RemappedRows, Telemetry, ThrottleReason},
    id::{DeviceId, UnixMillis},
    job::{Device, DeviceKind, Driver},
};
use nvml_wrapper::{
    Device as Gpu, EventSet, Nvml,
    bitmasks::{device::ThrottleReasons, event::EventTypes},
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::{device::UsedGpuMemory, event::XidError},
    error::NvmlError,
    struct_wrappers::{device::ProcessInfo, event::EventData},
};
use std::collections::{BTreeMap, BTreeSet};

/// The library, open.
pub(super) struct Gpus {
    nvml: &'static Nvml,
    reports: Reports<EventSet<'static>>,
    health: Health,
    /// Whether this program can train on any.
    usable: Result<(), String>,
    /// What the driver named when it last answered.
    named: Vec<Device>,
}

impl Gpus {
    /// Where the library or the driver is not there that is a normal answer.
    pub(super) fn open(usable: Result<(), String>) -> Result<Self, NvmlError> {
        // opened once in a process and never closed, so that what borrows from it may live beside it
        let nvml: &'static Nvml = Box::leak(Box::new(Nvml::init()?));
        let (reports, health, named) = Default::default();
        Ok(Self { nvml, reports, health, usable, named })
    }

    /// Every GPU that answers. One that fails is named in the log and not offered. A driver that does not answer at all, as in the
    /// minutes of an upgrade, says nothing about its GPUs: none of them takes new work, and none has vanished.
    pub(super) fn look(&mut self, time: UnixMillis) -> Look {
        self.read_reports();
        let mut look = Look::none();
        let count = match self.nvml.device_count() {
            Ok(count) => count,
            Err(error) => {
                let usable = Err(format!("the driver does not answer: {error}"));
                let silent = |device: &Device| Device { usable: usable.clone(), ..device.clone() };
                look.seen.devices = self.named.iter().map(silent).collect();
                return look;
            }
        };
        let mut cards = BTreeSet::new();
        for index in 0..count {
            match self.nvml.device_by_index(index).and_then(|gpu| self.read(&gpu, time)) {
                Ok(card) => {
                    cards.insert(card.id.clone());
                    card.join(&mut look, &mut self.health, &self.usable);
                }
                Err(error) => tracing::warn!(index, %error, "a GPU does not answer"),
            }
        }
        self.reports.call(&cards, |card| register(self.nvml, card));
        self.named.clone_from(&look.seen.devices);
        look
    }

    /// Everything that every card says of itself, for a person.
    pub(super) fn readings(&self) -> Vec<Result<Reading, String>> {
        let gpus = (0..self.nvml.device_count().unwrap_or(0)).map(|index| self.nvml.device_by_index(index));
        gpus.map(|gpu| gpu.and_then(|gpu| reading(&gpu)).map_err(|error| error.to_string())).collect()
    }

    /// The driver's own version, `580.95.05`.
    pub(super) fn driver(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    fn read_reports(&mut self) {
        for (card, xid) in self.reports.read(next_report) {
            tracing::warn!(gpu = %card, xid, "the driver reports an error");
            self.health.reported(&card, xid);
        }
    }

    /// Asks one card everything.
    fn read(&self, gpu: &Gpu<'_>, time: UnixMillis) -> Result<Card, NvmlError> {
        let compute = gpu.cuda_compute_capability()?;
        let compute = (u8::try_from(compute.major).unwrap_or(0), u8::try_from(compute.minor).unwrap_or(0));
        let (id, instances) = (DeviceId(gpu.uuid()?), instances(gpu));
        let kind = DeviceKind::Cuda { compute, driver: self.driver().and_then(|text| Driver::parse(&text)) };
        let gpus = if instances.is_empty() { std::slice::from_ref(gpu) } else { &instances };
        let mut parts = answering(gpus.iter().map(|gpu| part(gpu, kind, time)))?;
        if let [whole] = &mut parts[..]
            && instances.is_empty()
        {
            // what an instance's counter would say is its whole card's
            whole.drawn = drawn(gpu);
        }
        Ok(Card { id, compute, signs: signs(gpu), parts })
    }
}

/// What one card said at a look, when it answered every question.
struct Card {
    id: DeviceId,
    compute: (u8, u8),
    signs: Signs,
    /// Itself, or its instances.
    parts: Vec<Part>,
}

/// What is offered of it.
struct Part {
    device: Device,
    telemetry: Telemetry,
    holders: Option<Holders>,
    drawn: Option<Drawn>,
}

impl Card {
    /// Judges it, and adds its parts to the look. What its driver reported counts once: it waits for a look at which the card answers.
    fn join(self, look: &mut Look, health: &mut Health, usable: &Result<(), String>) {
        let mut faults = BTreeMap::new();
        let healthy = health.judge(&self.id, self.signs, &mut faults);
        let usable = usable.clone().and_then(|()| is_recent(self.compute)).and(healthy);
        let fault = faults.remove(&self.id);
        for Part { device, telemetry, holders, drawn } in self.parts {
            let device = Device { usable: usable.clone(), ..device };
            look.seen.drawn.extend(drawn.map(|drawn| (device.id.clone(), drawn)));
            look.seen.holders.extend(holders.map(|holders| (device.id.clone(), holders)));
            look.seen.faults.extend(fault.clone().map(|fault| (device.id.clone(), fault)));
            look.seen.devices.push(device);
            look.telemetry.push(telemetry);
        }
    }
}

/// Asks to hear of a card's errors.
fn register(nvml: &'static Nvml, card: &DeviceId) -> Result<EventSet<'static>, NvmlError> {
    let gpu = nvml.device_by_uuid(card.0.as_str())?;
    if !gpu.supported_event_types()?.contains(EventTypes::CRITICAL_XID_ERROR) {
        return Err(NvmlError::NotSupported);
    }
    let registered = gpu.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set()?);
    registered.map_err(|refused| refused.error)
}

fn next_report(set: &EventSet<'static>) -> Result<Option<u64>, NvmlError> {
    for _ in 0..reports::MOST {
        match set.wait(0) {
            Ok(EventData { event_data: Some(XidError::Value(xid)), .. }) => return Ok(Some(xid)),
            // One that has no number says nothing of the card.
            Ok(_) => {}
            Err(NvmlError::Timeout) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The parts that a card is cut into; most are whole.
fn instances<'n>(gpu: &Gpu<'n>) -> Vec<Gpu<'n>> {
    let places = 0..gpu.mig_device_count().unwrap_or(0);
    places.filter_map(|place| gpu.mig_device_by_index(place).ok()).collect()
}

/// Of a card's parts those that answer, while one of them does: a card that is not cut has one.
fn answering<T>(parts: impl Iterator<Item = Result<T, NvmlError>>) -> Result<Vec<T>, NvmlError> {
    let (answered, silent): (Vec<_>, Vec<_>) = parts.partition(Result::is_ok);
    if let Some(error) = silent.iter().find_map(|part| part.as_ref().err()).filter(|_| !answered.is_empty()) {
        tracing::warn!(%error, instances = silent.len(), "instances of a GPU do not answer");
        return answered.into_iter().collect();
    }
    answered.into_iter().chain(silent).collect()
}

/// Its counter, from Volta on; an older one says its power alone.
fn drawn(gpu: &Gpu<'_>) -> Option<Drawn> {
    let power = || Some(Drawn::Watts(gpu.power_usage().ok()? as f32 / 1000.0));
    gpu.total_energy_consumption().ok().map(Drawn::Counted).or_else(power)
}

fn signs(gpu: &Gpu<'_>) -> Signs {
    let rows = remapped(gpu).unwrap_or_default();
    Signs { uncorrected: errors(gpu, MemoryError::Uncorrected), remap_pending: rows.pending, remap_failed: rows.failed }
}

/// Since the last reset.
fn errors(gpu: &Gpu<'_>, kind: MemoryError) -> Option<u64> {
    gpu.total_ecc_errors(kind, EccCounter::Volatile).ok()
}

/// Faulty rows. The wrapper has no word for them yet.
fn remapped(gpu: &Gpu<'_>) -> Option<RemappedRows> {
    let ask = gpu.nvml().lib().nvmlDeviceGetRemappedRows.as_ref().ok()?;
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: the handle is that of a device of this open library; four numbers are written during the call.
    let answer = unsafe { ask(gpu.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failed) };
    (answer == 0).then_some(RemappedRows { corrected, uncorrected, pending: pending != 0, failed: failed != 0 })
}

/// The device, how it feels, and which processes compute on it with how much of its memory, where the driver says: no answer is not
/// "nobody".
fn part(gpu: &Gpu<'_>, kind: DeviceKind, time: UnixMillis) -> Result<Part, NvmlError> {
    let memory = gpu.memory_info()?;
    let id = DeviceId(gpu.uuid()?);
    let device = Device {
        id: id.clone(),
        name: gpu.name()?,
        kind,
        memory_bytes: memory.total,
        free_bytes: memory.free,
        usable: Ok(()),
    };
    let telemetry = Telemetry {
        utilization_percent: gpu.utilization_rates().ok().map(|rates| rates.gpu as f32),
        temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok().map(|celsius| celsius as f32),
        power_watts: gpu.power_usage().ok().map(|milliwatts| milliwatts as f32 / 1000.0),
        sm_clock_mhz: gpu.clock_info(Clock::SM).ok(),
        memory_clock_mhz: gpu.clock_info(Clock::Memory).ok(),
        throttle_reasons: gpu.current_throttle_reasons().ok().map(throttle_reasons),
        corrected_errors: errors(gpu, MemoryError::Corrected),
        uncorrected_errors: errors(gpu, MemoryError::Uncorrected),
        remapped_rows: remapped(gpu),
        ..Telemetry::new(id, time, memory.used, memory.total)
    };
    let bytes = |memory| match memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    let holders = gpu.running_compute_processes().inspect_err(
        |error| tracing::debug!(gpu = %device.id, %error, "the driver does not say which processes compute here"),
    );
    let each = |process: ProcessInfo| (process.pid, bytes(process.used_gpu_memory));
    let holders = holders.ok().map(|holders| holders.into_iter().map(each).collect());
    Ok(Part { device, telemetry, holders, drawn: None })
}

fn reading(gpu: &Gpu<'_>) -> Result<Reading, NvmlError> {
    let memory = gpu.memory_info()?;
    let watts = |milliwatts: Result<u32, NvmlError>| milliwatts.ok().map(|milliwatts| f64::from(milliwatts) / 1e3);
    let processes = gpu.running_compute_processes().unwrap_or_default();
    Ok(Reading {
        id: gpu.uuid()?,
        name: gpu.name()?,
        utilization_percent: gpu.utilization_rates().ok().map(|rates| rates.gpu),
        memory_bytes: memory.total,
        free_bytes: memory.free,
        temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok(),
        power_watts: watts(gpu.power_usage()),
        power_limit_watts: watts(gpu.enforced_power_limit()),
        clock_mhz: gpu.clock_info(Clock::SM).ok(),
        most_clock_mhz: gpu.max_clock_info(Clock::SM).ok(),
        held_back: gpu.current_throttle_reasons().map_or_else(|_| Vec::new(), held_back),
        uncorrected_errors: errors(gpu, MemoryError::Uncorrected),
        remap_pending: remapped(gpu).map(|rows| rows.pending),
        remap_failed: remapped(gpu).map(|rows| rows.failed),
        energy_kwh: gpu.total_energy_consumption().ok().map(|millijoules| millijoules as f64 / 3.6e9),
        processes: processes.into_iter().map(|process| process.pid).collect(),
        instances: instances(gpu).iter().filter_map(|gpu| gpu.uuid().ok()).collect(),
    })
}

fn throttle_reasons(reasons: ThrottleReasons) -> BTreeSet<ThrottleReason> {
    let words = [
        (ThrottleReasons::GPU_IDLE, ThrottleReason::GpuIdle),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, ThrottleReason::ApplicationsClocksSetting),
        (ThrottleReasons::SW_POWER_CAP, ThrottleReason::SwPowerCap),
        (ThrottleReasons::HW_SLOWDOWN, ThrottleReason::HwSlowdown),
        (ThrottleReasons::SYNC_BOOST, ThrottleReason::SyncBoost),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, ThrottleReason::SwThermalSlowdown),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, ThrottleReason::HwThermalSlowdown),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, ThrottleReason::HwPowerBrakeSlowdown),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, ThrottleReason::DisplayClockSetting),
    ];
    words.into_iter().filter(|(bit, _)| reasons.contains(*bit)).map(|(_, word)| word).collect()
}

/// Why the clock is lower than it could be, in words.
fn held_back(reasons: ThrottleReasons) -> Vec<&'static str> {
    let words = [
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "a clock that was set"),
        (ThrottleReasons::SYNC_BOOST, "a slower GPU beside it"),
    ];
    let mut found: Vec<&str> =
        words.into_iter().filter(|(bit, _)| reasons.contains(*bit)).map(|(_, word)| word).collect();
    found.dedup();
    found
}

/// What the kernels are written for: bf16 arithmetic came with compute capability 8.0 (Ampere).
const OLDEST: (u8, u8) = (8, 0);

fn is_recent(compute: (u8, u8)) -> Result<(), String> {
    let ((major, minor), (oldest, _)) = (compute, OLDEST);
    let words = || format!("its compute capability is {major}.{minor}, expected {oldest}.0 or newer");
    if compute < OLDEST { Err(words()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_as_many_devices_as_answer_and_silent_where_none_does() {
        let of = |parts: &[Result<u8, ()>]| {
            answering(parts.iter().map(|part| part.map_err(|()| NvmlError::GpuLost))).map_err(|error| error.to_string())
        };
        assert_eq!(of(&[Ok(1), Err(()), Ok(3)]), Ok(vec![1, 3]));
        assert_eq!(of(&[Err(()), Err(())]), Err(NvmlError::GpuLost.to_string()));
    }

    #[test]
    fn a_card_is_judged_as_a_whole_and_all_its_parts_with_it() {
        let (mut health, mut look) = (Health::default(), Look::none());
        let id = |name: &str| DeviceId(name.into());
        let part = |name: &str| {
            let kind = DeviceKind::Cuda { compute: (9, 0), driver: None };
            let device =
                Device { id: id(name), name: name.into(), kind, memory_bytes: 9, free_bytes: 9, usable: Ok(()) };
            Part { device, telemetry: Telemetry::new(id(name), UnixMillis(1), 0, 9), holders: None, drawn: None }
        };
        let card = |compute, signs, parts: &[&str]| Card {
            id: id("GPU-1"),
            compute,
            signs,
            parts: parts.iter().copied().map(part).collect(),
        };
        health.reported(&id("GPU-1"), 79);
        card((9, 0), Signs::default(), &["MIG-1", "MIG-2"]).join(&mut look, &mut health, &Ok(()));
        assert!(look.seen.faults.keys().eq(&[id("MIG-1"), id("MIG-2")]), "{:?}", look.seen.faults);
        assert_eq!(look.telemetry.len(), 2);
        let mut usable = |card: Card, here: Result<(), String>| {
            let mut look = Look::none();
            card.join(&mut look, &mut health, &here);
            assert!(look.seen.faults.is_empty(), "it was told");
            look.seen.devices.remove(0).usable
        };
        let worn = Signs { remap_failed: true, ..Signs::default() };
        assert_eq!(usable(card((9, 0), Signs::default(), &["GPU-1"]), Ok(())), Ok(()));
        assert!(usable(card((9, 0), worn, &["GPU-1"]), Ok(())).unwrap_err().contains("faulty row"));
        assert!(usable(card((7, 5), worn, &["GPU-1"]), Ok(())).unwrap_err().contains("7.5"));
        assert_eq!(usable(card((7, 5), worn, &["GPU-1"]), Err("no CUDA".into())), Err("no CUDA".into()));
    }

    #[test]
    fn reasons_have_the_names_of_the_library() {
        let all = throttle_reasons(ThrottleReasons::all());
        let names = serde_json::to_string(&all).unwrap();
        let expected = [
            "gpu_idle",
            "applications_clocks_setting",
            "sw_power_cap",
            "hw_slowdown",
            "sync_boost",
            "sw_thermal_slowdown",
            "hw_thermal_slowdown",
            "hw_power_brake_slowdown",
            "display_clock_setting",
        ];
        assert_eq!(names, serde_json::to_string(&expected).unwrap());
        assert!(throttle_reasons(ThrottleReasons::NONE).is_empty());
    }
}
