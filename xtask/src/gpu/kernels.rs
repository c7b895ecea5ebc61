//! Every kernel through nvcc, warnings as errors, down to machine code for Ampere and Hopper and to PTX for Blackwell; then through NVRTC,
//! by the program that does so on users' machines.
//!
//! There NVRTC compiles the same text when a GPU is opened; this step is how a fault in it is found where there is no GPU: nvcc is the one
//! that warns, and NVRTC knows neither its headers nor all of its options. Attention is compiled for several widths of a head.

use anyhow::Result;

use super::{home, kit};
use crate::check::Done;
use crate::output::say;
use crate::program::Program;
use crate::tree::Tree;

const ARCHITECTURES: &str = "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
                             -gencode arch=compute_120,code=compute_120";

/// Widths of heads that attention is compiled for: those that models have, and those that fill no tile.
const WIDTHS: [&str; 5] = ["-DHEAD=64", "-DHEAD=72", "-DHEAD=128", "-DHEAD=144", "-DHEAD=256"];

/// Compiles all of them.
pub(super) fn compile(tree: &Tree) -> Result<Done> {
    let Some(nvcc) = kit::nvcc(tree) else { return Ok(Done::Missing("nvcc")) };
    let folder = home(tree)?;
    let mut count = 0;
    for file in tree.files()?.into_iter().filter(|file| file.starts_with("trainer/kernels/") && file.ends_with(".cu")) {
        let definitions = if file.ends_with("/attention.cu") { &WIDTHS[..] } else { &[""] };
        for definition in definitions {
            let call = Program::at(tree.root(), &nvcc)
                .words("-fatbin -O3 -std=c++17 -Werror all-warnings --threads 0")
                .words(ARCHITECTURES)
                .words(definition)
                .word(&file)
                .word("-o")
                .path(&folder.join("kernel.fatbin"));
            call.run()?;
            count += 1;
        }
    }
    say(format!("{count} compilations, each for sm_80, sm_90 and compute_120"));
    let Some(nvrtc) = kit::nvrtc(tree) else { return Ok(Done::Missing("NVRTC")) };
    let program = Program::at(tree.root(), &super::program(tree)?).word("kernels");
    program.env("CUDA_LIB_DIR", &nvrtc.display().to_string()).run()?;
    Ok(Done::Passed)
}
