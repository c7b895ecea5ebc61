//! `cargo xtask test`: the whole workspace is built, binaries included, because stories start the real programs; then the
//! tests run under nextest where it is installed, which shows slow ones and ends hanging ones, else under `cargo test`.

use anyhow::Result;

use crate::check::Done;
use crate::program::{Program, present};
use crate::tree::Tree;

/// Builds, then runs the tests; `rest` goes to the test runner.
pub(crate) fn run(tree: &Tree, rest: &[String]) -> Result<()> {
    build(tree)?;
    execute(tree, rest).map(|_| ())
}

/// Everything that tests may start. All targets in one go, so that features are unified once and for all steps.
pub(crate) fn build(tree: &Tree) -> Result<()> {
    Program::new(tree.root(), "cargo build --workspace --all-targets").run()
}

/// Runs what `build` has left.
pub(crate) fn execute(tree: &Tree, rest: &[String]) -> Result<Done> {
    if !nextest() {
        Program::new(tree.root(), "cargo test --workspace").args(rest).run()?;
        return Ok(Done::Noted("cargo-nextest is missing, cargo test ran instead".into()));
    }
    let packages = documented_packages(tree)?;
    if rest.is_empty() && !packages.is_empty() {
        Program::new(tree.root(), "cargo test --doc").args(&packages).run()?;
    }
    Program::new(tree.root(), "cargo nextest run --workspace").args(rest).run().map(|()| Done::Passed)
}

/// Whether the better test runner is there.
pub(crate) fn nextest() -> bool {
    present("cargo nextest --version")
}

/// `--package NAME` for each package with an example in its documentation. Mostly there is none, and rustdoc, which has to
/// load every crate to find that out, stays at home.
fn documented_packages(tree: &Tree) -> Result<Vec<String>> {
    let mut packages: Vec<String> = Vec::new();
    for (file, text) in tree.texts("rs")? {
        if has_doc_test(&text) {
            packages.push(tree.package_of(&file)?);
        }
    }
    packages.sort();
    packages.dedup();
    Ok(packages.into_iter().flat_map(|name| ["--package".to_owned(), name]).collect())
}

/// A fence in a doc comment holds Rust unless its first word says otherwise.
fn has_doc_test(text: &str) -> bool {
    let lines = text.lines().map(str::trim_start);
    let prose = lines.filter_map(|line| line.strip_prefix("///").or_else(|| line.strip_prefix("//!")));
    let fences = prose.filter_map(|line| line.trim_start().strip_prefix("```"));
    fences.step_by(2).any(|info| info.split(',').all(|word| RUST.contains(&word.trim())))
}

/// What may follow an opening fence when a test is meant; see the rustdoc book.
const RUST: [&str; 6] = ["", "rust", "should_panic", "no_run", "compile_fail", "standalone_crate"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rust_fences_are_doc_tests() {
        assert!(has_doc_test("//! ```\n//! let x = 1;\n//! ```\n"));
        assert!(has_doc_test("    /// ```rust,no_run\n    /// f();\n    /// ```\n"));
        assert!(!has_doc_test("/// ```text\n/// a → b\n/// ```\n"));
        assert!(!has_doc_test("let fence = \"```\";\n"));
    }
}
