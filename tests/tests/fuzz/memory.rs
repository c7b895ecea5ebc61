//! How much memory a decoder asks for: this program's allocator counts.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// Beyond what the input accounts for: buffers, tables, the text of an error.
const ALLOWED: usize = 32 << 20;
/// A run of a million equal values takes a few bytes of a parquet file; a page may count 16 million, each a few hundred
/// bytes once it is in a record.
const ALLOWED_FOR_RUNS: usize = 6 << 30;

/// How much a decoder may ask for.
pub(crate) fn allowed(input: &[u8]) -> usize {
    let runs = if input.starts_with(b"PAR1") { ALLOWED_FOR_RUNS } else { 0 };
    ALLOWED + runs + 64 * input.len()
}

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn held(bytes: isize) {
    // A thread that is ending has none of these any more, and nothing to be measured.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        MOST.try_with(|most| most.set(most.get().max(held.get())))
    });
}

// SAFETY: every call is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        held(layout.size().cast_signed());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        held(-layout.size().cast_signed());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does the work; the most bytes that this thread held more than before it, at any moment.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let done = work();
    (done, (MOST.get() - before).max(0).cast_unsigned())
}
