//! Where the data stands: which examples the next step has, in which epoch.
//!
//! The order of an epoch is a permutation drawn from (seed, epoch) alone; without shuffling it is the file's. A cursor is two
//! numbers, so a resumed run finds its place at once and never replays data.

use serde::{Deserialize, Serialize};

/// A place in the data: the epoch, and how many of its examples have been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct Cursor {
    /// Whole epochs before this place.
    pub epoch: u32,
    /// Examples of this epoch that have been used; less than the number of examples.
    pub used: u64,
}

impl Cursor {
    /// The place after a step of at most `batch_size` examples out of `examples`.
    pub fn after_step(self, batch_size: u64, examples: u64) -> Cursor {
        let used = self.used + batch_size;
        if used >= examples { Cursor { epoch: self.epoch + 1, used: 0 } } else { Cursor { used, ..self } }
    }

    /// Epochs as a number: 1.5 is in the middle of the second.
    pub fn epochs(self, examples: u64) -> f64 {
        f64::from(self.epoch) + self.used as f64 / examples as f64
    }
}

/// The order of one epoch's examples, kept until another epoch is asked for.
#[derive(Debug)]
pub struct Order {
    examples: u64,
    shuffle_seed: Option<u64>,
    epoch: Option<(u32, Vec<u32>)>,
}

impl Order {
    /// `shuffle_seed` of `None` is file order.
    pub fn new(examples: u64, shuffle_seed: Option<u64>) -> Order {
        assert!(examples > 0 && examples <= u64::from(u32::MAX), "examples are counted before: {examples}");
        Order { examples, shuffle_seed, epoch: None }
    }

    /// The examples of the step that begins at `cursor`; the last step of an epoch may be smaller.
    pub fn step(&mut self, cursor: Cursor, batch_size: u64) -> Vec<u64> {
        let end = (cursor.used + batch_size).min(self.examples);
        match self.shuffle_seed {
            None => (cursor.used..end).collect(),
            Some(seed) => {
                let order = self.permutation(seed, cursor.epoch);
                order[cursor.used as usize..end as usize].iter().map(|&i| u64::from(i)).collect()
            }
        }
    }

    fn permutation(&mut self, seed: u64, epoch: u32) -> &[u32] {
        if self.epoch.as_ref().is_none_or(|(kept, _)| *kept != epoch) {
            self.epoch = Some((epoch, shuffled(self.examples as u32, seed, epoch)));
        }
        &self.epoch.as_ref().expect("filled just above").1
    }
}

/// Fisher–Yates over `0..n`, driven by the hash stream of (seed, epoch).
fn shuffled(n: u32, seed: u64, epoch: u32) -> Vec<u32> {
    let mut draw = crate::random::Stream::new("epoch order", &[seed, u64::from(epoch)]);
    let mut order: Vec<u32> = (0..n).collect();
    for i in (1..n as usize).rev() {
        order.swap(i, draw.below(i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_each_example_once_and_its_own_order() {
        let mut order = Order::new(103, Some(7));
        let first = epoch(&mut order, 0, 8);
        let second = epoch(&mut order, 1, 8);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..103).collect::<Vec<_>>());
        assert_ne!(first, second);
        assert_eq!(first, epoch(&mut Order::new(103, Some(7)), 0, 4), "the order does not depend on the batch size");
        assert_ne!(first, epoch(&mut Order::new(103, Some(8)), 0, 8));
    }

    #[test]
    fn without_shuffling_the_order_is_the_files() {
        assert_eq!(epoch(&mut Order::new(5, None), 3, 2), vec![0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_last_step_of_an_epoch_is_smaller_and_the_next_begins_anew() {
        let cursor = Cursor { epoch: 0, used: 8 };
        assert_eq!(Order::new(10, None).step(cursor, 4), vec![8, 9]);
        assert_eq!(cursor.after_step(4, 10), Cursor { epoch: 1, used: 0 });
        assert_eq!(Cursor { epoch: 1, used: 5 }.epochs(10), 1.5);
    }

    #[test]
    fn the_shuffle_of_a_seed_never_changes() {
        assert_eq!(shuffled(8, 42, 0), [7, 3, 2, 5, 0, 4, 1, 6]);
    }

    fn epoch(order: &mut Order, epoch: u32, batch: u64) -> Vec<u64> {
        let mut cursor = Cursor { epoch, used: 0 };
        let mut seen = Vec::new();
        while cursor.epoch == epoch {
            seen.extend(order.step(cursor, batch));
            cursor = cursor.after_step(batch, order.examples);
        }
        seen
    }
}
