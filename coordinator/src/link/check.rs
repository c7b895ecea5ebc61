//! What an agent may say: the one place where its words are measured before anybody believes them.
//!
//! Texts for people are cut, because an agent says them again for ever and a long one is no reason to be deaf to it; and what is said of an
//! attempt names no other job, for its owner reads it. Everything
//! else that is out of bounds no agent of ours says, and ends the session ([`Farewell::Misbehaved`](lorikeet_protocol::agent::Farewell)):
//! numbers that are none (JSON has no word for them, so a row that holds one never reads back), paths that lead out, lists without end.
//! What comes from a worker's lines and is merely wrong is brought to the nearest that can be.

use crate::discreet::without_names;
use lorikeet_protocol::{
    agent::{
        AUTHORITIES, FromAgent, Hello, LABELS, Metered, REPORT_FILES, Report, ReportBody, SUMMARY_BYTES, Telemetry,
        WORD,
    },
    file::{NamedFile, is_plain_path},
    job::Device,
};

/// What is wrong with a message.
type Fault = &'static str;

/// What people call a node; longer is cut.
const NAME: usize = 100;
/// A reason or a message for people; longer is cut.
const MESSAGE: usize = 4_000;
/// GPUs of one machine are sixteen at most.
const DEVICES: usize = 64;
/// Attempts that one agent remembers, the finished ones too.
const ATTEMPTS: usize = 4_096;
/// As `Hello::cached` promises.
const CACHED: usize = 4_096;
/// No device or machine has more memory.
const MEMORY: u64 = 64 << 40;
/// No clock is faster.
const CLOCK_MHZ: u32 = 100_000;
/// No run takes more steps.
const STEPS: u64 = 1 << 40;

/// The first word.
pub(super) fn hello(hello: &mut Hello) -> Result<(), Fault> {
    cut(&mut hello.name, NAME);
    cut(&mut hello.version, WORD);
    let labels = hello.labels.iter().all(|(key, value)| key.len() <= WORD && value.len() <= WORD);
    hold(labels && hello.labels.len() <= LABELS, "its labels are too many or too long")?;
    hold(hello.attempts.len() <= ATTEMPTS, "it names too many attempts")?;
    hold(hello.cached.len() <= CACHED, "it names too many cached files")?;
    devices(&mut hello.devices)
}

/// Any other word.
pub(super) fn message(message: &mut FromAgent) -> Result<(), Fault> {
    match message {
        FromAgent::Hello(said) => hello(said),
        FromAgent::Devices(said) => devices(said),
        FromAgent::Declined { reason, attempt } => {
            cut(reason, MESSAGE);
            *reason = without_names(reason, Some(attempt.job));
            Ok(())
        }
        FromAgent::Report(said) => report(said),
        FromAgent::Trusts(said) => hold(said.authorities.len() <= AUTHORITIES, "it trusts too many authorities"),
        // Their sizes are the frame's.
        FromAgent::Heartbeat | FromAgent::Accepted(_) | FromAgent::Events(_) | FromAgent::Renew(_) => Ok(()),
    }
}

/// A datagram. Numbers that no device has are brought to the nearest that one can.
pub(super) fn telemetry(said: &mut Telemetry) -> Result<(), Fault> {
    let numbers = [said.utilization_percent, said.temperature_celsius, said.power_watts];
    hold(numbers.into_iter().flatten().all(f32::is_finite), "a device's number is none")?;
    hold(said.device.to_string().len() <= WORD, "a device's id is too long")?;
    said.utilization_percent = said.utilization_percent.map(|percent| percent.clamp(0.0, 100.0));
    said.temperature_celsius = said.temperature_celsius.map(|celsius| celsius.clamp(-50.0, 200.0));
    said.power_watts = said.power_watts.map(|watts| watts.clamp(0.0, 10_000.0));
    said.memory_bytes = said.memory_bytes.min(MEMORY);
    said.used_bytes = said.used_bytes.min(said.memory_bytes);
    for mhz in [&mut said.sm_clock_mhz, &mut said.memory_clock_mhz].into_iter().flatten() {
        *mhz = (*mhz).min(CLOCK_MHZ);
    }
    if let Some(foreign) = &mut said.foreign {
        foreign.bytes = foreign.bytes.min(said.memory_bytes);
    }
    Ok(())
}

fn devices(devices: &mut [Device]) -> Result<(), Fault> {
    hold(devices.len() <= DEVICES, "it has too many devices")?;
    for device in devices {
        hold(device.id.to_string().len() <= WORD, "a device's id is too long")?;
        cut(&mut device.name, WORD);
        device.memory_bytes = device.memory_bytes.min(MEMORY);
        device.free_bytes = device.free_bytes.min(device.memory_bytes);
        if let Err(reason) = &mut device.usable {
            cut(reason, MESSAGE);
        }
    }
    Ok(())
}

fn report(report: &mut Report) -> Result<(), Fault> {
    match &mut report.body {
        ReportBody::Progress(progress) => {
            // They come from a worker's own lines, which a disk may have damaged: the agent would say them again for ever, for all its other work too.
            progress.total_steps = progress.total_steps.min(STEPS);
            progress.step = progress.step.min(progress.total_steps);
            let numbers = [progress.epoch, progress.loss, progress.learning_rate, progress.tokens_per_second];
            finite(numbers.into_iter().chain(progress.validation_loss))
        }
        ReportBody::Checkpoint(checkpoint) => {
            checkpoint.step = checkpoint.step.min(STEPS);
            finite([checkpoint.loss])?;
            files(&checkpoint.files)
        }
        ReportBody::Ended(ended) | ReportBody::Metered(Metered { ended, .. }) => {
            for message in ended.message.iter_mut() {
                cut(message, MESSAGE);
                *message = without_names(message, Some(report.attempt.job));
            }
            hold(ended.summary.as_ref().is_none_or(|text| text.len() <= SUMMARY_BYTES), "its summary is too long")?;
            files(&ended.files)
        }
        ReportBody::Preparing | ReportBody::Running { .. } | ReportBody::Finalizing => Ok(()),
    }
}

fn finite(numbers: impl IntoIterator<Item = f64>) -> Result<(), Fault> {
    hold(numbers.into_iter().all(f64::is_finite), "a number of its report is none")
}

fn files(files: &[NamedFile]) -> Result<(), Fault> {
    hold(files.len() <= REPORT_FILES, "its report names too many files")?;
    hold(files.iter().all(|file| is_plain_path(&file.path)), "a file of its report has no plain relative path")?;
    hold(files.iter().all(|file| file.manifest.is_consistent()), "a file of its report has a manifest that cannot be")
}

fn hold(holds: bool, fault: Fault) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(fault) }
}

/// At most so many bytes, cut between two characters.
fn cut(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::{
        agent::{Checkpoint, CheckpointKind, Foreign, Progress},
        file::FileManifest,
        id::{AttemptId, AttemptToken, BootId, Hash, JobId, UnixMillis},
    };
    use uuid::Uuid;

    fn said(body: ReportBody) -> FromAgent {
        let attempt = AttemptId { job: JobId(Uuid::nil()), token: AttemptToken { generation: 1, number: 1 } };
        FromAgent::Report(Report { number: 1, attempt, time: UnixMillis(1), body })
    }

    fn checkpoint(loss: f64, path: &str) -> ReportBody {
        let manifest = FileManifest { size: 0, hash: Hash([0; 32]), chunks: vec![] };
        let files = vec![NamedFile { path: path.into(), manifest }];
        ReportBody::Checkpoint(Checkpoint { step: 1, loss, kind: CheckpointKind::Best, files })
    }

    fn progress(validation_loss: Option<f64>) -> ReportBody {
        progress_of((1, 2), validation_loss)
    }

    fn progress_of((step, total_steps): (u64, u64), validation_loss: Option<f64>) -> ReportBody {
        let (epoch, loss, learning_rate, tokens_per_second) = (0.5, 2.0, 0.1, 9.0);
        ReportBody::Progress(Progress {
            step,
            total_steps,
            epoch,
            loss,
            learning_rate,
            tokens_per_second,
            validation_loss,
        })
    }

    #[test]
    fn a_number_that_is_none_and_a_path_that_leads_out_are_refused() {
        for good in [checkpoint(2.0, "adapter/a.bin"), progress(None), progress(Some(1.0))] {
            assert_eq!(message(&mut said(good)), Ok(()));
        }
        for bad in [
            checkpoint(f64::NAN, "a.bin"),
            checkpoint(2.0, "../a.bin"),
            checkpoint(2.0, "ä.bin"),
            progress(Some(f64::INFINITY)),
        ] {
            assert!(message(&mut said(bad.clone())).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_said_of_an_attempt_names_no_other_job() {
        let id = |job| AttemptId { job: JobId(Uuid::from_u128(job)), token: AttemptToken { generation: 1, number: 1 } };
        let mut said = FromAgent::Declined { attempt: id(1), reason: format!("{} is newer than {}", id(1), id(2)) };
        assert_eq!(message(&mut said), Ok(()));
        let FromAgent::Declined { reason, .. } = said else { panic!("{said:?}") };
        assert_eq!(reason, format!("{} is newer than another attempt", id(1)));
    }

    #[test]
    fn steps_that_cannot_be_are_brought_to_some_that_can_and_cost_no_session() {
        for (steps, believed) in [((3, 2), (2, 2)), ((1, u64::MAX), (1, STEPS)), ((1, 2), (1, 2))] {
            let mut said = said(progress_of(steps, None));
            assert_eq!(message(&mut said), Ok(()));
            let FromAgent::Report(Report { body: ReportBody::Progress(found), .. }) = said else { panic!("{said:?}") };
            assert_eq!((found.step, found.total_steps), believed);
        }
        let ReportBody::Checkpoint(wrong) = checkpoint(2.0, "a.bin") else { unreachable!("it makes one") };
        let mut said = said(ReportBody::Checkpoint(Checkpoint { step: u64::MAX, ..wrong }));
        assert_eq!(message(&mut said), Ok(()));
        let FromAgent::Report(Report { body: ReportBody::Checkpoint(found), .. }) = said else { panic!("{said:?}") };
        assert_eq!(found.step, STEPS);
    }

    #[test]
    fn telemetry_says_nothing_that_no_device_can() {
        let mut said = Telemetry {
            utilization_percent: Some(4_000.0),
            temperature_celsius: Some(-1e30),
            power_watts: Some(1e30),
            sm_clock_mhz: Some(u32::MAX),
            foreign: Some(Foreign { processes: 1, bytes: u64::MAX }),
            ..Telemetry::new(lorikeet_protocol::id::DeviceId::cpu(), UnixMillis(1), u64::MAX, 10)
        };
        assert_eq!(telemetry(&mut said), Ok(()));
        assert_eq!((said.utilization_percent, said.used_bytes), (Some(100.0), 10));
        assert_eq!((said.sm_clock_mhz, said.foreign.map(|foreign| foreign.bytes)), (Some(CLOCK_MHZ), Some(10)));
        assert_eq!((said.temperature_celsius, said.power_watts), (Some(-50.0), Some(10_000.0)));
        said.power_watts = Some(f32::NAN);
        assert!(telemetry(&mut said).is_err());
    }

    #[test]
    fn words_for_people_are_cut_and_lists_without_end_are_refused() {
        let mut said = Hello {
            boot: BootId(Uuid::nil()),
            instance: BootId(Uuid::nil()),
            version: "1".into(),
            name: "ä".repeat(NAME),
            labels: Default::default(),
            devices: vec![],
            attempts: vec![],
            cached: vec![Hash([0; 32]); CACHED],
            acknowledged: 0,
        };
        assert_eq!(hello(&mut said), Ok(()));
        assert_eq!(said.name, "ä".repeat(NAME / 2));
        said.labels.insert("k".into(), "v".repeat(WORD + 1));
        assert!(hello(&mut said).is_err());
        said.labels.clear();
        said.cached.push(Hash([0; 32]));
        assert!(hello(&mut said).is_err());
    }
}
