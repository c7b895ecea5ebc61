//! Devices that are not offered for now: a dead worker of ours still holds memory of them, or one of them failed a worker.
//!
//! ```text
//! a worker cannot be killed ──────────────────────────────────────────► out ─► gone ─► tested, as below
//! worker gone ─► remembered with its devices ─► holds nothing at a look: forgotten
//!                                    │
//!                                    └► holds memory at a look, `release_grace` later ─┐
//! an attempt ended `hardware` ───────────────────────────────────────────────────────┤
//! its driver says that it failed, or does not name it any more ────────────────────────┤
//! a GPU that this agent sees for the first time, at no work ─────────────────────────┴► out ─► tested ─► offered again
//!                                                                                           ▲       │
//!                                                                                           └─ wait ┘ failed
//! ```
//! One that failed by its driver's word again and again, though it passed its test each time, is not tested any more: it stays out until
//! the agent starts anew, for which somebody has looked at it.
//!
//! A device for which there is no test is offered again after an hour: what mends itself has done so by then, and what has not takes
//! it out again.
//!
//! The test is a child process that computes something small on the device and compares. It begins once nobody of ours holds the
//! device or works on it; one device is tested at a time. What somebody else holds is only memory that is not free. Which
//! devices are out outlives the agent.

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
    /// Which processes hold memory of which.
    pub holders: BTreeMap<DeviceId, Holders>,
    /// What went wrong with which since the last look, by the driver's own word.
    pub faults: BTreeMap<DeviceId, String>,
}

/// Processes on a device, with the bytes that they hold of it where the driver says.
pub type Holders = BTreeMap<u32, Option<u64>>;

/// Devices that are out, by why: what outlives the agent.
pub type Reasons = BTreeMap<DeviceId, String>;

/// The dead that may still hold something, and the devices that are out.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    dead: Vec<Dead>,
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
    pid: u32,
    device: DeviceId,
    since: Duration,
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

    /// A worker is gone; these were its devices.
    pub(super) fn bury(&mut self, attempt: AttemptId, pid: u32, devices: &[DeviceId], since: Duration) {
        let dead = |device: &DeviceId| Dead { attempt, pid, device: device.clone(), since };
        self.dead.extend(devices.iter().map(dead));
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
        failures.retain(|at| now.saturating_sub(*at) < WITHIN);
        failures.push(now);
        // More are no more than these say.
        failures.drain(..failures.len().saturating_sub(FAILURES));
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

    /// The devices as they may be offered.
    pub(super) fn judge(&mut self, seen: &Seen, grace: Duration, now: Duration) -> Vec<Device> {
        let (mut devices, holders) = (seen.devices.clone(), &seen.holders);
        // Of a device that is missing, or whose driver says nothing, nobody knows who holds it.
        let is_silent = |id: &DeviceId| seen.devices.iter().any(|device| device.id == *id && device.usable.is_err());
        self.dead.retain(|dead| match holders.get(&dead.device) {
            Some(pids) => pids.contains_key(&dead.pid),
            None => is_silent(&dead.device),
        });
        let late = self.dead.iter().filter(|dead| now.saturating_sub(dead.since) >= grace);
        for (device, reason) in late.map(|dead| (dead.device.clone(), dead.words())).collect::<Vec<_>>() {
            self.take_out(&device, reason, now);
        }
        for device in devices.iter_mut().filter(|device| device.usable.is_ok()) {
            device.usable = self.why_out(&device.id).map_or(Ok(()), Err);
        }
        devices
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
            _ if std::mem::take(&mut out.again) => out.test = Test::Due(now),
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

/// Devices that somebody of ours may still hold.
fn held<'a>(dead: &'a [Dead], at_work: &'a BTreeSet<DeviceId>) -> BTreeSet<&'a DeviceId> {
    dead.iter().map(|dead| &dead.device).chain(at_work).collect()
}

impl Out {
    fn new(reason: String, now: Duration) -> Self {
        Self { reason, failed: None, test: Test::Due(now), again: false }
    }

    fn is_due(&self, now: Duration) -> bool {
        matches!(self.test, Test::Due(at) if at <= now)
    }

    fn has_rested(&self, now: Duration) -> bool {
        matches!(self.test, Test::None(at) if at <= now)
    }
}

impl Dead {
    fn words(&self) -> String {
        format!("its memory is still held by process {}, the dead worker of {}", self.pid, self.attempt)
    }
}
