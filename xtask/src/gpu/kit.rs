//! NVIDIA's compilers as Python wheels, without root and without a GPU: nvcc with what it includes, and NVRTC, which is what compiles on
//! users' machines.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::home;
use crate::output::say;
use crate::program::Program;
use crate::tree::Tree;

/// Exactly the CUDA whose driver users are asked for: a newer compiler writes what driver 580 does not take.
const WHEELS: &str = "cuda-toolkit[nvcc,nvrtc,cudart,cccl]==13.0.3.0";

/// Fetches it, unless it is there.
pub(super) fn fetch(tree: &Tree) -> Result<()> {
    if let (Some(nvcc), Some(nvrtc)) = (nvcc(tree), nvrtc(tree)) {
        say(format!("{} and NVRTC in {} are there", nvcc.display(), nvrtc.display()));
        return Ok(());
    }
    let folder = home(tree)?;
    let (venv, kit) = (folder.join("venv"), folder.join("kit"));
    // a fetch that was interrupted, or was one of less, leaves a folder that pip would not fill up
    if kit.exists() {
        std::fs::remove_dir_all(&kit).with_context(|| format!("remove {}", kit.display()))?;
    }
    Program::new(tree.root(), "python3 -m venv").path(&venv).run()?;
    let pip = Program::at(tree.root(), &venv.join("bin/pip"));
    pip.words("install --quiet --no-compile --disable-pip-version-check --target").path(&kit).word(WHEELS).run()
}

/// The compiler: the kit's, else one on the PATH.
pub(super) fn nvcc(tree: &Tree) -> Option<PathBuf> {
    let own = home(tree).ok()?.join("kit/nvidia/cu13/bin/nvcc");
    let on_path = || {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
    };
    if own.is_file() { Some(own) } else { on_path() }
}

/// The folder that NVRTC lies in, of the kit.
pub(super) fn nvrtc(tree: &Tree) -> Option<PathBuf> {
    let folder = home(tree).ok()?.join("kit/nvidia/cu13/lib");
    folder.join("libnvrtc.so.13").is_file().then_some(folder)
}
