//! `lorikeet-gpu goldens`: decoder, gradients and whole runs on the card, beside those of transformers and PEFT.
//!
//! That is a test of the trainer's, with files of numbers. `cargo xtask gpu build` hangs both, packed by tar, on the end of this program, behind
//! them their length and [`MARK`]; here they are unpacked beside the program, where whatever it is may be executed, and this process becomes
//! the test: who ends it ends that.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What this program ends in where it carries them; `xtask/src/gpu.rs` writes it.
const MARK: &[u8; 8] = b"goldens\n";

/// Becomes them, on that device; what comes back is why not.
pub(crate) fn run(device: usize) -> Box<dyn Error> {
    // they take the first that they see
    let on_it = |mut tests: Command| tests.env("CUDA_VISIBLE_DEVICES", device.to_string()).exec().into();
    unpacked().map_or_else(|error| error, on_it)
}

fn unpacked() -> Result<Command, Box<dyn Error>> {
    let packed = packed().map_err(|error| format!("the goldens are not here: {error}"))?;
    let place = std::env::current_exe()?.with_extension("goldens");
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    std::fs::create_dir(&place)?;
    let file = place.join("goldens.tar.gz");
    std::fs::write(&file, packed)?;
    if !Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&place).status()?.success() {
        return Err("tar cannot unpack the goldens".into());
    }
    let mut tests = Command::new(place.join("goldens_on_gpu"));
    // one at a time: each takes all of a card that it wants
    tests.args(["--nocapture", "--test-threads", "1"]).env("CARGO_MANIFEST_DIR", place.join("trainer"));
    Ok(tests)
}

fn packed() -> Result<Vec<u8>, Box<dyn Error>> {
    let mut program = File::open(std::env::current_exe()?)?;
    let mut end = [0u8; 16];
    program.seek(SeekFrom::End(-16))?;
    program.read_exact(&mut end)?;
    let (length, mark) = end.split_at(8);
    if mark != MARK {
        return Err("`cargo xtask gpu build` makes the program that carries them".into());
    }
    let length = u64::from_le_bytes(length.try_into()?);
    let mut packed = vec![0; usize::try_from(length)?];
    program.seek(SeekFrom::End(-16 - i64::try_from(length)?))?;
    program.read_exact(&mut packed)?;
    Ok(packed)
}
