//! How a run is told to save or to end: a value shared between whoever decides (a signal, a file) and the loop.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// What is wanted of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// That it goes on.
    Run,
    /// That it saves the state after its last whole step and leaves.
    SaveAndStop,
    /// That it leaves at once and saves nothing.
    Discard,
}

/// The switch. A wish only ever grows stronger.
#[derive(Debug, Default)]
pub struct Stop {
    wish: AtomicU8,
    save_now: AtomicBool,
}

impl Stop {
    /// A switch that says: go on.
    pub const fn new() -> Stop {
        Stop { wish: AtomicU8::new(0), save_now: AtomicBool::new(false) }
    }

    /// Asks for an end.
    pub fn ask(&self, wish: Wish) {
        self.wish.fetch_max(wish as u8, Ordering::SeqCst);
    }

    /// Asks for a checkpoint at the next whole step; the run goes on.
    pub fn save_now(&self) {
        self.save_now.store(true, Ordering::SeqCst);
    }

    /// What is wanted.
    pub fn wish(&self) -> Wish {
        match self.wish.load(Ordering::SeqCst) {
            0 => Wish::Run,
            1 => Wish::SaveAndStop,
            _ => Wish::Discard,
        }
    }

    /// Whether the run shall end, in whatever way; asked between layers.
    pub fn is_asked(&self) -> bool {
        self.wish() != Wish::Run
    }

    /// Whether nothing that is being written is wanted any more.
    pub(crate) fn is_discarded(&self) -> bool {
        self.wish() == Wish::Discard
    }

    pub(crate) fn take_save_now(&self) -> bool {
        self.save_now.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_never_taken_back() {
        let stop = Stop::new();
        stop.ask(Wish::Discard);
        stop.ask(Wish::SaveAndStop);
        assert_eq!(stop.wish(), Wish::Discard);
    }
}
