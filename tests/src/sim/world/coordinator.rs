//! The coordinator: turns, commits, effects, and what its link would do with the words of agents.

use super::{
    super::{books::DEVICE_BYTES, nature::Nature, worker::STEPS},
    *,
};
use crate::findings;
use lorikeet_coordinator::{
    cluster::command::Command,
    record::{Closed, Job, Node as NodeRow},
};
use lorikeet_protocol::{agent::ReportBody, inspect::Fault};

impl World {
    /// Something came: it is looked at as soon as the last batch is durable.
    pub(super) fn post(&mut self, event: Event) {
        if self.brain.turn.is_some() {
            self.brain.take(event);
            self.wake_brain(1);
        }
    }

    /// One alarm, the earliest.
    pub(super) fn wake_brain(&mut self, wait: u64) {
        let (life, at) = (self.brain.life, self.now + wait);
        if self.brain.wakes.is_none_or(|set| set > at) {
            self.brain.wakes = Some(at);
            self.at(wait, Happening::BrainWakes { life });
        }
    }

    pub(super) fn turn(&mut self) -> Kept {
        if self.now < self.brain.paused_until {
            self.wake_brain(self.brain.paused_until - self.now);
            return Ok(());
        }
        if self.brain.commit.is_some() {
            return Ok(());
        }
        // A process that stood still looks at its clock before the sockets have brought it what came meanwhile.
        let awoken = std::mem::replace(&mut self.brain.stood_still, false);
        let mut batch = if awoken { vec![] } else { self.brain.batch() };
        batch.iter_mut().for_each(|event| self.read_rows(event));
        let now = self.brain.now(self.now);
        if awoken {
            self.listens();
        }
        let Some(turn) = &mut self.brain.turn else { return Ok(()) };
        let outcome = turn.run(batch, now);
        turn.check_invariants();
        for effect in outcome.early {
            self.release(effect)?;
        }
        self.promises.written(&outcome.records, &self.brain.store, self.now)?;
        let slow = self.now < self.brain.slow_until;
        let takes = match () {
            // As in the driver: nothing is written where there is nothing to write.
            _ if outcome.records.is_empty() => 0,
            _ if slow => self.chance.between(200, 3_000),
            _ => self.chance.between(0, 3),
        };
        self.brain.commit = Some(Commit { records: outcome.records, effects: outcome.effects });
        let life = self.brain.life;
        self.at(takes, Happening::Committed { life });
        Ok(())
    }

    pub(super) fn committed(&mut self) -> Kept {
        let Some(Commit { records, effects }) = self.brain.commit.take() else { return Ok(()) };
        let took = |tally: &mut Tally| {
            if !records.is_empty() && !effects.is_empty() {
                tally.count("guard CommitFirst kept what was not durable from leaving");
            }
        };
        if self.brain.death == Some(Death::BeforeCommit) {
            took(&mut self.tally);
            return self.brain_dies();
        }
        if self.now < self.brain.full_until && !records.is_empty() {
            self.tally.count("commits refused");
            took(&mut self.tally);
            self.start_over();
            return Ok(());
        }
        self.make_durable(records)?;
        let falls = self.brain.death == Some(Death::AfterCommit);
        let last = if falls { self.chance.below(effects.len() as u64 + 1) as usize } else { effects.len() };
        if falls && last > 0 && last < effects.len() {
            self.tally.count("coordinator died between two effects");
        }
        for effect in effects.into_iter().take(last) {
            self.release(effect)?;
        }
        if falls {
            return self.brain_dies();
        }
        let wait = self.brain.deadline(self.now) - self.now;
        self.wake_brain(if self.brain.inbox.is_empty() { wait } else { 0 });
        Ok(())
    }

    /// Jobs are out there of which it has heard nothing for a while.
    pub(super) fn listens(&mut self) {
        if self.brain.store.jobs.values().any(|job| job.current_attempt().is_some()) {
            self.tally.count("guard ListenFirst gave running jobs time to be heard");
        }
    }

    /// A batch is on the disk: it is held against what was there before.
    fn make_durable(&mut self, records: Vec<Record>) -> Kept {
        self.note(&records)?;
        self.books.take(&records, &self.brain.store)?;
        self.brain.store.commit(records);
        Ok(())
    }

    fn note(&mut self, records: &[Record]) -> Kept {
        for record in records {
            match record {
                Record::Job(job) => self.note_job(job),
                Record::Attempt(attempt) => {
                    if let Some(end) = &attempt.end {
                        self.tally.count(format!("attempt ended {:?}", end.outcome));
                    } else if let Some(cause) = attempt.leave {
                        self.tally.count(format!("attempt asked to leave for {cause:?}"));
                    }
                }
                Record::Orphan(orphan) => {
                    self.tally.count("guard Fence kept a result as an orphan");
                    self.tally.count(format!("orphan {:?}", orphan.outcome));
                    if self.books.forgotten.contains(&orphan.attempt.job) {
                        self.tally.count("late word of a forgotten job");
                    }
                }
                Record::Node(node) => self.note_node(node),
                Record::Audit(audit) if !audit.action.starts_with("job.phase") => {
                    self.tally.count(format!("record {}", audit.action));
                }
                Record::Forgotten(job) => {
                    self.tally.count("job forgotten");
                    self.promises.let_go(job)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn note_job(&mut self, job: &Job) {
        let before = self.brain.store.jobs.get(&job.id).map_or("nothing", |job| state_word(&job.state));
        let after = state_word(&job.state);
        if before != after {
            self.tally.count(format!("job {before} to {after}"));
        }
    }

    fn note_node(&mut self, node: &NodeRow) {
        let closed = match node.closed {
            Some(Closed::Cordoned) => "cordoned",
            Some(Closed::Draining { .. }) => "draining",
            Some(Closed::Retired) => "retired",
            None if node.quarantine.is_some() => "kept out as two machines",
            None if node.fault().is_some() => "closed for bad ends",
            None if node.probation.is_some() => "tried again",
            None if !node.suspected_by.is_empty() => "suspected",
            None => return,
        };
        self.tally.count(format!("node {closed}"));
    }

    pub(super) fn release(&mut self, effect: Action) -> Kept {
        self.promises.effect(&effect, &self.brain.store)?;
        match effect {
            Action::Put(_) | Action::JobChanged(_) => {}
            Action::Send { message: ToAgent::Offer(ref offer), .. }
                if !self.brain.store.attempts.contains_key(&offer.attempt) =>
            {
                return Err(format!("{} was offered before its token was durable", offer.attempt));
            }
            Action::Reply { reply, result } => self.answered(reply, &result),
            Action::Admit { reply, node, session } => {
                if let Some(Waiting::Session { connection, since }) = self.brain.waiter(reply) {
                    // A hello is a word of the node only when it is let in.
                    self.promises.admitted(node, since);
                    self.brain.sessions.insert(node, (session, connection));
                }
            }
            Action::TurnAway { reply, .. } => {
                if let Some(Waiting::Session { connection, .. }) = self.brain.waiter(reply) {
                    self.tally.count("turned away");
                    self.at(1, Happening::Broken { connection });
                }
            }
            Action::Send { node, message } => {
                if matches!(message, ToAgent::Offer(_)) {
                    self.tally.count("guard TokenFirst had a token written before its offer");
                }
                self.say_to_node(node, message);
            }
            Action::Close { node, session, .. } => {
                if let Some((_, connection)) =
                    self.brain.sessions.get(&node).copied().filter(|(live, _)| *live == session)
                {
                    self.brain.sessions.remove(&node);
                    self.at(1, Happening::Broken { connection });
                }
            }
            Action::Inspect(inspect) => {
                let subject = match inspect {
                    Inspect::Dataset { id, .. } => Subject::Dataset(id),
                    Inspect::Base { id, .. } => Subject::Base(id),
                    Inspect::Job { id, .. } => Subject::Job(id),
                };
                // What comes late is large as well: jobs wait until it was read.
                let late = matches!(subject, Subject::Dataset(id) if setup::late().contains(&id));
                let takes = if late { self.chance.between(2_000, 40_000) } else { self.chance.between(20, 2_000) };
                let life = self.brain.life;
                self.at(takes, Happening::Inspected { life, subject });
            }
        }
        Ok(())
    }

    pub(super) fn say_to_node(&mut self, node: NodeId, message: ToAgent) {
        let Some((_, connection)) = self.brain.sessions.get(&node).copied() else { return };
        let message = match message {
            ToAgent::Welcome(welcome) => ToAgent::Welcome(Box::new(self.with_events(*welcome))),
            message => message,
        };
        self.say_over(connection, message);
    }

    /// Nothing is greeted twice in one session; anything else may be said twice.
    fn say_over(&mut self, connection: u64, message: ToAgent) {
        let once = matches!(message, ToAgent::Welcome(_));
        if !once && self.wire.node_of(connection).is_some_and(|node| self.wire.repeats(node, self.now)) {
            self.tally.count("said twice to an agent");
            self.carry_to_node(connection, message.clone());
        }
        self.carry_to_node(connection, message);
    }

    fn carry_to_node(&mut self, connection: u64, message: ToAgent) {
        match self.wire.arrival(connection, Way::ToNode, self.now, &mut self.chance) {
            Some(at) => self.at(at - self.now, Happening::ToNode { connection, message: Box::new(message) }),
            None => self.doom(connection),
        }
    }

    /// As the link does: only the series know up to where lines are here.
    pub(super) fn with_events(&self, welcome: Welcome) -> Welcome {
        let through = |attempt: &AttemptId| self.promises.series.get(attempt).map_or(0, |lines| lines.len() as u64);
        let events = welcome.verdicts.iter().map(|(attempt, _)| (*attempt, through(attempt))).collect();
        Welcome { events, ..welcome }
    }

    pub(super) fn brain_hears(&mut self, connection: u64, message: Said) {
        if !self.wire.is_open(connection) || self.brain.turn.is_none() {
            return;
        }
        let Some(node) = self.wire.node_of(connection) else { return };
        let id = self.nodes[node].id;
        match message {
            Said::Hello(hello) => {
                let reply = self.brain.wait(Waiting::Session { connection, since: self.now });
                let shown = Shown { serial: self.nodes[node].serial.clone(), key: Hash([7; 32]), is_newest: true };
                self.post(Event::SessionOpened { reply, node: id, shown, hello });
            }
            Said::Message(message) => {
                let session =
                    self.brain.sessions.get(&id).filter(|(_, live)| *live == connection).map(|(session, _)| *session);
                let Some(session) = session else { return };
                self.promises.arrived(id, self.now);
                self.promises.heard(&message);
                match *message {
                    FromAgent::Events(lines) => {
                        // As the link does: lines are a sign of life.
                        self.post(Event::Heard { node: id, session, message: FromAgent::Heartbeat });
                        self.keep_lines(id, connection, lines);
                    }
                    FromAgent::Report(mut report) => {
                        // As the link does: what names files that are not here is not taken, or taken without them.
                        if !report.body.files().iter().all(|file| self.books.blobs.contains_key(&file.manifest.hash)) {
                            if self.brain.store.is_current(report.attempt) {
                                return self.tally.count("report refused for want of its files");
                            }
                            match &mut report.body {
                                ReportBody::Checkpoint(checkpoint) => checkpoint.files.clear(),
                                body => body.end_mut().into_iter().for_each(|ended| ended.files.clear()),
                            }
                        }
                        self.post(Event::Heard { node: id, session, message: FromAgent::Report(report) });
                    }
                    message => self.post(Event::Heard { node: id, session, message }),
                }
            }
        }
    }

    /// As the link does: lines of an attempt that was placed there are kept, and acknowledged apart.
    pub(super) fn keep_lines(&mut self, node: NodeId, connection: u64, lines: EventLines) {
        let attempt = lines.attempt;
        let through = match self.brain.store.attempts.get(&attempt) {
            // Its job was forgotten: nobody asks for them.
            None if self.books.forgotten.contains(&attempt.job) => {
                self.tally.count("lines of a forgotten job");
                lines.first + lines.lines.len() as u64 - 1
            }
            Some(row) if row.members.iter().any(|member| member.node == node) => {
                if self.now < self.brain.full_until.max(self.brain.short_until) {
                    // Without a word: the agent sends them again.
                    return self.tally.count("lines refused");
                }
                let kept = self.promises.series.entry(attempt).or_default();
                for (index, line) in lines.lines.iter().enumerate() {
                    if lines.first + index as u64 == kept.len() as u64 + 1 {
                        kept.push(serde_json::from_str(line).expect("the simulation wrote it"));
                    }
                }
                kept.len() as u64
            }
            _ => return,
        };
        self.say_over(connection, ToAgent::EventsAcknowledged { attempt, through });
    }

    pub(super) fn inspected(&mut self, life: u64, subject: Subject) {
        if life != self.brain.life {
            return;
        }
        let trouble = self.chance.one_in(12);
        let refused = |what: &str| (Ok(Inspection::Refused { faults: vec![Fault::whole(what)] }), vec![]);
        let (result, files) = match subject {
            _ if trouble => (Err(Trouble::Ours("no child can be started".into())), vec![]),
            Subject::Dataset(id) if id == setup::BROKEN => refused("it is no dataset"),
            Subject::Dataset(_) => (Ok(Inspection::Dataset(findings::dataset())), vec![]),
            Subject::Base(_) => {
                (Ok(Inspection::Base(findings::base())), vec![setup::base_file(self.promises.base_is_other)])
            }
            Subject::Job(id) if self.promises.natures.get(&id) == Some(&Nature::Unfit) => {
                refused("they do not fit together")
            }
            // Some fit beside others on a device, and some do not.
            Subject::Job(id) => {
                let part = 1 + u64::from(id.0.as_bytes()[15] / 16) % 4;
                (Ok(Inspection::Job(findings::job(STEPS, 1 << 30, DEVICE_BYTES / 5 * part))), vec![])
            }
        };
        self.post(Event::Inspected { subject, result, files });
    }

    pub(super) fn brain_starts(&mut self) -> Kept {
        if self.brain.turn.is_none() {
            self.tally.count("coordinator started");
            self.promises.remembered(&self.brain.store, &self.books)?;
            self.brain.start(self.now);
            self.listens();
            self.wake_brain(1);
        }
        Ok(())
    }

    pub(super) fn brain_dies(&mut self) -> Kept {
        let down = self.chance.between(100, 30_000);
        self.brain_is_away(down)
    }

    /// What its writer was busy with may have become durable; what was only staged is gone.
    pub(super) fn brain_is_away(&mut self, down: u64) -> Kept {
        let durable = self.chance.one_in(2);
        if let Some(commit) = self.brain.die().filter(|_| durable) {
            self.make_durable(commit.records)?;
        }
        self.books.blobs.retain(|_, named| *named);
        for (_, connection) in self.wire.all() {
            let noticed = self.chance.below(IDLE);
            self.at(noticed, Happening::Broken { connection });
        }
        self.at(down, Happening::BrainStarts);
        Ok(())
    }

    /// As the driver does: rows of what is over come from the store, right before the batch.
    fn read_rows(&self, event: &mut Event) {
        let Event::Requested { command, rows, .. } = event else { return };
        let store = &self.brain.store;
        let start = match command {
            Command::SubmitJob { start, .. } => start,
            Command::SubmitSweep(sweep) => &sweep.start,
            Command::ForgetJobs { ids, .. } => {
                let jobs = ids.iter().filter_map(|id| store.jobs.get(id));
                rows.old = jobs.map(|job| (job.clone(), store.models.get(&ModelId(job.id.0)).cloned())).collect();
                return;
            }
            _ => return,
        };
        let ids = start.after.iter().filter_map(|after| after.job.parse::<JobId>().ok());
        rows.named = ids.filter_map(|id| store.jobs.get(&id).cloned()).collect();
    }

    /// The disk is full: memory goes, as in the driver.
    pub(super) fn start_over(&mut self) {
        for (_, connection) in self.wire.all() {
            self.at(1, Happening::Broken { connection });
        }
        self.brain.rebuild(self.now);
        self.wake_brain(500);
    }
}
