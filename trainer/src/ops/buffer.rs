//! Buffers that outlive a pass. Activations of a step are hundreds of megabytes; asking the system for them anew every time
//! costs a page fault per 4 KiB, so they are handed back here and handed out again. How much is in use at most is what the memory
//! plan foretells (`lorikeet_plan`).

use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard};

/// The system has no memory for a buffer. Unwinds out of the pass that wanted it, for every operation takes buffers and none
/// could go on without; the door through which the pass was begun catches it.
#[derive(Debug, Clone, Copy)]
pub struct Refused {
    /// How much was asked for.
    pub bytes: u64,
}

/// Buffers at rest, and how much is in use.
#[derive(Debug, Default)]
pub struct Buffers {
    pool: Mutex<Pool>,
}

/// Bytes are of capacities: what the system gave.
#[derive(Debug, Default)]
struct Pool {
    free: Vec<Vec<f32>>,
    at_rest: u64,
    in_use: u64,
    most_in_use: u64,
}

impl Buffers {
    /// A buffer of `len` numbers with unspecified contents: the smallest that fits without wasting a quarter. When none does, a
    /// new one, for which those at rest make room, the largest first: together there is never more than was once in use, and a
    /// change of shape does not leave two sets behind. Where there is no memory for it and
    /// headroom beside it, [`Refused`] unwinds.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let fitting = self.lock().take(len);
        let mut buffer = fitting.unwrap_or_default();
        let more = len.saturating_sub(buffer.len());
        if (len > buffer.capacity() && !leaves_room(len)) || buffer.try_reserve_exact(more).is_err() {
            self.lock().in_use -= bytes_of(len);
            resume_unwind(Box::new(Refused { bytes: bytes_of(len) }));
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
        self.lock().give(buffer);
    }

    /// A new pass begins. What an earlier one that was broken off had in use is gone.
    pub fn begin(&self) {
        self.lock().in_use = 0;
    }

    /// The most bytes that were ever in use at once.
    pub fn most_in_use(&self) -> u64 {
        self.lock().most_in_use
    }

    /// Lets everything at rest go and begins to count anew.
    pub fn forget(&self) {
        *self.lock() = Pool::default();
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().expect("no code that holds the lock can panic")
    }
}

impl Pool {
    /// One that fits, or room for it.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = |buffer: &Vec<f32>| (len..=len + len / 4).contains(&buffer.capacity());
        let free = &self.free;
        let fitting = (0..free.len()).filter(|&i| fits(&free[i])).min_by_key(|&i| free[i].capacity());
        let taken = fitting.map(|i| self.remove(i));
        self.in_use += taken.as_ref().map_or(bytes_of(len), |buffer| bytes_of(buffer.capacity()));
        self.most_in_use = self.most_in_use.max(self.in_use);
        while self.in_use + self.at_rest > self.most_in_use
            && let Some(largest) = (0..self.free.len()).max_by_key(|&i| self.free[i].capacity())
        {
            self.remove(largest);
        }
        taken
    }

    fn give(&mut self, buffer: Vec<f32>) {
        let bytes = bytes_of(buffer.capacity());
        self.in_use = self.in_use.saturating_sub(bytes);
        self.at_rest += bytes;
        self.free.push(buffer);
    }

    fn remove(&mut self, i: usize) -> Vec<f32> {
        let buffer = self.free.swap_remove(i);
        self.at_rest -= bytes_of(buffer.capacity());
        buffer
    }
}

/// What a pass takes beside its buffers: packed panels of products, a few vectors a thread, the libraries' own. Those cannot be
/// refused one by one, the process would end; so a buffer is only made while this much is left beside it.
const HEADROOM: u64 = 16 << 20;

/// Whether the system would give so many numbers and still have [`HEADROOM`]. Asked for and handed back, never touched.
fn leaves_room(numbers: usize) -> bool {
    let mut probe = Vec::<u8>::new();
    let given = probe.try_reserve_exact((bytes_of(numbers) + HEADROOM) as usize).is_ok();
    // or the compiler would take away both the asking and the answer
    std::hint::black_box(&probe);
    given
}

/// Makes a buffer of a thread's own `len` long, or unwinds with [`Refused`] as [`Buffers::take`] does.
pub(super) fn lengthen<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    reserve(buffer, len);
    buffer.resize(len, T::default());
}

/// Makes room in it for `len` in all, or unwinds likewise.
pub(crate) fn reserve<T>(buffer: &mut Vec<T>, len: usize) {
    if buffer.try_reserve_exact(len.saturating_sub(buffer.len())).is_err() {
        resume_unwind(Box::new(Refused { bytes: (len * size_of::<T>()) as u64 }));
    }
}

/// Zeros of a thread's own, or [`Refused`].
pub(super) fn zeros(len: usize) -> Vec<f32> {
    let mut buffer = Vec::new();
    lengthen(&mut buffer, len);
    buffer
}

const fn bytes_of(numbers: usize) -> u64 {
    4 * numbers as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_a_need_of_about_its_size() {
        let buffers = Buffers::default();
        let (small, large) = (buffers.take(10), buffers.take(100));
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
    fn there_is_never_more_than_was_once_in_use() {
        let buffers = Buffers::default();
        let held = || {
            let pool = buffers.lock();
            [pool.in_use, pool.at_rest]
        };
        let (a, b) = (buffers.take(100), buffers.take(50));
        buffers.give(a);
        assert_eq!((held(), buffers.most_in_use()), ([200, 400], 600));
        let c = buffers.take(20);
        assert_eq!(held(), [280, 0], "20 fit nowhere, so that 100 went");
        buffers.give(b);
        let d = buffers.take(79);
        assert_eq!((held(), buffers.most_in_use()), ([396, 200], 600), "there was room for both");
        [c, d].into_iter().for_each(|buffer| buffers.give(buffer));
        assert_eq!(held(), [0, 596]);
        buffers.begin();
    }
}
