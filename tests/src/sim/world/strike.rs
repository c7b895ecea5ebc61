//! Faults: when they strike, whom, and their end.

use super::{Death, Happening, STORM, Way, World};
use crate::sim::Fault;

impl World {
    /// Every world has at least five, and over all seeds every kind comes.
    pub(super) fn plan_faults(&mut self) {
        let faults = self.chance.between(5, 16);
        for _ in 0..faults {
            let kind = Fault::ALL[self.chance.below(Fault::ALL.len() as u64) as usize];
            let when = self.chance.between(6_000, STORM - 10_000);
            self.at(when, Happening::Strike(kind));
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        self.tally.count(format!("fault {fault:?}"));
        self.tally.count("faults");
        let node = self.chance.below(self.nodes.len() as u64) as usize;
        let while_ = self.chance.between(1_000, 60_000);
        let until = self.now + while_;
        match fault {
            Fault::BrainDiesBeforeCommit => self.brain.death = Some(Death::BeforeCommit),
            Fault::BrainDiesAfterCommit => {
                self.brain.death = Some(Death::AfterCommit(self.chance.below(4) as usize));
            }
            Fault::BrainPaused => (self.brain.paused_until, self.brain.stood_still) = (until, true),
            Fault::BrainDiskFull => self.brain.full_until = self.now + self.chance.between(500, 20_000),
            Fault::BrainDiskShort => self.brain.short_until = until,
            Fault::BrainDiskSlow => self.brain.slow_until = until,
            Fault::AgentDies => self.agent_dies(node),
            Fault::MachineReboots => {
                self.agent_dies(node);
                let now = self.now;
                let id = self.nodes[node].id;
                let under_way = self.nodes[node].workers.iter().filter(|(_, worker)| worker.alive);
                under_way.for_each(|(attempt, _)| self.promises.struck(attempt.job, id));
                self.nodes[node].reboot(now);
            }
            Fault::WorkerDies => self.worker_dies(),
            Fault::MachineSick => self.nodes[node].sick_until = until,
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
            Fault::Repeats => self.wire.repeat(node, until),
        }
    }

    fn agent_dies(&mut self, node: usize) {
        if let Some(talk) = self.nodes[node].talk {
            let noticed = self.chance.below(super::IDLE);
            self.at(noticed, Happening::Broken { connection: talk.connection });
        }
        self.nodes[node].die();
        let down = self.chance.between(100, 40_000);
        self.at(down, Happening::NodeStarts { node });
    }

    fn worker_dies(&mut self) {
        let alive = self.nodes.iter().enumerate().flat_map(|(index, node)| {
            let alive = node.workers.iter().filter(|(_, worker)| worker.alive);
            alive.map(move |(attempt, _)| (index, *attempt))
        });
        let alive: Vec<_> = alive.collect();
        if !alive.is_empty() {
            let (node, attempt) = alive[self.chance.below(alive.len() as u64) as usize];
            self.promises.struck(attempt.job, self.nodes[node].id);
            // The host is told as the supervisor would tell it.
            let told = self.kill(node, attempt);
            debug_assert!(told.is_ok());
        }
    }

    /// Nothing goes wrong any more.
    pub(super) fn calm(&mut self) {
        self.wire.heal();
        self.brain.death = None;
        self.brain.paused_until = 0;
        (self.brain.full_until, self.brain.short_until) = (0, 0);
        self.brain.slow_until = 0;
        self.nodes.iter_mut().for_each(|node| (node.disk.full_until, node.sick_until) = (0, 0));
        self.at(1, Happening::BrainStarts);
    }
}
