//! `lorikeet plan`, and how a size is written.

use bytesize::ByteSize;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The base model's directory, as Hugging Face lays it out
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The training file; without one every example is taken to be as long as training.max_seq_length
    #[arg(long, value_name = "FILE")]
    pub(crate) dataset: Option<PathBuf>,
    /// conservative, balanced or aggressive
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A key of the job file, like lora.rank=8; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = super::key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// Plan it for a GPU: what it takes of the card; this machine needs none
    #[arg(long)]
    pub(crate) gpu: bool,
    /// Memory it may take, like 6GiB; nothing is made to fit when not given
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
}

/// `6GiB` or `512 MB`; a number alone would be bytes, which nobody means.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(bytes)) if bytes > 0 && text.ends_with(char::is_alphabetic) => Ok(bytes),
        Ok(_) | Err(_) => Err("expected a size above 0 with its unit, like 6GiB or 512MiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_with_its_unit() {
        assert_eq!(["6GiB", "1.5 KiB", "512MB", "77B"].map(size), [Ok(6 << 30), Ok(1536), Ok(512_000_000), Ok(77)]);
        assert!(["", "GiB", "-1", "0", "4", "6 apples"].iter().all(|text| size(text).is_err()));
    }
}
