//! The agents: what they hear, decide, keep on their disks and carry out.

use super::*;
use crate::findings;

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
            if again > 0 {
                self.tally.count("lines sent again");
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
        self.act(node, actions)
    }

    pub(super) fn node_hears(&mut self, connection: u64, message: ToAgent) {
        if !self.wire.is_open(connection) {
            return;
        }
        let Some(node) = self.nodes.iter().position(|node| node.talk.is_some_and(|talk| talk.connection == connection))
        else {
            return;
        };
        let life = self.nodes[node].life;
        let mut events = vec![];
        match &message {
            ToAgent::Welcome(welcome) => {
                let mut delivered = self.nodes[node].resume(welcome.session, welcome.last_report);
                for (attempt, through) in &welcome.events {
                    if let Some(worker) = self.nodes[node].workers.get_mut(attempt) {
                        worker.resume(*through);
                    }
                }
                let known = self.nodes[node].host.as_ref().map(|host| host.known()).unwrap_or_default();
                let done = known.into_iter().filter(|known| known.phase == lorikeet_protocol::job::AttemptPhase::Done);
                delivered
                    .extend(done.map(|known| known.id).filter(|id| !self.nodes[node].waits(*id)).collect::<Vec<_>>());
                events.push(HostEvent::Heard(message.clone()));
                events.extend(delivered.into_iter().map(HostEvent::Delivered));
            }
            ToAgent::Acknowledged { through } => {
                let delivered = self.nodes[node].acknowledged(*through);
                events.extend(delivered.into_iter().map(HostEvent::Delivered));
            }
            ToAgent::EventsAcknowledged { attempt, through } => {
                if let Some(worker) = self.nodes[node].workers.get_mut(attempt) {
                    worker.acknowledge(*through, self.now);
                }
                events.push(HostEvent::Heard(message.clone()));
            }
            _ => events.push(HostEvent::Heard(message.clone())),
        }
        for event in events {
            // A host that is busy with a full disk hears it when that is over; the agenda keeps the order.
            let happened = self.node_event(node, life, event);
            debug_assert!(happened.is_ok());
        }
    }

    pub(super) fn node_event(&mut self, node: usize, life: u64, event: HostEvent) -> Kept {
        let now = self.nodes[node].now(self.now);
        let ours = &mut self.nodes[node];
        let Some(host) = ours.host.as_mut().filter(|_| ours.life == life) else { return Ok(()) };
        let actions = host.handle(event, now);
        host.check_invariants();
        self.act(node, actions)
    }

    /// Reports and records first; while the disk takes nothing, nothing else happens.
    pub(super) fn act(&mut self, node: usize, actions: Vec<HostAction>) -> Kept {
        self.nodes[node].undone.extend(actions);
        let (life, full) = (self.nodes[node].life, self.now < self.nodes[node].disk.full_until);
        if full {
            self.tally.count("agent waits for its disk");
            if !std::mem::replace(&mut self.nodes[node].waits_for_disk, true) {
                self.at(1_000, Happening::DiskAgain { node, life });
            }
            return Ok(());
        }
        let undone = std::mem::take(&mut self.nodes[node].undone);
        let now = self.now;
        for effect in self.nodes[node].keep(undone, now) {
            self.carry_out(node, effect)?;
        }
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

    /// Whatever waited goes on: actions, what is to be said, and the alarm, which may have rung meanwhile.
    pub(super) fn disk_again(&mut self, node: usize, life: u64) -> Kept {
        if self.nodes[node].life != life {
            return Ok(());
        }
        self.nodes[node].waits_for_disk = false;
        self.act(node, vec![])
    }

    /// Reports, then lines, as far as they have not left.
    pub(super) fn pump(&mut self, node: usize) {
        for report in self.nodes[node].unsent() {
            self.tell(node, FromAgent::Report(report));
        }
        if self.nodes[node].talk.is_none_or(|talk| talk.session.is_none()) {
            return;
        }
        let now = self.now;
        let waiting: Vec<_> =
            self.nodes[node].workers.iter_mut().filter_map(|(attempt, worker)| worker.leaves(*attempt, now)).collect();
        waiting.into_iter().for_each(|lines| self.tell(node, FromAgent::Events(lines)));
    }

    pub(super) fn carry_out(&mut self, node: usize, action: HostAction) -> Kept {
        let life = self.nodes[node].life;
        match action {
            HostAction::Report(..) | HostAction::Keep(_) | HostAction::KeepQuarantine(_) => {}
            HostAction::Test(device) => self.node_event(node, life, HostEvent::Tested(device, Ok(())))?,
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
                let mut worker = Worker::new(&offer, process, nature);
                (worker.lines, worker.acknowledged) = known.unwrap_or_default();
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
            HostAction::Forget(attempt) => self.nodes[node].forget(attempt),
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
                HostEvent::CheckpointGivenUp(attempt, made.seq, "it is not yours any more".into())
            }
            Upload::Checkpoint(made) => {
                let files = vec![findings::file("manifest.json", 40)];
                let checkpoint = Checkpoint { step: made.step, loss: made.loss, kind: made.kind, files };
                HostEvent::CheckpointUploaded(attempt, made.seq, Box::new(checkpoint))
            }
            Upload::Adapter if refused => HostEvent::AdapterGivenUp(
                attempt,
                lorikeet_agent::host::Fault::new(
                    lorikeet_protocol::job::Outcome::Superseded,
                    "it is not yours any more",
                ),
            ),
            Upload::Adapter => {
                HostEvent::AdapterUploaded(attempt, vec![findings::file("adapter_model.safetensors", 41)], None)
            }
        };
        self.node_event(node, life, event)
    }
}
