//! What agents say once they are in. Any word renews the lease; a word that changes state counts once, in order, and only under the
//! current token.

use super::{Action, Cause, Cluster, LiveNode, Now, attempt::orphan, command::put_job, put};
use crate::record::Record;
use lorikeet_protocol::{
    agent::{Ended, FromAgent, Metered, Progress, Report, ReportBody, StopHow, ToAgent},
    id::{AttemptId, NodeId},
    job::{AttemptPhase, Device, Outcome, StopCause},
};

impl Cluster {
    pub(super) fn hear(&mut self, id: NodeId, session: u64, message: FromAgent, now: Now, out: &mut Vec<Action>) {
        let live =
            self.nodes.get_mut(&id).filter(|node| node.session.as_ref().is_some_and(|live| live.number == session));
        let Some(node) = live else { return };
        node.spoke(now);
        self.clear_unreachable(id, now, out);
        match message {
            FromAgent::Devices(devices) => self.devices_changed(id, devices, now, out),
            FromAgent::Accepted(attempt) => self.accepted(id, attempt, now, out),
            FromAgent::Declined { attempt, reason } => self.declined(id, attempt, &reason, now, out),
            FromAgent::Report(report) => self.report(id, report, now, out),
            FromAgent::Trusts(said) => self.trusts(id, said, out),
            // The link answers these; here they only say that the node is alive.
            FromAgent::Hello(_) | FromAgent::Heartbeat | FromAgent::Events(_) | FromAgent::Renew(_) => {}
        }
    }

    /// The devices as they are now. That one is out, or back, was decided where nobody keeps a history of it: it is written down here.
    pub(super) fn devices_changed(&mut self, id: NodeId, devices: Vec<Device>, now: Now, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let before = node.looked(devices, now);
        let was = |device: &Device| before.iter().find(|old| old.id == device.id).map(|old| old.usable.clone());
        let turned = node.devices.iter().filter_map(|device| Some((device, was(device)?)));
        let turned = turned.filter(|(device, was)| device.usable.is_ok() != was.is_ok());
        let turned: Vec<_> = turned
            .map(|(device, was)| (format!("{id} {}", device.id), was.err(), device.usable.clone().err()))
            .collect();
        for (subject, was, is) in turned {
            let action = if is.is_some() { "device.out" } else { "device.back" };
            self.audit_node(id, action, subject, (was, is), now, out);
        }
        self.unsettled = true;
    }

    fn accepted(&mut self, node: NodeId, attempt: AttemptId, now: Now, out: &mut Vec<Action>) {
        if self.current(node, attempt).is_some() {
            if let Some(job) = self.jobs.get_mut(&attempt.job) {
                (job.refusals, job.shunned) = (0, Default::default());
            }
            self.advance(attempt, AttemptPhase::Accepted, now, out);
        } else {
            out.push(Action::Send {
                node,
                message: ToAgent::Stop { attempt, how: StopHow::Discard, cause: StopCause::Superseded },
            });
        }
    }

    fn declined(&mut self, node: NodeId, attempt: AttemptId, reason: &str, now: Now, out: &mut Vec<Action>) {
        if self.current(node, attempt).is_some() {
            let ended = super::attempt::over(Outcome::Withdrawn, &format!("declined: {reason}"));
            self.end(attempt, ended, &Cause::node(node), now, out);
        }
    }

    /// At most once per number and in order: a repeat is only acknowledged, a gap is left for the agent to fill.
    fn report(&mut self, id: NodeId, report: Report, now: Now, out: &mut Vec<Action>) {
        let node = self.nodes.get_mut(&id).expect("the caller has it");
        if report.number > node.record.last_report + 1 {
            return;
        }
        if report.number == node.record.last_report + 1 {
            node.record.last_report = report.number;
            out.push(put(Record::Node(node.record.clone())));
            self.apply(id, report, now, out);
        }
        let through = self.nodes[&id].record.last_report;
        out.push(Action::Send { node: id, message: ToAgent::Acknowledged { through } });
    }

    /// Of an attempt that was never placed on this node, as far as anything is written down. It is taken, so that those behind it are heard, and
    /// changes nothing; but what a restored coordinator does not know any more is told apart as ever.
    pub(super) fn hear_stray(&mut self, id: NodeId, session: u64, report: Report, now: Now, out: &mut Vec<Action>) {
        let attempt = report.attempt;
        if self.is_kept_stranger(id, attempt, now) || self.current(id, attempt).is_some() {
            return self.hear(id, session, FromAgent::Report(report), now, out);
        }
        let live = |node: &&mut LiveNode| node.session.as_ref().is_some_and(|live| live.number == session);
        let Some(node) = self.nodes.get_mut(&id).filter(live) else { return };
        node.spoke(now);
        let (last, ends) = (node.record.last_report, report.body.end().is_some());
        if report.number == last + 1 {
            node.record.last_report = report.number;
            out.push(put(Record::Node(node.record.clone())));
            let why = "no record places the attempt on this node".to_owned();
            self.refuse("report.refused", &Cause::node(id), attempt.to_string(), why, now, out);
        }
        self.clear_unreachable(id, now, out);
        if report.number <= last + 1 {
            let through = self.nodes[&id].record.last_report;
            out.push(Action::Send { node: id, message: ToAgent::Acknowledged { through } });
        }
        if ends && report.number == last + 1 {
            out.push(Action::Send { node: id, message: ToAgent::Forget(attempt) });
        }
    }

    fn apply(&mut self, node: NodeId, report: Report, now: Now, out: &mut Vec<Action>) {
        let attempt = report.attempt;
        let current = self.current(node, attempt).is_some();
        match report.body {
            ReportBody::Preparing if current => self.advance(attempt, AttemptPhase::Preparing, now, out),
            ReportBody::Running { from_step } if current => self.running(attempt, from_step, now, out),
            ReportBody::Progress(progress) if current => self.progressed(attempt, progress, now, out),
            ReportBody::Finalizing if current => self.advance(attempt, AttemptPhase::Finalizing, now, out),
            ReportBody::Checkpoint(checkpoint) => self.checkpointed(attempt, checkpoint, current, now, out),
            ReportBody::Ended(ended) if current => self.ended_in_time(node, attempt, ended, now, out),
            ReportBody::Metered(Metered { ended, energy_joules }) if current => {
                self.drew(attempt, energy_joules, now);
                self.ended_in_time(node, attempt, ended, now, out);
            }
            ReportBody::Ended(ended) | ReportBody::Metered(Metered { ended, .. }) => {
                self.ended_late(node, attempt, &ended, now, out);
            }
            ReportBody::Preparing | ReportBody::Running { .. } | ReportBody::Progress(_) | ReportBody::Finalizing => {}
        }
    }

    /// The end of the attempt that counts.
    fn ended_in_time(&mut self, node: NodeId, attempt: AttemptId, ended: Ended, now: Now, out: &mut Vec<Action>) {
        self.end(attempt, ended, &Cause::node(node), now, out);
        out.push(Action::Send { node, message: ToAgent::Forget(attempt) });
    }

    fn running(&mut self, attempt: AttemptId, from_step: u64, now: Now, out: &mut Vec<Action>) {
        // Written at once: after a reconnect the phase may be further already, and writes nothing more.
        if let Some(row) = self.jobs.get_mut(&attempt.job).and_then(|job| job.attempt.as_mut()) {
            row.from_step = Some(from_step);
            out.push(put(Record::Attempt(row.clone())));
        }
        self.advance(attempt, AttemptPhase::Running, now, out);
    }

    fn progressed(&mut self, attempt: AttemptId, mut progress: Progress, now: Now, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        let from = job.attempt.as_ref().and_then(|row| row.from_step);
        // Where it goes on from is told before anything is loaded.
        if from.is_none_or(|from| progress.step > from) {
            let node = job.node().and_then(|id| self.nodes.get_mut(&id));
            node.into_iter().for_each(|node| node.ledger.loaded(attempt));
        }
        let before = job.record.progress;
        // An agent that began anew reads its attempts' lines from the first one, and tells what was told before.
        let is_heard_of = job.told_by.replace(attempt) == Some(attempt);
        if is_heard_of && before.is_some_and(|before| progress.step < before.step) {
            return;
        }
        // An attempt that goes on has evaluated nothing yet; what is known of its job stays known.
        progress.validation_loss = progress.validation_loss.or(before.and_then(|before| before.validation_loss));
        job.record.progress = Some(progress);
        put_job(&job.record, out);
        self.judge_child(attempt.job, before, progress, now, out);
    }

    /// A result under an older token, or of a job that is over: kept as an orphan, never applied.
    fn ended_late(&mut self, node: NodeId, attempt: AttemptId, ended: &Ended, now: Now, out: &mut Vec<Action>) {
        out.push(orphan(attempt, ended, "its token was no longer current", now));
        if self.is_kept_stranger(node, attempt, now) {
            return;
        }
        out.push(Action::Send { node, message: ToAgent::Forget(attempt) });
    }
}
