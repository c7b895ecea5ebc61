//! Where the driver's error reports (NVIDIA's XIDs) arrive: a set for each card, so that one whose driver takes no such wish, or that fell
//! off its bus, silences no other.

use lorikeet_protocol::id::DeviceId;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

/// Reports of one card that are read at one look; more wait for the next.
pub(super) const MOST: usize = 16;

/// The sets of all cards; `S` is what the library calls an event set.
#[derive(Debug)]
pub(super) struct Reports<S>(BTreeMap<DeviceId, Card<S>>);

#[derive(Debug)]
struct Card<S> {
    /// `None`: its driver refuses, or the set failed.
    set: Option<S>,
    /// Whether a look has missed it since its set was made. What it said until it fell off its bus waits there, and a card that is back
    /// says nothing to a set of before.
    missed: bool,
    /// Whether it was said that its driver refuses.
    warned: bool,
}

impl<S> Default for Reports<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S> Reports<S> {
    /// What has arrived; `next` takes the next report out of a set. A set that fails is let go, and made anew with the next look that
    /// names its card.
    pub(super) fn read<E: Display>(&mut self, next: impl Fn(&S) -> Result<Option<u64>, E>) -> Vec<(DeviceId, u64)> {
        let mut arrived = Vec::new();
        for (id, card) in &mut self.0 {
            let Some(set) = &card.set else { continue };
            for _ in 0..MOST {
                match next(set) {
                    Ok(Some(xid)) => arrived.push((id.clone(), xid)),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(gpu = %id, %error, "the driver's error reports end");
                        card.set = None;
                        break;
                    }
                }
            }
        }
        arrived
    }

    /// A look names these cards: those that are new, or back, or refused until now are registered.
    pub(super) fn call<E: Display>(
        &mut self,
        named: &BTreeSet<DeviceId>,
        register: impl Fn(&DeviceId) -> Result<S, E>,
    ) {
        self.0.iter_mut().filter(|(id, _)| !named.contains(id)).for_each(|(_, card)| card.missed = true);
        for id in named {
            let card = self.0.entry(id.clone()).or_insert(Card { set: None, missed: false, warned: false });
            if card.set.is_none() || std::mem::take(&mut card.missed) {
                card.listen(id, register(id));
            }
        }
    }
}

impl<S> Card<S> {
    fn listen<E: Display>(&mut self, id: &DeviceId, registered: Result<S, E>) {
        match registered {
            Ok(set) => (self.set, self.warned) = (Some(set), false),
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(gpu = %id, %error, "the driver reports no errors of this GPU; it is judged by its counters alone");
                }
                self.set = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    type Word = Result<u64, &'static str>;

    /// What a driver holds for each set that was registered, by its number.
    #[derive(Default)]
    struct Driver {
        sets: RefCell<Vec<Vec<Word>>>,
        refuses: RefCell<BTreeSet<DeviceId>>,
    }

    impl Driver {
        fn register(&self, id: &DeviceId) -> Result<usize, &'static str> {
            if self.refuses.borrow().contains(id) {
                return Err("not supported");
            }
            self.sets.borrow_mut().push(Vec::new());
            Ok(self.sets.borrow().len() - 1)
        }

        fn says(&self, set: usize, word: Word) {
            self.sets.borrow_mut()[set].push(word);
        }

        fn next(&self, set: &usize) -> Result<Option<u64>, &'static str> {
            self.sets.borrow_mut()[*set].pop().transpose()
        }

        fn look(&self, reports: &mut Reports<usize>, named: &[&str]) -> Vec<(String, u64)> {
            let arrived = reports.read(|set| self.next(set));
            reports.call(&named.iter().map(|name| gpu(name)).collect(), |id| self.register(id));
            arrived.into_iter().map(|(id, xid)| (id.0, xid)).collect()
        }
    }

    #[test]
    fn a_gpu_whose_driver_refuses_reports_silences_no_other_and_is_named_once() {
        let (driver, mut reports) = (Driver::default(), Reports::default());
        driver.refuses.borrow_mut().insert(gpu("a"));
        assert_eq!(driver.look(&mut reports, &["a", "b"]), []);
        driver.says(0, Ok(79));
        assert_eq!(driver.look(&mut reports, &["a", "b"]), [("b".into(), 79)]);
        assert!(reports.0[&gpu("a")].warned && !reports.0[&gpu("b")].warned);
        driver.refuses.borrow_mut().clear();
        driver.look(&mut reports, &["a", "b"]);
        driver.says(1, Ok(48));
        assert_eq!(driver.look(&mut reports, &["a", "b"]), [("a".into(), 48)], "it was busy when it refused");
    }

    #[test]
    fn a_gpu_that_comes_back_is_registered_again_and_its_last_word_is_heard() {
        let (driver, mut reports) = (Driver::default(), Reports::default());
        driver.look(&mut reports, &["a", "b"]);
        driver.look(&mut reports, &["b"]);
        driver.says(0, Ok(79));
        assert_eq!(driver.look(&mut reports, &["b"]), [("a".into(), 79)], "said as it fell");
        driver.look(&mut reports, &["a", "b"]);
        driver.says(2, Ok(63));
        assert_eq!(driver.look(&mut reports, &["a", "b"]), [("a".into(), 63)]);
        assert_eq!(driver.sets.borrow().len(), 3, "the one that stayed keeps its set");
    }

    #[test]
    fn a_set_that_fails_is_made_anew() {
        let (driver, mut reports) = (Driver::default(), Reports::default());
        driver.look(&mut reports, &["a"]);
        driver.says(0, Err("the GPU is lost"));
        assert_eq!(driver.look(&mut reports, &["a"]), []);
        driver.says(1, Ok(94));
        assert_eq!(driver.look(&mut reports, &["a"]), [("a".into(), 94)]);
    }

    fn gpu(name: &str) -> DeviceId {
        DeviceId(name.into())
    }
}
