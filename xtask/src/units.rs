//! The `units` step of `check`: systemd reads the units without a word of complaint.
//!
//! `systemd-analyze verify` also wants the program that a unit starts, which is not installed where this runs: so it is
//! shown copies that start a stand-in. It ends with 0 for a misspelt key, hence any line that it prints is a fault.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::check::Done;
use crate::program::{Program, present};
use crate::tree::Tree;

const PROGRAM: &str = "/usr/bin/lorikeet";
const STAND_IN: &str = "/bin/true";

/// Verifies a copy of every unit in `systemd/`.
pub(crate) fn run(tree: &Tree) -> Result<Done> {
    if !present("systemd-analyze --version") {
        return Ok(Done::Missing("systemd-analyze"));
    }
    let folder = tree.root().join("target/units");
    let units = copy_units(tree, &folder)?;
    let output = Program::new(&folder, "systemd-analyze verify --man=no").args(&units).capture()?;
    let words = [output.stdout, output.stderr].concat();
    if !output.status.success() || !words.is_empty() {
        bail!("systemd-analyze verify: {}", String::from_utf8_lossy(&words).trim());
    }
    Ok(Done::Noted(format!("{} units verified", units.len())))
}

fn copy_units(tree: &Tree, folder: &Path) -> Result<Vec<String>> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut copies = Vec::new();
    for (file, text) in tree.texts("service")? {
        let name = file.rsplit('/').next().expect("rsplit yields at least the whole").to_owned();
        let copy = folder.join(&name);
        std::fs::write(&copy, stand_in(&text)).with_context(|| format!("write {}", copy.display()))?;
        copies.push(copy.to_string_lossy().into_owned());
    }
    Ok(copies)
}

fn stand_in(unit: &str) -> String {
    unit.replace(&format!("ExecStart={PROGRAM} "), &format!("ExecStart={STAND_IN} "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_starts_the_stand_in_with_the_same_arguments() {
        assert_eq!(
            stand_in("[Service]\nExecStart=/usr/bin/lorikeet agent\n"),
            "[Service]\nExecStart=/bin/true agent\n"
        );
    }
}
