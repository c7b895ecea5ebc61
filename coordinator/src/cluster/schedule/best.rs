//! Which node is best for a request, remembered in the course of a pass: thousands of jobs ask for the same, and from one to the next
//! only the node has changed that the last one got.

use super::{
    Candidate,
    fit::{Place, Rank, Shape},
};
use lorikeet_protocol::id::{Hash, NodeId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Requests that are remembered: beyond that all are forgotten, and each costs one look at every node again.
const REQUESTS: usize = 256;

/// See the module.
#[derive(Default)]
pub(super) struct Best {
    ranked: BTreeMap<Request, Ranked>,
    /// Nodes that have changed, in the order in which they did.
    changed: Vec<usize>,
}

/// What makes two candidates the same for every node: what they need, and what they would rather have.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    shape: Shape,
    prefer: String,
    files: Vec<Hash>,
    avoid: BTreeSet<NodeId>,
}

/// The nodes that could take a request now.
struct Ranked {
    ranks: Vec<Option<Rank>>,
    order: BTreeMap<Rank, usize>,
    /// Changes that are in here already.
    through: usize,
}

impl Best {
    /// The node that this candidate fits best on, if there is one.
    pub(super) fn of(
        &mut self,
        candidate: &Candidate<'_>,
        shape: &Shape,
        places: &[Place<'_>],
        now: Duration,
    ) -> Option<usize> {
        let request = Request {
            shape: shape.clone(),
            prefer: format!("{:?}", candidate.resources.prefer),
            files: candidate.files.clone(),
            avoid: candidate.avoid.clone(),
        };
        if self.ranked.len() >= REQUESTS && !self.ranked.contains_key(&request) {
            self.ranked.clear();
        }
        let through = self.changed.len();
        let rank = |place: &Place<'_>| Some(place.rank(candidate, &place.fit(candidate, now).ok()?));
        let ranked =
            self.ranked.entry(request).or_insert_with(|| Ranked::new(places.iter().map(rank).collect(), through));
        for index in &self.changed[ranked.through..] {
            ranked.put(*index, rank(&places[*index]));
        }
        ranked.through = through;
        ranked.order.last_key_value().map(|(_, index)| *index)
    }

    /// A node has less room than before, or keeps it for somebody.
    pub(super) fn changed(&mut self, place: usize) {
        self.changed.push(place);
    }
}

impl Ranked {
    fn new(ranks: Vec<Option<Rank>>, through: usize) -> Self {
        let order = ranks.iter().enumerate().filter_map(|(index, rank)| Some((*rank.as_ref()?, index))).collect();
        Self { ranks, order, through }
    }

    fn put(&mut self, place: usize, rank: Option<Rank>) {
        if let Some(before) = std::mem::replace(&mut self.ranks[place], rank) {
            self.order.remove(&before);
        }
        self.order.extend(rank.map(|rank| (rank, place)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Candidate, NodeView};
    use super::*;
    use crate::cluster::ledger::Ledger;
    use lorikeet_api::{JobFile, Presets};
    use lorikeet_protocol::{
        id::{DeviceId, JobId, UserId},
        job::{Device, DeviceKind, Resources},
    };
    use proptest::prelude::*;
    use uuid::Uuid;

    const NODES: u128 = 6;

    fn device(number: u8, gib: u64) -> Device {
        Device {
            id: DeviceId(format!("GPU-{number}")),
            name: "simulated".into(),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
            memory_bytes: gib << 30,
            free_bytes: gib << 30,
            usable: Ok(()),
        }
    }

    fn candidate(resources: &Resources, gib: u64, files: u8, avoid: u128) -> Candidate<'_> {
        Candidate {
            job: JobId(Uuid::nil()),
            owner: UserId(Uuid::nil()),
            priority: 50,
            resources,
            cpu_bytes: 0,
            cuda_bytes: gib << 30,
            cpu_only: None,
            gpu_only: false,
            files: (0..files).map(|byte| Hash([byte; 32])).collect(),
            avoid: (0..avoid).map(|node| NodeId(Uuid::from_u128(node))).collect(),
            lasts: Duration::from_secs(60),
            sweep: None,
        }
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_what_a_look_at_every_node_finds(
            jobs in prop::collection::vec((1u64..40, 0u8..3, 0u128..4, any::<bool>(), 0u8..20), 1..60),
        ) {
            let file = JobFile::from_toml("base = \"b\"\ndataset = \"d\"").unwrap();
            let alone = file.resolve(&Presets::embedded()).unwrap().resources;
            let shared = Resources { exclusive: false, ..alone.clone() };
            let (labels, ledger) = (BTreeMap::new(), Ledger::default());
            let devices: Vec<Vec<Device>> = (0..NODES as u8).map(|n| (0..3).map(|d| device(d, 20 + u64::from(n % 3 + d) * 20)).collect()).collect();
            let cached: Vec<BTreeSet<Hash>> = (0..NODES as u8).map(|n| [Hash([n % 3; 32])].into()).collect();
            let nodes: Vec<_> = (0..NODES as usize).map(|n| NodeView {
                id: NodeId(Uuid::from_u128(n as u128)), name: "n", closed: None, labels: &labels, devices: &devices[n], devices_age: Duration::ZERO, is_known: true, ledger: &ledger, cached: &cached[n],
            }).collect();
            let mut places: Vec<_> = nodes.iter().map(Place::new).collect();
            let (mut best, now) = (Best::default(), Duration::ZERO);
            for (gib, files, avoid, is_alone, reserves) in jobs {
                let candidate = candidate(if is_alone { &alone } else { &shared }, gib, files, avoid);
                let plain = places.iter().enumerate().filter_map(|(index, place)| Some((place.rank(&candidate, &place.fit(&candidate, now).ok()?), index)));
                let plain = plain.max().map(|(_, index)| index);
                prop_assert_eq!(best.of(&candidate, &Shape::of(&candidate), &places, now), plain);
                if let Some(index) = plain {
                    let fit = places[index].fit(&candidate, now).unwrap();
                    places[index].take(&candidate, &fit, now);
                    best.changed(index);
                }
                if usize::from(reserves) < nodes.len() {
                    places[usize::from(reserves)].reserve(&[0], Duration::from_secs(1));
                    best.changed(reserves.into());
                }
            }
        }
    }
}
