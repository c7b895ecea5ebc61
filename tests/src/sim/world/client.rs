//! A person who submits, asks again when no answer comes, and sometimes thinks better of it.

use super::{Chance, Happening, Waiting, World, setup};
use lorikeet_coordinator::{
    access::Refusal,
    cluster::command::{Answer, Command},
    record::Receipt,
};
use lorikeet_protocol::{id::JobId, job::Intent};
use uuid::Uuid;

/// How long a client waits for an answer before it asks again.
const PATIENCE: u64 = 3_000;

/// One order, at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Submit(usize),
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    SaveNow(usize),
}

/// What a client wants of one job.
#[derive(Debug)]
pub(super) struct Wish {
    id: JobId,
    exclusive: bool,
    gpus: u8,
    lost_after: u64,
    priority: u8,
    later: Option<(u64, Later)>,
    acknowledged: bool,
}

#[derive(Debug, Clone, Copy)]
enum Later {
    Cancel,
    PauseAndResume,
    SaveNow,
}

impl Wish {
    pub(super) fn new(number: u64, chance: &mut Chance) -> Self {
        let later = match chance.below(8) {
            0 => Some(Later::Cancel),
            1 => Some(Later::PauseAndResume),
            2 => Some(Later::SaveNow),
            _ => None,
        };
        Self {
            id: JobId(Uuid::from_u128(10_000 + u128::from(number))),
            exclusive: !chance.one_in(3),
            gpus: if chance.one_in(6) { 2 } else { 1 },
            lost_after: chance.between(13_000, 40_000),
            priority: chance.between(0, 100) as u8,
            later: later.map(|later| (chance.between(500, 60_000), later)),
            acknowledged: false,
        }
    }

    /// Nothing is left to be asked.
    pub(super) fn is_settled(&self) -> bool {
        self.acknowledged
    }
}

impl World {
    pub(super) fn client(&mut self, order: Order) {
        match order {
            Order::Submit(index) => self.submit(index),
            Order::Cancel(index) => {
                let id = self.jobs[index].id;
                self.order(Command::CancelJob { id, reason: None }, Waiting::Cancel(id));
            }
            Order::Pause(index) => self.intend(index, Intent::Pause),
            Order::Resume(index) => self.intend(index, Intent::Run),
            Order::SaveNow(index) => {
                let id = self.jobs[index].id;
                self.order(Command::SaveNow { id }, Waiting::Intent);
            }
        }
    }

    fn intend(&mut self, index: usize, intent: Intent) {
        let id = self.jobs[index].id;
        self.order(Command::SetIntent { id, intent }, Waiting::Intent);
        // A coordinator that is away may have missed it; a job left paused would never end.
        if intent == Intent::Run && self.is_paused(id) {
            self.at(10_000, Happening::Client(Order::Resume(index)));
        }
    }

    fn is_paused(&self, id: JobId) -> bool {
        self.brain.store.jobs.get(&id).is_some_and(|job| job.intent == Intent::Pause)
    }

    fn order(&mut self, command: Command, who: Waiting) {
        self.request(setup::client(), command, None, who);
    }

    fn submit(&mut self, index: usize) {
        if self.jobs[index].acknowledged {
            return;
        }
        let wish = &self.jobs[index];
        let (id, key) = (wish.id, wish.id.to_string());
        let spec = super::super::world::spec(wish);
        self.request(
            setup::client(),
            Command::SubmitJob { id, spec: Box::new(spec), start: Default::default() },
            Some(key),
            Waiting::Submit(id),
        );
        self.at(PATIENCE, Happening::Client(Order::Submit(index)));
    }

    /// An answer reached the client.
    pub(super) fn answered(&mut self, reply: u64, result: &Result<Answer, Refusal>) {
        match (self.brain.waiter(reply), result) {
            (Some(Waiting::Submit(job)), Ok(Answer::Receipt(Receipt::Job(_)))) => {
                self.promises.submitted(job);
                let index = self.jobs.iter().position(|wish| wish.id == job);
                let Some(wish) = index.map(|index| &mut self.jobs[index]) else { return };
                let first = !std::mem::replace(&mut wish.acknowledged, true);
                if let (true, Some((wait, later)), Some(index)) = (first, wish.later, index) {
                    match later {
                        Later::Cancel => self.at(wait, Happening::Client(Order::Cancel(index))),
                        Later::SaveNow => self.at(wait, Happening::Client(Order::SaveNow(index))),
                        Later::PauseAndResume => {
                            self.at(wait, Happening::Client(Order::Pause(index)));
                            self.at(wait + 30_000, Happening::Client(Order::Resume(index)));
                            self.at(super::STORM + 1_000, Happening::Client(Order::Resume(index)));
                        }
                    }
                }
            }
            (Some(Waiting::Cancel(job)), Ok(_)) => {
                self.tally.count("cancel acknowledged");
                self.promises.cancelled(job);
            }
            _ => {}
        }
    }
}

impl Wish {
    /// What it needs, for its spec.
    pub(super) fn needs(&self) -> (u8, bool, u8, u64) {
        (self.gpus, self.exclusive, self.priority, self.lost_after)
    }
}
