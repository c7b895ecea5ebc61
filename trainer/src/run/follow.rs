//! A follower's side of a run that several processes train: the same run, step by step as the leader orders.

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{prepare, threads};
use crate::TrainError;
use crate::config::Config;
use crate::ranks;
use crate::step::step_of;
use crate::stop::Stop;

/// Takes part in the run of the process at the other end of `leader`, which does [`lead`](super::lead) with the same config, until
/// that leaves. `stop` ends it early; it has nothing to save. Why it cannot take part it tells the leader as well.
pub fn follow(config: &Config, leader: UnixStream, stop: &Stop) -> Result<(), TrainError> {
    let again = leader.try_clone().map_err(|error| TrainError::Internal(format!("keep the wire: {error}")))?;
    let followed = catch_unwind(AssertUnwindSafe(|| {
        config.check()?;
        threads(config)?.install(|| obey(config, leader, stop))
    }));
    match followed.unwrap_or_else(|panic| Err(TrainError::of_panic(panic.as_ref()))) {
        Err(TrainError::Stopped) => Ok(()),
        followed => followed.inspect_err(|error| ranks::give_up(again, error)),
    }
}

fn obey(config: &Config, leader: UnixStream, stop: &Stop) -> Result<(), TrainError> {
    let is_stopped = || stop.is_asked();
    let (mut model, mut run, mut ranks) = prepare::follower(config, leader, stop)?;
    while let Some(order) = ranks.next_order(&run, &is_stopped)? {
        model.set_recompute(order.recompute);
        match step_of(&mut ranks, &model, std::slice::from_mut(&mut run), order.micro_tokens, &is_stopped) {
            // the leader orders it again, in smaller parts
            Err(TrainError::Refused { .. }) => {}
            taken => drop(taken?),
        }
        run.put_into(&mut model)?;
    }
    Ok(())
}
