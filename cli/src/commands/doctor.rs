//! `lorikeet doctor`: what this machine has for training, what is missing, and what would bring it. Asks; changes nothing. With the
//! config of a service it looks at that instead: see [`service`].

mod service;

use super::Context;
use crate::{args::Doctor as Args, failure::Failure, output::View};
use bytesize::ByteSize;
use lorikeet_agent::{GpuDriver, GpuReading, GpuSilence};
use serde::Serialize;

/// NVIDIA's management library: what an agent knows GPUs by.
const NVML: &str = "libnvidia-ml.so.1";

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: &'static str,
    /// Whether this build has the CUDA kernels.
    cuda_build: bool,
    /// What NVIDIA's driver says through NVML, its management library; absent where that says nothing.
    driver: Option<GpuDriver>,
    /// Why it says nothing; absent where it does.
    nvml: Option<GpuSilence>,
    /// What CUDA says; absent in a build without it.
    cuda: Option<Cuda>,
    /// What to do, most needed first.
    advice: Vec<String>,
}

/// The libraries that training on a GPU needs, and the GPUs as they show them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cuda {
    /// The version that the driver speaks, `13.0`.
    driver: Option<String>,
    missing: Vec<&'static str>,
    /// What brings NCCL, where it is missing.
    nccl_missing: Option<String>,
    gpus: Vec<Gpu>,
    /// GPUs that cannot be opened; the others can.
    faults: Vec<Closed>,
    /// Why no GPU is shown.
    fault: Option<String>,
}

/// A GPU that cannot be opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Closed {
    /// CUDA counts from 0.
    number: usize,
    why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gpu {
    name: String,
    compute_capability: String,
    free_bytes: u64,
    memory_bytes: u64,
    /// Why it cannot be trained on.
    unusable: Option<String>,
}

/// Looks and tells.
pub(crate) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    if args.coordinator.is_some() || args.agent.is_some() {
        return service::run(context.output, args);
    }
    let (driver, nvml) = match lorikeet_agent::gpu_readings() {
        Ok(driver) => (Some(driver), None),
        Err(silence) => (None, Some(silence)),
    };
    let (cuda, remedy) = cuda();
    let advice = advice(driver.as_ref(), nvml.as_ref(), cuda.as_ref(), &remedy);
    let version = env!("CARGO_PKG_VERSION");
    context.output.answer(&Report { version, cuda_build: cuda.is_some(), driver, nvml, cuda, advice })
}

#[cfg(feature = "cuda")]
fn cuda() -> (Option<Cuda>, String) {
    let found = lorikeet_trainer::ops::cuda::survey::survey();
    let gpu = |gpu: lorikeet_trainer::ops::cuda::survey::Found| Gpu {
        name: gpu.name,
        compute_capability: format!("{}.{}", gpu.compute.0, gpu.compute.1),
        free_bytes: gpu.free_bytes,
        memory_bytes: gpu.memory_bytes,
        unusable: gpu.unusable,
    };
    let gpus = found.gpus.into_iter().map(gpu).collect();
    let faults = found.faults.into_iter().map(|(number, why)| Closed { number, why }).collect();
    let (driver, missing, nccl_missing, fault) = (found.driver, found.missing, found.nccl_missing, found.fault);
    (Some(Cuda { driver, missing, nccl_missing, gpus, faults, fault }), found.remedy)
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> (Option<Cuda>, String) {
    (None, String::new())
}

fn advice(driver: Option<&GpuDriver>, nvml: Option<&GpuSilence>, cuda: Option<&Cuda>, remedy: &str) -> Vec<String> {
    let mut advice = Vec::new();
    match (driver, cuda) {
        (None, Some(cuda)) if cuda.has_driver() => advice.push(without_nvml(nvml)),
        (None, _) => advice.push("no NVIDIA driver answers: this machine trains on its CPU. For GPUs install NVIDIA's driver, version 580 or newer".into()),
        (Some(_), None) => advice.push("this build has no CUDA kernels: install one made with `cargo build --release --features cuda`".into()),
        (Some(_), Some(_)) => {}
    }
    if !remedy.is_empty() {
        advice.push(remedy.to_owned());
    }
    if let Some(Cuda { nccl_missing: Some(words), gpus, .. }) = cuda
        && gpus.len() > 1
    {
        advice.push(format!("{words}. Without it the gradients of jobs on several GPUs go through main memory"));
    }
    for gpu in driver.into_iter().flat_map(|driver| &driver.gpus) {
        if gpu.remap_failed == Some(true) || gpu.uncorrected_errors.unwrap_or(0) > 0 {
            advice.push(format!(
                "{} ({}) has memory errors that nothing corrects: look at `nvidia-smi -q`",
                gpu.name, gpu.id
            ));
        } else if gpu.remap_pending == Some(true) {
            advice.push(format!("{} ({}) waits for a reset to replace a faulty row of its memory", gpu.name, gpu.id));
        }
    }
    advice
}

/// The driver is here, and only its management library is not to be used.
fn without_nvml(nvml: Option<&GpuSilence>) -> String {
    let what = match nvml {
        Some(GpuSilence::Unusable(why)) => format!("{NVML} cannot be used ({why})"),
        Some(GpuSilence::Absent) | None => format!("{NVML} is missing"),
    };
    format!(
        "{what}, though libcuda.so.1 is there: without it an agent finds no GPU. It comes with NVIDIA's driver; a container gets it where NVIDIA_DRIVER_CAPABILITIES names \
         `utility` beside `compute`"
    )
}

impl Cuda {
    fn has_driver(&self) -> bool {
        !self.missing.contains(&"libcuda.so.1")
    }
}

impl Report {
    /// `580.95.05`; where NVML says nothing, what CUDA knows of it.
    fn driver_in_words(&self) -> String {
        match (&self.driver, &self.cuda) {
            (Some(driver), _) => driver.version.clone().unwrap_or_else(|| "there".into()),
            (None, Some(cuda)) if cuda.has_driver() => "there, its version is not known without NVML".into(),
            (None, _) => "none".into(),
        }
    }

    fn nvml_in_words(&self) -> String {
        match &self.nvml {
            None => format!("{NVML} answers"),
            Some(GpuSilence::Absent) => format!("missing: {NVML}"),
            Some(GpuSilence::Unusable(why)) => format!("{NVML} is there and cannot be used: {why}"),
        }
    }
}

impl View for Report {
    fn table(&self) -> String {
        let build = if self.cuda_build { "with CUDA kernels" } else { "without CUDA kernels" };
        let mut lines = vec![format!("lorikeet          {}, {build}", self.version)];
        lines.push(format!("NVIDIA driver     {}", self.driver_in_words()));
        lines.push(format!("NVML              {}", self.nvml_in_words()));
        if let Some(cuda) = &self.cuda {
            let missing = if cuda.missing.is_empty() {
                "all there".into()
            } else {
                format!("missing: {}", cuda.missing.join(", "))
            };
            lines.push(format!("CUDA libraries    {missing}"));
            let nccl = if cuda.nccl_missing.is_some() { "missing" } else { "there" };
            lines.push(format!("NCCL              {nccl}, for jobs on several GPUs alone"));
            lines.extend(cuda.driver.as_ref().map(|version| format!("CUDA of driver    {version}")));
            lines.extend(cuda.gpus.iter().map(|gpu| {
                let unusable = gpu.unusable.as_ref().map_or_else(String::new, |why| format!(", unusable: {why}"));
                format!(
                    "CUDA GPU          {}, compute capability {}, {} of {} free{unusable}",
                    gpu.name,
                    gpu.compute_capability,
                    size(gpu.free_bytes),
                    size(gpu.memory_bytes)
                )
            }));
            let closed = |gpu: &Closed| {
                format!("CUDA GPU          number {} cannot be opened: could not {}", gpu.number, gpu.why)
            };
            lines.extend(cuda.faults.iter().map(closed));
            // Without a driver that is said already.
            let fault = cuda.fault.as_ref().filter(|_| cuda.has_driver());
            lines.extend(fault.map(|why| format!("CUDA GPU          none is shown: could not {why}")));
        }
        let gpus = self.driver.iter().flat_map(|driver| &driver.gpus);
        lines.extend(gpus.map(|gpu| format!("GPU               {}", described(gpu))));
        lines.extend(
            self.driver
                .iter()
                .flat_map(|driver| &driver.faults)
                .map(|fault| format!("GPU               does not answer: {fault}")),
        );
        lines.extend(self.advice.iter().map(|advice| format!("- {advice}")));
        lines.join("\n")
    }
}

fn described(gpu: &GpuReading) -> String {
    let mut parts = vec![
        format!("{} {}", gpu.name, gpu.id),
        format!("{} of {} free", size(gpu.free_bytes), size(gpu.memory_bytes)),
    ];
    parts.extend(gpu.utilization_percent.map(|percent| format!("{percent} % busy")));
    parts.extend(gpu.temperature_celsius.map(|celsius| format!("{celsius} °C")));
    parts.extend(gpu.power_watts.map(|watts| match gpu.power_limit_watts {
        Some(most) => format!("{watts:.0} of {most:.0} W"),
        None => format!("{watts:.0} W"),
    }));
    parts.extend(gpu.clock_mhz.zip(gpu.most_clock_mhz).map(|(now, most)| format!("{now} of {most} MHz")));
    if !gpu.held_back.is_empty() {
        parts.push(format!("held back by {}", gpu.held_back.join(", ")));
    }
    parts.extend(gpu.uncorrected_errors.map(|errors| format!("{errors} uncorrected memory errors")));
    parts.extend(gpu.energy_kwh.map(|energy| format!("{energy:.1} kWh since the driver was loaded")));
    if !gpu.processes.is_empty() {
        parts.push(format!("processes {}", gpu.processes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")));
    }
    if !gpu.instances.is_empty() {
        parts.push(format!("cut into {}", gpu.instances.join(", ")));
    }
    parts.join(", ")
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_is_told_what_it_trains_on_and_what_would_change_that() {
        let nccl_missing = Some("libnccl.so.2 is missing: it comes with NCCL".into());
        let cuda = Cuda { missing: vec!["libcuda.so.1"], nccl_missing, ..cuda() };
        let (absent, remedy) = (GpuSilence::Absent, "libcuda.so.1 is missing: it comes with a driver");
        let advice = advice(None, Some(&absent), Some(&cuda), remedy);
        assert!(advice[0].contains("trains on its CPU") && advice[0].contains("580"), "{advice:?}");
        assert_eq!(advice[1..], ["libcuda.so.1 is missing: it comes with a driver"], "NCCL is for several GPUs");
        let table = report(Some(cuda), Some(absent), advice).table();
        assert!(table.contains("NVIDIA driver     none") && table.contains("missing: libcuda.so.1"), "{table}");
        assert!(table.contains("NVML              missing: libnvidia-ml.so.1"), "{table}");
    }

    #[test]
    fn a_driver_whose_management_library_alone_is_missing_is_no_missing_driver() {
        let cuda = Cuda { driver: Some("13.0".into()), ..cuda() };
        let advice = advice(None, Some(&GpuSilence::Absent), Some(&cuda), "");
        let [word] = &advice[..] else { panic!("expected one word of advice, found {advice:?}") };
        assert!(word.contains("libnvidia-ml.so.1 is missing, though libcuda.so.1 is there"), "{word}");
        let table = report(Some(cuda), Some(GpuSilence::Absent), advice.clone()).table();
        assert!(table.contains("NVIDIA driver     there") && !table.contains("no NVIDIA driver"), "{table}");
    }

    #[test]
    fn a_gpu_that_cannot_be_opened_hides_no_other() {
        let gpu = Gpu {
            name: "NVIDIA H200".into(),
            compute_capability: "9.0".into(),
            free_bytes: 1 << 30,
            memory_bytes: 2 << 30,
            unusable: None,
        };
        let closed = Closed { number: 1, why: "open a GPU: the CUDA driver says CUDA_ERROR_OUT_OF_MEMORY".into() };
        let table = report(Some(Cuda { gpus: vec![gpu], faults: vec![closed], ..cuda() }), None, vec![]).table();
        assert!(table.contains("CUDA GPU          NVIDIA H200, compute capability 9.0"), "{table}");
        assert!(table.contains("CUDA GPU          number 1 cannot be opened: could not open a GPU"), "{table}");
    }

    fn cuda() -> Cuda {
        Cuda { driver: None, missing: vec![], nccl_missing: None, gpus: vec![], faults: vec![], fault: None }
    }

    fn report(cuda: Option<Cuda>, nvml: Option<GpuSilence>, advice: Vec<String>) -> Report {
        Report { version: "1", cuda_build: cuda.is_some(), driver: None, nvml, cuda, advice }
    }

    #[test]
    fn nccl_is_advised_where_there_are_several_gpus() {
        let gpu = |unusable: Option<String>| Gpu {
            name: "NVIDIA H200".into(),
            compute_capability: "9.0".into(),
            free_bytes: 1,
            memory_bytes: 1,
            unusable,
        };
        let nccl_missing = Some("libnccl.so.2 is missing: it comes with NCCL".into());
        let cuda = Cuda { nccl_missing, gpus: vec![gpu(None), gpu(None)], ..cuda() };
        let driver = GpuDriver { version: None, gpus: Vec::new(), faults: Vec::new() };
        let advice = advice(Some(&driver), None, Some(&cuda), "");
        assert!(
            advice.len() == 1 && advice[0].starts_with("libnccl.so.2 is missing: it comes with NCCL."),
            "{advice:?}"
        );
    }

    #[test]
    fn a_gpu_says_all_it_knows_and_a_faulty_one_is_pointed_at() {
        let gpu = GpuReading {
            id: "GPU-7".into(),
            name: "NVIDIA H200".into(),
            utilization_percent: Some(93),
            memory_bytes: 141 << 30,
            free_bytes: 100 << 30,
            temperature_celsius: Some(61),
            power_watts: Some(512.4),
            power_limit_watts: Some(700.0),
            clock_mhz: Some(1755),
            most_clock_mhz: Some(1980),
            held_back: vec!["power limit"],
            uncorrected_errors: Some(2),
            remap_pending: Some(false),
            remap_failed: Some(false),
            energy_kwh: None,
            processes: vec![12, 34],
            instances: Vec::new(),
        };
        assert_eq!(
            described(&gpu),
            "NVIDIA H200 GPU-7, 100.0 GiB of 141.0 GiB free, 93 % busy, 61 °C, 512 of 700 W, 1755 of 1980 MHz, held back by power limit, 2 uncorrected memory errors, processes 12, 34"
        );
        let driver = GpuDriver { version: Some("580.95".into()), gpus: vec![gpu], faults: Vec::new() };
        let advice = advice(Some(&driver), None, None, "");
        assert!(advice[0].contains("--features cuda") && advice[1].contains("GPU-7"), "{advice:?}");
    }
}
