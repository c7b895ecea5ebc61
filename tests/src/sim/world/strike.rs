//! Faults: when they strike, whom, and their end.

use super::{Death, Happening, HostEvent, IDLE, Kept, News, STORM, Said, Way, World};
use crate::sim::Fault;
use lorikeet_protocol::{id::AttemptId, job::FailureClass};

impl World {
    /// Every world has at least five, and over all seeds every kind comes.
    pub(super) fn plan_faults(&mut self) {
        let faults = self.chance.between(5, 20);
        for _ in 0..faults {
            let kind = Fault::ALL[self.chance.below(Fault::ALL.len() as u64) as usize];
            let when = self.chance.between(6_000, STORM - 10_000);
            self.at(when, Happening::Strike(kind));
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) -> Kept {
        self.tally.count(format!("fault {fault:?}"));
        self.tally.count("faults");
        let node = self.chance.below(self.nodes.len() as u64) as usize;
        let while_ = self.chance.between(1_000, 60_000);
        let until = self.now + while_;
        match fault {
            Fault::BrainDiesBeforeCommit => self.brain.death = Some(Death::BeforeCommit),
            Fault::BrainDiesAfterCommit => self.brain.death = Some(Death::AfterCommit),
            Fault::BrainPaused => (self.brain.paused_until, self.brain.stood_still) = (until, true),
            Fault::BrainDiskFull => self.brain.full_until = self.now + self.chance.between(500, 20_000),
            Fault::BrainDiskShort => self.brain.short_until = until,
            Fault::BrainDiskSlow => self.brain.slow_until = until,
            Fault::AgentDies => self.agent_dies(node),
            Fault::AgentDiesInATurn => self.nodes[node].death = Some(self.chance.below(8)),
            Fault::AgentPaused => self.stands_still(node),
            Fault::MachineReboots => {
                self.agent_dies(node);
                let now = self.now;
                let id = self.nodes[node].id;
                let under_way = self.nodes[node].workers.iter().filter(|(_, worker)| worker.alive);
                under_way.for_each(|(attempt, _)| self.promises.struck(attempt.job, id));
                let lost = self.nodes[node].reboot(now, &mut self.chance);
                if lost > 0 {
                    self.tally.count("lines lost with the power");
                }
            }
            Fault::WorkerDies => {
                if let Some((node, attempt)) = self.some_worker() {
                    return self.kill(node, attempt);
                }
            }
            Fault::WorkerHangs | Fault::WorkerStuck => self.worker_hangs(fault == Fault::WorkerStuck),
            Fault::DeviceFails => self.worker_fails(FailureClass::Hardware),
            Fault::WorkerDiskFull => self.worker_fails(FailureClass::DiskFull),
            Fault::WorkerTooLarge => {
                if let Some((node, attempt)) = self.some_worker() {
                    self.promises.swelled(attempt.job);
                    let (life, news) = (self.nodes[node].life, News::TooLarge { resident: 2, limit: 1 });
                    if self.now >= self.nodes[node].paused_until {
                        return self.node_event(node, life, HostEvent::Worker(attempt, news));
                    }
                }
            }
            Fault::MachineSick => self.nodes[node].sick_until = until,
            Fault::FilesMissing => self.nodes[node].unprepared_until = until,
            Fault::KeyCopied => self.key_is_used_elsewhere(node),
            Fault::Cut => {
                self.wire.cut(node, Way::ToBrain, until);
                self.wire.cut(node, Way::ToNode, until);
            }
            Fault::CutToBrain => self.wire.cut(node, Way::ToBrain, until),
            Fault::CutToNode => self.wire.cut(node, Way::ToNode, until),
            Fault::ConnectionBreaks => {
                if let Some(talk) = self.nodes[node].talk {
                    self.at(1, Happening::Broken { connection: talk.connection });
                }
            }
            Fault::ClockJumps => {
                let jump = self.chance.between(0, 7_200_000) as i64 - 3_600_000;
                if self.chance.one_in(3) {
                    self.brain.skew += jump;
                } else {
                    self.nodes[node].skew += jump;
                }
            }
            Fault::AgentDiskFull => self.nodes[node].disk.full_until = until,
            Fault::AgentDiskSlow => self.nodes[node].disk.slow_until = until,
            Fault::Repeats => self.wire.repeat(node, until),
        }
        Ok(())
    }

    /// Its agent is stopped in its tracks for longer than a lease, its connection is not answered, and its workers go on.
    fn stands_still(&mut self, node: usize) {
        let (life, rest) = (self.nodes[node].life, self.chance.between(13_000, 60_000));
        if self.nodes[node].host.is_none() || self.now < self.nodes[node].paused_until {
            return;
        }
        self.nodes[node].paused_until = self.now + rest;
        // What waits on its sockets may be there before what waits in its files.
        let seen = rest + self.chance.below(500);
        self.at(seen, Happening::Resumed { node, life });
        if let Some(talk) = self.nodes[node].talk.filter(|_| rest > IDLE) {
            self.at(IDLE, Happening::Broken { connection: talk.connection });
        }
    }

    /// It says hello as the node, and nothing else: the real one is still there.
    fn key_is_used_elsewhere(&mut self, node: usize) {
        if self.brain.turn.is_none() || self.nodes[node].host.is_none() || self.is_gone(node) {
            return;
        }
        let hello = Box::new(self.nodes[node].copied_hello(self.next));
        let connection = self.wire.connect(node);
        if let Some(at) = self.wire.arrival(connection, Way::ToBrain, self.now, &mut self.chance) {
            self.at(at - self.now, Happening::ToBrain { connection, message: Said::Hello(hello) });
        }
        let stays = self.chance.between(1_000, IDLE);
        self.at(stays, Happening::Broken { connection });
    }

    pub(super) fn agent_dies(&mut self, node: usize) {
        if let Some(talk) = self.nodes[node].talk {
            let noticed = self.chance.below(super::IDLE);
            self.at(noticed, Happening::Broken { connection: talk.connection });
        }
        self.nodes[node].die();
        let down = self.chance.between(100, 40_000);
        self.at(down, Happening::NodeStarts { node });
    }

    /// One that trains: what befalls it now is its machine's fault.
    fn some_worker(&mut self) -> Option<(usize, AttemptId)> {
        let alive = self.nodes.iter().enumerate().flat_map(|(index, node)| {
            let alive = node.workers.iter().filter(|(_, worker)| worker.alive && !worker.is_stuck);
            alive.map(move |(attempt, _)| (index, *attempt))
        });
        let alive: Vec<_> = alive.collect();
        let (node, attempt) = *alive.get(self.chance.below(alive.len() as u64) as usize)?;
        self.promises.struck(attempt.job, self.nodes[node].id);
        Some((node, attempt))
    }

    fn worker_hangs(&mut self, is_stuck: bool) {
        let Some((node, attempt)) = self.some_worker() else { return };
        let (noticed, gone) = (self.chance.between(15_000, 25_000), self.chance.between(90_000, 200_000));
        let Some(worker) = self.nodes[node].workers.get_mut(&attempt) else { return };
        (worker.hangs, worker.is_stuck) = (true, is_stuck);
        let process = worker.life;
        self.at(noticed, Happening::Stalled { node, attempt, process });
        if is_stuck {
            self.at(gone, Happening::Unstuck { node, attempt, process });
        }
    }

    fn worker_fails(&mut self, class: FailureClass) {
        if let Some((node, attempt)) = self.some_worker()
            && let Some(worker) = self.nodes[node].workers.get_mut(&attempt)
        {
            worker.fails = Some(class);
        }
    }

    /// Nothing goes wrong any more.
    pub(super) fn calm(&mut self) {
        self.wire.heal();
        self.brain.death = None;
        self.brain.paused_until = 0;
        (self.brain.full_until, self.brain.short_until) = (0, 0);
        self.brain.slow_until = 0;
        for node in &mut self.nodes {
            (node.disk.full_until, node.disk.slow_until) = (0, 0);
            (node.sick_until, node.unprepared_until, node.death) = (0, 0, None);
        }
        self.at(1, Happening::BrainStarts);
    }
}
