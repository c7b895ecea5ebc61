//! What is said in one session, and in which order: answers to offers, then reports, then lines of events.
//!
//! A report that names files is held until the coordinator has said in this very session that it has them: it may have
//! lost what was only staged when it was killed. Where files are nowhere any more the report goes without them, for the coordinator takes none
//! behind it: see [`without_files`]. A report that is not acknowledged in time is sent again the same way, and so are
//! lines: a coordinator whose disk is full keeps none.

use super::{Driver, Note};
use crate::{link::Session, outbox::Outbox};
use lorikeet_protocol::{
    agent::{FromAgent, Report, ReportBody, Telemetry},
    id::AttemptId,
    job::{Device, Outcome},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// The state of one session.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(super) session: u64,
    wire: Session,
    tells: VecDeque<FromAgent>,
    /// Attempts that may have lines to send.
    events: BTreeSet<AttemptId>,
    /// Reports whose files are with the coordinator.
    cleared: BTreeSet<u64>,
    /// Those whose files are nowhere, and why.
    lost: BTreeMap<u64, String>,
    /// The report whose files are being asked about.
    clearing: Option<u64>,
    /// Since when the oldest report that was sent waits for its acknowledgement.
    waiting: Option<Instant>,
    told_devices: Instant,
    /// An attempt ended: what its device has free is told with the next look, for whoever waits for memory.
    left_a_device: bool,
}

impl Conversation {
    pub(super) fn new(session: u64, wire: Session, attempts: impl Iterator<Item = AttemptId>) -> Self {
        Self {
            session,
            wire,
            tells: VecDeque::new(),
            events: attempts.collect(),
            cleared: BTreeSet::new(),
            lost: BTreeMap::new(),
            clearing: None,
            waiting: None,
            told_devices: Instant::now(),
            left_a_device: false,
        }
    }

    pub(super) fn outgoing(&self) -> mpsc::Sender<FromAgent> {
        self.wire.outgoing.clone()
    }

    /// Whether something could be said now.
    pub(super) fn has_words(&self, outbox: &Outbox) -> bool {
        if self.wire.outgoing.is_closed() {
            return false;
        }
        let report = outbox.next().is_some_and(|report| self.clearing != Some(report.number));
        !self.tells.is_empty() || report || !self.events.is_empty()
    }

    pub(super) fn tell(&mut self, message: FromAgent) {
        self.tells.push_back(message);
    }

    pub(super) fn has_events(&mut self, id: AttemptId) {
        self.events.insert(id);
    }

    pub(super) fn cleared(&mut self, number: u64) {
        self.cleared.insert(number);
        if self.clearing == Some(number) {
            self.clearing = None;
        }
    }

    pub(super) fn lost(&mut self, number: u64, why: Option<String>) {
        match why {
            Some(why) => _ = self.lost.insert(number, why),
            // The worker has it once more, or the coordinator.
            None => _ = self.lost.remove(&number),
        }
    }

    /// Some reports more are with the coordinator; what left behind them is waited for from now on.
    pub(super) fn acknowledged(&mut self, outbox: &Outbox) {
        let through = outbox.acknowledged();
        self.cleared.retain(|number| *number > through);
        self.lost.retain(|number, _| *number > through);
        self.waiting = outbox.is_waited_for().then(Instant::now);
    }

    /// When reports are sent again.
    pub(super) fn retry_at(&self, after: Duration) -> Option<Instant> {
        self.waiting.map(|since| since + after)
    }

    pub(super) fn looked(&mut self, telemetry: &[Telemetry], devices: &[Device], changed: bool, interval: Duration) {
        for telemetry in telemetry {
            self.wire.telemetry(telemetry);
        }
        if changed || std::mem::take(&mut self.left_a_device) || self.told_devices.elapsed() >= interval {
            self.told_devices = Instant::now();
            self.tell(FromAgent::Devices(devices.to_vec()));
        }
    }

    pub(super) fn device_was_left(&mut self) {
        self.left_a_device = true;
    }

    fn is_clear(&self, report: &Report) -> bool {
        report.body.files().is_empty() || self.cleared.contains(&report.number)
    }
}

impl Driver {
    /// Says one thing, the most urgent.
    pub(super) fn speak(&mut self, permit: mpsc::OwnedPermit<FromAgent>) {
        let Some(talk) = &mut self.conversation else { return };
        if let Some(message) = talk.tells.pop_front() {
            permit.send(message);
        } else if let Some(report) = self.next_report() {
            permit.send(FromAgent::Report(report));
        } else if let Some(lines) = self.next_lines() {
            permit.send(lines);
        }
    }

    /// A report was not acknowledged for too long: everything that waits is sent again, its files offered again.
    pub(super) fn retry_reports(&mut self) {
        let after = self.config.link.report_retry;
        let Some(talk) = &mut self.conversation else { return };
        if talk.retry_at(after).is_some_and(|at| at <= Instant::now()) {
            tracing::warn!("reports are not acknowledged; they are sent again");
            talk.cleared.clear();
            talk.waiting = None;
            self.outbox.rewind();
        }
    }

    /// Lines were not acknowledged for too long: they were not kept, and are sent again.
    pub(super) fn retry_lines(&mut self) {
        let (after, now) = (self.config.link.report_retry, Instant::now());
        let Some(talk) = &mut self.conversation else { return };
        for (id, spool) in &mut self.spools {
            if spool.retry_at(after).is_some_and(|at| at <= now) {
                tracing::warn!(attempt = %id, "events are not acknowledged; they are sent again");
                spool.retry();
                talk.has_events(*id);
            }
        }
    }

    /// When something that was said and not acknowledged is said again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let (after, talk) = (self.config.link.report_retry, self.conversation.as_ref()?);
        let lines = self.spools.values().filter_map(|spool| spool.retry_at(after));
        lines.chain(talk.retry_at(after)).min()
    }

    fn next_report(&mut self) -> Option<Report> {
        let talk = self.conversation.as_mut()?;
        let report = self.outbox.next().filter(|report| talk.clearing != Some(report.number))?.clone();
        if talk.is_clear(&report) {
            talk.waiting.get_or_insert_with(Instant::now);
            self.outbox.sent();
            return Some(match talk.lost.get(&report.number) {
                Some(why) => without_files(report, why),
                None => report,
            });
        }
        talk.clearing = Some(report.number);
        self.clear(report);
        None
    }

    /// Offers a report's files again. Whatever comes of it, the report is said: the coordinator judges it, and takes none that names what is not
    /// there.
    fn clear(&self, report: Report) {
        let Some(session) = self.conversation.as_ref().map(|talk| talk.session) else { return };
        let (uploader, notes) = (self.uploader.clone(), self.notes.clone());
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            let Some(sent) = cancel.run_until_cancelled(uploader.send_again(&report)).await else { return };
            let lost = sent.err().and_then(|error| {
                let why = crate::link::chain(&error);
                tracing::warn!(attempt = %report.attempt, "could not {why}");
                error.is_for_good().then_some(why)
            });
            let _ = notes.send(Note::Cleared { session, number: report.number, lost }).await;
        });
    }

    fn next_lines(&mut self) -> Option<FromAgent> {
        let talk = self.conversation.as_mut()?;
        while let Some(id) = talk.events.first().copied() {
            match self.spools.get_mut(&id).map_or(Ok(None), |spool| spool.next()) {
                Ok(Some(lines)) => return Some(FromAgent::Events(lines)),
                Ok(None) => {}
                Err(error) => tracing::warn!(attempt = %id, %error, "events cannot be read"),
            }
            talk.events.remove(&id);
        }
        None
    }
}

/// What is left to say of a report whose files are nowhere: of a checkpoint nothing that is news, of a result that it was lost.
fn without_files(report: Report, why: &str) -> Report {
    let mut body = report.body;
    if matches!(body, ReportBody::Checkpoint(_)) {
        body = ReportBody::Preparing;
    }
    if let Some(ended) = body.end_mut() {
        (ended.files, ended.summary) = (Vec::new(), None);
        (ended.outcome, ended.message) = (Outcome::Lost, Some(format!("its result was lost: could not {why}")));
    }
    Report { body, ..report }
}
