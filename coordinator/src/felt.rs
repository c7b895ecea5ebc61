//! How an attempt's GPUs were when a line of its worker came: joined to the lines of steps and evaluations as they are stored, behind
//! everything that the worker wrote, and read back from there. Nobody asks the node for it: the newest telemetry is here already.
//!
//! ```text
//! {"seq":7,"time":1000,"type":"step",…,"devices":{"utilizationPercent":93.0,"usedBytes":…,"temperatureCelsius":61.0,"powerWatts":512.4}}
//! ```

use lorikeet_protocol::{
    agent::Telemetry,
    id::{DeviceId, UnixMillis},
};
use serde::{Deserialize, Serialize};

/// A line that is older or newer than what its devices said by so much says nothing of them: it waited while nobody was connected.
const SAME_MOMENT_MILLIS: u64 = 30_000;

/// What is joined to the lines of one message, in bytes: with them it has to fit a record of a series (`series/segment.rs`). No worker takes
/// eight thousand steps in a second; who says so does without.
const MOST_JOINED: usize = 1 << 20;

/// Between what the worker wrote and what is joined.
const JOINT: &str = ",\"devices\":";

/// All GPUs of an attempt together; what one of them does not say is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Felt {
    /// On average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) utilization_percent: Option<f32>,
    /// In all, by anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) used_bytes: Option<u64>,
    /// Of the hottest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) temperature_celsius: Option<f32>,
    /// In all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) power_watts: Option<f32>,
}

/// What tells whether a line is joined, and to what.
#[derive(Deserialize)]
struct Head<'a> {
    r#type: &'a str,
    time: UnixMillis,
}

impl Felt {
    /// Joins what these devices said to the lines of that moment. The CPU slot is none: what its machine does is not the attempt's.
    pub(crate) fn join(lines: &mut [String], said: &[Telemetry]) {
        let gpus: Vec<&Telemetry> = said.iter().filter(|said| said.device != DeviceId::cpu()).collect();
        let (Some(felt), Some(at)) = (Self::of(&gpus), gpus.iter().map(|said| said.time).min()) else { return };
        let json = serde_json::to_string(&felt).expect("finite numbers, into memory");
        let most = MOST_JOINED / (JOINT.len() + json.len() + 1);
        for line in lines.iter_mut().filter(|line| is_of(line, at)).take(most) {
            line.truncate(line.len() - 1);
            line.extend([JOINT, &json, "}"]);
        }
    }

    /// What was joined to a line.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let (_, joined) = line.strip_suffix('}')?.rsplit_once(JOINT)?;
        serde_json::from_str(joined).ok()
    }

    fn of(gpus: &[&Telemetry]) -> Option<Self> {
        let all =
            |number: fn(&Telemetry) -> Option<f32>| gpus.iter().map(|said| number(said)).collect::<Option<Vec<_>>>();
        let mean = |numbers: Vec<f32>| numbers.iter().sum::<f32>() / numbers.len() as f32;
        (!gpus.is_empty()).then(|| Self {
            utilization_percent: all(|said| said.utilization_percent).map(mean),
            used_bytes: Some(gpus.iter().fold(0, |sum, said| sum.saturating_add(said.used_bytes))),
            temperature_celsius: all(|said| said.temperature_celsius).and_then(|all| all.into_iter().reduce(f32::max)),
            power_watts: all(|said| said.power_watts).map(|all| all.iter().sum()),
        })
    }
}

/// Whether a line is a step's or an evaluation's, of this moment, with nothing joined to it.
fn is_of(line: &str, at: UnixMillis) -> bool {
    let head = serde_json::from_str::<Head<'_>>(line);
    line.ends_with('}')
        && !line.contains(JOINT)
        && head.is_ok_and(|head| {
            ["step", "eval"].contains(&head.r#type) && head.time.0.abs_diff(at.0) <= SAME_MOMENT_MILLIS
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: &str = r#"{"seq":7,"time":100000,"type":"step","step":3}"#;

    fn gpu(name: &str, percent: f32, watts: Option<f32>) -> Telemetry {
        Telemetry {
            utilization_percent: Some(percent),
            temperature_celsius: Some(percent / 2.0),
            power_watts: watts,
            ..Telemetry::new(DeviceId(name.into()), UnixMillis(99_000), 3, 9)
        }
    }

    fn joined(line: &str, said: &[Telemetry]) -> Option<Felt> {
        let mut lines = [line.to_owned()];
        Felt::join(&mut lines, said);
        let felt = Felt::read(&lines[0]);
        assert_eq!(felt.is_none(), lines[0] == line);
        assert!(serde_json::from_str::<serde_json::Value>(&lines[0]).is_ok() || lines[0] == line, "{}", lines[0]);
        felt
    }

    #[test]
    fn what_is_joined_to_a_message_has_a_bound() {
        let mut lines = vec![STEP.to_owned(); 40_000];
        let before: usize = lines.iter().map(String::len).sum();
        Felt::join(&mut lines, &[gpu("a", 100.0, Some(500.0))]);
        let joined = lines.iter().map(String::len).sum::<usize>() - before;
        assert!(joined > MOST_JOINED / 2 && joined <= MOST_JOINED, "{joined}");
        assert!(Felt::read(&lines[0]).is_some() && Felt::read(&lines[39_999]).is_none());
    }

    #[test]
    fn a_step_is_stored_with_how_its_gpus_were_and_what_one_does_not_say_is_absent() {
        let (utilization_percent, temperature_celsius, used_bytes) = (Some(75.0), Some(50.0), Some(6));
        let felt = Felt { utilization_percent, used_bytes, temperature_celsius, power_watts: None };
        let said = [gpu("a", 100.0, Some(500.0)), gpu("b", 50.0, None)];
        assert_eq!(joined(STEP, &said), Some(felt));
        assert_eq!(joined(STEP, &said[..1]).and_then(|felt| felt.power_watts), Some(500.0));
    }

    #[test]
    fn nothing_is_joined_to_other_lines_and_to_those_of_another_moment() {
        let said = [gpu("a", 100.0, None)];
        assert!(joined(&STEP.replace("step\",", "eval\","), &said).is_some());
        let joined_already = STEP.replace("}", r#","devices":{}}"#);
        let (log, old) = (STEP.replace("\"step\",", "\"log\","), STEP.replace("100000", "1000"));
        for line in [&log, &old, "no JSON}", &STEP[..9]] {
            assert_eq!(joined(line, &said), None, "{line}");
        }
        assert_eq!(joined(STEP, &[gpu("cpu", 100.0, None)]), None, "the processor is no GPU");
        assert_eq!(joined(STEP, &[]), None);
        let mut lines = [joined_already.clone()];
        Felt::join(&mut lines, &said);
        assert_eq!(lines, [joined_already]);
    }
}
