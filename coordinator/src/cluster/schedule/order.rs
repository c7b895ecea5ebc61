//! The queue, kept in order: by priority, by user, by age. Fair share picks among the users of one priority.

use crate::cluster::fair::Account;
use lorikeet_protocol::id::{JobId, UnixMillis, UserId};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_set},
    time::Duration,
};

/// Jobs that could start now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue(BTreeMap<Reverse<u8>, Level>);

/// The jobs of one priority, by their owners.
type Level = BTreeMap<UserId, BTreeSet<(UnixMillis, JobId)>>;

/// Where a job stands in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Higher goes first.
    pub priority: u8,
    /// Among equals, whoever has used least for their weight goes first.
    pub owner: UserId,
    /// Then the older one.
    pub since: UnixMillis,
}

impl Queue {
    /// A job joins.
    pub fn insert(&mut self, job: JobId, at: Standing) {
        self.0.entry(Reverse(at.priority)).or_default().entry(at.owner).or_default().insert((at.since, job));
    }

    /// A job leaves.
    pub fn remove(&mut self, job: JobId, at: Standing) {
        let Some(users) = self.0.get_mut(&Reverse(at.priority)) else { return };
        if let Some(jobs) = users.get_mut(&at.owner) {
            jobs.remove(&(at.since, job));
        }
        users.retain(|_, jobs| !jobs.is_empty());
        if users.is_empty() {
            self.0.remove(&Reverse(at.priority));
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every job in it.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.0.values().flat_map(BTreeMap::values).flatten().map(|(_, job)| *job)
    }

    /// First the highest priority; in it, the user with the least use for their weight, and of that user the oldest.
    pub(super) fn in_order<F: Fn(UserId) -> Account>(&self, account: F) -> Order<'_, F> {
        let mut levels = self.0.values().collect::<Vec<_>>();
        levels.reverse();
        Order { levels, account, charged: BTreeMap::new(), level: BTreeMap::new(), next: BTreeSet::new() }
    }
}

/// A walk through the queue.
pub(super) struct Order<'a, F> {
    /// Still to come, the next one last.
    levels: Vec<&'a Level>,
    account: F,
    /// What this walk has given to whom.
    charged: BTreeMap<UserId, u64>,
    level: BTreeMap<UserId, btree_set::Iter<'a, (UnixMillis, JobId)>>,
    /// The users of this level by how they stand.
    next: BTreeSet<(u64, UserId)>,
}

impl<F: Fn(UserId) -> Account> Order<'_, F> {
    pub(super) fn next(&mut self) -> Option<JobId> {
        loop {
            while let Some((standing, user)) = self.next.first().copied() {
                match self.level.get_mut(&user).and_then(Iterator::next) {
                    Some((_, job)) => return Some(*job),
                    None => self.next.remove(&(standing, user)),
                };
            }
            let users = self.levels.pop()?;
            self.level = users.iter().map(|(user, jobs)| (*user, jobs.iter())).collect();
            self.next = users.keys().map(|user| (self.standing(*user), *user)).collect();
        }
    }

    /// A job of this user was placed: what it will use counts from now on, so that users take turns.
    pub(super) fn charge(&mut self, user: UserId, time: Duration) {
        let before = (self.standing(user), user);
        *self.charged.entry(user).or_default() += u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2);
        if self.next.remove(&before) {
            self.next.insert((self.standing(user), user));
        }
    }

    fn standing(&self, user: UserId) -> u64 {
        (self.account)(user).standing(self.charged.get(&user).copied().unwrap_or(0))
    }
}
