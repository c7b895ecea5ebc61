//! Rules for one Rust file: it says what it is, leaves no open ends, and names only crates that live in it.

use super::code;

/// A crate that is named in few files, so that it can be understood, and exchanged, by reading these; or one word that only tests say.
struct Home {
    /// As it stands in code.
    word: &'static str,
    /// Files and folders that may name it.
    places: &'static [&'static str],
}

const LINKS: &[&str] = &["coordinator/src/link", "coordinator/tests/", "agent/src/link", "agent/tests/", "tests/"];

/// The rules that the simulation takes away one at a time: only a test may.
const GUARDS: &[&str] = &["coordinator/src/guard.rs", "tests/"];

const HOMES: [Home; 5] = [
    Home { word: "bincode", places: &["protocol/src/codec.rs"] },
    Home { word: "redb", places: &["coordinator/src/store.rs", "coordinator/src/store/"] },
    Home { word: "quinn", places: LINKS },
    Home { word: "quinn_proto", places: LINKS },
    // The only way to a `Guards` that lacks one.
    Home { word: "all_but", places: GUARDS },
];

/// The decision cores: plain code that a simulation runs in one thread.
const CORES: [&str; 5] = [
    "coordinator/src/cluster.rs",
    "coordinator/src/cluster/",
    "coordinator/src/turn.rs",
    "agent/src/host.rs",
    "agent/src/host/",
];

const FOREIGN_TO_CORES: [&str; 3] = ["tokio", "async", "await"];

/// Code that says "later" to whoever calls it, and tests that nobody runs.
const OPEN_ENDS: [&str; 3] = ["todo!(", "unimplemented!(", "#[ignore"];

/// Names that tell nothing about what a file holds.
const EMPTY_NAMES: [&str; 3] = ["utils.rs", "common.rs", "imp.rs"];

/// What is wrong with the file at `path` (relative to the root).
pub(super) fn judge(path: &str, text: &str) -> Vec<String> {
    let mut faults = judge_head(path, text);
    for (number, line) in (1..).zip(code::only(text).lines()) {
        let found = foreign_words(path).chain(open_ends()).filter(|fault| fault.stands_in(line));
        faults.extend(found.map(|fault| format!("{path}:{number}: {}", fault.text)));
    }
    faults
}

fn judge_head(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push(format!("{path}: does not open with `//!`, so nobody knows what it owns"));
    }
    if let Some(name) = EMPTY_NAMES.into_iter().find(|name| path.rsplit('/').next() == Some(name)) {
        faults.push(format!("{path}: `{name}` says nothing about what the file holds"));
    }
    faults
}

/// Something that must not stand in a line of code.
struct Fault {
    pattern: &'static str,
    /// The pattern is an identifier and counts only by itself.
    word: bool,
    text: String,
}

impl Fault {
    fn stands_in(&self, line: &str) -> bool {
        if self.word { code::has_word(line, self.pattern) } else { line.contains(self.pattern) }
    }
}

fn foreign_words(path: &str) -> impl Iterator<Item = Fault> {
    let at = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    let homes = HOMES.iter().filter(move |home| !at(home.places)).map(|home| {
        let text = format!("`{}` is named only in {}", home.word, home.places.join(", "));
        Fault { pattern: home.word, word: true, text }
    });
    let cores = FOREIGN_TO_CORES.into_iter().filter(move |_| at(&CORES)).map(|word| {
        let text = format!("`{word}` in a decision core, which is plain code without a runtime");
        Fault { pattern: word, word: true, text }
    });
    homes.chain(cores)
}

fn open_ends() -> impl Iterator<Item = Fault> {
    OPEN_ENDS.into_iter().map(|pattern| Fault { pattern, word: false, text: format!("`{pattern}` leaves an open end") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_says_what_it_is_passes() {
        assert_eq!(
            judge("agent/src/host.rs", "//! Which attempts should exist here.\nfn f() {}\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_file_without_a_head_is_named() {
        assert_eq!(judge("a.rs", "fn f() {}"), ["a.rs: does not open with `//!`, so nobody knows what it owns"]);
    }

    #[test]
    fn a_name_that_says_nothing_is_refused() {
        assert_eq!(judge("agent/src/utils.rs", "//! Things.\n").len(), 1);
        assert_eq!(judge("agent/src/cpu_utils.rs", "//! Things.\n").len(), 0);
    }

    #[test]
    fn a_crate_outside_its_home_is_named_with_file_and_line() {
        let text = "//! A head.\nuse redb::Database;\n";
        assert_eq!(judge("coordinator/src/store/tables.rs", text), Vec::<String>::new());
        let faults = judge("coordinator/src/blob.rs", text);
        assert!(faults[0].starts_with("coordinator/src/blob.rs:2: `redb` is named only in"), "{faults:?}");
    }

    #[test]
    fn a_guard_is_taken_away_by_tests_alone() {
        let text = "//! A head.\nlet guards = Guards::all_but(Guard::Fence);\n";
        assert_eq!(judge("tests/tests/simulation.rs", text), Vec::<String>::new());
        assert_eq!(judge("coordinator/src/start.rs", text).len(), 1);
        assert_eq!(judge("cli/src/main.rs", text).len(), 1);
    }

    #[test]
    fn prose_may_name_any_crate() {
        assert_eq!(
            judge("protocol/src/lib.rs", "//! bincode is behind codec.rs.\n// quinn\nlet x = \"redb\";\n").len(),
            0
        );
    }

    #[test]
    fn a_decision_core_has_no_runtime() {
        let faults = judge("coordinator/src/cluster/job.rs", "//! A head.\nasync fn f() { tokio::spawn(g()); }\n");
        assert_eq!(faults.len(), 2);
    }

    #[test]
    fn open_ends_are_refused() {
        let text = "//! A head.\nfn f() { todo!() }\n#[ignore]\nfn g() { unimplemented!(\"later\") }\n";
        let lines: Vec<bool> = judge("a.rs", text).iter().map(|fault| fault.contains("open end")).collect();
        assert_eq!(lines, [true, true, true]);
    }
}
