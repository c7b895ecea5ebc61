//! NVIDIA GPUs, through the driver's own library, opened at run time.

use super::Look;
use lorikeet_protocol::{
    agent::Telemetry,
    id::{DeviceId, UnixMillis},
    job::{Device, DeviceKind},
};
use nvml_wrapper::{Device as Gpu, Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};

/// The library, open.
pub(super) struct Gpus(Nvml);

impl Gpus {
    /// `None` where the library or the driver is not there: a normal answer.
    pub(super) fn open() -> Option<Self> {
        match Nvml::init() {
            Ok(nvml) => Some(Self(nvml)),
            Err(error) => {
                tracing::debug!(%error, "NVIDIA's library does not open");
                tracing::info!("no NVIDIA driver on this machine");
                None
            }
        }
    }

    /// Every GPU that answers. One that fails is named in the log and not offered.
    pub(super) fn look(&self, time: UnixMillis) -> Look {
        let mut look = Look::none();
        for index in 0..self.0.device_count().unwrap_or(0) {
            match self.0.device_by_index(index).and_then(|gpu| one(&gpu, time)) {
                Ok((device, telemetry, holders)) => {
                    look.seen.holders.insert(device.id.clone(), holders);
                    look.seen.devices.push(device);
                    look.telemetry.push(telemetry);
                }
                Err(error) => tracing::warn!(index, %error, "a GPU does not answer"),
            }
        }
        look
    }
}

/// The device, how it feels, and which processes compute on it.
fn one(gpu: &Gpu<'_>, time: UnixMillis) -> Result<(Device, Telemetry, Vec<u32>), NvmlError> {
    let memory = gpu.memory_info()?;
    let compute = gpu.cuda_compute_capability()?;
    let compute = (u8::try_from(compute.major).unwrap_or(0), u8::try_from(compute.minor).unwrap_or(0));
    let id = DeviceId(gpu.uuid()?);
    let device = Device {
        id: id.clone(),
        name: gpu.name()?,
        kind: DeviceKind::Cuda { compute },
        memory_bytes: memory.total,
        free_bytes: memory.free,
        usable: usable(),
    };
    let telemetry = Telemetry {
        device: id,
        time,
        utilization_percent: gpu.utilization_rates().map_or(0.0, |rates| rates.gpu as f32),
        used_bytes: memory.used,
        memory_bytes: memory.total,
        temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok().map(|celsius| celsius as f32),
        power_watts: gpu.power_usage().ok().map(|milliwatts| milliwatts as f32 / 1000.0),
    };
    // Where the driver does not say (another user's process in a container), nobody is blamed.
    let holders = gpu.running_compute_processes().unwrap_or_default();
    Ok((device, telemetry, holders.into_iter().map(|process| process.pid).collect()))
}

fn usable() -> Result<(), String> {
    if cfg!(feature = "cuda") {
        Ok(())
    } else {
        Err("this build has no CUDA support: install one made with `--features cuda`".into())
    }
}
