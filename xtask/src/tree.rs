//! The working tree: where it is and which files belong to it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::program::Program;

/// One checkout of the repository.
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The tree that this task was started from: cargo names the folder of `xtask/`, whose parent is the root.
    pub(crate) fn find() -> Result<Self> {
        let here = std::env::var_os("CARGO_MANIFEST_DIR").context("start tasks as `cargo xtask …`")?;
        let root = Path::new(&here).parent().context("xtask/ has no parent folder")?;
        Ok(Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo builds.
    pub(crate) fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// Every file that is tracked, or new and not ignored, relative to the root. One that was removed but is not yet
    /// committed so is left out.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        let listing = Program::new(&self.root, "git ls-files -z --cached --others --exclude-standard").capture()?;
        if !listing.status.success() {
            bail!("git cannot list the tree: {}", String::from_utf8_lossy(&listing.stderr).trim());
        }
        let text = String::from_utf8(listing.stdout).context("a file name in the tree is not UTF-8")?;
        let mut files: Vec<String> =
            text.split('\0').filter(|name| self.root.join(name).is_file()).map(str::to_owned).collect();
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// The files that end in `.extension`, with their text.
    pub(crate) fn texts(&self, extension: &str) -> Result<Vec<(String, String)>> {
        let ending = format!(".{extension}");
        let named = self.files()?.into_iter().filter(|name| name.ends_with(&ending));
        named.map(|name| self.read(&name).map(|text| (name, text))).collect()
    }

    /// The name of the package whose folder holds `file`: the nearest manifest above it that has one.
    pub(crate) fn package_of(&self, file: &str) -> Result<String> {
        for folder in Path::new(file).ancestors().skip(1) {
            let Ok(text) = std::fs::read_to_string(self.root.join(folder).join("Cargo.toml")) else { continue };
            let manifest: toml::Table =
                text.parse().with_context(|| format!("parse {}/Cargo.toml", folder.display()))?;
            if let Some(name) = manifest.get("package").and_then(|package| package.get("name")?.as_str()) {
                return Ok(name.to_owned());
            }
        }
        bail!("{file} belongs to no package")
    }

    fn read(&self, name: &str) -> Result<String> {
        std::fs::read_to_string(self.root.join(name)).with_context(|| format!("read {name}"))
    }
}
