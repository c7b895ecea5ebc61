//! Several processes that train one run, each on a device of its own: data parallel.
//!
//! ```text
//! leader (rank 0)                               followers (ranks 1, 2, …)
//!   Begin: rank, place, state           ───►      the same run
//!   Order: step, micro-batch            ───►
//!   its micro-batches of the step                 theirs
//!   gradient and loss                   ◄───      gradient and loss, or why there is none
//!   the sums, added in the order of ranks ───►    the same sums
//!   the update                                    the same update, bit for bit
//! ```
//! Every rank holds the whole run and takes every step; only the passes over its micro-batches are divided. What is summed is what
//! one process would have summed, in another order: the same step but for rounding, and the same bits again with as many ranks.
//! The leader alone reads checkpoints, evaluates, saves and tells; a follower leaves when its wire ends. The sums go through the
//! leader, which is right for processes of one machine; NCCL takes their place where the gradients lie on GPUs.

mod wire;

use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::data::pack;
use crate::run::State;
use wire::{Frame, Wire};

/// What a follower begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Which it is; the leader is 0.
    pub(crate) rank: usize,
    /// How many there are.
    pub(crate) ranks: usize,
}

/// The next step, and how it is divided into passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Steps taken before it; a follower that stands elsewhere is lost.
    pub(crate) after: u64,
    pub(crate) micro_tokens: usize,
    pub(crate) recompute: usize,
}

/// A run's numbers on their way to a follower.
#[derive(Debug, PartialEq)]
pub(crate) struct Begin {
    pub(crate) place: Place,
    pub(crate) state: State,
    pub(crate) params: Vec<f32>,
    pub(crate) m: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

/// Who takes part in a step, as this process sees it.
#[derive(Debug, Default)]
pub(crate) enum Ranks {
    /// Nobody else.
    #[default]
    Alone,
    /// This process leads; the others, from rank 1.
    Leader(Vec<Wire>),
    /// Another leads.
    Follower(Place, Wire),
}

impl Ranks {
    /// A leader of whoever is at the other ends.
    pub(crate) fn lead(followers: Vec<UnixStream>) -> Ranks {
        if followers.is_empty() { Ranks::Alone } else { Ranks::Leader(followers.into_iter().map(Wire::new).collect()) }
    }

    /// Waits for what to begin with; `None`: the leader left before it began.
    pub(crate) fn follow(leader: UnixStream) -> Result<Option<(Ranks, Begin)>, TrainError> {
        let mut wire = Wire::new(leader);
        let Some((place, state)) = wire.receive_json::<(Place, State)>().map_err(|why| lost(0, why))? else {
            return Ok(None);
        };
        let mut numbers = || wire.receive_numbers().map_err(|why| lost(0, why));
        let begin = Begin { place, state, params: numbers()?, m: numbers()?, v: numbers()? };
        Ok(Some((Ranks::Follower(place, wire), begin)))
    }

    fn place(&self) -> Place {
        match self {
            Ranks::Alone => Place { rank: 0, ranks: 1 },
            Ranks::Leader(wires) => Place { rank: 0, ranks: wires.len() + 1 },
            Ranks::Follower(place, _) => *place,
        }
    }

    /// Sends every follower the run as it is. They may have left; the first step tells.
    pub(crate) fn begin(&mut self, state: &State, params: &[f32], m: &[f32], v: &[f32]) -> Result<(), TrainError> {
        let ranks = self.place().ranks;
        self.tell_each(|rank, wire| {
            wire.send_json(&(Place { rank, ranks }, state))?;
            [params, m, v].into_iter().try_for_each(|numbers| wire.send_numbers(numbers))
        })
    }

    /// Has every follower take the next step.
    pub(crate) fn order(&mut self, order: Order) -> Result<(), TrainError> {
        self.tell_each(|_, wire| wire.send_json(&order))
    }

    /// What to do next; `None`: the leader has left.
    pub(crate) fn next_order(&mut self) -> Result<Option<Order>, TrainError> {
        match self {
            Ranks::Follower(_, wire) => wire.receive_json().map_err(|why| lost(0, why)),
            Ranks::Alone | Ranks::Leader(_) => Ok(None),
        }
    }

    /// A follower that cannot take part says why, so that the leader does not have to guess.
    pub(crate) fn give_up(&mut self, why: &TrainError) {
        if let Ranks::Follower(_, wire) = self {
            // The leader may have left, and then there is nobody to tell.
            drop(wire.send(&Frame::Failed(why.to_string())));
        }
    }

    /// This rank's micro-batches of a step whose examples have these lengths. Of several ranks each gets about as many tokens, so
    /// a step that would be one micro-batch becomes several.
    pub(crate) fn deal(&self, lengths: &[usize], micro_tokens: usize) -> Vec<Vec<usize>> {
        let Place { rank, ranks } = self.place();
        let share = lengths.iter().sum::<usize>().div_ceil(ranks).max(lengths.iter().copied().max().unwrap_or(1));
        pack::first_fit(lengths, micro_tokens.min(share)).into_iter().skip(rank).step_by(ranks).collect()
    }

    /// Replaces gradients and losses of this rank by the sums of all. Where any rank was refused memory, none has a sum: the step
    /// can be taken again.
    pub(crate) fn all_reduce(
        &mut self,
        own: Result<(), TrainError>,
        grads: &mut [&mut [f32]],
        losses: &mut [f64],
    ) -> Result<(), TrainError> {
        match self {
            Ranks::Alone => own,
            Ranks::Leader(wires) => gather(wires, own, grads, losses),
            Ranks::Follower(_, wire) => contribute(wire, own, grads, losses),
        }
    }

    fn tell_each(&mut self, send: impl Fn(usize, &mut Wire) -> Result<(), String>) -> Result<(), TrainError> {
        let Ranks::Leader(wires) = self else { return Ok(()) };
        wires.iter_mut().enumerate().try_for_each(|(at, wire)| send(at + 1, wire).map_err(|why| lost(at + 1, why)))
    }
}

fn lost(rank: usize, why: String) -> TrainError {
    TrainError::RankLost { rank, why }
}

/// The leader's side: everybody's word first, then the sums to all, or that there are none.
fn gather(
    wires: &mut [Wire],
    own: Result<(), TrainError>,
    grads: &mut [&mut [f32]],
    losses: &mut [f64],
) -> Result<(), TrainError> {
    // Only want of memory makes another try of the same step; after anything else the leader leaves, and they with it.
    let mut refused = match own {
        Err(refused @ TrainError::Refused { .. }) => Some(refused),
        Err(ends) => return Err(ends),
        Ok(()) => None,
    };
    for (at, wire) in wires.iter_mut().enumerate() {
        let part = wire.receive().map_err(|why| lost(at + 1, why))?;
        match part {
            Some(Frame::Sums(part)) => part.add_to(grads, losses).map_err(|why| lost(at + 1, why))?,
            Some(Frame::Refused { what, bytes }) => refused = Some(TrainError::Refused { what, bytes }),
            Some(Frame::Failed(why)) => return Err(lost(at + 1, why)),
            None => return Err(lost(at + 1, "its process ended".into())),
            Some(other) => return Err(lost(at + 1, format!("it said {}, expected its sums", other.name()))),
        }
    }
    for (at, wire) in wires.iter_mut().enumerate() {
        let sent = if refused.is_some() { wire.send(&Frame::Undo) } else { wire.send_sums(grads, losses) };
        sent.map_err(|why| lost(at + 1, why))?;
    }
    refused.map_or(Ok(()), Err)
}

/// A follower's side.
fn contribute(
    wire: &mut Wire,
    own: Result<(), TrainError>,
    grads: &mut [&mut [f32]],
    losses: &mut [f64],
) -> Result<(), TrainError> {
    let sent = match own {
        Ok(()) => wire.send_sums(grads, losses),
        Err(TrainError::Refused { what, bytes }) => wire.send(&Frame::Refused { what, bytes }),
        Err(ends) => return Err(ends),
    };
    sent.map_err(|why| lost(0, why))?;
    match wire.receive().map_err(|why| lost(0, why))? {
        Some(Frame::Sums(sums)) => sums.replace(grads, losses).map_err(|why| lost(0, why)),
        Some(Frame::Undo) => Err(TrainError::Refused { what: "another device's part of the step".into(), bytes: 0 }),
        None => Err(TrainError::Stopped),
        Some(other) => Err(lost(0, format!("it said {}, expected the sums", other.name()))),
    }
}

#[cfg(test)]
mod tests;
