//! The agents: what they hear, decide, keep on their disks and carry out.

use super::{super::worker::SEND_AGAIN, *};
use crate::findings;
use lorikeet_agent::host::Fault;
use lorikeet_protocol::{
    agent::{Report, Verdict},
    file::NamedFile,
    job::{AttemptPhase, Outcome},
};
use std::collections::BTreeSet;

impl World {
    pub(super) fn heartbeat(&mut self, node: usize, life: u64) {
        if self.nodes[node].life != life {
            return;
        }
        if self.nodes[node].talk.is_some_and(|talk| talk.session.is_some()) {
            self.tell(node, FromAgent::Heartbeat);
            let now = self.now;
            let again = self.nodes[node]
                .workers
                .values_mut()
                .filter_map(|worker| worker.sends_again(now).then_some(()))
                .count();
            self.tell_devices(node);
            if again > 0 {
                self.tally.count("lines sent again");
            }
            let reports = self.nodes[node].says_again(now, SEND_AGAIN);
            if reports {
                self.tally.count("reports sent again");
            }
            if again > 0 || reports {
                self.pump(node);
            }
        }
        self.at(5_000, Happening::Heartbeat { node, life });
    }

    pub(super) fn node_starts(&mut self, node: usize) -> Kept {
        if self.nodes[node].host.is_some() {
            return Ok(());
        }
        self.tally.count("agent started");
        let actions = self.nodes[node].start(self.now);
        let life = self.nodes[node].life;
        self.at(1, Happening::Heartbeat { node, life });
        self.dial_soon(node);
        self.act(node, actions)?;
        self.turns(node)
    }

    pub(super) fn node_hears(&mut self, connection: u64, message: ToAgent) -> Kept {
        if !self.wire.is_open(connection) {
            return Ok(());
        }
        let Some(node) = self.nodes.iter().position(|node| node.talk.is_some_and(|talk| talk.connection == connection))
        else {
            return Ok(());
        };
        let life = self.nodes[node].life;
        let mut events = vec![];
        match &message {
            ToAgent::Welcome(welcome) => return self.welcomed(node, welcome),
            ToAgent::Acknowledged { through } => {
                let delivered = self.nodes[node].acknowledged(*through, self.now);
                events.extend(delivered.into_iter().map(HostEvent::Delivered));
            }
            ToAgent::EventsAcknowledged { attempt, through } => {
                if let Some(worker) = self.nodes[node].workers.get_mut(attempt) {
                    worker.acknowledge(*through, self.now);
                }
                events.push(HostEvent::Heard(message));
            }
            _ => events.push(HostEvent::Heard(message)),
        }
        events.into_iter().try_for_each(|event| self.node_event(node, life, event))
    }

    /// As the agent's driver: what is in the outbox goes before what the host thinks of it.
    fn welcomed(&mut self, node: usize, welcome: &Welcome) -> Kept {
        let (life, ours) = (self.nodes[node].life, &mut self.nodes[node]);
        let mut delivered = ours.resume(welcome.session, welcome.last_report);
        for (attempt, worker) in &mut ours.workers {
            let said = welcome.events.iter().find(|(known, _)| known == attempt).map(|(_, through)| *through);
            worker.resume(said.unwrap_or(worker.acknowledged));
        }
        let wanted = welcome.verdicts.iter().filter(|(_, verdict)| *verdict == Verdict::Report).map(|(id, _)| *id);
        let missing: BTreeSet<_> = wanted.filter(|id| !ours.says_the_end(*id)).collect();
        self.node_event(node, life, HostEvent::Heard(ToAgent::Welcome(Box::new(welcome.clone()))))?;
        let known = self.nodes[node].host.as_ref().map(|host| host.known()).unwrap_or_default();
        delivered.extend(known.into_iter().filter(|known| known.phase == AttemptPhase::Done).map(|known| known.id));
        delivered.retain(|id| !self.nodes[node].waits(*id) && !missing.contains(id));
        for id in missing {
            self.tally.count("end asked for again");
            self.node_event(node, life, HostEvent::EndMissing(id))?;
        }
        delivered.into_iter().try_for_each(|id| self.node_event(node, life, HostEvent::Delivered(id)))
    }

    /// What happens waits for the turn that is being carried out, and for the disk.
    pub(super) fn node_event(&mut self, node: usize, life: u64, event: HostEvent) -> Kept {
        if self.nodes[node].life == life && self.nodes[node].host.is_some() {
            self.nodes[node].inbox.push_back(event);
        }
        self.turns(node)
    }

    /// As the agent's driver: everything that waits is one turn, and what comes of it is written once.
    fn turns(&mut self, node: usize) -> Kept {
        let life = self.nodes[node].life;
        while self.nodes[node].life == life && !self.nodes[node].in_turn && self.nodes[node].waits_for_disk.is_none() {
            let now = self.nodes[node].now(self.now);
            let ours = &mut self.nodes[node];
            let Some(host) = ours.host.as_mut().filter(|_| !ours.inbox.is_empty()) else { return Ok(()) };
            let actions = ours.inbox.drain(..).flat_map(|event| host.handle(event, now)).collect();
            host.check_invariants();
            self.act(node, actions)?;
        }
        Ok(())
    }

    /// Reports and records first; while the disk takes nothing, nothing else happens.
    pub(super) fn act(&mut self, node: usize, actions: Vec<HostAction>) -> Kept {
        self.nodes[node].undone.extend(actions);
        let (life, disk) = (self.nodes[node].life, &self.nodes[node].disk);
        let writes = |action: &HostAction| {
            matches!(action, HostAction::Report(..) | HostAction::Keep(_) | HostAction::KeepQuarantine(_))
        };
        let wait = match () {
            _ if !self.nodes[node].undone.iter().any(writes) => None,
            _ if self.now < disk.full_until => Some((1_000, "agent waits for its disk")),
            _ if self.now < disk.slow_until => Some((self.chance.between(200, 3_000), "agent waits for a slow disk")),
            _ => None,
        };
        if let Some((wait, word)) = wait {
            self.tally.count(word);
            self.nodes[node].waits_for_disk = Some(self.now);
            self.at(wait, Happening::DiskAgain { node, life });
            return Ok(());
        }
        self.carry_on(node)
    }

    /// Everything that was decided, one thing after the other; the process may end between any two.
    fn carry_on(&mut self, node: usize) -> Kept {
        let (life, now) = (self.nodes[node].life, self.now);
        self.nodes[node].in_turn = true;
        for (done, action) in self.nodes[node].in_order().into_iter().enumerate() {
            if self.nodes[node].falls() {
                self.tally.count(if done > 0 {
                    "agent died in the middle of a turn"
                } else {
                    "agent died before a turn"
                });
                self.agent_dies(node);
                return Ok(());
            }
            self.nodes[node].judges_rightly(&action)?;
            if let Some(effect) = self.nodes[node].write(action, now) {
                self.carry_out(node, effect)?;
            }
        }
        self.nodes[node].in_turn = false;
        self.pump(node);
        let due = self.nodes[node].host.as_ref().and_then(|host| host.next_deadline());
        if let Some(due) = due {
            let passed = self.nodes[node].now(self.now).mono;
            let wait = due.saturating_sub(passed).as_millis() as u64 + 1;
            if self.nodes[node].wakes.is_none_or(|set| set > self.now + wait) {
                self.nodes[node].wakes = Some(self.now + wait);
                self.at(wait, Happening::NodeWakes { node, life });
            }
        }
        Ok(())
    }

    /// Whatever waited goes on: what was decided, then what came meanwhile. Who can report nothing for long lets its session go.
    pub(super) fn disk_again(&mut self, node: usize, life: u64) -> Kept {
        let Some(since) = self.nodes[node].waits_for_disk.filter(|_| self.nodes[node].life == life) else {
            return Ok(());
        };
        if self.now < self.nodes[node].disk.full_until {
            if let Some(talk) = self.nodes[node].talk.filter(|_| self.now - since >= SEND_AGAIN) {
                self.tally.count("session let go for a full disk");
                self.at(1, Happening::Broken { connection: talk.connection });
            }
            self.at(1_000, Happening::DiskAgain { node, life });
            return Ok(());
        }
        self.nodes[node].waits_for_disk = None;
        self.carry_on(node)?;
        self.turns(node)
    }

    /// Reports, then lines, as far as they have not left. Files that a report names are offered again first: they may be gone with the
    /// coordinator that had them.
    pub(super) fn pump(&mut self, node: usize) {
        let now = self.now;
        for report in self.nodes[node].unsent(now) {
            self.offer_files(&report);
            self.tell(node, FromAgent::Report(report));
        }
        if self.nodes[node].talk.is_none_or(|talk| talk.session.is_none()) {
            return;
        }
        let waiting: Vec<_> =
            self.nodes[node].workers.iter_mut().filter_map(|(attempt, worker)| worker.leaves(*attempt, now)).collect();
        waiting.into_iter().for_each(|lines| self.tell(node, FromAgent::Events(lines)));
    }

    fn offer_files(&mut self, report: &Report) {
        if self.brain.turn.is_none() || !self.brain.store.is_current(report.attempt) {
            return;
        }
        for file in report.body.files() {
            if self.books.blobs.insert(file.manifest.hash, false).is_none() {
                self.tally.count("files offered again");
            }
        }
    }

    pub(super) fn looks(&mut self, node: usize, life: u64) -> Kept {
        if self.nodes[node].life != life {
            return Ok(());
        }
        self.nodes[node].looks = false;
        let seen = self.nodes[node].look();
        self.node_event(node, life, HostEvent::Looked(seen))?;
        self.tell_devices(node);
        Ok(())
    }

    /// A test is over; what it changes is seen at the next look.
    pub(super) fn tested(&mut self, node: usize, life: u64, device: DeviceId) -> Kept {
        if self.nodes[node].life == life {
            self.look_soon(node);
        }
        self.node_event(node, life, HostEvent::Tested(device, Ok(())))
    }

    /// In a session, as far as they changed since the coordinator heard of them.
    fn tell_devices(&mut self, node: usize) {
        let now = self.nodes[node].usable();
        let in_session = self.nodes[node].talk.is_some_and(|talk| talk.session.is_some());
        if in_session && self.nodes[node].told != now {
            self.tally.count(if now.contains(&false) { "device out" } else { "device back" });
            let devices = self.nodes[node].host.as_ref().map(|host| host.devices().to_vec()).unwrap_or_default();
            self.nodes[node].told = now;
            self.tell(node, FromAgent::Devices(devices));
        }
    }

    /// Soon, once.
    pub(super) fn look_soon(&mut self, node: usize) {
        let life = self.nodes[node].life;
        if !std::mem::replace(&mut self.nodes[node].looks, true) {
            let wait = self.chance.between(200, 2_000);
            self.at(wait, Happening::Looks { node, life });
        }
    }

    pub(super) fn carry_out(&mut self, node: usize, action: HostAction) -> Kept {
        let life = self.nodes[node].life;
        match action {
            HostAction::Report(..) | HostAction::Keep(_) | HostAction::KeepQuarantine(_) => {}
            HostAction::Test(device) => {
                let takes = self.chance.between(500, 10_000);
                self.look_soon(node);
                self.at(takes, Happening::Tested { node, life, device });
            }
            HostAction::Tell(message) => {
                if self.nodes[node].talk.is_some_and(|talk| talk.session.is_some()) {
                    self.tell(node, message);
                }
            }
            HostAction::Prepare(offer) => {
                let (attempt, takes) = (offer.attempt, self.chance.between(20, 3_000));
                self.nodes[node].work.insert(attempt);
                self.at(takes, Happening::Prepared { node, life, attempt });
            }
            HostAction::Abandon(attempt) => drop(self.nodes[node].work.remove(&attempt)),
            HostAction::Start(offer) => {
                let process = self.chance.below(u64::MAX);
                let attempt = offer.attempt;
                let known =
                    self.nodes[node].workers.get(&attempt).map(|worker| (worker.lines.clone(), worker.acknowledged));
                let nature = self.promises.natures[&attempt.job];
                let mut worker = Worker::new(&offer, process, nature, self.now);
                (worker.lines, worker.acknowledged) = known.unwrap_or_default();
                self.nodes[node].has_room(&worker)?;
                self.nodes[node].workers.insert(attempt, worker);
                let takes = self.chance.between(20, 1_500);
                self.at(takes, Happening::WorkerHolds { node, attempt, process });
            }
            HostAction::Adopt(offer) => self.adopt(node, offer.attempt)?,
            HostAction::Ask(attempt, ask) => {
                let now = self.nodes[node].now(self.now).wall;
                if let Some(worker) = self.nodes[node].workers.get_mut(&attempt).filter(|worker| worker.alive) {
                    worker.ask(ask, now);
                }
                self.tell_news(node, attempt)?;
            }
            HostAction::Kill(attempt) => self.kill(node, attempt)?,
            HostAction::UploadCheckpoint(attempt, made) => self.upload(node, attempt, Upload::Checkpoint(made)),
            HostAction::UploadAdapter(attempt, _) => self.upload(node, attempt, Upload::Adapter),
            HostAction::ReadInputs(offer, _) => {
                self.node_event(node, life, HostEvent::InputsRead(offer.attempt, vec![]))?;
            }
            HostAction::Forget(attempt) => {
                if let Some(worker) = self.nodes[node].workers.get(&attempt) {
                    self.promises.dropped(attempt, worker, &self.books)?;
                }
                self.nodes[node].forget(attempt);
            }
        }
        Ok(())
    }

    pub(super) fn prepared(&mut self, node: usize, life: u64, attempt: AttemptId) -> Kept {
        if self.nodes[node].life != life || !self.nodes[node].work.contains(&attempt) {
            return Ok(());
        }
        if self.nodes[node].talk.is_none() {
            // Its files are still to be fetched.
            self.at(1_000, Happening::Prepared { node, life, attempt });
            return Ok(());
        }
        self.nodes[node].work.remove(&attempt);
        if self.now < self.nodes[node].unprepared_until {
            self.promises.struck(attempt.job, self.nodes[node].id);
            let fault = Fault::new(Outcome::PrepareFailed, "a file did not come");
            return self.node_event(node, life, HostEvent::PrepareFailed(attempt, fault));
        }
        self.node_event(node, life, HostEvent::Prepared(attempt))
    }

    pub(super) fn upload(&mut self, node: usize, attempt: AttemptId, what: Upload) {
        let (life, takes) = (self.nodes[node].life, self.chance.between(50, 1_500));
        self.nodes[node].work.insert(attempt);
        self.at(takes, Happening::Uploaded { node, life, attempt, what });
    }

    pub(super) fn uploaded(&mut self, node: usize, life: u64, attempt: AttemptId, what: Upload) -> Kept {
        if self.nodes[node].life != life || !self.nodes[node].work.contains(&attempt) {
            return Ok(());
        }
        let through = self.nodes[node].talk.is_some_and(|talk| talk.session.is_some()) && self.brain.turn.is_some();
        if !through {
            self.at(1_000, Happening::Uploaded { node, life, attempt, what });
            return Ok(());
        }
        let refused = !self.brain.store.is_current(attempt);
        let event = match what {
            Upload::Checkpoint(made) if refused => {
                HostEvent::CheckpointGivenUp(attempt, made.seq, Some("it is not yours any more".into()))
            }
            Upload::Checkpoint(made) => {
                let files = vec![self.arrives("manifest.json", attempt, made.step)];
                let checkpoint = Checkpoint { step: made.step, loss: made.loss, kind: made.kind, files };
                HostEvent::CheckpointUploaded(attempt, made.seq, Box::new(checkpoint))
            }
            Upload::Adapter if refused => {
                HostEvent::AdapterGivenUp(attempt, Fault::new(Outcome::Superseded, "it is not yours any more"))
            }
            Upload::Adapter => {
                let file = self.arrives("adapter_model.safetensors", attempt, u64::MAX);
                HostEvent::AdapterUploaded(attempt, vec![file], None)
            }
        };
        self.node_event(node, life, event)
    }

    /// A file of its own is with the coordinator, staged.
    fn arrives(&mut self, path: &str, attempt: AttemptId, step: u64) -> NamedFile {
        let mut file = findings::file(path, 40);
        let parts = [attempt.job.0.as_u128() as u64, u64::from(attempt.token.number), step, 40];
        parts.iter().zip(file.manifest.hash.0.chunks_mut(8)).for_each(|(part, bytes)| {
            bytes.copy_from_slice(&part.to_le_bytes());
        });
        file.manifest.chunks = vec![file.manifest.hash];
        self.books.blobs.entry(file.manifest.hash).or_insert(false);
        file
    }
}
