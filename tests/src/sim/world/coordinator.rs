//! The coordinator: turns, commits, effects, and what its link would do with the words of agents.

use super::{
    super::{nature::Nature, worker::STEPS},
    *,
};
use crate::findings;
use lorikeet_protocol::inspect::Fault;

impl World {
    /// Something came: it is looked at as soon as the last batch is durable.
    pub(super) fn post(&mut self, event: Event) {
        if self.brain.turn.is_some() {
            self.brain.inbox.push(event);
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
        let batch = if awoken { vec![] } else { std::mem::take(&mut self.brain.inbox) };
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
        self.brain.commit = Some(Commit { records: outcome.records, effects: outcome.effects });
        let slow = self.now < self.brain.slow_until;
        let takes = if slow { self.chance.between(200, 3_000) } else { self.chance.between(0, 3) };
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
            self.brain_dies();
            return Ok(());
        }
        if self.now < self.brain.full_until && !records.is_empty() {
            self.tally.count("commits refused");
            took(&mut self.tally);
            self.start_over();
            return Ok(());
        }
        self.note(&records);
        self.brain.store.commit(records);
        for (index, effect) in effects.into_iter().enumerate() {
            if self.brain.death == Some(Death::AfterCommit(index)) {
                self.brain_dies();
                return Ok(());
            }
            self.release(effect)?;
        }
        if matches!(self.brain.death, Some(Death::AfterCommit(_))) {
            self.brain_dies();
            return Ok(());
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

    pub(super) fn note(&mut self, records: &[Record]) {
        for record in records {
            if let Record::Job(job) = record {
                let before = self.brain.store.jobs.get(&job.id).map_or("nothing", |job| state_word(&job.state));
                let after = state_word(&job.state);
                if before != after {
                    self.tally.count(format!("job {before} to {after}"));
                }
            }
            if let Record::Attempt(attempt) = record
                && let Some(end) = &attempt.end
            {
                self.tally.count(format!("attempt ended {:?}", end.outcome));
            }
            if matches!(record, Record::Orphan(_)) {
                self.tally.count("guard Fence kept a result as an orphan");
            }
        }
    }

    pub(super) fn release(&mut self, effect: Action) -> Kept {
        self.promises.effect(&effect)?;
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
                    self.promises.arrived(node, since);
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
                let (life, takes) = (self.brain.life, self.chance.between(20, 2_000));
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
        let Some(node) = self.nodes.iter().position(|node| node.talk.is_some_and(|talk| talk.connection == connection))
        else {
            return;
        };
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
                    message => self.post(Event::Heard { node: id, session, message }),
                }
            }
        }
    }

    /// As the link does: lines of an attempt that was placed there are kept, and acknowledged apart.
    pub(super) fn keep_lines(&mut self, node: NodeId, connection: u64, lines: EventLines) {
        let attempt = lines.attempt;
        let placed = self.brain.store.attempts.get(&attempt);
        if !placed.is_some_and(|row| row.members.iter().any(|member| member.node == node)) {
            return;
        }
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
        let message = ToAgent::EventsAcknowledged { attempt, through: kept.len() as u64 };
        match self.wire.arrival(connection, Way::ToNode, self.now, &mut self.chance) {
            Some(at) => self.at(at - self.now, Happening::ToNode { connection, message: Box::new(message) }),
            None => self.doom(connection),
        }
    }

    pub(super) fn inspected(&mut self, life: u64, subject: Subject) {
        if life != self.brain.life {
            return;
        }
        let trouble = self.chance.one_in(12);
        let (result, files) = match subject {
            _ if trouble => (Err(Trouble::Ours("no child can be started".into())), vec![]),
            Subject::Dataset(_) => (Ok(Inspection::Dataset(findings::dataset())), vec![]),
            Subject::Base(_) => (Ok(Inspection::Base(findings::base())), vec![findings::file("model.safetensors", 30)]),
            Subject::Job(id) if self.promises.natures.get(&id) == Some(&Nature::Unfit) => {
                (Ok(Inspection::Refused { faults: vec![Fault::whole("they do not fit together")] }), vec![])
            }
            Subject::Job(_) => (Ok(Inspection::Job(findings::job(STEPS, 1 << 30, 20 << 30))), vec![]),
        };
        self.post(Event::Inspected { subject, result, files });
    }

    pub(super) fn brain_starts(&mut self) -> Kept {
        if self.brain.turn.is_none() {
            self.tally.count("coordinator started");
            self.promises.remembered(&self.brain.store)?;
            self.brain.start(self.now);
            self.listens();
            self.wake_brain(1);
        }
        Ok(())
    }

    pub(super) fn brain_dies(&mut self) {
        let down = self.chance.between(100, 30_000);
        self.brain_is_away(down);
    }

    pub(super) fn brain_is_away(&mut self, down: u64) {
        let durable = self.chance.one_in(2);
        self.brain.die(durable);
        for (_, connection) in self.wire.all() {
            let noticed = self.chance.below(IDLE);
            self.at(noticed, Happening::Broken { connection });
        }
        self.at(down, Happening::BrainStarts);
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
