//! A line of an attempt's events file, as far as a curve is concerned with it.

use super::super::job_series::parse;
use super::points::Measured;
use crate::felt::Felt;
use lorikeet_protocol::{
    id::UnixMillis,
    worker::{EventLine, Step, WorkerEvent},
};
use serde::Deserialize;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Said {
    /// An attempt goes on from this step.
    Begins(u64),
    /// Something was measured after this step.
    Measured { step: u64, time: UnixMillis, what: Measured, felt: Option<Felt> },
}

/// The form of nearly every line. Read as an event, whose form is found by its type, it takes several times as long.
#[derive(Deserialize)]
struct StepLine<'a> {
    r#type: &'a str,
    time: UnixMillis,
    step: u64,
    epoch: f64,
    loss: f64,
    lr: f64,
    grad_norm: f64,
    tokens: u64,
    supervised_tokens: u64,
    seconds: f64,
}

/// Nothing for a line of another kind, or of a later version.
pub(super) fn read(text: &str) -> Option<Said> {
    if let Some(step) = serde_json::from_str::<StepLine<'_>>(text).ok().filter(|line| line.r#type == "step") {
        return Some(of_step(step, text));
    }
    said(&parse(text)?, text)
}

pub(super) fn said(line: &EventLine, text: &str) -> Option<Said> {
    let measured = |step, what| Some(Said::Measured { step, time: line.time, what, felt: Felt::read(text) });
    match &line.event {
        WorkerEvent::Plan(plan) => Some(Said::Begins(plan.from_step)),
        WorkerEvent::Eval { step, loss, .. } => measured(*step, Measured::Evaluation { loss: *loss }),
        WorkerEvent::Step(step) => measured(step.step, Measured::of_step(step)),
        WorkerEvent::Stage { .. }
        | WorkerEvent::Log { .. }
        | WorkerEvent::Checkpoint { .. }
        | WorkerEvent::Sample { .. }
        | WorkerEvent::Finished { .. }
        | WorkerEvent::Stopped { .. }
        | WorkerEvent::Failed { .. } => None,
    }
}

fn of_step(line: StepLine<'_>, text: &str) -> Said {
    let StepLine { r#type: _, time, step, epoch, loss, lr, grad_norm, tokens, supervised_tokens, seconds } = line;
    let what = Measured::of_step(&Step { step, epoch, loss, lr, grad_norm, tokens, supervised_tokens, seconds });
    Said::Measured { step, time, what, felt: Felt::read(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: &str = r#"{"seq":7,"time":1000,"type":"step","step":3,"epoch":0.5,"loss":1.25,"lr":0.0001,"grad_norm":0.1,"tokens":10,"supervised_tokens":5,"seconds":2.0}"#;

    fn measured(step: u64, what: Measured) -> Option<Said> {
        Some(Said::Measured { step, time: UnixMillis(1000), what, felt: None })
    }

    #[test]
    fn the_short_way_reads_a_step_as_the_long_one_does() {
        let what = Measured::Step { epoch: 0.5, loss: 1.25, lr: 0.0001, grad_norm: 0.1, tokens_per_second: Some(5.0) };
        assert_eq!(read(STEP), measured(3, what));
        // A name that is written with an escape goes the long way.
        let escaped = STEP.replace(r#""step","#, r#""st\u0065p","#);
        assert!(serde_json::from_str::<StepLine<'_>>(&escaped).is_err());
        assert_eq!(read(&escaped), read(STEP));
    }

    #[test]
    fn how_the_devices_were_is_read_behind_what_the_worker_wrote() {
        let line = STEP.replace('}', r#","devices":{"utilizationPercent":93.0}}"#);
        let utilization_percent = Some(93.0);
        let Some(Said::Measured { felt, what, .. }) = read(&line) else { panic!("expected a step") };
        assert_eq!(felt, Some(Felt { utilization_percent, ..Felt::default() }));
        assert!(matches!(read(STEP), Some(Said::Measured { what: same, .. }) if same == what));
    }

    #[test]
    fn what_looks_like_a_step_and_says_that_it_is_none_is_none() {
        assert_eq!(read(&STEP.replace(r#""type":"step""#, r#""type":"stride""#)), None);
        assert_eq!(read("no JSON"), None);
    }

    #[test]
    fn evaluations_and_beginnings_are_read() {
        let line =
            r#"{"seq":1,"time":1000,"type":"eval","step":4,"loss":2.0,"perplexity":7.4,"tokens":9,"seconds":1.0}"#;
        assert_eq!(read(line), measured(4, Measured::Evaluation { loss: 2.0 }));
        let plan = serde_json::to_value(WorkerEvent::Plan(lorikeet_protocol::worker::Plan {
            from_step: 8,
            ..Default::default()
        }));
        let mut plan = plan.unwrap();
        (plan["seq"], plan["time"]) = (1.into(), 1000.into());
        assert_eq!(read(&plan.to_string()), Some(Said::Begins(8)));
    }
}
