//! How a worker is started: a process group of its own, its output in `worker.log`, a chosen environment, its GPUs by UUID.

use super::SupervisorError;
use crate::{
    config,
    disk::{At, DiskError},
};
use lorikeet_protocol::worker::LOG;
use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
    process::Stdio,
};
use tokio::process::{Child, Command};

/// What a worker may see of the agent's own environment. Neither the agent's settings nor anybody's secrets are in it.
const PASSED_ON: [&str; 12] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
    // where CUDA's libraries lie
    "CUDA_LIB_DIR",
    "CUDA_HOME",
    "CUDA_PATH",
    "LORIKEET_LOG",
    "RUST_BACKTRACE",
];

/// How NCCL sums over the GPUs of a job. It reads that from the environment of its process and from nowhere else, so it is settled here, before
/// there is one; `worker.env` has the last word.
///
/// One algorithm and one protocol: left to itself NCCL takes what its tables call fastest, sums in switches (NVLS) among them, which add in
/// another order. Its processes find each other over loopback, and look for no network of a cluster. What they show each other of their
/// memory goes through the driver and through files in /dev/shm: the newer way is over sockets that the fence of a worker closes.
const NCCL: [(&str, &str); 7] = [
    ("NCCL_ALGO", "Ring"),
    ("NCCL_PROTO", "Simple"),
    ("NCCL_NVLS_ENABLE", "0"),
    ("NCCL_SOCKET_IFNAME", "lo"),
    ("NCCL_IB_DISABLE", "1"),
    ("NCCL_CUMEM_ENABLE", "0"),
    ("NCCL_CUMEM_HOST_ENABLE", "0"),
];

/// The environment of a worker, and of the test of a device that it will train on: the same, so that what one finds the other does.
pub(crate) fn environment(command: &mut Command, config: &config::Worker, visible: &str) {
    let passed = PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.env_clear().envs(passed).envs(NCCL).envs(&config.env).env("CUDA_VISIBLE_DEVICES", visible);
}

/// One worker to be started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// Program and arguments in front of the directory.
    pub(crate) command: Vec<String>,
    /// The attempt directory.
    pub(crate) directory: PathBuf,
    /// `CUDA_VISIBLE_DEVICES`: UUIDs, or nothing.
    pub(crate) visible: String,
    /// Resident bytes its group may have.
    pub(crate) memory_limit: u64,
    /// Whether it shall not outlive this process, however that ends: its standard input is a pipe of ours.
    pub(crate) tied: bool,
}

impl Launch {
    /// The configured program, or this one, which is told the terms.
    pub(crate) fn command(config: &config::Worker, tied: bool, gpu: bool, memory_limit: u64) -> Vec<String> {
        if !config.command.is_empty() {
            return config.command.clone();
        }
        // The link outlives an upgrade that replaces the file: a new worker is of the same make as its agent.
        let limit = memory_limit.to_string();
        let words = ["/proc/self/exe", "worker", "--memory-limit", &limit].into_iter();
        words.chain(tied.then_some("--until-eof")).chain(gpu.then_some("--gpu")).map(str::to_owned).collect()
    }

    /// Starts it. Dropping the child neither kills nor leaves a zombie behind the runtime's back.
    pub(super) fn spawn(&self, config: &config::Worker) -> Result<Child, SupervisorError> {
        let (program, arguments) = self.command.split_first().expect("a command has a program");
        let log = self.log()?;
        let copy = log.try_clone().at("open", &self.directory.join(LOG))?;
        let mut command = Command::new(program);
        environment(&mut command, config, &self.visible);
        command
            .args(arguments)
            .arg(&self.directory)
            .current_dir(&self.directory)
            .stdin(if self.tied { Stdio::piped() } else { Stdio::null() })
            .stdout(log)
            .stderr(copy)
            .process_group(0)
            .kill_on_drop(false);
        command.spawn().map_err(|cause| SupervisorError::Spawn { program: program.clone(), cause })
    }

    fn log(&self) -> Result<File, DiskError> {
        let path = self.directory.join(LOG);
        OpenOptions::new().create(true).append(true).open(&path).at("open", &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn every_worker_sums_alike_unless_its_machine_says_otherwise() {
        let value = |config: &config::Worker, name: &str| {
            let mut command = Command::new("worker");
            environment(&mut command, config, "GPU-a,GPU-b");
            let mut variables = command.as_std().get_envs().filter(|(key, _)| *key == OsStr::new(name));
            variables.next().and_then(|(_, value)| value?.to_str().map(str::to_owned))
        };
        let mut config = config::Worker::default();
        assert_eq!(value(&config, "NCCL_ALGO").as_deref(), Some("Ring"));
        assert_eq!(value(&config, "NCCL_SOCKET_IFNAME").as_deref(), Some("lo"));
        config.env.insert("NCCL_ALGO".into(), "Tree".into());
        assert_eq!(value(&config, "NCCL_ALGO").as_deref(), Some("Tree"));
    }
}
