//! `lorikeet adapter export`: an adapter, or the merged model, as llama.cpp reads it.

use crate::{
    args::{Export as Args, Stored},
    commands::local::failed,
    failure::Failure,
    interrupt::Interrupt,
    output::{
        Output, View,
        table::{count, fields, size},
    },
};
use lorikeet_trainer::gguf::{ModelOptions, Type, write_adapter, write_model};
use serde::Serialize;
use std::path::PathBuf;

/// The answer.
#[derive(Debug, Serialize)]
struct Exported {
    file: PathBuf,
    merged: bool,
    tensors: usize,
    bytes: u64,
}

/// Whole or not at all; what stands there stays.
pub(super) fn run(output: Output, args: &Args) -> Result<(), Failure> {
    if args.gguf.exists() {
        return Err(Failure::mistake(format!("{} is there already", args.gguf.display()))
            .hint("name a file that does not exist yet"));
    }
    let stored = args.stored.map(|stored| match stored {
        Stored::F32 => Type::F32,
        Stored::F16 => Type::F16,
        Stored::Bf16 => Type::Bf16,
    });
    let written = if args.merged {
        let interrupt = Interrupt::listen()?;
        let name = args.base.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let options = ModelOptions { stored, name, pre_tokenizer: args.tokenizer_pre.clone() };
        write_model(&args.base, Some(&args.adapter), &args.gguf, &options, &|| interrupt.is_asked())
    } else {
        write_adapter(&args.base, &args.adapter, &args.gguf, stored.unwrap_or(Type::F32))
    };
    let written = written.map_err(|error| failed("export", &error))?;
    output.answer(&Exported {
        file: args.gguf.clone(),
        merged: args.merged,
        tensors: written.tensors,
        bytes: written.bytes,
    })
}

impl View for Exported {
    fn table(&self) -> String {
        let what = if self.merged { "merged model" } else { "adapter" };
        fields([
            (what, Some(self.file.display().to_string())),
            ("size", Some(size(self.bytes))),
            ("tensors", Some(count(self.tensors as u64))),
        ])
    }
}
