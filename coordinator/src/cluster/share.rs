//! Which nodes have a file that another one needs, as they said themselves in this session.
//!
//! A node that said nothing – an agent of before, or one whose config gives nothing – is never named. What a node says of its cache is
//! also what placement near the data goes by.

use super::{Action, Cluster, Now, node::LiveNode};
use lorikeet_protocol::{
    agent::ToAgent,
    id::{AttemptId, Hash, NodeId},
    share::{GIVERS, Moved},
};
use std::{net::SocketAddr, time::Duration};

/// How long leave to read from a node lasts. A reader asks anew every thirty seconds; a coordinator that restarts meanwhile is back within these.
pub(crate) const GRANTED: Duration = Duration::from_secs(120);
/// Who comes back within this hears of whom it may still have let in: leave lasts as long, and what a giver hears of the time is late by as long
/// as that was on its way.
const RECENTLY: Duration = Duration::from_secs(150);
/// Nodes that were sent away lately, told to one that comes back: its outbox holds four times as many words.
const TOLD: usize = 256;

/// What a node said of its cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The files in it.
    pub files: Vec<Hash>,
    /// Where it gives them; `None`: nowhere.
    pub gives_at: Option<SocketAddr>,
    /// What it received and gave.
    pub moved: Moved,
}

/// What is known of a node's cache while it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// So many files.
    pub cached: usize,
    /// Where it gives them.
    pub gives_at: Option<SocketAddr>,
    /// What it received and gave since its agent started.
    pub moved: Moved,
}

impl Cluster {
    /// It comes over another connection than the session's own words: one of an earlier session is late.
    pub(super) fn announced(&mut self, id: NodeId, session: u64, said: Announced) {
        let current = |node: &LiveNode| node.session.as_ref().is_some_and(|current| current.number == session);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| current(node)) else { return };
        node.cached = said.files.into_iter().collect();
        node.sharing = Some(Sharing { cached: node.cached.len(), gives_at: said.gives_at, moved: said.moved });
    }

    /// It was away when they were sent away: what they read there ends now.
    pub(super) fn tell_who_is_gone(&self, id: NodeId, now: Now, out: &mut Vec<Action>) {
        let recently = |gone: u64| now.wall.0.saturating_sub(gone) < RECENTLY.as_millis() as u64;
        let gone = self.nodes.values().filter_map(|node| Some((node.record.gone_at?, node.record.id)));
        let mut gone: Vec<_> = gone.filter(|(at, _)| recently(at.0)).collect();
        gone.sort_unstable_by(|a, b| b.cmp(a));
        gone.truncate(TOLD);
        out.extend(gone.into_iter().map(|(_, gone)| Action::Send { node: id, message: ToAgent::Expelled(gone) }));
    }

    /// A few nodes that give the file; `None`: the attempt is not this node's, or does not name the file.
    pub(super) fn givers(
        &self,
        reader: NodeId,
        attempt: AttemptId,
        file: Hash,
        now: Now,
    ) -> Option<Vec<(NodeId, SocketAddr)>> {
        self.may_fetch(reader, attempt, file).then_some(())?;
        let gives = self.nodes.values().filter_map(|node| {
            let heard = node.session.is_some() && node.silence(now) < self.timers.lease;
            let trusted = node.record.quarantine.is_none() && node.record.id != reader;
            let address = node.sharing?.gives_at?;
            (heard && trusted && node.cached.contains(&file)).then_some((node.record.id, address))
        });
        let mut gives: Vec<_> = gives.collect();
        let minute = now.wall.0 / 60_000;
        gives.sort_by_key(|(giver, _)| lot(*giver, reader, file, minute));
        gives.truncate(GIVERS);
        Some(gives)
    }
}

/// In this order each reader is sent to the givers of a file: another one for each, so that no giver is everybody's first; the same for
/// a minute, so that connections are kept; and then another, so that givers whom this reader cannot reach are not all it hears of.
fn lot(giver: NodeId, reader: NodeId, file: Hash, minute: u64) -> u128 {
    let of_file = u128::from_le_bytes(*file.0.first_chunk().expect("a hash has 32 bytes"));
    let of_time = u128::from(minute).wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mixed = giver.0.as_u128() ^ reader.0.as_u128().rotate_left(64) ^ of_file ^ of_time;
    // An odd constant spreads ids that differ in their last bits over the whole; the upper half depends on all of them.
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) >> 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use uuid::Uuid;

    #[test]
    fn readers_begin_at_different_givers() {
        // Ids of machines that joined one after another differ in few bits.
        let node = |n: u128| NodeId(Uuid::from_u128((0x0199_a0b2_7c11_7aaa << 64) + n));
        let mut firsts = BTreeMap::<NodeId, u32>::new();
        for reader in 0..200 {
            let first =
                (1_000..1_010).map(node).min_by_key(|giver| lot(*giver, node(reader), Hash([7; 32]), 29_000_000));
            *firsts.entry(first.unwrap()).or_default() += 1;
        }
        assert!(firsts.len() == 10 && firsts.values().all(|times| *times <= 60), "{firsts:?}");
    }
}
