//! Room for a job that has to wait: where its devices are free soonest, and who could be asked to leave.

use super::{Candidate, Holder, Lookup, fit::Place};
use lorikeet_protocol::id::AttemptId;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Devices of one node that are free together from a moment on.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) place: usize,
    pub(super) devices: Vec<usize>,
    pub(super) starts: Duration,
}

/// A device, by its node and its number there.
pub(super) type Spot = (usize, usize);

/// Where and when the job's devices are free soonest, if attempts last as long as they say and those that are spoken for are somebody
/// else's for good. `None`: on no node, ever, as they are.
pub(super) fn earliest(
    candidate: &Candidate<'_>,
    places: &[Place<'_>],
    spoken_for: &BTreeSet<Spot>,
    lookup: &impl Lookup,
    now: Duration,
) -> Option<Room> {
    let rooms = places.iter().enumerate().filter_map(|(place, node)| {
        let open = usable(candidate, node).filter(|index| !spoken_for.contains(&(place, *index)));
        let mut devices: Vec<_> = open.map(|index| (free_at(node, index, lookup, now), index)).collect();
        devices.sort_unstable();
        let wanted = usize::from(candidate.resources.gpus);
        let starts = devices.get(wanted.checked_sub(1)?)?.0;
        Some(Room { place, devices: devices.into_iter().take(wanted).map(|(_, index)| index).collect(), starts })
    });
    rooms.min_by_key(|room| (room.starts, places[room.place].node.id))
}

fn usable<'a>(candidate: &'a Candidate<'_>, place: &'a Place<'_>) -> impl Iterator<Item = usize> + 'a {
    let suitable = place.suitable(candidate).unwrap_or_default();
    suitable.into_iter().filter(move |index| place.would_do(*index, candidate))
}

fn free_at(place: &Place<'_>, index: usize, lookup: &impl Lookup, now: Duration) -> Duration {
    let ends = holders(place, index, lookup).map(|(_, holder)| if holder.leaving { now } else { holder.ends });
    ends.chain(place.until(index)).max().unwrap_or(now).max(now)
}

fn holders<'a>(
    place: &'a Place<'_>,
    index: usize,
    lookup: &'a impl Lookup,
) -> impl Iterator<Item = (AttemptId, Holder)> + 'a {
    let shares = place.node.ledger.shares(&place.slots[index].device.id);
    shares.iter().filter_map(|share| Some((share.attempt, lookup.holder(share.attempt)?)))
}

/// The node where the least has to leave for the job: only attempts whose priority is lower by `margin`, the lowest first, then
/// those with the least at stake. Nobody, where room is being made already.
pub(super) fn victims(
    candidate: &Candidate<'_>,
    places: &[Place<'_>],
    lookup: &impl Lookup,
    margin: u8,
) -> Option<(Room, Vec<AttemptId>)> {
    let most = candidate.priority.checked_sub(margin)?;
    let plans = places
        .iter()
        .enumerate()
        .filter_map(|(place, node)| plan(candidate, node, lookup, most).map(|plan| (place, plan)));
    let (place, plan) = plans.min_by_key(|(place, plan)| (plan.cost, places[*place].node.id))?;
    Some((Room { place, devices: plan.devices, starts: Duration::ZERO }, plan.victims.into_iter().collect()))
}

struct Plan {
    devices: Vec<usize>,
    victims: BTreeSet<AttemptId>,
    /// The highest priority among them, then the sum of what is at stake.
    cost: (u8, Duration),
}

/// Everybody who may be disturbed is a victim at first; then, the dearest first, whoever need not leave is spared. One that holds
/// several devices is paid for once.
fn plan(candidate: &Candidate<'_>, place: &Place<'_>, lookup: &impl Lookup, most: u8) -> Option<Plan> {
    let wanted = usize::from(candidate.resources.gpus);
    let staying = |index: usize| holders(place, index, lookup).filter(|(_, holder)| !holder.leaving);
    let may_go = |index: &usize| staying(*index).all(|(_, holder)| holder.priority <= most);
    // Who got a device in this pass has no attempt yet that could be asked.
    let unasked = |index: &usize| place.until(*index).is_none();
    let makes_room = |index: &usize| place.will_do(*index, candidate);
    let devices: Vec<usize> = usable(candidate, place).filter(makes_room).filter(unasked).filter(may_go).collect();
    let mut victims: BTreeMap<AttemptId, (u8, Duration)> = BTreeMap::new();
    for (attempt, holder) in devices.iter().flat_map(|index| staying(*index)) {
        victims.insert(attempt, (holder.priority, holder.at_stake));
    }
    let free = |victims: &BTreeMap<AttemptId, (u8, Duration)>| {
        let is_free = |index: &usize| staying(*index).all(|(attempt, _)| victims.contains_key(&attempt));
        devices.iter().copied().filter(is_free).take(wanted).collect::<Vec<_>>()
    };
    let mut dearest: Vec<_> = victims.iter().map(|(attempt, cost)| (*cost, *attempt)).collect();
    dearest.sort_unstable_by_key(|cost| Reverse(*cost));
    for (cost, attempt) in dearest {
        victims.remove(&attempt);
        if free(&victims).len() < wanted {
            victims.insert(attempt, cost);
        }
    }
    let devices = free(&victims);
    let add =
        |sum: (u8, Duration), (priority, stake): &(u8, Duration)| (sum.0.max(*priority), sum.1.saturating_add(*stake));
    (devices.len() >= wanted).then(|| Plan {
        devices,
        cost: victims.values().fold((0, Duration::ZERO), add),
        victims: victims.into_keys().collect(),
    })
}
