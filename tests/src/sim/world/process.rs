//! The workers: steps, lines, ends, and how their agents hear of them.

use super::*;

impl World {
    pub(super) fn worker_holds(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let (now, mono) = (self.nodes[node].now(self.now).wall, self.now);
        let Some(worker) = self.process(node, attempt, process) else { return Ok(()) };
        worker.hold(now, mono);
        let takes = self.chance.between(100, 1_000);
        self.at(takes, Happening::WorkerWorks { node, attempt, process });
        self.tell_news(node, attempt)
    }

    pub(super) fn worker_works(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let (now, sick) = (self.nodes[node].now(self.now).wall, self.now < self.nodes[node].sick_until);
        let Some(worker) = self.process(node, attempt, process) else { return Ok(()) };
        if worker.hangs {
            return Ok(());
        }
        let goes_on = worker.work(now);
        let doomed = worker.is_doomed();
        let dies = sick || doomed;
        if goes_on && dies {
            self.tally.count("worker crashed");
            if sick {
                self.promises.struck(attempt.job, self.nodes[node].id);
            }
            return self.kill(node, attempt);
        }
        if goes_on {
            let takes = self.chance.between(300, 4_000);
            self.at(takes, Happening::WorkerWorks { node, attempt, process });
            return self.tell_news(node, attempt);
        }
        worker.alive = false;
        self.tell_news(node, attempt)
    }

    pub(super) fn process(&mut self, node: usize, attempt: AttemptId, process: u64) -> Option<&mut Worker> {
        self.nodes[node].workers.get_mut(&attempt).filter(|worker| worker.alive && worker.life == process)
    }

    pub(super) fn kill(&mut self, node: usize, attempt: AttemptId) -> Kept {
        if let Some(worker) = self.nodes[node].workers.get_mut(&attempt).filter(|worker| !worker.is_stuck) {
            worker.alive = false;
        }
        self.tell_news(node, attempt)
    }

    /// The supervisor has waited long enough for a word.
    pub(super) fn stalled(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let there = self.process(node, attempt, process).is_some_and(|worker| worker.hangs);
        if !there || self.nodes[node].host.is_none() || self.now < self.nodes[node].paused_until {
            if there {
                self.at(5_000, Happening::Stalled { node, attempt, process });
            }
            return Ok(());
        }
        self.hosted(node, attempt, News::Stalled { quiet: std::time::Duration::from_secs(20) })
    }

    pub(super) fn unstuck(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let Some(worker) = self.process(node, attempt, process) else { return Ok(()) };
        worker.is_stuck = false;
        self.kill(node, attempt)
    }

    /// An agent that restarts reads the directory from its beginning.
    pub(super) fn adopt(&mut self, node: usize, attempt: AttemptId) -> Kept {
        let Some(worker) = self.nodes[node].workers.get_mut(&attempt) else {
            return self.hosted(node, attempt, News::Gone { how: "its directory is gone".into() });
        };
        worker.is_new_to_the_agent();
        self.tell_news(node, attempt)
    }

    /// It goes on where it stood still, and sees what its workers did meanwhile.
    pub(super) fn resumed(&mut self, node: usize, life: u64) -> Kept {
        if self.nodes[node].life != life {
            return Ok(());
        }
        let there: Vec<_> = self.nodes[node].workers.keys().copied().collect();
        there.into_iter().try_for_each(|attempt| self.tell_news(node, attempt))
    }

    /// What the supervisor sees, in order: the lock, lines, the end. An agent that stands still sees nothing.
    pub(super) fn tell_news(&mut self, node: usize, attempt: AttemptId) -> Kept {
        loop {
            if self.nodes[node].host.is_none() || self.now < self.nodes[node].paused_until {
                return Ok(());
            }
            let Some(worker) = self.nodes[node].workers.get_mut(&attempt) else { return Ok(()) };
            let news = if worker.holds && !std::mem::replace(&mut worker.told_holds, worker.holds) {
                News::Holds { pid: 1 }
            } else if let Some(line) = worker.lines.get(worker.told).cloned() {
                worker.told += 1;
                News::Event(Box::new(line))
            } else if !worker.alive && !std::mem::replace(&mut worker.told_gone, !worker.alive) {
                self.look_soon(node);
                News::Gone { how: "its process is no more".into() }
            } else {
                return Ok(());
            };
            self.hosted(node, attempt, news)?;
        }
    }

    pub(super) fn hosted(&mut self, node: usize, attempt: AttemptId, news: News) -> Kept {
        let life = self.nodes[node].life;
        self.node_event(node, life, HostEvent::Worker(attempt, news))
    }
}
