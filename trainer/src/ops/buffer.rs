//! Buffers that outlive a pass. Activations of a step are hundreds of megabytes; asking the system for them anew every time
//! costs a page fault per 4 KiB, so they are handed back here and handed out again.

use std::sync::Mutex;

/// Buffers at rest.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Buffers {
    /// A buffer of `len` numbers with unspecified contents. The smallest that fits; when none does, the largest is let go in
    /// favour of a new one, so that a few long batches do not leave two sets behind.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.free.lock().expect("no code that holds the lock can panic");
        let fitting = (0..free.len()).filter(|&i| free[i].capacity() >= len).min_by_key(|&i| free[i].capacity());
        let found = fitting.or_else(|| (0..free.len()).max_by_key(|&i| free[i].capacity()));
        let mut buffer = found.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if buffer.capacity() < len {
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
    fn a_buffer_comes_back_and_the_smallest_fitting_one_is_taken() {
        let buffers = Buffers::default();
        let (small, large) = (vec![1.0; 10], vec![2.0; 100]);
        let place = small.as_ptr();
        buffers.give(large);
        buffers.give(small);
        let taken = buffers.take(8);
        assert_eq!((taken.as_ptr(), taken.len()), (place, 8));
        assert_eq!(buffers.zeros(1000), vec![0.0; 1000]);
        assert!(buffers.free.lock().expect("unpoisoned").is_empty(), "the one that was too small is gone");
    }
}
