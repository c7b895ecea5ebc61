//! Which attempts should exist on this machine, what to start, stop, keep and report: every decision of the agent.
//!
//! Plain data: [`Host::handle`] takes one [`Event`] and the time and answers [`Action`]s; [`Host::next_deadline`] says when it wants
//! to be asked again. No clock, socket or disk in here. The driver makes a batch's reports and records last before it carries
//! out any of its other actions, so what the world sees never runs ahead of the disk.

mod attempt;
mod ending;
mod energy;
mod event;
mod meter;
mod patience;
mod quarantine;
mod record;
mod roll;
mod uploads;

#[cfg(test)]
pub(crate) mod tests;

use crate::config::{Choice, Devices, Worker};
use attempt::Attempt;
use energy::Gauges;
pub use energy::{Account, Drawn};
pub use event::{Action, Ask, Event, Fault, News, Now};
use lorikeet_protocol::{
    agent::{Ended, Foreign, FromAgent, KnownAttempt, Offer, StopHow, ToAgent, Verdict, Welcome},
    file::is_plain_path,
    id::{AttemptId, BootId, DeviceId},
    job::{Device, DeviceKind, Outcome, StopCause},
};
use quarantine::Quarantine;
pub use quarantine::{Holders, Reasons, Seen, Unfit};
pub use record::Record;
use roll::Roll;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
pub use uploads::CheckpointMade;

/// A disk that loses so many files within a day is bad luck; more are the disk's fault.
const ROTS: usize = 2;
const ROTS_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// The timers and places that decisions need.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// This start of the machine.
    pub boot: BootId,
    /// See [`Worker::save_grace`].
    pub save_grace: Duration,
    /// See [`Worker::discard_grace`].
    pub discard_grace: Duration,
    /// See [`Worker::start_grace`].
    pub start_grace: Duration,
    /// See [`Worker::progress`].
    pub progress: Duration,
    /// See [`Devices::release_grace`].
    pub release_grace: Duration,
    /// Whether a GPU has to pass its test before this agent offers it for the first time: a real one has to.
    pub proves_gpus: bool,
    /// Whether the CPU slot is offered only where no GPU is.
    pub spares_cpu: bool,
}

impl Rules {
    /// Out of the config.
    pub fn new(boot: BootId, worker: &Worker, devices: &Devices) -> Self {
        Self {
            boot,
            save_grace: worker.save_grace,
            discard_grace: worker.discard_grace,
            start_grace: worker.start_grace,
            progress: worker.progress,
            release_grace: devices.release_grace,
            proves_gpus: devices.fake.is_empty(),
            spares_cpu: devices.fake.is_empty() && devices.kind == Choice::Auto,
        }
    }

    fn grace(&self, how: StopHow) -> Duration {
        match how {
            StopHow::Save => self.save_grace,
            StopHow::Discard => self.discard_grace,
        }
    }
}

/// Memory comes back some time after its process went, and a look is some seconds old: for so long no offer is declined for what was
/// in use on a device that one of ours has just left.
const SETTLES: Duration = Duration::from_secs(3);

/// Every attempt that this machine knows.
#[derive(Debug)]
pub struct Host {
    rules: Rules,
    devices: Vec<Device>,
    /// Who held memory of them.
    holders: BTreeMap<DeviceId, Holders>,
    attempts: BTreeMap<AttemptId, Attempt>,
    gauges: Gauges,
    /// Devices that a worker of ours left a moment ago, and when.
    left: BTreeMap<DeviceId, Duration>,
    quarantine: Quarantine,
    roll: Roll,
    /// When files that attempts had were found rotten, of late.
    rotted: Vec<Duration>,
    /// Set once no new work is wanted.
    leaving: bool,
}

impl Host {
    /// With what an earlier agent kept; the actions take up its work.
    pub fn restore(rules: Rules, records: Vec<Record>, now: Now) -> (Self, Vec<Action>) {
        let mut host = Self {
            rules,
            devices: Vec::new(),
            holders: BTreeMap::new(),
            attempts: BTreeMap::new(),
            gauges: Gauges::default(),
            left: BTreeMap::new(),
            quarantine: Quarantine::default(),
            roll: Roll::default(),
            rotted: Vec::new(),
            leaving: false,
        };
        let mut out = Vec::new();
        for record in records {
            let attempt = Attempt::restore(record, &host.rules, now, &mut out);
            host.attempts.insert(attempt.id(), attempt);
        }
        (host, out)
    }

    /// Devices that an earlier agent had taken out: they are tested before they are offered.
    pub fn quarantine(&mut self, reasons: Reasons, now: Now) {
        self.quarantine.restore(reasons, now.mono);
    }

    /// The only way in.
    #[must_use = "what is not carried out is never asked for again"]
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let (mut out, before) = (Vec::new(), self.quarantine.reasons());
        if let Event::Looked(seen) = &event {
            self.gauges.read(&seen.drawn, now.mono);
        }
        // Before anything ends.
        self.charge(now, &mut out);
        match event {
            Event::Heard(message) => self.heard(message, now, &mut out),
            Event::Delivered(id) => self.with(id, |attempt, _| attempt.delivered(now, &mut out)),
            Event::EndMissing(id) => self.with(id, |attempt, _| attempt.end_is_lost(&mut out)),
            Event::Prepared(id) => {
                let used = self.used_before(id);
                self.with(id, |attempt, rules| attempt.prepared(used, rules, now, &mut out));
            }
            Event::PrepareFailed(id, fault) => self.with(id, |attempt, _| attempt.prepare_failed(fault, now, &mut out)),
            Event::Unprovided(id, fault, class) => {
                self.with(id, |attempt, _| attempt.unprovided(fault, class, &mut out));
            }
            Event::Worker(id, news) => {
                self.bury(id, &news, now);
                self.with(id, |attempt, _| attempt.news(news, now, &mut out));
            }
            Event::InputsRead(id, rotten) => {
                let often = !rotten.is_empty() && self.rots_often(now);
                self.with(id, |attempt, _| attempt.inputs_read(&rotten, often, now, &mut out));
            }
            Event::CheckpointUploaded(id, seq, checkpoint) => {
                self.with(id, |attempt, _| attempt.checkpoint_uploaded(seq, *checkpoint, now, &mut out));
            }
            Event::CheckpointGivenUp(id, seq, reason) => {
                match reason {
                    Some(reason) => tracing::warn!(attempt = %id, seq, reason, "a checkpoint is not uploaded"),
                    None => tracing::debug!(attempt = %id, seq, "a checkpoint was removed before it was uploaded"),
                }
                self.with(id, |attempt, _| attempt.checkpoint_given_up(seq, now, &mut out));
            }
            Event::AdapterUploaded(id, files, summary) => {
                self.with(id, |attempt, _| attempt.adapter_uploaded(files, summary, now, &mut out));
            }
            Event::AdapterGivenUp(id, fault) => {
                self.with(id, |attempt, _| attempt.adapter_given_up(fault, now, &mut out))
            }
            Event::Looked(mut seen) => {
                self.roll.call(&mut seen);
                self.accuse(&seen.faults, now, &mut out);
                if self.rules.proves_gpus {
                    self.quarantine.prove(&seen.devices, &self.at_work(), now.mono);
                }
                self.quarantine.recognise(self.attempts.values().any(|attempt| attempt.is_named(&seen.holders)));
                self.devices = self.quarantine.judge(&seen, &self.at_work(), self.rules.release_grace, now.mono);
                self.holders = seen.holders;
                self.left.retain(|_, left| now.mono.saturating_sub(*left) < SETTLES);
                self.spare_the_processor();
            }
            Event::Tested(device, result) => self.quarantine.tested(&device, result, now.mono),
            Event::Leave => self.leave(now, &mut out),
            Event::Tick => {}
        }
        for attempt in self.attempts.values_mut() {
            attempt.tick(&self.rules, now, &mut out);
        }
        self.take_out_stuck(now);
        self.take_out_failed(&out, now);
        // Whatever begins now is charged from now on.
        self.charge(now, &mut out);
        self.attempts.retain(|_, attempt| !attempt.is_forgotten());
        out.extend(self.quarantine.test(now.mono).map(Action::Test));
        let after = self.quarantine.reasons();
        if after != before {
            out.push(Action::KeepQuarantine(after));
        }
        out
    }

    /// When something is due though nothing happens.
    pub fn next_deadline(&self) -> Option<Duration> {
        let attempts = self.attempts.values().filter_map(|attempt| attempt.deadline(&self.rules));
        attempts.chain(self.quarantine.deadline()).min()
    }

    /// For the hello.
    pub fn known(&self) -> Vec<KnownAttempt> {
        self.attempts.values().map(|attempt| KnownAttempt { id: attempt.id(), phase: attempt.phase() }).collect()
    }

    /// As last looked at, and whether they may be used.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Who else than workers of ours computes on a device; `None` where the driver does not say, or does not call ours by numbers that we know.
    pub fn foreign(&self, device: &DeviceId) -> Option<Foreign> {
        let is_ours = |pid: &u32| self.attempts.values().any(|attempt| attempt.pids().contains(pid));
        if !self.quarantine.tells_ours_apart(device) {
            return None;
        }
        let others =
            self.holders.get(device)?.iter().filter(|(pid, _)| !is_ours(pid) && !self.quarantine.is_dead(**pid));
        Some(others.fold(Foreign::default(), |sum, (_, bytes)| Foreign {
            processes: sum.processes + 1,
            bytes: sum.bytes.saturating_add(bytes.unwrap_or(0)),
        }))
    }

    /// How many workers may be alive here.
    pub fn workers(&self) -> usize {
        self.attempts.values().filter(|attempt| attempt.has_worker()).count()
    }

    fn with(&mut self, id: AttemptId, change: impl FnOnce(&mut Attempt, &Rules)) {
        match self.attempts.get_mut(&id) {
            Some(attempt) => change(attempt, &self.rules),
            None => tracing::debug!(attempt = %id, "news of an attempt that is not known here"),
        }
    }

    fn bury(&mut self, id: AttemptId, news: &News, now: Now) {
        let (News::Gone { .. }, Some(attempt)) = (news, self.attempts.get(&id)) else { return };
        for device in attempt.devices() {
            self.left.insert(device.clone(), now.mono);
            // Nothing outlives a reboot.
            if attempt.is_of_this_boot() {
                self.quarantine.bury(id, attempt.pids(), device, attempt.used_before(device), now.mono);
            }
        }
    }

    /// What is in use of the devices of an attempt whose worker starts now; what a dead one may still hold is not, for it is to come back.
    fn used_before(&self, id: AttemptId) -> BTreeMap<DeviceId, u64> {
        let devices = self.attempts.get(&id).map_or(&[][..], |attempt| attempt.devices());
        let seen = self.devices.iter().filter(|device| devices.contains(&device.id));
        let used = seen.map(|device| {
            let used = device.memory_bytes.saturating_sub(device.free_bytes);
            (device.id.clone(), self.quarantine.used_before(&device.id).map_or(used, |before| before.min(used)))
        });
        used.collect()
    }

    /// What devices drew since the last event is charged to those who hold them.
    fn charge(&mut self, now: Now, out: &mut Vec<Action>) {
        let mut sharers = BTreeMap::<DeviceId, u64>::new();
        let held = self.attempts.values().flat_map(|attempt| attempt.held());
        held.for_each(|device| *sharers.entry(device.clone()).or_default() += 1);
        for attempt in self.attempts.values_mut() {
            attempt.charge(&self.gauges, &sharers, now, out);
        }
    }

    /// A disk that does so is the node's own fault, and suspected like any other: a job that is placed here again and again would never end.
    fn rots_often(&mut self, now: Now) -> bool {
        self.rotted.retain(|at| now.mono.saturating_sub(*at) < ROTS_WITHIN);
        self.rotted.push(now.mono);
        self.rotted.len() > ROTS
    }

    /// Devices that failed by their driver's own word: they are out, and nobody else is to blame for what ran on them.
    fn accuse(&mut self, faults: &BTreeMap<DeviceId, String>, now: Now, out: &mut Vec<Action>) {
        for (device, fault) in faults {
            tracing::error!(%device, fault, "a device failed");
            self.quarantine.accuse(device, fault, now.mono);
            for attempt in self.attempts.values_mut().filter(|attempt| attempt.holds(device)) {
                attempt.device_failed(device, fault, now, out);
            }
        }
    }

    /// Devices on which a worker of ours may be alive.
    fn at_work(&self) -> BTreeSet<DeviceId> {
        let working = self.attempts.values().filter(|attempt| attempt.has_worker());
        working.flat_map(|attempt| attempt.devices()).cloned().collect()
    }

    /// Where a GPU can be trained on, or may yet prove that it can, the processor is left to it: a job that was placed on the slot in the
    /// seconds of the test would stay there for days. One that vanished proves nothing before it is back.
    fn spare_the_processor(&mut self) {
        let is_gpu = |device: &Device| matches!(device.kind, DeviceKind::Cuda { .. });
        let hopeful = |device: &Device| {
            let may_pass = self.quarantine.may_pass(&device.id) && !self.roll.has_vanished(&device.id);
            device.usable.is_ok() || may_pass || self.roll.may_return(&device.id)
        };
        if self.rules.spares_cpu
            && self.devices.iter().any(|device| is_gpu(device) && hopeful(device))
            && !self.attempts.values().any(|attempt| attempt.holds(&DeviceId::cpu()))
        {
            self.devices.retain(is_gpu);
        }
    }

    /// Devices of which a process that cannot be killed may hold anything: they are out for as long as it is there. No device is tested
    /// beside a worker, and none that is not there.
    fn take_out_stuck(&mut self, now: Now) {
        let stuck: Vec<_> = self.attempts.values().filter(|attempt| attempt.is_stuck()).collect();
        let of_stuck = stuck.iter().flat_map(|attempt| attempt.devices()).cloned();
        let missing = self.roll.missing().cloned();
        self.quarantine.hold(self.at_work().into_iter().chain(of_stuck).chain(missing).collect());
        for attempt in stuck {
            let words = format!("{}, the worker of {}, cannot be killed", attempt.process(), attempt.id());
            attempt.devices().iter().for_each(|device| self.quarantine.take_out(device, words.clone(), now.mono));
        }
    }

    /// Devices on which an attempt ended for their sake; all of them, unless one was named.
    fn take_out_failed(&mut self, out: &[Action], now: Now) {
        for action in out {
            let Action::Report(id, body) = action else { continue };
            let Some(Ended { outcome: Outcome::Hardware, message, .. }) = body.end() else { continue };
            let word = message.as_deref().unwrap_or("no word why");
            let attempt = self.attempts.get(id).filter(|attempt| !attempt.is_innocent());
            let devices = attempt.map(|attempt| attempt.devices().to_vec()).unwrap_or_default();
            for device in devices {
                self.quarantine.take_out(&device, format!("it failed {id}: {word}"), now.mono);
            }
        }
    }

    fn heard(&mut self, message: ToAgent, now: Now, out: &mut Vec<Action>) {
        match message {
            ToAgent::Welcome(welcome) => self.welcomed(&welcome, now, out),
            ToAgent::Offer(offer) => self.offered(*offer, now, out),
            ToAgent::Stop { attempt, how, cause } => {
                self.with(attempt, |attempt, rules| attempt.stop(how, cause, rules, now, out));
            }
            ToAgent::SaveNow(id) => self.with(id, |attempt, _| attempt.save_now(out)),
            ToAgent::EventsAcknowledged { attempt, through } => {
                self.with(attempt, |attempt, _| attempt.events_acknowledged(through));
            }
            ToAgent::Forget(id) => self.with(id, |attempt, _| attempt.forget(now, out)),
            // The link's and the outbox's own affairs.
            ToAgent::Acknowledged { .. }
            | ToAgent::Renewed(_)
            | ToAgent::Goodbye(_)
            | ToAgent::Trust(_)
            | ToAgent::Expelled(_) => {}
        }
    }

    fn welcomed(&mut self, welcome: &Welcome, now: Now, out: &mut Vec<Action>) {
        for (id, through) in &welcome.events {
            self.with(*id, |attempt, _| attempt.events_acknowledged(*through));
        }
        for (id, verdict) in &welcome.verdicts {
            self.with(*id, |attempt, rules| match verdict {
                Verdict::Adopt => {}
                Verdict::Report | Verdict::Stop => attempt.disown(rules, now, out),
                Verdict::Forget => attempt.disown_silently(rules, now, out),
            });
        }
    }

    fn offered(&mut self, offer: Offer, now: Now, out: &mut Vec<Action>) {
        let id = offer.attempt;
        match self.judge(&offer) {
            Ok(Known::Yes) => out.push(Action::Tell(FromAgent::Accepted(id))),
            Ok(Known::No) => {
                out.push(Action::Tell(FromAgent::Accepted(id)));
                self.attempts.insert(id, Attempt::accept(offer, &self.rules, now, out));
            }
            Err(reason) => out.push(Action::Tell(FromAgent::Declined { attempt: id, reason })),
        }
    }

    fn judge(&self, offer: &Offer) -> Result<Known, String> {
        if let Some(known) = self.attempts.get(&offer.attempt) {
            return if known.is_live() { Ok(Known::Yes) } else { Err("this attempt is over here".into()) };
        }
        if self.leaving {
            return Err("the agent is leaving".into());
        }
        self.judge_devices(offer)?;
        judge_files(offer)?;
        let newer = self.attempts.keys().find(|id| id.job == offer.attempt.job && id.token > offer.attempt.token);
        newer.map_or(Ok(Known::No), |newer| Err(format!("attempt {newer} of the same job is newer")))
    }

    fn judge_devices(&self, offer: &Offer) -> Result<(), String> {
        if offer.devices.is_empty() {
            return Err("the offer names no device".into());
        }
        for id in &offer.devices {
            let device = self.devices.iter().find(|device| device.id == *id);
            let device = device.ok_or_else(|| format!("device {id} is not here"))?;
            let usable = device.usable.clone().and_then(|()| self.quarantine.why_out(id).map_or(Ok(()), Err));
            usable.map_err(|why| format!("device {id} cannot be used: {why}"))?;
            // Two that do not mind may share it, as far as there is memory for both.
            let alone = |attempt: &&Attempt| offer.job.resources.exclusive || attempt.is_exclusive();
            if let Some(holder) = self.attempts.values().filter(|attempt| attempt.holds(id)).find(alone) {
                return Err(format!("device {id} is held by {}", holder.id()));
            }
            self.judge_memory(offer.planned_bytes, device)?;
        }
        Ok(())
    }

    /// Whether the plan fits beside what is on the device now. The coordinator goes by what it was told, a minute ago perhaps: whoever
    /// else works on the device may have taken more since.
    fn judge_memory(&self, planned: u64, device: &Device) -> Result<(), String> {
        if self.left.contains_key(&device.id) {
            return Ok(());
        }
        let ours = self.attempts.values().filter(|attempt| attempt.holds(&device.id));
        let untaken = ours.map(|attempt| attempt.untaken_bytes(self.holders.get(&device.id))).sum::<u64>();
        let free = device.free_bytes.saturating_sub(untaken);
        if planned <= free {
            return Ok(());
        }
        let mib = |bytes: u64| bytes >> 20;
        let (free, planned) = (mib(free), mib(planned));
        Err(format!("device {} is busy: it has {free} MiB of memory free, {planned} MiB are planned", device.id))
    }

    fn leave(&mut self, now: Now, out: &mut Vec<Action>) {
        self.leaving = true;
        for attempt in self.attempts.values_mut() {
            attempt.stop(StopHow::Save, StopCause::Drain, &self.rules, now, out);
        }
    }

    /// What must hold after every event, for tests.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        let mut held = BTreeMap::<_, Vec<_>>::new();
        for (id, attempt) in &self.attempts {
            assert_eq!(*id, attempt.id());
            attempt.check_invariants();
            attempt.held().iter().for_each(|device| held.entry(device).or_default().push(attempt.is_exclusive()));
        }
        for (device, holders) in held {
            assert!(holders.len() == 1 || !holders.contains(&true), "device {device} is held twice");
        }
    }
}

enum Known {
    Yes,
    No,
}

fn judge_files(offer: &Offer) -> Result<(), String> {
    let resume = offer.resume.iter().flat_map(|checkpoint| &checkpoint.files);
    for file in offer.inputs().chain(resume) {
        if !is_plain_path(&file.path) {
            return Err(format!("`{}` is no name for a file", file.path));
        }
        if !file.manifest.is_consistent() {
            return Err(format!("the manifest of {} has the wrong number of chunks", file.path));
        }
    }
    Ok(())
}
