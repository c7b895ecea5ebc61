//! The workers: steps, lines, ends, and how their agents hear of them.

use super::*;

impl World {
    pub(super) fn worker_holds(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let now = self.nodes[node].now(self.now).wall;
        let Some(worker) = self.process(node, attempt, process) else { return Ok(()) };
        worker.hold(now);
        let takes = self.chance.between(100, 1_000);
        self.at(takes, Happening::WorkerWorks { node, attempt, process });
        self.hosted(node, attempt, News::Holds { pid: 1 })?;
        self.tell_news(node, attempt)
    }

    pub(super) fn worker_works(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let (now, sick) = (self.nodes[node].now(self.now).wall, self.now < self.nodes[node].sick_until);
        let Some(worker) = self.process(node, attempt, process) else { return Ok(()) };
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
        self.tell_news(node, attempt)?;
        self.hosted(node, attempt, News::Gone { how: "exit status: 0".into() })
    }

    pub(super) fn process(&mut self, node: usize, attempt: AttemptId, process: u64) -> Option<&mut Worker> {
        self.nodes[node].workers.get_mut(&attempt).filter(|worker| worker.alive && worker.life == process)
    }

    pub(super) fn kill(&mut self, node: usize, attempt: AttemptId) -> Kept {
        if let Some(worker) = self.nodes[node].workers.get_mut(&attempt) {
            worker.alive = false;
        }
        self.tell_news(node, attempt)?;
        self.hosted(node, attempt, News::Gone { how: "signal: 9 (SIGKILL)".into() })
    }

    /// An agent that restarts reads the directory from its beginning.
    pub(super) fn adopt(&mut self, node: usize, attempt: AttemptId) -> Kept {
        let Some(worker) = self.nodes[node].workers.get_mut(&attempt) else {
            return self.hosted(node, attempt, News::Gone { how: "its directory is gone".into() });
        };
        worker.told = 0;
        let (holds, alive) = (worker.holds, worker.alive);
        if holds {
            self.hosted(node, attempt, News::Holds { pid: 1 })?;
        }
        self.tell_news(node, attempt)?;
        if alive { Ok(()) } else { self.hosted(node, attempt, News::Gone { how: "the lock is free".into() }) }
    }

    pub(super) fn tell_news(&mut self, node: usize, attempt: AttemptId) -> Kept {
        loop {
            if self.nodes[node].host.is_none() {
                return Ok(());
            }
            let Some(worker) = self.nodes[node].workers.get_mut(&attempt) else { return Ok(()) };
            let Some(line) = worker.lines.get(worker.told).cloned() else { return Ok(()) };
            worker.told += 1;
            self.hosted(node, attempt, News::Event(Box::new(line)))?;
        }
    }

    pub(super) fn hosted(&mut self, node: usize, attempt: AttemptId, news: News) -> Kept {
        let life = self.nodes[node].life;
        self.node_event(node, life, HostEvent::Worker(attempt, news))
    }
}
