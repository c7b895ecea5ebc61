//! Devices that are not offered for now: a dead worker of ours still holds memory of them, or one of them failed a worker.
//!
//! ```text
//! a worker cannot be killed ──────────────────────────────────────────► out ─► gone ─► tested, as below
//! worker gone ─► remembered with its devices ─► holds nothing at a look: forgotten
//!                                    │    └► a look does not say: remembered, for an hour where none ever will, and tested meanwhile
//!                                    └► holds memory at a look, `release_grace` later ─┐
//! an attempt ended `hardware` ───────────────────────────────────────────────────────┤
//! its driver says that it failed, or does not name it any more ────────────────────────┤
//! a GPU that this agent sees for the first time, at no work ─────────────────────────┴► out ─► tested ─► offered again
//!                                                                                           ▲       │
//!                                                                                           └─ wait ┘ failed
//! ```
//! One that failed by its driver's word again and again, though it passed its test each time, is not tested any more: it stays out until
//! the agent starts anew, for which somebody has looked at it. What a driver says of one that is out already is told of the same failure, in
//! a later look perhaps, or of a test: that counts no further one.
//!
//! A device for which there is no test is offered again after an hour: what mends itself has done so by then, and what has not takes
//! it out again.
//!
//! A dead worker holds memory where the driver names a process of its group. Where it names none, that proves something only of a driver that has
//! named a worker of ours before: in a container its numbers may be the host's, and its list empty. Otherwise the memory in use decides:
//! what it was when the worker was started, and [`MARGIN`], is what it has to come back to while none of ours works there. More may
//! be somebody else's who came meanwhile; so what only the memory says is believed for an hour, and then tested like all else.
//!
//! The test is a child process that computes something small on the device and compares. It begins once nobody of ours holds the
//! device or works on it; one device is tested at a time. What somebody else holds is only memory that is not free. Which
//! devices are out outlives the agent.

use super::Drawn;
use lorikeet_protocol::{
    id::{AttemptId, DeviceId},
    job::{Device, DeviceKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Between two tests of a device that failed one: what mends itself at all does so in minutes.
const TEST_AGAIN: Duration = Duration::from_secs(600);

/// A device that nobody can test rests for so long.
const REST: Duration = Duration::from_secs(3600);

/// By how much the memory in use may differ where a worker left nothing: what the driver keeps for itself moves by some tens of MiB, and
/// a process that computes on a GPU holds at least its context, 300 MiB and more.
const MARGIN: u64 = 256 << 20;

/// A device that fails so often in [`WITHIN`] by its driver's word is not believed any more: its test does not find what it has.
const FAILURES: usize = 3;
const WITHIN: Duration = Duration::from_secs(24 * 3600);

/// Why a device has not passed its test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It does not compute as it should, and what was wrong.
    Failed(String),
    /// There is no test for it.
    Untested,
}

/// One look at the devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// As the driver offers them.
    pub devices: Vec<Device>,
    /// Which processes hold memory of which; a device of which the driver did not say is not in it.
    pub holders: BTreeMap<DeviceId, Holders>,
    /// What went wrong with which since the last look, by the driver's own word.
    pub faults: BTreeMap<DeviceId, String>,
    /// What each says of the energy that it takes.
    pub drawn: BTreeMap<DeviceId, Drawn>,
}

/// Processes on a device, with the bytes that they hold of it where the driver says.
pub type Holders = BTreeMap<u32, Option<u64>>;

/// Devices that are out, by why: what outlives the agent.
pub type Reasons = BTreeMap<DeviceId, String>;

/// The dead that may still hold something, and the devices that are out.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    dead: Vec<Dead>,
    /// Whether the driver calls processes of ours by the numbers that we know.
    knows_ours: bool,
    /// Devices on which somebody of ours is alive.
    at_work: BTreeSet<DeviceId>,
    out: BTreeMap<DeviceId, Out>,
    /// GPUs that were seen before.
    met: BTreeSet<DeviceId>,
    /// When each failed by its driver's word, of late.
    failures: BTreeMap<DeviceId, Vec<Duration>>,
}

#[derive(Debug)]
struct Dead {
    attempt: AttemptId,
    /// Its group.
    pids: BTreeSet<u32>,
    device: DeviceId,
    /// Bytes in use before it was started.
    before: Option<u64>,
    since: Duration,
    /// Nobody can know of it: that keeps no device from its test.
    is_hidden: bool,
}

/// What a look says of a dead worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trace {
    /// Nothing is left.
    Nothing,
    /// Nobody knows: the driver is silent.
    Silence,
    /// Nobody knows: somebody of ours works there, or what was in use before is not known.
    Hidden,
    /// This process holds memory.
    Process(u32),
    /// So much more is in use than before.
    Memory(u64),
}

/// A device that is out.
#[derive(Debug)]
struct Out {
    reason: String,
    /// What its last test said.
    failed: Option<String>,
    test: Test,
    /// It failed while it was being tested: whatever that says, it is tested again.
    again: bool,
    /// That has been so before: it rests first.
    retested: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Due(Duration),
    Running,
    /// There is none; it is offered again at this time.
    None(Duration),
    /// It is not believed any more.
    Never,
}

impl Quarantine {
    /// What an earlier agent knew.
    pub(super) fn restore(&mut self, reasons: Reasons, now: Duration) {
        for (device, reason) in reasons {
            self.take_out(&device, reason, now);
        }
    }

    /// What a later agent has to know.
    pub(super) fn reasons(&self) -> Reasons {
        self.out.iter().map(|(device, out)| (device.clone(), out.reason.clone())).collect()
    }

    /// A worker is gone; this was a device of its.
    pub(super) fn bury(
        &mut self,
        attempt: AttemptId,
        pids: &BTreeSet<u32>,
        device: &DeviceId,
        before: Option<u64>,
        since: Duration,
    ) {
        self.dead.push(Dead { attempt, pids: pids.clone(), device: device.clone(), before, since, is_hidden: false });
    }

    /// What was in use of a device before those who died there, as far as they may still hold something.
    pub(super) fn used_before(&self, device: &DeviceId) -> Option<u64> {
        self.dead.iter().filter(|dead| dead.device == *device).filter_map(|dead| dead.before).min()
    }

    /// Once the driver has named a process of ours where it works its lists are believed.
    pub(super) fn recognise(&mut self, is_named: bool) {
        self.knows_ours |= is_named;
    }

    /// Whether others on a device can be told from ours: nobody of ours is there, or the driver calls ours by numbers that we know. One that is
    /// being tested has a process of ours that nobody counts.
    pub(super) fn tells_ours_apart(&self, device: &DeviceId) -> bool {
        let is_tested = self.out.get(device).is_some_and(|out| out.test == Test::Running);
        let may_be_ours = self.at_work.contains(device) || self.dead.iter().any(|dead| dead.device == *device);
        !is_tested && (self.knows_ours || !may_be_ours)
    }

    /// Whether a process was of a worker that may still hold something.
    pub(super) fn is_dead(&self, pid: u32) -> bool {
        self.dead.iter().any(|dead| dead.pids.contains(&pid))
    }

    /// These devices, and no others, are kept from their tests by a worker that is alive.
    pub(super) fn hold(&mut self, devices: BTreeSet<DeviceId>) {
        self.at_work = devices;
    }

    /// Whether a device that is out has not failed a test since.
    pub(super) fn may_pass(&self, device: &DeviceId) -> bool {
        self.out.get(device).is_some_and(|out| out.failed.is_none() && matches!(out.test, Test::Due(_) | Test::Running))
    }

    /// The device is out until it has passed a test.
    pub(super) fn take_out(&mut self, device: &DeviceId, reason: String, now: Duration) {
        self.out.entry(device.clone()).or_insert(Out::new(reason, now));
    }

    /// It failed by its driver's word, which says more than whatever it is out for already.
    pub(super) fn accuse(&mut self, device: &DeviceId, fault: &str, now: Duration) {
        let failures = self.failures.entry(device.clone()).or_default();
        if !self.out.contains_key(device) {
            failures.retain(|at| now.saturating_sub(*at) < WITHIN);
            failures.push(now);
        }
        let often = failures.len() >= FAILURES;
        let out = self.out.entry(device.clone()).or_insert_with(|| Out::new(String::new(), now));
        out.reason = fault.to_owned();
        match out.test {
            Test::Running => out.again = true,
            Test::Due(_) | Test::None(_) => out.test = Test::Due(now),
            // Nobody has looked at it since, however long ago the others were.
            Test::Never => {}
        }
        if often {
            out.test = Test::Never;
        }
    }

    /// A GPU that could be used and was never seen before has to pass its test first: a driver, a library or a card that does not compute as
    /// it should is found out before a night of training is. One that a worker of ours is at work on has shown what it can.
    pub(super) fn prove(&mut self, devices: &[Device], at_work: &BTreeSet<DeviceId>, now: Duration) {
        let is_gpu = |device: &&Device| matches!(device.kind, DeviceKind::Cuda { .. }) && device.usable.is_ok();
        for device in devices.iter().filter(is_gpu) {
            if self.met.insert(device.id.clone()) && !at_work.contains(&device.id) {
                self.take_out(&device.id, "this agent sees it for the first time".into(), now);
            }
        }
    }

    /// The devices as they may be offered; on those `at_work` somebody of ours may be alive.
    pub(super) fn judge(
        &mut self,
        seen: &Seen,
        at_work: &BTreeSet<DeviceId>,
        grace: Duration,
        now: Duration,
    ) -> Vec<Device> {
        let dead = std::mem::take(&mut self.dead);
        let traced: Vec<_> = dead.into_iter().map(|dead| (self.trace(&dead, seen, at_work), dead)).collect();
        let last =
            |id: &DeviceId| traced.iter().filter(|(_, dead)| dead.device == *id).map(|(_, dead)| dead.since).max();
        let mut late = Vec::new();
        for (trace, dead) in &traced {
            let (since, words) = match trace {
                Trace::Process(pid) => (dead.since, dead.holds(*pid)),
                // Whose it is of several nobody knows: the last of them has its time as well.
                Trace::Memory(more) => (last(&dead.device).unwrap_or(dead.since), dead.may_hold(*more)),
                Trace::Nothing | Trace::Silence | Trace::Hidden => continue,
            };
            if now.saturating_sub(since) >= grace {
                late.push((dead.device.clone(), words));
            }
        }
        let stays = |(trace, dead): &(Trace, Dead)| trace.stays(now.saturating_sub(dead.since), grace);
        let kept = traced.into_iter().filter(stays);
        self.dead = kept.map(|(trace, dead)| Dead { is_hidden: trace == Trace::Hidden, ..dead }).collect();
        for (device, reason) in late {
            self.take_out(&device, reason, now);
        }
        let mut devices = seen.devices.clone();
        for device in devices.iter_mut().filter(|device| device.usable.is_ok()) {
            device.usable = self.why_out(&device.id).map_or(Ok(()), Err);
        }
        devices
    }

    /// What is left of a dead worker: see the module.
    fn trace(&self, dead: &Dead, seen: &Seen, at_work: &BTreeSet<DeviceId>) -> Trace {
        let Some(device) = seen.devices.iter().find(|device| device.id == dead.device) else { return Trace::Nothing };
        match seen.holders.get(&device.id) {
            Some(holders) => match dead.pids.iter().find(|pid| holders.contains_key(pid)) {
                Some(pid) => return Trace::Process(*pid),
                None if self.knows_ours && !dead.pids.is_empty() => return Trace::Nothing,
                None => {}
            },
            None if device.usable.is_err() => return Trace::Silence,
            // Main memory comes back with the process.
            None if device.kind == DeviceKind::Cpu => return Trace::Nothing,
            None => {}
        }
        let used = device.memory_bytes.saturating_sub(device.free_bytes);
        match dead.before {
            None => Trace::Hidden,
            Some(_) if at_work.contains(&device.id) => Trace::Hidden,
            Some(before) if used <= before.saturating_add(MARGIN) => Trace::Nothing,
            Some(before) => Trace::Memory(used - before),
        }
    }

    /// Why a device is out, if it is.
    pub(super) fn why_out(&self, device: &DeviceId) -> Option<String> {
        let out = self.out.get(device)?;
        let test = match (&out.failed, out.test) {
            (_, Test::Running) => "it is being tested".to_owned(),
            (Some(why), Test::Due(_)) => format!("its last test failed: {why}"),
            (None, Test::Due(_)) => "it is tested before it is offered".to_owned(),
            (_, Test::Never) => {
                format!("it failed {FAILURES} times within a day: look at it, then restart the agent")
            }
            (_, Test::None(_)) => {
                let minutes = REST.as_secs() / 60;
                format!(
                    "there is no test for it (`devices.burn_in` names one): it is offered again after {minutes} minutes"
                )
            }
        };
        Some(format!("quarantined: {}; {test}", out.reason))
    }

    /// The device whose test begins now: nobody of ours holds it any more, and no other is being tested, for a test takes every core for
    /// a while. Those that have rested are no longer out.
    pub(super) fn test(&mut self, now: Duration) -> Option<DeviceId> {
        let held = held(&self.dead, &self.at_work);
        self.out.retain(|device, out| held.contains(device) || !out.has_rested(now));
        if self.is_testing() {
            return None;
        }
        let mut due = self.out.iter_mut().filter(|(device, out)| !held.contains(device) && out.is_due(now));
        let (device, out) = due.next()?;
        out.test = Test::Running;
        Some(device.clone())
    }

    fn is_testing(&self) -> bool {
        self.out.values().any(|out| out.test == Test::Running)
    }

    /// A test is over.
    pub(super) fn tested(&mut self, device: &DeviceId, result: Result<(), Unfit>, now: Duration) {
        let Some(out) = self.out.get_mut(device).filter(|out| out.test == Test::Running) else { return };
        match result {
            _ if std::mem::take(&mut out.again) => {
                let rests = std::mem::replace(&mut out.retested, true) || out.failed.is_some();
                out.test = Test::Due(if rests { now + TEST_AGAIN } else { now });
            }
            Ok(()) => _ = self.out.remove(device),
            Err(Unfit::Failed(why)) => (out.failed, out.test) = (Some(why), Test::Due(now + TEST_AGAIN)),
            Err(Unfit::Untested) => out.test = Test::None(now + REST),
        }
    }

    /// When the next test is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let (held, testing) = (held(&self.dead, &self.at_work), self.is_testing());
        let free = self.out.iter().filter(|(device, _)| !held.contains(device));
        free.filter_map(|(_, out)| match out.test {
            // the end of the one that runs is what it waits for
            Test::Due(_) if testing => None,
            Test::Due(at) | Test::None(at) => Some(at),
            Test::Running | Test::Never => None,
        })
        .min()
    }
}

/// Devices that somebody of ours may still hold, as far as that can be known.
fn held<'a>(dead: &'a [Dead], at_work: &'a BTreeSet<DeviceId>) -> BTreeSet<&'a DeviceId> {
    dead.iter().filter(|dead| !dead.is_hidden).map(|dead| &dead.device).chain(at_work).collect()
}

impl Out {
    fn new(reason: String, now: Duration) -> Self {
        Self { reason, failed: None, test: Test::Due(now), again: false, retested: false }
    }

    fn is_due(&self, now: Duration) -> bool {
        matches!(self.test, Test::Due(at) if at <= now)
    }

    fn has_rested(&self, now: Duration) -> bool {
        matches!(self.test, Test::None(at) if at <= now)
    }
}

impl Trace {
    /// Whether the dead are kept in mind, so long after they died.
    fn stays(self, ago: Duration, grace: Duration) -> bool {
        match self {
            Self::Nothing => false,
            Self::Process(_) | Self::Silence => true,
            Self::Memory(_) | Self::Hidden => ago < grace + REST,
        }
    }
}

impl Dead {
    fn holds(&self, pid: u32) -> String {
        format!("its memory is still held by process {pid}, the dead worker of {}", self.attempt)
    }

    fn may_hold(&self, more: u64) -> String {
        let (mib, attempt) = (more >> 20, self.attempt);
        format!("{mib} MiB more of its memory are in use than before {attempt}, whose worker is dead")
    }
}
