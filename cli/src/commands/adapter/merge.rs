//! `lorikeet adapter merge`: base and adapter as one model.

use super::vacant;
use crate::{
    args::Merge as Args,
    commands::local::{self, failed},
    failure::Failure,
    interrupt::Interrupt,
    output::{
        Output, View,
        progress::BytesProgress,
        table::{count, fields, grid, size, with_below},
    },
};
use lorikeet_trainer::merge::merge;
use serde::Serialize;
use std::path::PathBuf;

/// The answer.
#[derive(Debug, Serialize)]
struct Merged {
    out: PathBuf,
    tensors: usize,
    changed: usize,
    bytes: u64,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    path: String,
    size_bytes: u64,
    blake3: String,
}

/// Whole or not at all.
pub(super) fn run(output: Output, args: &Args) -> Result<(), Failure> {
    let out = vacant(&args.out)?;
    local::base(&args.base)?;
    local::adapter(&args.adapter)?;
    let interrupt = Interrupt::listen()?;
    let bar = std::sync::OnceLock::new();
    let told = |done, total| bar.get_or_init(|| BytesProgress::new("merging", total)).at(done);
    let whole = merge(&args.base, &args.adapter, &out, args.max_shard_size, &told, &|| interrupt.is_asked());
    let whole = whole.map_err(|error| failed("merge", &error))?;
    bar.into_inner().into_iter().for_each(BytesProgress::finish);
    let file = |file: lorikeet_trainer::event::FileRecord| File {
        path: file.path,
        size_bytes: file.size,
        blake3: file.blake3,
    };
    output.answer(&Merged {
        out: args.out.clone(),
        tensors: whole.tensors,
        changed: whole.changed,
        bytes: whole.files.iter().map(|file| file.size).sum(),
        files: whole.files.into_iter().map(file).collect(),
    })
}

impl View for Merged {
    fn table(&self) -> String {
        let table = fields([
            ("model", Some(self.out.display().to_string())),
            ("size", Some(size(self.bytes))),
            ("tensors", Some(format!("{}, {} changed", count(self.tensors as u64), count(self.changed as u64)))),
        ]);
        let rows = self.files.iter().map(|file| [file.path.clone(), size(file.size_bytes), file.blake3.clone()]);
        with_below(table, "files:", Some(grid(["file", "size", "blake3"], rows)))
    }
}
