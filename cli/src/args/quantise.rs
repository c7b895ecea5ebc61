//! `lorikeet quantise`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Quantise {
    /// The base model's directory, in f32, bf16 or f16
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The directory to write; it must not be there
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// What the projections become
    #[arg(long, value_enum, default_value_t = Bits::Nf4, value_name = "TYPE")]
    pub(crate) to: Bits,
}

/// bitsandbytes' two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bits {
    /// 4-bit normal floats with double quantisation
    Nf4,
    /// 8-bit integers with a scale a row
    Int8,
}
