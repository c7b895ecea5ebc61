//! A copy of the tree in which signs can be wrong without harm. It stays under `target/mutate` and shares the build folder
//! of the tree, so that nothing but the trainer is compiled for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

use super::mark::Mark;
use crate::output::say;
use crate::program::Program;
use crate::tree::Tree;

const PACKAGE: &str = "lorikeet-trainer";
const ROOT: &str = "trainer/src/lib.rs";

/// The copy, with every flip in it.
pub(super) struct Scratch {
    tree: PathBuf,
    build: PathBuf,
}

/// The trainer's test programs, and where they are to be run.
pub(super) struct Built {
    pub(super) programs: Vec<PathBuf>,
    pub(super) package: PathBuf,
    /// For what is written while they run.
    pub(super) notes: PathBuf,
}

impl Scratch {
    /// Brings the copy up to date. Files that are the same already keep their time, or cargo would build them again.
    pub(super) fn lay(tree: &Tree, marks: &[Mark]) -> Result<Self> {
        let scratch = Self { tree: tree.target().join("mutate/tree"), build: tree.target() };
        let files: BTreeSet<String> = tree.files()?.into_iter().collect();
        for file in &files {
            let path = tree.root().join(file);
            let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let here: Vec<&Mark> = marks.iter().filter(|mark| mark.file == *file).collect();
            let bytes = if here.is_empty() { bytes } else { branched(bytes, &here)? };
            let bytes = if file == ROOT { [bytes, chooser(marks.len()).into_bytes()].concat() } else { bytes };
            write_if_changed(&scratch.tree.join(file), &bytes)?;
        }
        remove_others(&scratch.tree, &scratch.tree, &files)?;
        Ok(scratch)
    }

    pub(super) fn build(&self) -> Result<Built> {
        let build = self.build.to_str().context("the path of the tree is not UTF-8")?;
        let line = format!("cargo test --no-run --lib --tests --package {PACKAGE}");
        let program = Program::new(&self.tree, &format!("{line} --message-format json-render-diagnostics"));
        let output = program.env("CARGO_TARGET_DIR", build).capture()?;
        if !output.status.success() {
            say(String::from_utf8_lossy(&output.stderr));
            bail!("the trainer does not build with its marked lines as branches");
        }
        let mut programs = Vec::new();
        for message in Message::parse_stream(&output.stdout[..]) {
            if let Message::CompilerArtifact(artifact) = message.context("cargo says what it built")? {
                programs.extend(artifact.executable.filter(|_| artifact.profile.test).map(Into::into));
            }
        }
        let notes = self.build.join("mutate/notes");
        std::fs::create_dir_all(&notes).with_context(|| format!("make {}", notes.display()))?;
        Ok(Built { programs, package: self.tree.join("trainer"), notes })
    }
}

fn branched(bytes: Vec<u8>, marks: &[&Mark]) -> Result<Vec<u8>> {
    let text = String::from_utf8(bytes).context("a source is UTF-8")?;
    let mut lines: Vec<&str> = text.split('\n').collect();
    for mark in marks {
        lines[mark.line - 1] = &mark.branch;
    }
    Ok(lines.join("\n").into_bytes())
}

/// What the branches ask, as a module of the trainer. `LORIKEET_MUTANT` holds the number of the flip; `LORIKEET_REACHED` a
/// file to which the number of each branch is added that is come by.
fn chooser(count: usize) -> String {
    format!(
        r#"
pub(crate) mod mutant {{
    use std::io::Write;
    use std::sync::atomic::{{AtomicBool, AtomicUsize, Ordering}};

    const UNKNOWN: usize = usize::MAX;
    const SURVEY: usize = usize::MAX - 1;
    static CHOSEN: AtomicUsize = AtomicUsize::new(UNKNOWN);
    static SEEN: [AtomicBool; {count} + 1] = [const {{ AtomicBool::new(false) }}; {count} + 1];

    #[inline(always)]
    pub(crate) fn is(number: usize) -> bool {{
        let chosen = CHOSEN.load(Ordering::Relaxed);
        if chosen >= SURVEY {{ look(number) }} else {{ chosen == number }}
    }}

    #[cold]
    fn look(number: usize) -> bool {{
        let Ok(path) = std::env::var("LORIKEET_REACHED") else {{
            let asked = std::env::var("LORIKEET_MUTANT").ok().and_then(|text| text.parse().ok());
            CHOSEN.store(asked.unwrap_or(0), Ordering::Relaxed);
            return asked == Some(number);
        }};
        if !SEEN[number].swap(true, Ordering::Relaxed) {{
            let file = std::fs::File::options().append(true).create(true).open(path);
            file.and_then(|mut file| file.write_all(format!("{{number}}\n").as_bytes())).expect("a note");
        }}
        false
    }}
}}
"#
    )
}

fn write_if_changed(to: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let folder = to.parent().context("a file has a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
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
