//! Buffers that outlive a pass. Activations of a step are hundreds of megabytes; asking the system for them anew every time
//! costs a page fault per 4 KiB, so they are handed back here and handed out again.

use std::sync::Mutex;

/// Buffers at rest.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Buffers {
    /// A buffer of `len` numbers with unspecified contents: the smallest that fits without wasting a quarter. When none does,
    /// the largest at rest is let go in favour of a new one, so that a change of shape does not leave two sets behind.
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
    fn a_new_buffer_takes_the_place_of_one_that_does_not_fit() {
        let buffers = Buffers::default();
        buffers.give(vec![1.0; 100]);
        assert_eq!(buffers.zeros(10), vec![0.0; 10]);
        assert!(buffers.free.lock().expect("unpoisoned").is_empty());
    }
}
