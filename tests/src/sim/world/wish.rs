//! What clients want: jobs and sweeps of every kind, drawn from the seed.

use super::{super::nature::Nature, Chance, STORM, setup};
use lorikeet_api::{
    JobFile, Presets,
    jobfile::{
        start::{After, Start, Wants},
        sweep::StopRule,
    },
};
use lorikeet_coordinator::cluster::{command::Command, sweep::NewSweep};
use lorikeet_protocol::{
    id::{JobId, SweepId, UserId},
    job::{JobSpec, OnLost},
};
use std::time::Duration;
use uuid::Uuid;

/// One submission: a job, or a sweep of several.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) owner: UserId,
    pub(super) jobs: Vec<JobId>,
    pub(super) sweep: Option<SweepId>,
    pub(super) nature: Nature,
    pub(super) later: Option<(u64, Later)>,
    pub(super) hold: bool,
    /// After which older wish, and how that has to end.
    pub(super) after: Option<(usize, Wants)>,
    /// Not before this wall time.
    not_before: Option<u64>,
    /// One of the datasets that come late.
    pub(super) dataset: Option<&'static str>,
    exclusive: bool,
    gpus: u8,
    lost_after: u64,
    on_lost: OnLost,
    priority: u8,
    pub(super) acknowledged: bool,
}

/// A second thought.
#[derive(Debug, Clone, Copy)]
pub(super) enum Later {
    Cancel,
    PauseAndResume,
    PauseAndCancel,
    SaveNow,
}

impl Wish {
    pub(super) fn new(number: usize, chance: &mut Chance) -> Self {
        let sweep = chance.one_in(20).then(|| SweepId(Uuid::from_u128(50_000 + number as u128)));
        let jobs = if sweep.is_some() { chance.between(3, 6) } else { 1 };
        let nature = match chance.below(20) {
            _ if sweep.is_some() => Nature::Sound,
            0 => Nature::Unfit,
            1 => Nature::BadData,
            2 => Nature::Poison,
            3 => Nature::Endless,
            4 => Nature::Hungry,
            5 => Nature::Fickle,
            _ => Nature::Sound,
        };
        let later = match chance.below(8) {
            0 => Some(Later::Cancel),
            1 => Some(Later::PauseAndResume),
            2 => Some(Later::SaveNow),
            3 => Some(Later::PauseAndCancel),
            _ => None,
        };
        // Of the owner's datasets one is broken: whatever is to be made of it is unfit.
        let owner = if chance.one_in(3) { setup::OTHER } else { setup::OWNER };
        let late = owner == setup::OWNER && sweep.is_none() && chance.one_in(6);
        let dataset = late.then(|| setup::NAMES[chance.below(2) as usize]);
        let nature = if dataset == Some(setup::NAMES[0]) { Nature::Unfit } else { nature };
        let wants = [Wants::Ok, Wants::Any, Wants::Fail][chance.below(3) as usize];
        Self {
            owner,
            dataset,
            jobs: (0..jobs)
                .map(|child| JobId(Uuid::from_u128(10_000 + number as u128 * 16 + u128::from(child))))
                .collect(),
            sweep,
            nature,
            later: later.map(|later| (chance.between(500, 60_000), later)),
            hold: chance.one_in(12),
            after: (number > 0 && chance.one_in(8)).then(|| (chance.below(number as u64) as usize, wants)),
            not_before: chance.one_in(12).then(|| chance.between(1_000, STORM)),
            exclusive: !chance.one_in(3),
            gpus: if chance.one_in(6) { 2 } else { 1 },
            lost_after: chance.between(13_000, 40_000),
            on_lost: match chance.below(10) {
                0 => OnLost::Wait,
                1 => OnLost::Fail,
                _ => OnLost::Requeue,
            },
            priority: chance.between(0, 100) as u8,
            acknowledged: false,
        }
    }

    /// One plain job that a device is held by for as long as it runs.
    pub(super) fn plain(number: usize) -> Self {
        Self {
            owner: setup::OWNER,
            dataset: None,
            jobs: vec![JobId(Uuid::from_u128(10_000 + number as u128 * 16))],
            sweep: None,
            nature: Nature::Sound,
            later: None,
            hold: false,
            after: None,
            not_before: None,
            exclusive: true,
            gpus: 1,
            lost_after: 20_000,
            on_lost: OnLost::Requeue,
            priority: 50,
            acknowledged: false,
        }
    }

    /// The order, as its client gives it; `after` is the older wish's job.
    pub(super) fn command(&self, after: Option<JobId>) -> Command {
        let spec = self.spec();
        let wants = self.after.map(|(_, wants)| wants);
        let after = after.zip(wants).map(|(job, wants)| After { job: job.to_string(), wants });
        let not_before = self.not_before.map(|moment| super::super::brain::wall(moment, 0));
        let start = Start { after: after.into_iter().collect(), hold: self.hold, not_before };
        match self.sweep {
            None => Command::SubmitJob { id: self.jobs[0], spec: Box::new(spec), start },
            Some(id) => Command::SubmitSweep(Box::new(NewSweep {
                id,
                name: "search".into(),
                children: self.jobs.iter().map(|job| (*job, Default::default(), spec.clone())).collect(),
                max_parallel: Some(2),
                stop: Some(StopRule { min_steps: 4, reduction: 2 }),
                start,
            })),
        }
    }

    fn spec(&self) -> JobSpec {
        let file = JobFile::from_toml("base = \"b\"\ndataset = \"d\"").expect("the simulation's own job file");
        let mut spec = file.resolve(&Presets::embedded()).expect("the simulation's own job file");
        spec.priority = self.priority;
        spec.dataset = self.dataset.unwrap_or("d").to_owned();
        (spec.policy.lost_after, spec.policy.on_lost) = (Duration::from_millis(self.lost_after), self.on_lost);
        // Several devices are scheduled already, though no worker takes them yet.
        (spec.resources.gpus, spec.resources.exclusive) = (self.gpus, self.exclusive);
        if self.nature == Nature::Endless {
            spec.resources.max_runtime = Duration::from_secs(5);
        }
        spec
    }
}
