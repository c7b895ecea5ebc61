//! A bounded number of places, in all and for each who takes them: connections by address, event streams by user. One who takes
//! everything leaves something to the others.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many there are and who has them.
#[derive(Debug)]
pub(crate) struct Places<K: Hash + Eq> {
    all: usize,
    each: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One of them; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Hash + Eq> {
    places: Arc<Places<K>>,
    who: K,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// So many are taken by everybody together.
    All(usize),
    /// So many are taken by the one who asks.
    Each(usize),
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// `all` of them, `each` at most for one.
    pub(crate) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, taken: Mutex::default() })
    }

    /// One for `who`.
    pub(crate) fn take(self: &Arc<Self>, who: K) -> Result<Place<K>, Full> {
        let mut taken = self.lock();
        if taken.get(&who).is_some_and(|count| *count >= self.each) {
            return Err(Full::Each(self.each));
        }
        if taken.values().sum::<usize>() >= self.all {
            return Err(Full::All(self.all));
        }
        *taken.entry(who.clone()).or_default() += 1;
        Ok(Place { places: Arc::clone(self), who })
    }
}

impl<K: Hash + Eq> Places<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        // Each critical section leaves the table whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
        }
        taken.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_takes_all_they_may_leaves_the_rest_to_others_and_gives_back_what_they_drop() {
        let places = Places::new(3, 2);
        let (first, _second) = (places.take("a").unwrap(), places.take("a").unwrap());
        assert_eq!(places.take("a").unwrap_err(), Full::Each(2));
        let _third = places.take("b").unwrap();
        assert_eq!(places.take("c").unwrap_err(), Full::All(3));
        drop(first);
        places.take("c").unwrap();
        assert_eq!(places.lock().len(), 2, "nobody is remembered who has none");
    }
}
