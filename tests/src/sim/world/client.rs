//! A person who submits, asks again when no answer comes, and sometimes thinks better of it.

use super::{Happening, STORM, Waiting, World, setup, wish::Later};
use lorikeet_coordinator::{
    access::Refusal,
    cluster::command::{Answer, Command},
    record::Receipt,
};
use lorikeet_protocol::{id::JobId, job::Intent};

/// How long a client waits for an answer before it asks again.
const PATIENCE: u64 = 3_000;

/// One order, at one moment, about one wish.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Submit(usize),
    Release(usize),
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    SaveNow(usize),
}

impl World {
    pub(super) fn client(&mut self, order: Order) {
        match order {
            Order::Submit(index) => self.submit(index),
            Order::Release(index) => self.order_each(index, |id| (Command::ReleaseJob { id }, Waiting::Intent)),
            Order::Cancel(index) => {
                let unwanted = self.wishes[index].jobs.clone();
                self.promises.unwanted.extend(unwanted);
                self.order_each(index, |id| (Command::CancelJob { id, reason: None }, Waiting::Cancel(id)));
            }
            Order::Pause(index) => self.intend(index, Intent::Pause),
            Order::Resume(index) => self.intend(index, Intent::Run),
            Order::SaveNow(index) => self.order_each(index, |id| (Command::SaveNow { id }, Waiting::Intent)),
        }
    }

    fn intend(&mut self, index: usize, intent: Intent) {
        self.order_each(index, |id| (Command::SetIntent { id, intent }, Waiting::Intent));
        // A coordinator that is away may have missed it; a job left paused would never end.
        if intent == Intent::Run && self.wishes[index].jobs.iter().any(|id| self.is_paused(*id)) {
            self.at(10_000, Happening::Client(Order::Resume(index)));
        }
    }

    fn is_paused(&self, id: JobId) -> bool {
        self.brain.store.jobs.get(&id).is_some_and(|job| job.intent == Intent::Pause && !job.phase().is_terminal())
    }

    fn order_each(&mut self, index: usize, order: impl Fn(JobId) -> (Command, Waiting)) {
        for id in self.wishes[index].jobs.clone() {
            let (command, who) = order(id);
            self.request(setup::client(self.wishes[index].owner), command, None, who);
        }
    }

    fn submit(&mut self, index: usize) {
        let wish = &self.wishes[index];
        if wish.acknowledged {
            return;
        }
        self.at(PATIENCE, Happening::Client(Order::Submit(index)));
        let wish = &self.wishes[index];
        let older = wish.after.map(|(older, _)| &self.wishes[older]);
        if older.is_some_and(|older| !older.acknowledged) {
            return;
        }
        let (command, key) = (wish.command(older.map(|older| older.jobs[0])), wish.jobs[0].to_string());
        self.request(setup::client(wish.owner), command, Some(key), Waiting::Submit(index));
    }

    /// An answer reached the client.
    pub(super) fn answered(&mut self, reply: u64, result: &Result<Answer, Refusal>) {
        match (self.brain.waiter(reply), result) {
            (Some(Waiting::Submit(index)), Ok(Answer::Receipt(Receipt::Job(_) | Receipt::Sweep(_)))) => {
                self.wishes[index].jobs.iter().for_each(|job| self.promises.submitted(*job));
                if !std::mem::replace(&mut self.wishes[index].acknowledged, true) {
                    self.think_again(index);
                }
            }
            // Another's job is none, nor is one that was forgotten, and a broken dataset is of no use: whoever named it does without.
            // One that comes late is asked for again.
            (Some(Waiting::Submit(index)), Err(_)) => {
                self.tally.count("submission refused");
                let does_without = self.chance.one_in(4);
                let wish = &mut self.wishes[index];
                wish.after = None;
                wish.dataset = wish.dataset.filter(|name| *name != setup::NAMES[0] || !does_without);
            }
            (Some(Waiting::Cancel(job)), Ok(_)) => {
                self.tally.count("cancel acknowledged");
                self.promises.cancelled(job);
            }
            _ => {}
        }
    }

    fn think_again(&mut self, index: usize) {
        if self.wishes[index].hold {
            let wait = self.chance.between(1_000, 60_000);
            self.at(wait, Happening::Client(Order::Release(index)));
            self.after_the_storm(Order::Release(index));
        }
        let Some((wait, later)) = self.wishes[index].later else { return };
        match later {
            Later::Cancel => self.at(wait, Happening::Client(Order::Cancel(index))),
            Later::SaveNow => self.at(wait, Happening::Client(Order::SaveNow(index))),
            Later::PauseAndCancel => {
                self.at(wait, Happening::Client(Order::Pause(index)));
                self.at(wait + 20_000, Happening::Client(Order::Cancel(index)));
                self.after_the_storm(Order::Resume(index));
            }
            Later::PauseAndResume => {
                self.at(wait, Happening::Client(Order::Pause(index)));
                self.at(wait + 30_000, Happening::Client(Order::Resume(index)));
                self.after_the_storm(Order::Resume(index));
            }
        }
    }

    /// Said again when nothing goes wrong any more: it may have been missed.
    fn after_the_storm(&mut self, order: Order) {
        let wait = (STORM + 90_000).saturating_sub(self.now);
        self.at(wait, Happening::Client(order));
    }
}
