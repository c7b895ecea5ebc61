//! The test that a device has to pass before it is offered again: a child process that computes something small on it and compares.
//!
//! It is the worker program itself, so that the device is tested by what will train on it, and a device that takes its process down
//! takes no agent with it.

use crate::{
    config::{Config, Worker},
    host::Unfit,
    supervisor::environment,
};
use lorikeet_protocol::{id::DeviceId, worker::NO_TEST};
use std::{process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// A processor's test takes a second or two, a GPU's first compiles every kernel; a device that answers no more never ends one.
const PATIENCE: Duration = Duration::from_secs(300);

/// Program and arguments; nothing where the config starts workers by a program of its own and declares no test for it.
pub(crate) fn command(config: &Config, device: &DeviceId) -> Vec<String> {
    let own = ["/proc/self/exe", "worker", "--burn-in"].map(str::to_owned).to_vec();
    let words = match (&config.devices.burn_in, &config.worker.command) {
        (Some(words), _) => words.clone(),
        (None, theirs) if theirs.is_empty() => own,
        (None, _) => return Vec::new(),
    };
    // A device that is only declared is the processor by another name.
    let tested = if config.devices.fake.is_empty() { device.clone() } else { DeviceId::cpu() };
    words.into_iter().chain([tested.0]).collect()
}

/// Runs it; the last line that it complains with is why the device is not fit.
pub(crate) async fn test(command: Vec<String>, config: &Worker) -> Result<(), Unfit> {
    let judge = |why: String| if why.starts_with(NO_TEST) { Unfit::Untested } else { Unfit::Failed(why) };
    run(&command, config).await.map_err(judge)
}

async fn run(command: &[String], config: &Worker) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let mut child = Command::new(program);
    // the device is the last word; where it is a GPU the test sees no other
    environment(&mut child, config, arguments.last().map_or("", String::as_str));
    child.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = timeout(PATIENCE, child.output()).await;
    let ended = ended.map_err(|_| format!("it did not end within {PATIENCE:?}"))?;
    let ended = ended.map_err(|error| format!("`{program}` did not start: {error}"))?;
    let words = String::from_utf8_lossy(&ended.stderr);
    let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    if ended.status.success() { Ok(()) } else { Err(format!("{last} ({})", ended.status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_words_of_a_test_that_failed_are_the_reason() {
        let shell = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
        assert_eq!(test(shell("exit 0"), &Worker::default()).await, Ok(()));
        let failed = test(shell("echo one >&2; echo 'two of nine differ' >&2; exit 3"), &Worker::default()).await;
        assert_eq!(failed, Err(Unfit::Failed("two of nine differ (exit status: 3)".into())));
        let failed = test(vec!["/nowhere".into()], &Worker::default()).await;
        assert!(matches!(&failed, Err(Unfit::Failed(why)) if why.contains("did not start")), "{failed:?}");
    }

    #[tokio::test]
    async fn a_program_that_has_no_test_for_a_device_has_not_failed_it() {
        let script = format!("echo '{NO_TEST}GPU-1' >&2; exit 1");
        assert_eq!(
            test(["sh", "-c", &script].map(str::to_owned).to_vec(), &Worker::default()).await,
            Err(Unfit::Untested)
        );
    }

    #[test]
    fn a_declared_device_is_tested_as_the_processor_and_a_foreign_worker_not_at_all() {
        let mut config = Config::default();
        let gpu = DeviceId("GPU-1".into());
        assert_eq!(command(&config, &gpu), ["/proc/self/exe", "worker", "--burn-in", "GPU-1"]);
        config.worker.command = vec!["theirs".into()];
        assert!(command(&config, &gpu).is_empty());
        config.devices.burn_in = Some(vec!["check".into()]);
        assert_eq!(command(&config, &gpu), ["check", "GPU-1"]);
    }
}
