//! `lorikeet quantise`: a base in fewer bits, for this trainer and for everybody who reads bitsandbytes' layout.

use super::{
    local::{self, failed},
    train,
};
use crate::{
    args::{Bits, Quantise},
    failure::Failure,
    interrupt::Interrupt,
    output::{
        Output, View,
        table::{fields, size},
    },
};
use lorikeet_plan::BaseDtype;
use serde::Serialize;
use std::path::PathBuf;

/// What was written.
#[derive(Debug, PartialEq, Serialize)]
struct Written {
    path: PathBuf,
    base_dtype: &'static str,
    weight_bytes: u64,
}

/// Reads, quantises and writes.
pub(crate) fn run(output: Output, args: &Quantise) -> Result<(), Failure> {
    let base = local::base(&args.base)?;
    if args.out.exists() {
        return Err(Failure::mistake(format!("{} is there already", args.out.display())).hint("name another --out"));
    }
    let out = train::absolute(&args.out)?;
    let dtype = match args.to {
        Bits::Nf4 => BaseDtype::Nf4,
        Bits::Int8 => BaseDtype::Int8,
    };
    let interrupt = Interrupt::listen()?;
    let written = lorikeet_trainer::quant::write_base(&base, &out, dtype, &|| interrupt.is_asked());
    let weight_bytes = written.map_err(|error| failed("quantise", &error))?;
    output.answer(&Written { path: args.out.clone(), base_dtype: dtype.name(), weight_bytes })
}

impl View for Written {
    fn table(&self) -> String {
        fields([
            ("base", Some(self.path.display().to_string())),
            ("projections", Some(self.base_dtype.to_owned())),
            ("weights", Some(size(self.weight_bytes))),
        ])
    }
}
