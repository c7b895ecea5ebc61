//! Sums of numbers that stay where they lie: how ranks on GPUs meet for them, and how they wait.
//!
//! ```text
//! leader                                followers
//!   where to meet              ───►                       with the first word of all
//!                              ◄───     whether there is what that takes
//!   meet, or let it be         ───►
//!                              ◄───     whether it met the others
//!   all have met, or none      ───►     else everybody leaves, and sums go over the wires
//!
//! in a step, when all have said over the wires that they have a part:
//!   sum … sum … sum                     sum … sum … sum   over the wires goes nothing
//! ```
//! Whoever waits here for a device looks at its wires meanwhile, and asks whether it shall stop: a sum that lacks a rank never ends by
//! itself. Then it is broken off, which is all that becomes of the step.

use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Stop, Wire, WireError};
use super::{Ranks, Seat, gone, of_leader};
use crate::TrainError;
use crate::ops::machine::{Collective, Exact, LossSums, Machine, Meeting};

/// How long somebody who waits for a device looks away: nothing beside a step, and no load.
const NAP: Duration = Duration::from_micros(200);
/// How long ranks may look for each other once all are there: where the system keeps GPUs from reaching each other, NCCL waits for ever.
const MEETING: Duration = Duration::from_secs(60);
/// How long an error of a sum may wait for the word of a rank that is its cause: the end of a process is seen there and here.
const EXPLAINED: Duration = Duration::from_secs(2);

/// Whether a rank can, or has: in its words why not.
type Said = Result<(), String>;

/// What a rank has met for, or why not.
type Met = Result<Collective, String>;

/// The leader's side: what all have met for, or why none has.
pub(super) fn lead(
    wires: &mut [Wire],
    machine: &Machine,
    meeting: &Meeting,
    stop: Stop<'_>,
) -> Result<Met, TrainError> {
    let mut can: Said = Ok(());
    for at in 0..wires.len() {
        can = can.and(hear(wires, at, stop)?);
    }
    tell(wires, can.is_ok(), stop)?;
    if let Err(why) = can {
        return Ok(Err(why));
    }
    let mut heard = vec![false; wires.len()];
    let met = meet(wires, &mut heard, machine, meeting, stop)?;
    tell(wires, met.is_ok(), stop)?;
    // each says it once: who was still at it does so now, and nobody is interested any more
    for at in (0..wires.len()).filter(|at| !heard[*at]) {
        let _late = hear(wires, at, stop)?;
    }
    Ok(met)
}

/// Meets those who can all do so, and hears of each whether it has.
fn meet(
    wires: &mut [Wire],
    heard: &mut [bool],
    machine: &Machine,
    meeting: &Meeting,
    stop: Stop<'_>,
) -> Result<Met, TrainError> {
    let since = Instant::now();
    let mut own = match machine.meet(meeting, (0, wires.len() + 1)) {
        Ok(own) => own,
        Err(error) => return Ok(Err(said(0, words(error)))),
    };
    loop {
        let is_there = match own.look() {
            Ok(is_there) => is_there,
            Err(error) => return Ok(Err(said(0, words(error)))),
        };
        for at in (0..wires.len()).filter(|at| wires[*at].has_news() && !heard[*at]).collect::<Vec<_>>() {
            heard[at] = true;
            if let Err(why) = hear(wires, at, stop)? {
                return Ok(Err(why));
            }
        }
        if is_there && heard.iter().all(|heard| *heard) {
            return Ok(Ok(own));
        }
        if stop() {
            return Err(TrainError::Stopped);
        }
        if since.elapsed() > MEETING {
            return Ok(Err(format!("NCCL has not opened in {} seconds", MEETING.as_secs())));
        }
        thread::sleep(NAP);
    }
}

/// A follower's side: what all have met for.
pub(super) fn follow(
    seat: Seat,
    wire: &mut Wire,
    machine: &Machine,
    meeting: &Meeting,
    stop: Stop<'_>,
) -> Result<Option<Collective>, TrainError> {
    let can: Said = machine.can_meet().map_err(words);
    wire.send_word(&can, stop).map_err(of_leader)?;
    if !wire.receive_word(stop).map_err(of_leader)? {
        return Ok(None);
    }
    let mut own = machine.meet(meeting, (seat.rank, seat.ranks)).map_err(words);
    while let Ok(collective) = &mut own {
        match collective.look() {
            Ok(true) => break,
            // it says one thing only now
            Ok(false) if wire.has_news() => own = Err("told to let it be".into()),
            Ok(false) if stop() => return Err(TrainError::Stopped),
            Ok(false) => thread::sleep(NAP),
            Err(error) => own = Err(words(error)),
        }
    }
    let met: Said = own.as_ref().map(drop).map_err(String::clone);
    wire.send_word(&met, stop).map_err(of_leader)?;
    let all = wire.receive_word(stop).map_err(of_leader)?;
    Ok(own.ok().filter(|_| all))
}

impl Ranks {
    /// Whether gradients and losses are summed where they lie.
    pub(crate) fn has_met(&self) -> bool {
        match self {
            Ranks::Alone => false,
            Ranks::Leader(_, met) | Ranks::Follower(_, _, met) => met.is_some(),
        }
    }

    /// As [`Ranks::all_reduce`], of numbers that stay where they lie.
    pub(crate) fn all_reduce_there(
        &mut self,
        own: Result<LossSums, TrainError>,
        grads: &mut [&mut Exact],
        stop: Stop<'_>,
    ) -> Result<LossSums, TrainError> {
        let (own, losses) = own.map_or_else(|why| (Err(why), None), |losses| (Ok(()), Some(losses)));
        self.all_reduce(own, &mut [], &mut [], stop)?;
        let mut losses = losses.expect("none goes on where one has nothing to sum");
        // not put back after an error: so it is broken off before anybody else gets hold of the numbers
        let mut met = self.met().take().expect("it has met");
        met.sum(grads, &mut losses)?;
        self.wait(&mut met, stop)?;
        *self.met() = Some(met);
        Ok(losses)
    }

    fn met(&mut self) -> &mut Option<Collective> {
        match self {
            Ranks::Alone => panic!("who is alone sums nothing"),
            Ranks::Leader(_, met) | Ranks::Follower(_, _, met) => met,
        }
    }

    fn wait(&mut self, met: &mut Collective, stop: Stop<'_>) -> Result<(), TrainError> {
        let mut failed: Option<(Instant, TrainError)> = None;
        loop {
            match failed.take() {
                Some((since, error)) if since.elapsed() > EXPLAINED => return Err(error),
                Some(waits) => failed = Some(waits),
                None => match met.look() {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) => failed = Some((Instant::now(), error)),
                },
            }
            if stop() {
                return Err(TrainError::Stopped);
            }
            self.look_at_wires()?;
            thread::sleep(NAP);
        }
    }

    /// What ends a sum: somebody is gone.
    fn look_at_wires(&mut self) -> Result<(), TrainError> {
        match self {
            Ranks::Alone => Ok(()),
            // a follower has nothing to say now but why it goes
            Ranks::Leader(wires, _) => match wires.iter().position(Wire::has_news) {
                Some(at) => Err(gone(at + 1, &mut wires[at], &WireError::Left)),
                None => Ok(()),
            },
            // a leader that is through sooner has ordered the next step
            Ranks::Follower(_, wire, _) if wire.is_left() => Err(of_leader(WireError::Left)),
            Ranks::Follower(..) => Ok(()),
        }
    }
}

/// What a rank says.
fn hear(wires: &mut [Wire], at: usize, stop: Stop<'_>) -> Result<Said, TrainError> {
    let word = wires[at].receive_word::<Said>(stop).map_err(|why| gone(at + 1, &mut wires[at], &why))?;
    Ok(word.map_err(|why| said(at + 1, why)))
}

fn tell(wires: &mut [Wire], word: bool, stop: Stop<'_>) -> Result<(), TrainError> {
    let mut each = wires.iter_mut().enumerate();
    each.try_for_each(|(at, wire)| wire.send_word(&word, stop).map_err(|why| gone(at + 1, wire, &why)))
}

fn said(rank: usize, why: String) -> String {
    format!("rank {rank}: {why}")
}

/// Why a device does not meet others.
pub(super) fn words(error: TrainError) -> String {
    if let TrainError::Device { reason } = error { reason } else { error.to_string() }
}
