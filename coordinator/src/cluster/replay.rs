//! Answers that repeated requests get again, until they expire.

use crate::record::Replay;
use lorikeet_protocol::id::{UnixMillis, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// Whose request, and its key.
type Name = (Option<UserId>, String);

/// All of them, and the order in which they go: a day of them is a lot to look through at every turn.
#[derive(Debug, Default)]
pub(super) struct Replays {
    by_name: BTreeMap<Name, Replay>,
    by_end: BTreeSet<(UnixMillis, Name)>,
}

impl Replays {
    /// The answer to this user's request of this key.
    pub(super) fn get(&self, owner: Option<UserId>, key: &str) -> Option<&Replay> {
        self.by_name.get(&(owner, key.to_owned()))
    }

    /// In place of an older one of its key.
    pub(super) fn keep(&mut self, replay: Replay) {
        let (name, expires) = ((replay.owner, replay.key.clone()), replay.expires);
        if let Some(older) = self.by_name.insert(name.clone(), replay) {
            self.by_end.remove(&(older.expires, name.clone()));
        }
        self.by_end.insert((expires, name));
    }

    /// Those go that have expired by now.
    pub(super) fn expire(&mut self, now: UnixMillis) {
        while let Some((expires, _)) = self.by_end.first()
            && *expires <= now
            && let Some((_, name)) = self.by_end.pop_first()
        {
            self.by_name.remove(&name);
        }
    }
}

impl FromIterator<Replay> for Replays {
    fn from_iter<I: IntoIterator<Item = Replay>>(replays: I) -> Self {
        let mut all = Self::default();
        replays.into_iter().for_each(|replay| all.keep(replay));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Refusal;
    use lorikeet_protocol::id::Hash;

    #[test]
    fn an_answer_goes_at_its_end_and_a_newer_one_of_its_key_at_its_own() {
        let replay = |key: &str, expires| Replay {
            owner: None,
            key: key.into(),
            body: Hash([0; 32]),
            answer: Err(Refusal::NoSpace),
            expires: UnixMillis(expires),
        };
        let mut all: Replays = [replay("a", 5), replay("b", 4), replay("a", 9)].into_iter().collect();
        let left = |all: &Replays| ["a", "b"].map(|key| all.get(None, key).map(|replay| replay.expires.0));
        all.expire(UnixMillis(3));
        assert_eq!(left(&all), [Some(9), Some(4)]);
        all.expire(UnixMillis(5));
        assert_eq!(left(&all), [Some(9), None]);
        // The same once more, for as long as before.
        all.keep(replay("a", 9));
        assert_eq!((left(&all), all.by_end.len()), ([Some(9), None], 1));
        all.expire(UnixMillis(9));
        assert_eq!((left(&all), all.by_end.len()), ([None, None], 0));
    }
}
