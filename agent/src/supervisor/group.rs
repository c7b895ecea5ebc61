//! A worker's process group: who is in it, how large it is, and signals that reach nobody else.
//!
//! A pid is no name: it is used again. A process is named by pid and start time within one boot, and a signal goes through a
//! pidfd that was opened first and compared with that name afterwards.

use lorikeet_protocol::{id::BootId, worker::Holder};
use procfs::{
    ProcError, ProcResult,
    process::{Stat, Status},
};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// A process, for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
}

impl Name {
    /// The process that has this pid now.
    pub(crate) fn of(pid: u32) -> ProcResult<Self> {
        Ok(Self { pid, start_ticks: stat(pid)?.starttime })
    }

    /// The holder of a lock, if it is of this boot.
    pub(crate) fn of_holder(holder: &Holder, boot: BootId) -> Option<Self> {
        (holder.boot == boot).then_some(Self { pid: holder.pid, start_ticks: holder.start_ticks })
    }

    /// Sends a signal to exactly this process if it listens for it; a signal nobody listens for would end it, its reason unsaid.
    pub(crate) fn tell(self, signal: Signal) -> bool {
        let listens = status(self).is_some_and(|status| status.sigcgt & (1 << (signal.as_raw() - 1)) != 0);
        listens && self.signal(signal)
    }

    /// Sends a signal to exactly this process; whether it was there to get it.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        // While the pidfd is open the comparison holds for whom it refers to, or for nobody.
        Self::of(self.pid).is_ok_and(|now| now == self) && pidfd_send_signal(&pidfd, signal).is_ok()
    }
}

/// The processes of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// Whose pid is the group's number.
    leader: Name,
}

impl Group {
    pub(crate) fn led_by(leader: Name) -> Self {
        Self { leader }
    }

    /// The group in which `process` is, where it can still be asked; else the one it would lead.
    pub(crate) fn around(process: Name) -> Self {
        let leader = stat(process.pid)
            .ok()
            .filter(|stat| stat.starttime == process.start_ticks)
            .and_then(|stat| u32::try_from(stat.pgrp).ok())
            .and_then(|pgrp| Name::of(pgrp).ok());
        Self { leader: leader.unwrap_or(process) }
    }

    /// Who is alive in it. That nobody can be asked is not nobody.
    pub(crate) fn members(self) -> ProcResult<Vec<Name>> {
        // The number is free for others once every member is gone; then its leader is somebody else.
        let reused = stat(self.leader.pid).is_ok_and(|stat| stat.starttime != self.leader.start_ticks);
        let stats = answered(procfs::process::all_processes()?.map(|process| process?.stat()))?;
        let ours = stats.into_iter().filter(|stat| !reused && self.contains(stat));
        let name = |stat: Stat| Some(Name { pid: stat.pid.try_into().ok()?, start_ticks: stat.starttime });
        Ok(ours.filter_map(name).collect())
    }

    /// Main memory that only they hold: what the kernel could drop and read again does not count.
    pub(crate) fn resident_bytes(self) -> u64 {
        self.members().unwrap_or_default().into_iter().map(resident_bytes).sum()
    }

    /// Kills all of them; one that was there, if anybody was. Where nobody can be asked its leader is killed, and may be there.
    pub(crate) fn kill(self) -> Option<Name> {
        self.kill_these(self.members())
    }

    fn kill_these(self, members: ProcResult<Vec<Name>>) -> Option<Name> {
        let members = members.unwrap_or_else(|error| {
            tracing::warn!(%error, "nobody can say who is in a worker's group");
            vec![self.leader]
        });
        for member in &members {
            member.signal(Signal::KILL);
        }
        members.first().copied()
    }

    fn contains(self, stat: &Stat) -> bool {
        let number = i32::try_from(self.leader.pid).ok();
        let alive = !matches!(stat.state, 'Z' | 'X');
        alive && Some(stat.pgrp) == number && stat.starttime >= self.leader.start_ticks
    }
}

/// Those that could be asked. Who is gone, or is not ours to ask, is no worker; of anybody else nobody knows.
fn answered(asked: impl Iterator<Item = ProcResult<Stat>>) -> ProcResult<Vec<Stat>> {
    let is_no_worker = |error: &ProcError| match error {
        ProcError::NotFound(_) | ProcError::PermissionDenied(_) => true,
        // It went while it was read.
        ProcError::Io(error, _) => error.raw_os_error() == Some(Errno::SRCH.raw_os_error()),
        ProcError::Incomplete(_) | ProcError::Other(_) | ProcError::InternalError(_) => false,
    };
    asked.filter(|answer| !answer.as_ref().is_err_and(is_no_worker)).collect()
}

fn stat(pid: u32) -> ProcResult<Stat> {
    let pid = i32::try_from(pid).map_err(|_| procfs::ProcError::NotFound(None))?;
    procfs::process::Process::new(pid)?.stat()
}

fn status(process: Name) -> Option<Status> {
    procfs::process::Process::new(process.pid.try_into().ok()?).ok()?.status().ok()
}

fn resident_bytes(process: Name) -> u64 {
    let kib = status(process).map_or(0, |status| status.rssanon.unwrap_or(0) + status.rssshmem.unwrap_or(0));
    kib * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_gone_or_anothers_is_passed_over_and_who_cannot_be_asked_for_another_reason_is_not() {
        let me = || stat(std::process::id());
        let failed = |errno: Errno| Err(ProcError::Io(errno.into(), None));
        let strangers = [Err(ProcError::NotFound(None)), Err(ProcError::PermissionDenied(None)), failed(Errno::SRCH)];
        let found = answered(strangers.into_iter().chain([me()])).unwrap();
        assert_eq!(found.iter().map(|stat| stat.pid).collect::<Vec<_>>(), [std::process::id().cast_signed()]);
        assert!(answered([me(), failed(Errno::MFILE)].into_iter()).is_err());
    }

    #[test]
    fn where_nobody_can_be_asked_somebody_may_be_there() {
        let group = Group::led_by(Name { pid: u32::MAX, start_ticks: 1 });
        assert_eq!(group.kill_these(Ok(Vec::new())), None);
        let unknown = procfs::ProcError::Other("too many open files".into());
        assert_eq!(group.kill_these(Err(unknown)), Some(group.leader));
    }
}
