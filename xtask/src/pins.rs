//! `cargo xtask pins`: tests that compare with a recorded file rewrite it when `LORIKEET_PINS` is `write`. This task runs
//! the tests of every package that reads the variable, with it set; what changed is a diff for a person to review.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::output::say;
use crate::program::Program;
use crate::test::nextest;
use crate::tree::Tree;

/// The agreement between this task and the pinned tests.
const VARIABLE: &str = "LORIKEET_PINS";

/// Rewrites the pins, of all tests or of those whose name contains `filter`, and lists the files that now differ.
pub(crate) fn run(tree: &Tree, filter: Option<&str>) -> Result<()> {
    let packages = pinned_packages(tree)?;
    if packages.is_empty() {
        say("no package has pinned files");
        return Ok(());
    }
    let filter: Vec<String> = filter.map(str::to_owned).into_iter().collect();
    command(tree, &packages).env(VARIABLE, "write").args(&filter).run()?;
    Program::new(tree.root(), "git status --short").run()
}

fn pinned_packages(tree: &Tree) -> Result<BTreeSet<String>> {
    let texts = tree.texts("rs")?;
    let readers = texts.iter().filter(|(file, text)| !file.starts_with("xtask/") && text.contains(VARIABLE));
    readers.map(|(file, _)| tree.package_of(file)).collect()
}

/// nextest chooses packages by a filter over the whole workspace, which leaves features, and so every artifact, as they are.
fn command(tree: &Tree, packages: &BTreeSet<String>) -> Program {
    if nextest() {
        let set: Vec<String> = packages.iter().map(|name| format!("package(={name})")).collect();
        return Program::new(tree.root(), "cargo nextest run --workspace -E").args(&[set.join(" + ")]);
    }
    let chosen: Vec<String> = packages.iter().flat_map(|name| ["--package".to_owned(), name.clone()]).collect();
    Program::new(tree.root(), "cargo test").args(&chosen)
}
