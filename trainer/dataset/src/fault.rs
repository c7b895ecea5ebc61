//! What is wrong with a file, by line and JSON path. The first hundred are kept, the rest is counted.

use serde::{Deserialize, Serialize};

/// Faults kept with their text; a file of noise must not fill memory with complaints.
pub const LISTED_FAULTS: usize = 100;

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Line in the file, from 1.
    pub line: u64,
    /// JSON path, `$` for the whole line or document.
    pub path: String,
    /// What was expected and what was found.
    pub message: String,
}

impl Fault {
    /// A fault at that place.
    pub fn new(line: u64, path: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault { line, path: path.into(), message: message.into() }
    }
}

/// Faults in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// The first ones.
    pub listed: Vec<Fault>,
    /// All of them.
    pub count: u64,
}

impl Faults {
    /// Counts a fault, and keeps it if it is among the first.
    pub fn push(&mut self, fault: Fault) {
        self.count += 1;
        if self.listed.len() < LISTED_FAULTS {
            self.listed.push(fault);
        }
    }

    /// Nothing is wrong.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}
