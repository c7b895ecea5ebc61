//! A follower's side of a run that several processes train: the same run, step by step as the leader orders.

use std::os::unix::net::UnixStream;

use super::{prepare, threads};
use crate::TrainError;
use crate::config::Config;
use crate::ranks::{Begin, Ranks};
use crate::step::step_of;
use crate::stop::Stop;

/// Takes part in the run of the process at the other end of `leader`, which does [`lead`](super::lead) with the same config, until
/// that leaves. `stop` ends it early; it has nothing to save.
pub fn follow(config: &Config, leader: UnixStream, stop: &Stop) -> Result<(), TrainError> {
    config.check()?;
    let Some((mut ranks, begin)) = Ranks::follow(leader)? else { return Ok(()) };
    match threads(config)?.install(|| obey(config, &mut ranks, begin, stop)) {
        Err(TrainError::Stopped) => Ok(()),
        followed => followed.inspect_err(|error| ranks.give_up(error)),
    }
}

fn obey(config: &Config, ranks: &mut Ranks, begin: Begin, stop: &Stop) -> Result<(), TrainError> {
    let (mut model, mut run) = prepare::follower(config, begin, stop)?;
    while let Some(order) = ranks.next_order()? {
        if order.after != run.state.step {
            let why = format!("it stands after step {}, and the leader after step {}", run.state.step, order.after);
            return Err(TrainError::Internal(why));
        }
        model.set_recompute(order.recompute);
        match step_of(ranks, &model, std::slice::from_mut(&mut run), order.micro_tokens, &|| stop.is_asked()) {
            // the leader orders it again, in smaller parts
            Err(TrainError::Refused { .. }) => {}
            taken => drop(taken?),
        }
        run.put_into(&mut model);
    }
    Ok(())
}
