//! What the log says of an agent because of what it does again and again as it pleases. It costs the agent nothing, so a flood of it must
//! not fill the disk: of each kind a few are logged one by one in a minute, and the next one says how many were not.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Of one kind, each with its attempt: enough to see what is going on.
const ONE_BY_ONE: u32 = 8;
const WINDOW: Duration = Duration::from_secs(60);

/// Of one session, by what is complained of.
#[derive(Debug, Default)]
pub(super) struct Complaints(BTreeMap<&'static str, Minute>);

#[derive(Debug)]
struct Minute {
    begun: Instant,
    logged: u32,
    unsaid: u64,
}

impl Complaints {
    /// How many were not logged before this one; `None`: nor is this one.
    pub(super) fn note(&mut self, what: &'static str, now: Instant) -> Option<u64> {
        let minute = self.0.entry(what).or_insert(Minute { begun: now, logged: 0, unsaid: 0 });
        if now.duration_since(minute.begun) >= WINDOW {
            (minute.begun, minute.logged) = (now, 0);
        }
        if minute.logged == ONE_BY_ONE {
            minute.unsaid += 1;
            return None;
        }
        minute.logged += 1;
        Some(std::mem::take(&mut minute.unsaid))
    }

    /// Those of which the log does not know yet.
    pub(super) fn unsaid(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(what, minute)| (*what, minute.unsaid)).filter(|(_, unsaid)| *unsaid > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_a_few_are_logged_and_then_how_many_there_were() {
        let (mut complaints, begun) = (Complaints::default(), Instant::now());
        let logged: Vec<_> = (0..1_000).filter_map(|_| complaints.note("foreign", begun)).collect();
        assert_eq!(logged, [0; 8]);
        assert_eq!(complaints.note("missing", begun), Some(0), "another kind is not hidden by it");
        assert_eq!(complaints.unsaid().collect::<Vec<_>>(), [("foreign", 992)]);
        let later = begun + WINDOW;
        assert_eq!([(); 2].map(|()| complaints.note("foreign", later)), [Some(992), Some(0)]);
        assert_eq!(complaints.unsaid().count(), 0);
    }
}
