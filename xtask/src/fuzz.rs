//! `cargo xtask fuzz`, and a step of `check`: every decoder against bytes that nobody meant, mutated from a kept corpus.

use anyhow::Result;

use crate::program::Program;
use crate::tree::Tree;

/// Each decoder for so long; `filter` names one.
pub(crate) fn run(tree: &Tree, seconds: u64, filter: Option<&str>) -> Result<()> {
    program(tree, seconds, filter).run()
}

/// Every decoder, with inputs that are this commit's own: wherever and however often it is checked, the look begins with the same, and
/// goes on with more of them on a faster machine. The next commit is looked at with others. What `LORIKEET_SEED` says comes first.
pub(crate) fn check(tree: &Tree, seconds: u64) -> Result<()> {
    let look = program(tree, seconds, None);
    let commit = Program::new(tree.root(), "git rev-parse HEAD").capture()?;
    match seed(&String::from_utf8_lossy(&commit.stdout)) {
        Some(seed) if std::env::var_os(SEED).is_none() => look.env(SEED, &seed.to_string()).run(),
        Some(_) | None => look.run(),
    }
}

const SEED: &str = "LORIKEET_SEED";

/// The first 64 bits of a commit's name; none where the tree is no checkout.
fn seed(commit: &str) -> Option<u64> {
    u64::from_str_radix(commit.get(..16)?, 16).ok()
}

fn program(tree: &Tree, seconds: u64, filter: Option<&str>) -> Program {
    let build = "cargo test --workspace --test fuzz";
    let filter = filter.unwrap_or_default();
    let fuzz = Program::new(tree.root(), &format!("{build} {filter} -- --nocapture --test-threads 2"));
    fuzz.env("LORIKEET_FUZZ_SECONDS", &seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::seed;

    #[test]
    fn a_commit_has_a_seed_of_its_own_and_no_commit_has_none() {
        assert_eq!(seed("00000000000000ff274aac4\n"), Some(255));
        assert_eq!(seed(""), None);
    }
}
