//! One worker, followed from its start, or from where an earlier agent left it, to its end.
//!
//! Looked at every `poll`: has it taken its lock (`worker.json` is there), has it said something (`events.jsonl`), has it grown
//! too large, has it been silent for too long, has it written too much. A worker of our own is gone when it is reaped; an adopted one when its lock is free. The lock is tried only once
//! its holder is known: trying it earlier could take it from a worker that is just starting. When nobody ever held it, it is
//! taken and kept, so that a straggler that still comes finds it held and leaves.

use super::{
    Setting, SupervisorError, bound,
    group::{Group, Name},
    spawn::Launch,
    stall::Stall,
    tail::Tail,
};
use crate::{
    beneath::{self, For},
    disk::{self, Access, At, DiskError},
    host::{Ask, Event, News},
    link::chain,
};
use lorikeet_protocol::{
    agent::StopHow,
    id::AttemptId,
    worker::{EVENTS, EventLine, Exit, HOLDER, Holder, LOCK, STOP, StopRequest},
};
use procfs::ProcResult;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::BTreeSet,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, ChildStdin},
    sync::mpsc,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

/// Between the first two kills of what a worker left behind; each further wait is twice the last, up to the second.
const KILL_AGAIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// Who is still there after so many kills cannot be killed: a driver or a disk holds it.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Nothing is left by which its end could be seen; but a lock that can be taken says it, and one is made where there is none.
const NOBODY_KNOWN: &str = "; nor is it known who held it, so its devices stay out: see that no process of this attempt runs, and remove what lies \
                            there in the lock's place";

/// What the host wants of a worker.
#[derive(Debug)]
pub(super) enum Order {
    Ask(Ask),
    Kill,
}

/// See the module.
pub(super) struct Watch {
    setting: Setting,
    id: AttemptId,
    directory: PathBuf,
    memory_limit: u64,
    orders: mpsc::Receiver<Order>,
    worker: Worker,
    /// The process that holds the lock, once it said so.
    holder: Option<Name>,
    /// Everybody who was seen in its group: what a dead one leaves on a device is found by its number.
    members: BTreeSet<u32>,
    tail: Tail,
    stall: Stall,
    measured: Option<Instant>,
    /// Whether a kill was ordered: from then on the lock may be tried even if nobody ever said that he holds it.
    killed: bool,
    /// Whether its machine was started anew since: nobody of it is left, and its lock may be tried.
    is_past: bool,
    /// Whether it wrote more events than it may: what is beyond is not read.
    overgrown: bool,
    /// Files of its that cannot be opened or read: one word of each is enough.
    unreadable: BTreeSet<&'static str>,
}

/// Whose child it is.
enum Worker {
    /// Ours, not reaped.
    Own {
        child: Box<Child>,
        group: Group,
        /// Taken out of the child, which would close it as soon as it is waited for.
        _tie: Option<ChildStdin>,
    },
    /// To be started.
    New(Box<Launch>),
    /// An earlier agent's.
    Adopted,
}

/// How the worker was found to be gone.
struct Gone {
    how: String,
    /// One of its own codes, where it was our child and left by itself.
    exit: Option<Exit>,
    /// Kept until the attempt is forgotten.
    _lock: Option<File>,
}

impl Watch {
    pub(super) fn start(setting: Setting, id: AttemptId, launch: Launch, orders: mpsc::Receiver<Order>) -> Self {
        let (directory, limit) = (launch.directory.clone(), launch.memory_limit);
        Self::new(setting, id, directory, limit, Worker::New(Box::new(launch)), orders)
    }

    pub(super) fn adopt(
        setting: Setting,
        id: AttemptId,
        directory: PathBuf,
        memory_limit: u64,
        orders: mpsc::Receiver<Order>,
    ) -> Self {
        Self::new(setting, id, directory, memory_limit, Worker::Adopted, orders)
    }

    fn new(
        setting: Setting,
        id: AttemptId,
        directory: PathBuf,
        memory_limit: u64,
        worker: Worker,
        orders: mpsc::Receiver<Order>,
    ) -> Self {
        let tail = Tail::new(&directory, EVENTS);
        let stall = Stall::new(setting.config.stall_after, Instant::now());
        let (holder, measured, members, unreadable) = (None, None, BTreeSet::new(), BTreeSet::new());
        let (killed, is_past, overgrown) = (false, false, false);
        Self {
            setting,
            id,
            directory,
            memory_limit,
            orders,
            worker,
            holder,
            members,
            tail,
            stall,
            measured,
            killed,
            is_past,
            overgrown,
            unreadable,
        }
    }

    /// Until the worker is gone and the attempt forgotten, or until the agent leaves.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let gone = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            gone = self.follow() => gone,
        };
        let Some(gone) = gone else { return };
        if let Some(exit) = gone.exit {
            self.tell(News::Exited(exit)).await;
        }
        self.tell(News::Gone { how: gone.how.clone() }).await;
        // The lock, if it was taken, is held until nobody wants the directory any more.
        tokio::select! {
            () = cancel.cancelled() => {}
            () = async { while self.orders.recv().await.is_some() {} } => {}
        }
        drop(gone);
    }

    /// `None`: the attempt was forgotten before its worker was gone.
    async fn follow(&mut self) -> Option<Gone> {
        if let Err(error) = self.spawn() {
            return Some(Gone { how: format!("could not {}", chain(&error)), exit: None, _lock: None });
        }
        let mut poll = tokio::time::interval(self.setting.config.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let exited = tokio::select! {
                biased;
                order = self.orders.recv() => {
                    self.obey(order?);
                    None
                }
                ended = exit(&mut self.worker) => Some(ended),
                _ = poll.tick() => None,
            };
            self.look_for_holder().await;
            if let Some((how, exit)) = exited {
                self.kill_rest().await;
                return Some(Gone { how, exit, _lock: None });
            }
            // The order of these two matters: a line written before the lock was freed must not be overlooked.
            let gone = self.look_for_lock();
            self.tell_events().await;
            if gone.is_some() {
                self.kill_rest().await;
                return gone;
            }
            self.measure().await;
            self.look_for_life().await;
        }
    }

    fn spawn(&mut self) -> Result<(), SupervisorError> {
        if let Worker::New(launch) = &self.worker {
            let mut child = launch.spawn(&self.setting.config)?;
            let group = group_of(&child, Name::of)?;
            let tie = child.stdin.take();
            self.worker = Worker::Own { child: Box::new(child), group, _tie: tie };
        }
        Ok(())
    }

    async fn tell(&self, news: News) {
        // The driver drops the other end only when the agent leaves.
        let _ = self.setting.events.send(Event::Worker(self.id, news)).await;
    }

    async fn tell_events(&mut self) {
        let limit = self.setting.config.events_limit;
        while !self.overgrown {
            if self.tail.place() > limit {
                return self.tell_overgrown(format!("it wrote more than {limit} bytes of events")).await;
            }
            let lines = match self.tail.read() {
                Ok(lines) if lines.is_empty() => return,
                Ok(lines) => lines,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    return self.tell_overgrown(format!("its events hold {error}")).await;
                }
                Err(error) => {
                    return self.warn_of(EVENTS, &format!("read its events: {error}"));
                }
            };
            self.stall.spoke(Instant::now());
            for line in lines {
                match serde_json::from_str::<EventLine>(&line) {
                    Ok(line) => self.tell(News::Event(Box::new(line))).await,
                    Err(error) => tracing::warn!(attempt = %self.id, %error, "a line of the worker is no event"),
                }
            }
        }
    }

    async fn tell_overgrown(&mut self, what: String) {
        self.overgrown = true;
        self.tell(News::Overgrown { what }).await;
    }

    /// A cut is megabytes read and written: not on a thread that others wait for.
    async fn bound_log(&self) {
        let (directory, limit) = (self.directory.clone(), self.setting.config.log_limit);
        let cut = tokio::task::spawn_blocking(move || bound::cut_log(&directory, limit)).await;
        if let Err(error) = cut.unwrap_or_else(|error| Err(error.into())) {
            tracing::debug!(attempt = %self.id, %error, "its log cannot be cut");
        }
    }

    async fn look_for_holder(&mut self) {
        if self.holder.is_some() {
            return;
        }
        let Ok(json) = beneath::read(&self.directory, Path::new(HOLDER)) else { return };
        let Ok(holder) = serde_json::from_slice::<Holder>(&json) else { return };
        match Name::of_holder(&holder, self.setting.boot) {
            Some(name) => {
                self.holder = Some(name);
                self.tell(News::Holds { pid: name.pid }).await;
            }
            // The machine was started anew since: whoever it was is no more, and its lock may be tried.
            None => self.is_past = true,
        }
    }

    /// An adopted worker is gone when its lock is free. One that put something else in its lock's place is when nobody of its group is there, or
    /// its machine was started anew.
    fn look_for_lock(&mut self) -> Option<Gone> {
        let may_be_tried = self.holder.is_some() || self.killed || self.is_past;
        if !matches!(self.worker, Worker::Adopted) || !may_be_tried {
            return None;
        }
        let gone = |how: &str, lock| Gone { how: how.into(), exit: None, _lock: lock };
        match self.try_lock() {
            Ok(Some(lock)) => Some(gone("its lock is free", Some(lock))),
            Ok(None) => None,
            Err(error) => {
                let nobody = |group: Group| group.members().is_ok_and(|members| members.is_empty());
                let is_gone = self.is_past || self.group().is_some_and(nobody);
                let remedy = if is_gone || self.holder.is_some() { "" } else { NOBODY_KNOWN };
                self.warn_of(LOCK, &format!("{}{remedy}", chain(&error)));
                is_gone.then(|| gone("nobody of its group is there", None))
            }
        }
    }

    fn warn_of(&mut self, file: &'static str, failed: &str) {
        if self.unreadable.insert(file) {
            tracing::warn!(attempt = %self.id, "could not {failed}");
        }
    }

    fn try_lock(&self) -> Result<Option<File>, DiskError> {
        let path = self.directory.join(LOCK);
        let file = beneath::open_file(&self.directory, Path::new(LOCK), For::Locking).at("open", &path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).at("lock", &path),
        }
    }

    /// How much it takes of memory, and of the disk for what it prints.
    async fn measure(&mut self) {
        if self.measured.is_some_and(|last| last.elapsed() < self.setting.config.memory_poll) {
            return;
        }
        self.measured = Some(Instant::now());
        self.bound_log().await;
        self.look_for_members().await;
        let Some(group) = self.group() else { return };
        let resident = group.resident_bytes();
        if resident > self.memory_limit {
            self.tell(News::TooLarge { resident, limit: self.memory_limit }).await;
        }
    }

    async fn look_for_members(&mut self) {
        let members = self.group().and_then(|group| group.members().ok()).unwrap_or_default();
        let pids: Vec<u32> = members.iter().map(|name| name.pid).filter(|pid| self.members.insert(*pid)).collect();
        if !pids.is_empty() {
            self.tell(News::Joined { pids }).await;
        }
    }

    async fn look_for_life(&mut self) {
        let now = Instant::now();
        if self.holder.is_none() {
            self.stall = Stall::new(self.setting.config.stall_after, now);
        } else if let Some(quiet) = self.stall.look(now) {
            self.tell(News::Stalled { quiet }).await;
        }
    }

    fn group(&self) -> Option<Group> {
        match &self.worker {
            Worker::Own { group, .. } => Some(*group),
            Worker::New(_) | Worker::Adopted => self.holder.map(Group::around),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Kill => {
                self.killed = true;
                if let Some(group) = self.group() {
                    group.kill();
                }
            }
            Order::Ask(Ask::SaveNow) => self.signal(Signal::USR1),
            Order::Ask(Ask::Stop(how, cause)) => {
                // First the reason, then the wake-up: a worker that is only starting finds it as well.
                let request = StopRequest { save: how == StopHow::Save, cause };
                let json = serde_json::to_vec(&request).expect("plain data is JSON");
                if let Err(error) = disk::replace(&self.directory.join(STOP), &json, Access::Plain) {
                    tracing::warn!(attempt = %self.id, "could not {}", chain(&error));
                }
                self.signal(if how == StopHow::Save { Signal::TERM } else { Signal::USR2 });
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        // A worker that does not listen yet finds stop.json as soon as it does.
        let reached = self.holder.is_some_and(|holder| holder.tell(signal));
        if !reached {
            tracing::debug!(attempt = %self.id, ?signal, "no worker to signal");
        }
    }

    /// Nobody of the group stays, and nothing it said is overlooked.
    async fn kill_rest(&mut self) {
        self.tell_events().await;
        self.look_for_members().await;
        if let Some(group) = self.group() {
            kill_all(|| group.kill(), STUCK_AFTER, async |name| self.tell(News::Stuck { pid: name.pid }).await).await;
        }
        self.tell_events().await;
    }
}

/// The group that a child leads. One that cannot be named can be neither followed nor asked, and does not stay.
fn group_of(child: &Child, name: impl Fn(u32) -> ProcResult<Name>) -> ProcResult<Group> {
    // Not reaped, so the pid is its own whatever became of it.
    let pid = child.id().expect("a child that was not waited for has a pid");
    name(pid).map(Group::led_by).inspect_err(|_| {
        let leader = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = leader.map(|leader| kill_process_group(leader, Signal::KILL)) {
            tracing::error!(pid, %error, "a worker that cannot be followed cannot be killed either");
        }
    })
}

/// Kills until nobody is left; who is still there after so long is told, once.
async fn kill_all(kill: impl Fn() -> Option<Name>, after: Duration, stuck: impl AsyncFnOnce(Name)) {
    let [mut wait, longest] = KILL_AGAIN;
    let (began, mut stuck) = (Instant::now(), Some(stuck));
    while let Some(name) = kill() {
        if began.elapsed() >= after
            && let Some(stuck) = stuck.take()
        {
            stuck(name).await;
        }
        tokio::time::sleep(wait).await;
        wait = longest.min(2 * wait);
    }
}

/// When a child of ours ends, and how; for others, never.
async fn exit(worker: &mut Worker) -> (String, Option<Exit>) {
    match worker {
        Worker::Own { child, .. } => match child.wait().await {
            Ok(status) => (status.to_string(), status.code().and_then(Exit::of_code)),
            Err(error) => (format!("waiting for it failed: {error}"), None),
        },
        Worker::New(_) | Worker::Adopted => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn a_child_that_cannot_be_named_is_killed_with_its_group() {
        let mut sleep = tokio::process::Command::new("sleep");
        let mut child = sleep.arg("600").process_group(0).spawn().unwrap();
        let unknown = |_| Err(procfs::ProcError::Other("too many open files".into()));
        assert!(group_of(&child, unknown).is_err());
        assert!(child.wait().await.unwrap().to_string().contains("signal: 9"));
    }

    #[tokio::test]
    async fn who_cannot_be_killed_is_told_once_and_waited_for() {
        let (kills, told) = (Cell::new(0), Cell::new(0));
        let name = Name { pid: 7, start_ticks: 1 };
        let kill = || {
            kills.set(kills.get() + 1);
            (kills.get() < 4).then_some(name)
        };
        kill_all(kill, Duration::ZERO, async |stuck| {
            assert_eq!(stuck, name);
            told.set(told.get() + 1);
        })
        .await;
        assert_eq!((kills.get(), told.get()), (4, 1));
        kill_all(|| None, Duration::ZERO, async |_| panic!("nobody is left")).await;
    }
}
