//! Several processes that train one run, each on a device of its own: data parallel.
//!
//! ```text
//! leader (rank 0)                               followers (ranks 1, 2, …)
//!   its data, base and checkpoint                 the base
//!   its seat, the state, the numbers  ───►        the data, and the same run
//!   which step, how divided           ───►
//!   its micro-batches of the step                 theirs
//!   gradient and loss                 ◄───        gradient and loss, or why there is none
//!   the sums, in the order of ranks   ───►        the same sums
//!   the update                                    the same update, bit for bit
//! ```
//! Every rank holds the whole run and takes every step; only the passes over its micro-batches are divided. What is summed is what
//! one process would have summed, in another order: the same step but for rounding, and the same bits again with as many ranks.
//! The leader alone reads checkpoints, evaluates, saves and tells; a follower leaves when its wire ends. A follower reads the data after
//! the leader, which has made the token cache by then. The sums go through the leader, which is right for processes of one
//! machine. Gradients on GPUs stay there: NCCL sums them, and over the wires goes only who has one (`ranks/collective.rs`). Where it is
//! missing, or does not open on one rank, they come over for the leader's sums, and those go back.

mod collective;
mod deal;
mod wire;

use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::ops::machine::{Collective, Machine, Meeting};
use crate::run::{Run, State};
use wire::{Failed, Put, Refused, Reply, Stop, Wire, WireError};

/// Steps between two looks at whether all ranks hold the same numbers.
const COMPARED_EVERY: u64 = 64;

/// Which of how many a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    /// The leader is 0.
    pub(crate) rank: usize,
    /// Of how many.
    pub(crate) ranks: usize,
}

/// The next step, and how it is divided into passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepOrder {
    /// Steps taken before it.
    after: u64,
    /// BLAKE3 of the numbers before it, every so many steps.
    numbers: Option<String>,
    pub(crate) micro_tokens: usize,
    pub(crate) recompute: usize,
}

/// Who takes part in a step, as this process sees it.
#[derive(Debug, Default)]
pub(crate) enum Ranks {
    /// Nobody else.
    #[default]
    Alone,
    /// This process leads; the others, from rank 1, and what they have met for.
    Leader(Vec<Wire>, Option<Collective>),
    /// Another leads.
    Follower(Seat, Wire, Option<Collective>),
}

/// What a leader begins with: the follower's seat, where the run stands, and where to meet if the leader has what that takes.
type Beginning = (Seat, State, Option<Meeting>);

impl Ranks {
    /// A leader of whoever is at the other ends.
    pub(crate) fn lead(followers: Vec<UnixStream>) -> Ranks {
        if followers.is_empty() {
            return Ranks::Alone;
        }
        Ranks::Leader(followers.into_iter().map(Wire::new).collect(), None)
    }

    /// Waits until the leader begins: where the run stands there, and where the ranks meet.
    pub(crate) fn follow(leader: UnixStream, stop: Stop<'_>) -> Result<(Ranks, State, Option<Meeting>), TrainError> {
        let mut wire = Wire::new(leader);
        let (seat, state, meeting) = wire.receive_word::<Beginning>(stop).map_err(of_leader)?;
        Ok((Ranks::Follower(seat, wire, None), state, meeting))
    }

    /// Whether this process has every micro-batch, and the gradient of a step is its own.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self, Ranks::Alone)
    }

    fn seat(&self) -> Seat {
        match self {
            Ranks::Alone => Seat { rank: 0, ranks: 1 },
            Ranks::Leader(wires, _) => Seat { rank: 0, ranks: wires.len() + 1 },
            Ranks::Follower(seat, ..) => *seat,
        }
    }

    /// Sends every follower the run as it is, and meets them; why not, where gradients could have stayed where they lie.
    pub(crate) fn begin(&mut self, run: &Run, machine: &Machine, stop: Stop<'_>) -> Result<Option<String>, TrainError> {
        if self.is_alone() {
            return Ok(None);
        }
        let (meeting, lacking) = match machine.meeting() {
            Ok(meeting) => (meeting, None),
            Err(error) => (None, Some(collective::words(error))),
        };
        let [m, v] = run.moments()?;
        let (ranks, numbers) = (self.seat().ranks, [run.params()?, m, v]);
        self.tell_each(|rank, wire| {
            wire.send_word(&(Seat { rank, ranks }, &run.state, &meeting), stop)?;
            numbers.iter().try_for_each(|numbers| wire.send_numbers(numbers, stop))
        })?;
        match (self, meeting) {
            (Ranks::Leader(wires, met), Some(meeting)) => {
                let (all, why) = match collective::lead(wires, machine, &meeting, stop)? {
                    Ok(all) => (Some(all), None),
                    Err(why) => (None, Some(why)),
                };
                *met = all;
                Ok(why)
            }
            _ => Ok(lacking),
        }
    }

    /// Puts the leader's numbers into a run of the same shape, on the host.
    pub(crate) fn take_up(&mut self, run: &mut Run, stop: Stop<'_>) -> Result<(), TrainError> {
        let Ranks::Follower(_, wire, _) = self else { return Ok(()) };
        let numbers = [&mut run.params, &mut run.optimizer.m, &mut run.optimizer.v];
        numbers.into_iter().try_for_each(|numbers| wire.receive_numbers(numbers.host_mut(), stop).map_err(of_leader))
    }

    /// Meets the others where the leader said.
    pub(crate) fn meet(&mut self, machine: &Machine, meeting: &Meeting, stop: Stop<'_>) -> Result<(), TrainError> {
        let Ranks::Follower(seat, wire, met) = self else { return Ok(()) };
        *met = collective::follow(*seat, wire, machine, meeting, stop)?;
        Ok(())
    }

    /// Has every follower take the next step.
    pub(crate) fn order(
        &mut self,
        run: &Run,
        (micro_tokens, recompute): (usize, usize),
        stop: Stop<'_>,
    ) -> Result<(), TrainError> {
        if self.is_alone() {
            return Ok(());
        }
        let after = run.state.step;
        let numbers = after.is_multiple_of(COMPARED_EVERY).then(|| hash(run)).transpose()?;
        let order = StepOrder { after, numbers, micro_tokens, recompute };
        self.tell_each(|_, wire| wire.send_word(&order, stop))
    }

    /// What to do next; `None`: the leader has left. That this run is another than the leader's is our own mistake.
    pub(crate) fn next_order(&mut self, run: &Run, stop: Stop<'_>) -> Result<Option<StepOrder>, TrainError> {
        let Ranks::Follower(_, wire, _) = self else { return Ok(None) };
        let order = match wire.receive_word::<StepOrder>(stop) {
            Err(WireError::Left) => return Ok(None),
            order => order.map_err(of_leader)?,
        };
        let (after, here) = (order.after, run.state.step);
        if after != here {
            return Err(TrainError::Internal(format!("stands after step {here}, and the leader after step {after}")));
        }
        if let Some(numbers) = &order.numbers
            && *numbers != hash(run)?
        {
            return Err(TrainError::Internal(format!("holds other numbers after step {here} than the leader")));
        }
        Ok(Some(order))
    }

    /// This rank's micro-batches of a step whose examples have these lengths.
    pub(crate) fn deal(&self, lengths: &[usize], micro_tokens: usize) -> Vec<Vec<usize>> {
        deal::deal(lengths, micro_tokens, self.seat())
    }

    /// Replaces gradients and losses of this rank by the sums of all. Where any rank was refused memory, none has a sum: the step
    /// can be taken again.
    pub(crate) fn all_reduce(
        &mut self,
        own: Result<(), TrainError>,
        grads: &mut [&mut [f32]],
        losses: &mut [f64],
        stop: Stop<'_>,
    ) -> Result<(), TrainError> {
        match self {
            Ranks::Alone => own,
            Ranks::Leader(wires, _) => gather(wires, own, grads, losses, stop),
            Ranks::Follower(_, wire, _) => contribute(wire, own, grads, losses, stop),
        }
    }

    fn tell_each(&mut self, say: impl Fn(usize, &mut Wire) -> Result<(), WireError>) -> Result<(), TrainError> {
        let Ranks::Leader(wires, _) = self else { return Ok(()) };
        wires
            .iter_mut()
            .enumerate()
            .try_for_each(|(at, wire)| say(at + 1, wire).map_err(|why| gone(at + 1, wire, &why)))
    }
}

/// Tells the leader why this process takes no part any more, or never could, so that it does not have to guess.
pub(crate) fn give_up(leader: UnixStream, why: &TrainError) {
    let failed = Failed { class: why.class(), why: why.to_string() };
    // The leader may have left, and then there is nobody to tell.
    drop(Wire::new(leader).send_failed(&failed, &|| true));
}

/// What holds the numbers that are trained.
fn hash(run: &Run) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    run.params()?.iter().for_each(|number| _ = hasher.update(&number.to_le_bytes()));
    Ok(hasher.finalize().to_hex().to_string())
}

/// The leader's side: everybody's word first, then the sums to all, or that there are none.
fn gather(
    wires: &mut [Wire],
    own: Result<(), TrainError>,
    grads: &mut [&mut [f32]],
    losses: &mut [f64],
    stop: Stop<'_>,
) -> Result<(), TrainError> {
    // Only want of memory makes another try of the same step; after anything else the leader leaves, and they with it.
    let mut refused = match own {
        Err(refused @ TrainError::Refused { .. }) => Some(refused),
        Err(ends) => return Err(ends),
        Ok(()) => None,
    };
    for (at, wire) in wires.iter_mut().enumerate() {
        match wire.receive_sums(grads, losses, Put::Add, stop).map_err(|why| gone(at + 1, wire, &why))? {
            Reply::Sums => {}
            Reply::Refused(Refused { what, bytes }) => refused = Some(TrainError::Refused { what, bytes }),
            Reply::Failed(failed) => return Err(failed_at(at + 1, failed)),
            Reply::Undo => return Err(lost(at + 1, "it said what only a leader says".into())),
        }
    }
    for (at, wire) in wires.iter_mut().enumerate() {
        let sent = if refused.is_some() { wire.send_undo(stop) } else { wire.send_sums(grads, losses, stop) };
        sent.map_err(|why| gone(at + 1, wire, &why))?;
    }
    refused.map_or(Ok(()), Err)
}

/// A follower's side.
fn contribute(
    wire: &mut Wire,
    own: Result<(), TrainError>,
    grads: &mut [&mut [f32]],
    losses: &mut [f64],
    stop: Stop<'_>,
) -> Result<(), TrainError> {
    let sent = match own {
        Ok(()) => wire.send_sums(grads, losses, stop),
        Err(TrainError::Refused { what, bytes }) => wire.send_refused(&Refused { what, bytes }, stop),
        Err(ends) => return Err(ends),
    };
    sent.map_err(of_leader)?;
    match wire.receive_sums(grads, losses, Put::Replace, stop).map_err(of_leader)? {
        Reply::Sums => Ok(()),
        Reply::Undo => Err(TrainError::Refused { what: "a part of the step on some device".into(), bytes: 0 }),
        Reply::Refused(_) | Reply::Failed(_) => Err(lost(0, "it said what only a follower says".into())),
    }
}

fn lost(rank: usize, why: String) -> TrainError {
    TrainError::RankLost { rank, why }
}

fn failed_at(rank: usize, Failed { class, why }: Failed) -> TrainError {
    TrainError::Rank { rank, class, why }
}

/// A follower that says no more: what it said last is why.
fn gone(rank: usize, wire: &mut Wire, why: &WireError) -> TrainError {
    match (why, wire.last_word()) {
        (WireError::Stopped, _) => TrainError::Stopped,
        (_, Some(failed)) => failed_at(rank, failed),
        (_, None) => lost(rank, why.to_string()),
    }
}

/// A leader that left has no need of this process any more.
fn of_leader(why: WireError) -> TrainError {
    match why {
        WireError::Stopped | WireError::Left => TrainError::Stopped,
        WireError::Broke(_) | WireError::Unexpected { .. } => lost(0, why.to_string()),
    }
}

#[cfg(test)]
mod tests;
