//! What an attempt's worker does, and what becomes of the files it made.

use super::{Attempt, LINGER, State};
use crate::host::{
    Action, Fault, News, Now,
    ending::{Adapter, Leave, Process, Word},
    uploads::{CheckpointMade, Uploads},
};
use lorikeet_protocol::{
    agent::{Checkpoint, ReportBody, StopHow},
    file::NamedFile,
    job::{AttemptPhase, FailureClass, Outcome, StopCause},
    worker::{EventLine, Exit, LOCK, WorkerEvent, WrittenFile},
};
use std::time::Duration;

impl Attempt {
    /// News of its worker.
    pub(in crate::host) fn news(&mut self, news: News, now: Now, out: &mut Vec<Action>) {
        if !self.is_live() && !matches!(news, News::Gone { .. }) {
            // What one that was given up still says is too late to count.
            return;
        }
        match news {
            News::Holds { pid } => self.holds_lock(pid, now, out),
            News::Joined { pids } => self.pids.extend(pids),
            News::Event(line) => self.event(*line, now, out),
            News::TooLarge { resident, limit } => self.too_large(resident, limit, now, out),
            News::Overgrown { what } => self.overgrown(&what, now, out),
            News::Stalled { quiet } => self.stalled(quiet, now, out),
            News::Exited(exit) => self.exit = Some(exit),
            News::Stuck { pid } => {
                self.pid = Some(pid);
                self.pids.insert(pid);
                self.give_up(now, out);
            }
            News::Gone { how } => self.gone(&how, now, out),
        }
    }

    /// A checkpoint is with the coordinator: now it counts.
    pub(in crate::host) fn checkpoint_uploaded(
        &mut self,
        seq: u64,
        checkpoint: Checkpoint,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let id = self.id();
        let next = &mut Vec::new();
        if self.uploads.through(id, seq, next) {
            out.push(Action::Report(id, ReportBody::Checkpoint(checkpoint)));
            self.checkpoint_through(seq, now, out);
        }
        out.append(next);
    }

    /// A checkpoint will never be with the coordinator.
    pub(in crate::host) fn checkpoint_given_up(&mut self, seq: u64, now: Now, out: &mut Vec<Action>) {
        if self.uploads.through(self.id(), seq, out) {
            self.checkpoint_through(seq, now, out);
        }
    }

    /// The result is with the coordinator.
    pub(in crate::host) fn adapter_uploaded(
        &mut self,
        files: Vec<NamedFile>,
        summary: Option<String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        if let State::Finalizing { adapter: adapter @ Adapter::Uploading, .. } = &mut self.state {
            *adapter = Adapter::Uploaded { files, summary };
            self.finish_if_through(now, out);
        }
    }

    /// Its inputs were read again. What failed on a file that had rotted here is nobody's failure: it is tried again on a whole one.
    /// Where that happens often somebody is to blame, as for any bad end.
    pub(in crate::host) fn inputs_read(&mut self, rotten: &[String], often: bool, now: Now, out: &mut Vec<Action>) {
        let State::Finalizing { word, adapter: adapter @ Adapter::Doubted, .. } = &mut self.state else { return };
        *adapter = Adapter::None;
        if !rotten.is_empty() {
            let said = word.message.as_deref().unwrap_or("no word why");
            let message = format!(
                "{} rotted on this node's disk and is fetched anew; the worker said: {said}",
                rotten.join(", ")
            );
            *word = Word::fault(Fault::new(Outcome::PrepareFailed, message), word.step);
            self.innocent = !often;
        }
        self.finish_if_through(now, out);
    }

    /// The result will never be with the coordinator.
    pub(in crate::host) fn adapter_given_up(&mut self, fault: Fault, now: Now, out: &mut Vec<Action>) {
        if let State::Finalizing { word, adapter: adapter @ Adapter::Uploading, .. } = &mut self.state {
            *word = Word::fault(fault, word.step);
            *adapter = Adapter::None;
            self.finish_if_through(now, out);
        }
    }

    pub(super) fn holds_lock(&mut self, pid: u32, now: Now, out: &mut Vec<Action>) {
        self.pid = Some(pid);
        self.pids.insert(pid);
        let State::Starting { leave, .. } = &mut self.state else { return };
        let leave = leave.take();
        let since = *self.record.running.get_or_insert(now.mono);
        self.state = State::Running { time_up: since + self.record.offer.time_left, leave };
        let from_step = self.record.offer.resume.as_ref().map_or(0, |checkpoint| checkpoint.step);
        self.tell(AttemptPhase::Running, ReportBody::Running { from_step }, out);
    }

    pub(super) fn event(&mut self, line: EventLine, now: Now, out: &mut Vec<Action>) {
        if line.seq <= self.record.last_event {
            return;
        }
        self.record.last_event = line.seq;
        self.last_event_wall = Some(line.time);
        match line.event {
            WorkerEvent::Plan(plan) => self.meter.planned(&plan),
            WorkerEvent::Step(step) => self.meter.stepped(step),
            WorkerEvent::Eval { loss, .. } => {
                self.meter.evaluated(loss);
                // At once: with the next step it would stand beside another's number.
                self.report_progress(now, out);
            }
            WorkerEvent::Checkpoint { step, loss, kind, path } => {
                self.checkpoint_made(CheckpointMade { seq: line.seq, step, loss, kind, path }, out);
            }
            WorkerEvent::Finished { step, files } => self.finished(step, files, now, out),
            WorkerEvent::Stopped { step, cause, .. } => {
                let word = Word::cause(self.asked().map_or(cause, |(_, cause)| cause), step);
                self.last_word(word, Adapter::None, now, out);
            }
            // Its device failed under it: that is what it fails of, whatever it takes it for.
            WorkerEvent::Failed { .. } if self.innocent => {}
            WorkerEvent::Failed { class, message, hint } => {
                let message = hint.map_or(message.clone(), |hint| format!("{message} ({hint})"));
                let step = self.meter.step();
                let word = Word { outcome: class.outcome(), class: Some(class), message: Some(message), step };
                let adapter = if may_be_its_inputs(class) { Adapter::Doubted } else { Adapter::None };
                self.last_word(word, adapter, now, out);
                if matches!(self.state, State::Finalizing { adapter: Adapter::Doubted, .. }) {
                    out.push(Action::ReadInputs(self.offer(), class));
                }
            }
            WorkerEvent::Stage { .. } | WorkerEvent::Log { .. } | WorkerEvent::Sample { .. } => {}
        }
    }

    pub(super) fn asked(&self) -> Option<(StopHow, StopCause)> {
        match &self.state {
            State::Starting { leave, .. } | State::Running { leave, .. } => match leave {
                Some(Leave::Asked { how, cause, .. }) => Some((*how, *cause)),
                Some(Leave::Killed { .. }) | None => None,
            },
            State::Preparing | State::Finalizing { .. } | State::Done { .. } => None,
        }
    }

    pub(super) fn checkpoint_made(&mut self, made: CheckpointMade, out: &mut Vec<Action>) {
        let id = self.id();
        if made.seq > self.record.checkpoints_through && self.is_live() {
            self.uploads.add(id, made, out);
        }
    }

    pub(super) fn checkpoint_through(&mut self, seq: u64, now: Now, out: &mut Vec<Action>) {
        self.record.checkpoints_through = seq;
        self.keep(out);
        self.finish_if_through(now, out);
    }

    pub(super) fn finished(&mut self, step: u64, files: Vec<WrittenFile>, now: Now, out: &mut Vec<Action>) {
        if let Some((StopHow::Discard, cause)) = self.asked() {
            self.last_word(Word::cause(cause, step), Adapter::None, now, out);
        } else {
            let word = Word { outcome: Outcome::Ok, class: None, message: None, step };
            self.last_word(word, Adapter::Uploading, now, out);
            if matches!(self.state, State::Finalizing { adapter: Adapter::Uploading, .. }) {
                out.push(Action::UploadAdapter(self.id(), files));
            }
        }
    }

    pub(super) fn last_word(&mut self, word: Word, adapter: Adapter, now: Now, out: &mut Vec<Action>) {
        if !matches!(self.state, State::Starting { .. } | State::Running { .. }) {
            return;
        }
        self.report_progress(now, out);
        if self.asked().is_some_and(|(how, _)| how == StopHow::Discard) {
            self.uploads = Uploads::default();
            out.push(Action::Abandon(self.id()));
        }
        self.state = State::Finalizing { word, adapter, process: Process::Alive { kill_at: now.mono + LINGER } };
        self.tell(AttemptPhase::Finalizing, ReportBody::Finalizing, out);
    }

    pub(super) fn too_large(&mut self, resident: u64, limit: u64, now: Now, out: &mut Vec<Action>) {
        let message = format!("the worker used {resident} bytes of main memory, {limit} are allowed");
        self.condemn(Fault::new(Outcome::Oom, message), now, out);
    }

    /// Whatever writes so much is broken, here or wherever it is tried next.
    fn overgrown(&mut self, what: &str, now: Now, out: &mut Vec<Action>) {
        let message = format!("the worker was stopped before it fills the disk: {what}");
        let class = Some(FailureClass::Internal);
        self.condemn(Fault { class, ..Fault::new(Outcome::UserError, message) }, now, out);
    }

    /// The lock says that it lives, and nothing else does. One that was asked to leave has its grace instead.
    pub(super) fn stalled(&mut self, quiet: Duration, now: Now, out: &mut Vec<Action>) {
        if self.asked().is_none() {
            let message = format!("process hung: no event for {} s", quiet.as_secs());
            self.condemn(Fault::new(Outcome::Lost, message), now, out);
        }
    }

    pub(super) fn condemn(&mut self, fault: Fault, now: Now, out: &mut Vec<Action>) {
        let id = self.id();
        let (State::Starting { leave, .. } | State::Running { leave, .. }) = &mut self.state else { return };
        if !matches!(leave, Some(Leave::Killed { .. })) {
            *leave = Some(Leave::killed(fault, now));
            out.push(Action::Kill(id));
        }
    }

    pub(super) fn gone(&mut self, how: &str, now: Now, out: &mut Vec<Action>) {
        let fault = Fault::new(self.outcome_of_exit(), format!("process: {how}"));
        match &mut self.state {
            State::Starting { leave, .. } | State::Running { leave, .. } => {
                let step = self.meter.step();
                let word = match leave.take() {
                    Some(Leave::Killed { fault, .. }) => Word::fault(fault, step),
                    Some(Leave::Asked { cause, .. }) => Word::cause(cause, step),
                    None => Word::fault(fault, step),
                };
                self.leave_behind(word, Process::Gone, now, out);
            }
            State::Finalizing { process, .. } => {
                *process = Process::Gone;
                self.finish_if_through(now, out);
            }
            State::Done { stuck } => *stuck = false,
            State::Preparing => {}
        }
    }

    /// What a worker was about to say that left without a last word.
    fn outcome_of_exit(&self) -> Outcome {
        match self.exit {
            Some(Exit::OutOfMemory) => Outcome::Oom,
            Some(Exit::DiskFull) => Outcome::DiskFull,
            Some(Exit::Hardware) => Outcome::Hardware,
            Some(
                Exit::Finished
                | Exit::Unusable
                | Exit::Failed
                | Exit::Stopped
                | Exit::Discarded
                | Exit::Held
                | Exit::Internal,
            )
            | None => Outcome::Lost,
        }
    }

    /// Its process cannot be killed. What the worker made and said before still counts.
    pub(super) fn give_up(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.has_worker() {
            let who = self.process();
            tracing::error!(attempt = %self.id(), "{who} cannot be killed; its devices stay out until it is gone (`lslocks` names who holds `{LOCK}`)");
        }
        match &mut self.state {
            State::Starting { .. } | State::Running { .. } => {
                let message = format!("{} cannot be killed", self.process());
                let word = Word::fault(Fault::new(Outcome::Hardware, message), self.meter.step());
                self.leave_behind(word, Process::Stuck, now, out);
            }
            State::Finalizing { process, .. } => {
                *process = Process::Stuck;
                self.finish_if_through(now, out);
            }
            State::Preparing | State::Done { .. } => {}
        }
    }

    /// Nobody waits for the process any more, and it left no last word.
    fn leave_behind(&mut self, word: Word, process: Process, now: Now, out: &mut Vec<Action>) {
        self.report_progress(now, out);
        // A checkpoint that was complete before the end still counts for the next attempt.
        if !self.uploads.is_idle() && word.has_a_successor() {
            self.state = State::Finalizing { word, adapter: Adapter::None, process };
            self.tell(AttemptPhase::Finalizing, ReportBody::Finalizing, out);
        } else {
            self.end(word, Adapter::None, process, now, out);
        }
    }

    pub(super) fn finish_if_through(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Finalizing { word, adapter, process } = &mut self.state else { return };
        let waits = matches!(adapter, Adapter::Uploading | Adapter::Doubted);
        if process.is_over() && !waits && self.uploads.is_idle() {
            let (word, adapter) = (word.clone(), std::mem::replace(adapter, Adapter::None));
            let process = std::mem::replace(process, Process::Gone);
            self.end(word, adapter, process, now, out);
        }
    }

    pub(super) fn report_progress(&mut self, now: Now, out: &mut Vec<Action>) {
        if let Some(progress) = self.meter.take(now.mono) {
            out.push(Action::Report(self.id(), ReportBody::Progress(progress)));
        }
    }
}

/// Whether a failure of this class may come from a file that is not what it was when it came.
fn may_be_its_inputs(class: FailureClass) -> bool {
    match class {
        FailureClass::NonFinite
        | FailureClass::Dataset
        | FailureClass::Base
        | FailureClass::Settings
        | FailureClass::Internal => true,
        FailureClass::OutOfMemory | FailureClass::DiskFull | FailureClass::Hardware => false,
    }
}
