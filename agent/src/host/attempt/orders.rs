//! What others want of an attempt: that it stops, saves, ends in time, is forgotten.

use super::{Attempt, FORGET_GRACE, State, Wanted};
use crate::host::{
    Action, Ask, Fault, Now, Rules,
    ending::{Adapter, Leave, Process, Word},
    patience::Due,
    uploads::Uploads,
};
use lorikeet_protocol::{
    agent::{ReportBody, StopHow},
    job::{Outcome, StopCause},
};
use std::time::Duration;

/// A deadline that is looked at so much too late was not watched.
const LATE: Duration = Duration::from_secs(2);
/// News that waited is heard within this time.
const HEARD_BY: Duration = Duration::from_secs(5);

impl Attempt {
    /// Somebody wants it to end.
    pub(in crate::host) fn stop(
        &mut self,
        how: StopHow,
        cause: StopCause,
        rules: &Rules,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        match &mut self.state {
            State::Preparing => {
                self.end(Word::cause(cause, self.meter.step()), Adapter::None, Process::Gone, now, out);
            }
            State::Starting { leave, .. } | State::Running { leave, .. } => {
                let kill_at = now.mono + rules.grace(how);
                if let Some(leaving) = Leave::urged(leave.as_ref(), how, cause, kill_at) {
                    *leave = Some(leaving);
                    self.record.stop = Some((how, cause));
                    self.keep(out);
                    out.push(Action::Ask(self.id(), Ask::Stop(how, cause)));
                }
            }
            State::Finalizing { word, adapter, .. } if how == StopHow::Discard => {
                *word = Word::cause(cause, word.step);
                *adapter = Adapter::None;
                self.uploads = Uploads::default();
                out.push(Action::Abandon(self.id()));
                self.finish_if_through(now, out);
            }
            // It is leaving anyway, with everything it made.
            State::Finalizing { .. } | State::Done { .. } => {}
        }
    }

    /// A checkpoint is wanted now.
    pub(in crate::host) fn save_now(&mut self, out: &mut Vec<Action>) {
        if matches!(self.state, State::Running { leave: None, .. }) {
            out.push(Action::Ask(self.id(), Ask::SaveNow));
        }
    }

    /// The coordinator keeps its events up to `through`.
    pub(in crate::host) fn events_acknowledged(&mut self, through: u64) {
        self.record.events_through = self.record.events_through.max(through);
    }

    /// Every report of it is acknowledged.
    pub(in crate::host) fn delivered(&mut self, now: Now, out: &mut Vec<Action>) {
        if !self.is_live() && self.wanted == Wanted::UntilDelivered {
            self.forget(now, out);
        }
    }

    /// The report of its end was acknowledged to an agent, or a coordinator, that was set back since: what it said is not known any
    /// more. Its time is nobody's to pay.
    pub(in crate::host) fn end_is_lost(&self, out: &mut Vec<Action>) {
        if !self.is_live() {
            tracing::warn!(attempt = %self.id(), "its end was lost on its way to the coordinator");
            let fault = Fault::new(Outcome::Lost, "its end was lost");
            let ended = self.ended(Word::fault(fault, self.meter.step()), Adapter::None, Duration::ZERO);
            out.push(Action::Report(self.id(), ReportBody::Ended(ended)));
        }
    }

    /// The coordinator has another attempt in its place, or none: how this one ends is still to be told.
    pub(in crate::host) fn disown(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        self.wanted = Wanted::UntilDelivered;
        self.stop(StopHow::Discard, StopCause::Superseded, rules, now, out);
    }

    /// Nobody wants to hear how it ends.
    pub(in crate::host) fn disown_silently(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        self.wanted = Wanted::No;
        self.stop(StopHow::Discard, StopCause::Superseded, rules, now, out);
        if !self.is_live() {
            // Its end is known; its last lines may still be missing there.
            self.forget(now, out);
        }
    }

    /// Its end is recorded: it may go, once its last events are there as well.
    pub(in crate::host) fn forget(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.is_live() {
            // Only what is over is ever forgotten; an order that came too early is given again at the next welcome.
            tracing::warn!(attempt = %self.id(), "told to forget an attempt that is alive");
        } else {
            self.wanted = Wanted::UntilEvents { latest: now.mono + FORGET_GRACE };
            self.tick_wanted(now, out);
        }
    }

    /// Whatever is due.
    pub(in crate::host) fn tick(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        self.tick_wanted(now, out);
        if self.meter.due(rules.progress).is_some_and(|due| due <= now.mono) {
            self.report_progress(now, out);
        }
        match self.due(now) {
            Due::Nothing => self.tick_clock(rules, now, out),
            Due::Kill => out.push(Action::Kill(self.id())),
            Due::GiveUp => self.give_up(now, out),
        }
    }

    /// What is due of a process that should be gone.
    fn due(&mut self, now: Now) -> Due {
        match &mut self.state {
            State::Starting { leave: Some(leave), .. } | State::Running { leave: Some(leave), .. } => leave.tick(now),
            State::Finalizing { process, .. } => process.tick(now),
            State::Preparing
            | State::Starting { leave: None, .. }
            | State::Running { leave: None, .. }
            | State::Done { .. } => Due::Nothing,
        }
    }

    /// What a process may take its time for.
    fn tick_clock(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        match &mut self.state {
            // The agent itself was held up, by its disk or by who stopped it: what the worker said meanwhile is heard first.
            State::Starting { lock_by, leave: None } if *lock_by + LATE <= now.mono => *lock_by = now.mono + HEARD_BY,
            State::Starting { lock_by, leave: None } if *lock_by <= now.mono => {
                let message = format!("the worker did not take its lock within {:?}", rules.start_grace);
                self.condemn(Fault::new(Outcome::PrepareFailed, message), now, out);
            }
            State::Running { time_up, leave: None } if *time_up <= now.mono => {
                self.stop(StopHow::Save, StopCause::TimeLimit, rules, now, out);
            }
            State::Preparing
            | State::Starting { .. }
            | State::Running { .. }
            | State::Finalizing { .. }
            | State::Done { .. } => {}
        }
    }

    /// When `tick` has something to do.
    pub(in crate::host) fn deadline(&self, rules: &Rules) -> Option<Duration> {
        let own = match &self.state {
            State::Starting { leave: Some(leave), .. } | State::Running { leave: Some(leave), .. } => {
                Some(leave.deadline())
            }
            State::Starting { lock_by, leave: None } => Some(*lock_by),
            State::Running { time_up, leave: None } => Some(*time_up),
            State::Finalizing { process, .. } => process.deadline(),
            State::Preparing | State::Done { .. } => None,
        };
        let wanted = match self.wanted {
            Wanted::UntilEvents { latest } if !self.is_stuck() => Some(latest),
            Wanted::UntilEvents { .. } | Wanted::Yes | Wanted::UntilDelivered | Wanted::No | Wanted::Forgotten => None,
        };
        [own, wanted, self.meter.due(rules.progress)].into_iter().flatten().min()
    }

    /// One that is still there keeps its attempt, which keeps its devices out.
    pub(super) fn tick_wanted(&mut self, now: Now, out: &mut Vec<Action>) {
        if let Wanted::UntilEvents { latest } = self.wanted
            && !self.is_stuck()
            && (latest <= now.mono || self.record.events_through >= self.record.last_event)
        {
            self.drop_now(out);
        }
    }

    fn drop_now(&mut self, out: &mut Vec<Action>) {
        self.wanted = Wanted::Forgotten;
        out.push(Action::Forget(self.id()));
    }
}
