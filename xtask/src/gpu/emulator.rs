//! The checks of every kernel on an emulated GPU: `trainer/kernels/emulator` takes the place of NVIDIA's libraries, the program
//! and the kernels are the real ones.

use anyhow::{Context, Result};

use super::{FEATURES, GOLDENS, home};
use crate::check::Done;
use crate::program::{Program, present};
use crate::tree::Tree;

/// The names under which the one library is opened.
const NAMES: [&str; 5] = ["libcuda.so.1", "libnvrtc.so.13", "libcublas.so.13", "libcublasLt.so.13", "libnccl.so.2"];

/// Builds and runs; the inputs are the same every time, so that a fault can be looked at twice.
pub(super) fn run(tree: &Tree) -> Result<Done> {
    if !present("g++ --version") {
        return Ok(Done::Missing("g++"));
    }
    let folder = home(tree)?.join("emulator");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let kernels = tree.root().join("trainer/kernels/emulator");
    Program::new(tree.root(), "g++ -std=c++17 -O2 -Wall -Wextra -Werror -shared -fPIC")
        .word(&format!("-DKERNELS=\"{}\"", kernels.display()))
        .path(&kernels.join("emulator.cpp"))
        .word("-o")
        .path(&folder.join(NAMES[0]))
        .run()?;
    for name in &NAMES[1..] {
        let place = folder.join(name);
        // the same file under every name is opened once: what one of its names puts on a stream the others wait for
        drop(std::fs::remove_file(&place));
        std::fs::hard_link(folder.join(NAMES[0]), &place).with_context(|| format!("link {}", place.display()))?;
    }
    let libraries = folder.display().to_string();
    let program = Program::at(tree.root(), &super::program(tree)?);
    program.words("check large bench --tiny --seed 7").env("CUDA_LIB_DIR", &libraries).run()?;
    // one thread: what tests ask of the emulator holds for all of this process
    let line = format!("cargo test {FEATURES} --test {GOLDENS} -- --nocapture --test-threads 1");
    Program::new(tree.root(), &line).env("CUDA_LIB_DIR", &libraries).run().map(|()| Done::Passed)
}
