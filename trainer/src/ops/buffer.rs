//! Buffers that outlive a pass. Activations of a step are hundreds of megabytes; asking the system for them anew every time
//! costs a page fault per 4 KiB, so they are handed back here and handed out again.

use std::panic::resume_unwind;
use std::sync::Mutex;

/// The system has no memory for a buffer. Unwinds out of the pass that wanted it, for every operation takes buffers and none
/// could go on without; whoever started the pass catches it.
#[derive(Debug, Clone, Copy)]
pub struct Refused {
    /// How much was asked for.
    pub bytes: u64,
}

/// Buffers at rest.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Buffers {
    /// A buffer of `len` numbers with unspecified contents: the smallest that fits without wasting a quarter. When none does,
    /// the largest at rest is let go in favour of a new one, so that a change of shape does not leave two sets behind. Where
    /// there is no memory for it, [`Refused`] unwinds.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.free.lock().expect("no code that holds the lock can panic");
        let fits = |buffer: &Vec<f32>| (len..=len + len / 4).contains(&buffer.capacity());
        let fitting = (0..free.len()).filter(|&i| fits(&free[i])).min_by_key(|&i| free[i].capacity());
        let largest = || (0..free.len()).max_by_key(|&i| free[i].capacity());
        let mut buffer = fitting.or_else(largest).map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if !fits(&buffer) {
            buffer = Vec::new();
        }
        if buffer.try_reserve_exact(len.saturating_sub(buffer.len())).is_err() {
            resume_unwind(Box::new(Refused { bytes: 4 * len as u64 }));
        }
        buffer.resize(len, 0.0);
        buffer
    }

    /// A buffer of `len` zeros.
    pub fn zeros(&self, len: usize) -> Vec<f32> {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Hands a buffer back.
    pub fn give(&self, buffer: Vec<f32>) {
        self.free.lock().expect("no code that holds the lock can panic").push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_a_need_of_about_its_size() {
        let buffers = Buffers::default();
        let (small, large) = (vec![1.0; 10], vec![2.0; 100]);
        let place = small.as_ptr();
        buffers.give(large);
        buffers.give(small);
        let taken = buffers.take(8);
        assert_eq!((taken.as_ptr(), taken.len()), (place, 8));
    }

    #[test]
    fn a_buffer_that_cannot_be_had_unwinds_with_its_size() {
        let buffers = Buffers::default();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| buffers.take(usize::MAX / 64)));
        let refused = caught.expect_err("no machine has that much").downcast::<Refused>().expect("its own word");
        assert_eq!(refused.bytes, 4 * (usize::MAX / 64) as u64);
        assert_eq!(buffers.take(3).len(), 3, "others can still be had");
    }

    #[test]
    fn a_new_buffer_takes_the_place_of_one_that_does_not_fit() {
        let buffers = Buffers::default();
        buffers.give(vec![1.0; 100]);
        assert_eq!(buffers.zeros(10), vec![0.0; 10]);
        assert!(buffers.free.lock().expect("unpoisoned").is_empty());
    }
}
