//! `cargo xtask tidy`: the rules of the house that no compiler knows. Each rule is a pure function over plain data, text
//! or a list of arrows; this file only gathers the data and prints what they found.

mod arrow;
mod code;
mod link;
mod source;

use anyhow::{Result, bail};

use crate::output::say;
use crate::tree::Tree;

/// A file longer than this may hide a seam; it is named, not refused.
const LONG_FILE_LINES: usize = 600;

/// Applies every rule to the tree and fails when one is broken.
pub(crate) fn run(tree: &Tree) -> Result<()> {
    let sources = tree.texts("rs")?;
    let mut faults = arrow::judge(&arrow::read(tree)?);
    for (file, text) in &sources {
        faults.extend(source::judge(file, text));
    }
    for (file, text) in tree.texts("md")? {
        faults.extend(link::broken(&file, &text, |target| tree.root().join(target).exists()));
    }
    say_long_files(&sources);
    for fault in &faults {
        say(fault);
    }
    match faults.len() {
        0 => Ok(()),
        count => bail!("rules of the house broken: {count}"),
    }
}

fn say_long_files(sources: &[(String, String)]) {
    let mut long: Vec<(usize, &str)> =
        sources.iter().map(|(file, text)| (text.lines().count(), file.as_str())).collect();
    long.retain(|(lines, _)| *lines > LONG_FILE_LINES);
    long.sort_by(|a, b| b.cmp(a));
    for (lines, file) in long {
        say(format!("note: {file} has {lines} lines; is there a seam inside?"));
    }
}
