//! `cargo xtask mutate`: do the trainer's tests notice a wrong sign? A line of the trainer that ends in `// mutate: flip`
//! is a place where a sign decides. Each of them in turn is flipped in a scratch copy of the tree, and the trainer's tests
//! have to fail. The copy and its build folder stay under `target/mutate`, so that the next round compiles only the trainer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::output::{say, table};
use crate::program::Program;
use crate::test::nextest;
use crate::tree::Tree;

const MARK: &str = "// mutate: flip";
const SOURCES: &str = "trainer/src/";

/// One marked line.
struct Place {
    file: String,
    /// Counted from 1.
    line: usize,
}

/// What the tests said to a flipped sign.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Killed,
    Survived,
    /// The flip is not Rust, so the mark stands on the wrong line.
    DoesNotCompile,
}

/// Flips the marked lines of files whose path contains `only`, `limit` of them at most, and fails when one survives.
pub(crate) fn run(tree: &Tree, only: Option<&str>, limit: Option<usize>) -> Result<()> {
    let places: Vec<Place> = places(tree, only)?.into_iter().take(limit.unwrap_or(usize::MAX)).collect();
    if places.is_empty() {
        bail!("no line in {SOURCES} ends in `{MARK}`");
    }
    let scratch = Scratch::lay(tree)?;
    say(format!("{} lines; first the tests as they are", places.len()));
    if scratch.verdict()? != Verdict::Survived {
        bail!("the trainer's tests fail without any flip; mend them first");
    }
    let verdicts = judge_all(&scratch, &places)?;
    say_table(&places, &verdicts);
    let lost = verdicts.iter().filter(|verdict| **verdict != Verdict::Killed).count();
    if lost > 0 {
        bail!("{lost} of {} flipped signs went unnoticed", places.len());
    }
    Ok(())
}

fn places(tree: &Tree, only: Option<&str>) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for (file, text) in tree.texts("rs")? {
        if file.starts_with(SOURCES) && only.is_none_or(|part| file.contains(part)) {
            let marked = (1..).zip(text.lines()).filter(|(_, line)| line.trim_end().ends_with(MARK));
            places.extend(marked.map(|(line, _)| Place { file: file.clone(), line }));
        }
    }
    Ok(places)
}

fn judge_all(scratch: &Scratch, places: &[Place]) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for place in places {
        let verdict = scratch.with_flipped(place)?;
        say(format!("{}:{} {}", place.file, place.line, verdict.word()));
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

fn say_table(places: &[Place], verdicts: &[Verdict]) {
    let rows = places.iter().zip(verdicts);
    let rows: Vec<Vec<String>> = rows
        .map(|(place, verdict)| vec![format!("{}:{}", place.file, place.line), verdict.word().to_owned()])
        .collect();
    say("");
    table(&["line", "flipped"], &rows);
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Survived => "SURVIVED",
            Self::DoesNotCompile => "DOES NOT COMPILE",
        }
    }
}

/// The other sign: of the first `+=` or `-=` in the code of a line, else of its first `+` or `-`.
fn flip(line: &str) -> Option<String> {
    let (code, comment) = line.split_at(line.find("//").unwrap_or(line.len()));
    let swap = |from: &str, to: &str| code.find(from).map(|at| (at, code.replacen(from, to, 1)));
    let first = |plus: &str, minus: &str| [swap(plus, minus), swap(minus, plus)].into_iter().flatten().min();
    let (_, flipped) = first(" += ", " -= ").or_else(|| first(" + ", " - "))?;
    Some(flipped + comment)
}

/// A copy of the tree in which a sign can be wrong without harm.
struct Scratch {
    tree: PathBuf,
    build: PathBuf,
}

impl Scratch {
    /// Brings the copy up to date. Files that are the same already keep their time, or cargo would build them again.
    fn lay(tree: &Tree) -> Result<Self> {
        let folder = tree.root().join("target/mutate");
        let scratch = Self { tree: folder.join("tree"), build: folder.join("build") };
        let files: BTreeSet<String> = tree.files()?.into_iter().collect();
        for file in &files {
            copy_if_changed(&tree.root().join(file), &scratch.tree.join(file))?;
        }
        remove_others(&scratch.tree, &scratch.tree, &files)?;
        Ok(scratch)
    }

    /// Flips one line, asks the tests, and puts the line back whatever they said.
    fn with_flipped(&self, place: &Place) -> Result<Verdict> {
        let path = self.tree.join(&place.file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let line = &mut lines[place.line - 1];
        *line = flip(line).with_context(|| format!("{}:{}: there is no sign to flip", place.file, place.line))?;
        write(&path, lines.join("\n").as_bytes())?;
        let verdict = self.verdict();
        write(&path, text.as_bytes())?;
        verdict
    }

    fn verdict(&self) -> Result<Verdict> {
        if !self.succeeds("cargo test --no-run --package lorikeet-trainer")? {
            return Ok(Verdict::DoesNotCompile);
        }
        let tests = if nextest() { "cargo nextest run --fail-fast" } else { "cargo test" };
        let passed = self.succeeds(&format!("{tests} --package lorikeet-trainer"))?;
        Ok(if passed { Verdict::Survived } else { Verdict::Killed })
    }

    fn succeeds(&self, line: &str) -> Result<bool> {
        let build = self.build.to_str().context("the path of the tree is not UTF-8")?;
        Ok(Program::new(&self.tree, line).env("CARGO_TARGET_DIR", build).capture()?.status.success())
    }
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
    match std::fs::read(to) {
        Ok(present) if present == bytes => Ok(()),
        Ok(_) | Err(_) => write(to, &bytes),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Removes what an earlier copy held and the tree no longer has: cargo finds tests and examples by looking.
fn remove_others(root: &Path, folder: &Path, keep: &BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.strip_prefix(root).context("entries lie under the folder they were listed in")?;
        if path.is_dir() {
            remove_others(root, &path, keep)?;
        } else if !name.to_str().is_some_and(|name| keep.contains(name)) {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_flipped_before_a_plain_sign() {
        assert_eq!(flip("  sum += a + b; // mutate: flip").as_deref(), Some("  sum -= a + b; // mutate: flip"));
        assert_eq!(flip("x -= y;").as_deref(), Some("x += y;"));
    }

    #[test]
    fn the_first_plain_sign_is_flipped() {
        assert_eq!(flip("let d = a - b + c;").as_deref(), Some("let d = a + b + c;"));
    }

    #[test]
    fn a_sign_in_the_comment_does_not_count() {
        assert_eq!(flip("let d = a * b; // a + b // mutate: flip"), None);
    }

    #[test]
    fn a_negation_is_not_a_sign_between_two_terms() {
        assert_eq!(flip("let d = -a;"), None);
    }
}
