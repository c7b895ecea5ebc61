//! What a base is known by when a run is taken up again.
//!
//! Two hashes: one over the config and the names and sizes of its files, which tells models apart without opening them, and one over
//! their numbers, which tells apart what was trained from the same start. Of a large file the second takes a sixteenth, evenly: who
//! trains or merges changes whole matrices, and a run should begin before a terabyte was read twice. What is shorter than a mebibyte may lie
//! between.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lorikeet_plan::{MAX_CONFIG_BYTES, read_text};

use crate::{TrainError, staged};

/// Files up to this size are read whole, in bytes.
const WHOLE: u64 = 1 << 28;
/// Of larger ones so many bytes…
const TAKEN: u64 = 1 << 16;
/// …out of as many.
const EVERY: u64 = 1 << 20;

/// BLAKE3 of the config and of the names and sizes of the weights.
pub(crate) fn of_shapes(base: &Path) -> Result<String, TrainError> {
    let config = base.join("config.json");
    let mut hasher = blake3::Hasher::new();
    hasher.update(read_text(&config, MAX_CONFIG_BYTES).map_err(TrainError::io("read", &config))?.as_bytes());
    for (name, path) in weights(base)? {
        let size = fs::metadata(&path).map_err(TrainError::io("read", &path))?.len();
        hasher.update(name.as_bytes()).update(&size.to_le_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// BLAKE3 of the numbers of a base, of which large files give a part. `stop` is asked before every piece and ends it with
/// [`TrainError::Stopped`].
pub fn of_weights(base: &Path, stop: &dyn Fn() -> bool) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    for (_, path) in weights(base)? {
        let file = File::open(&path).map_err(TrainError::io("read", &path))?;
        let size = file.metadata().map_err(TrainError::io("read", &path))?.len();
        let taken = if size <= WHOLE { EVERY } else { TAKEN };
        let mut bytes = vec![0; taken as usize];
        for at in (0..size).step_by(EVERY as usize) {
            if stop() {
                return Err(TrainError::Stopped);
            }
            let part = &mut bytes[..taken.min(size - at) as usize];
            file.read_exact_at(part, at).map_err(TrainError::io("read", &path))?;
            hasher.update(part);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The files that hold them, by name.
fn weights(base: &Path) -> Result<Vec<(String, PathBuf)>, TrainError> {
    let names = staged::file_names(base)?.into_iter().filter(|name| name.ends_with(".safetensors"));
    Ok(names.map(|name| (name.clone(), base.join(name))).collect())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn other_numbers_in_files_of_the_same_sizes_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let (config, weights) = (folder.path().join("config.json"), folder.path().join("model.safetensors"));
        fs::write(config, "{}").expect("written");
        fs::write(&weights, vec![1; 3 << 20]).expect("written");
        let both = || (of_shapes(folder.path()).expect("hashed"), hashed(folder.path()));
        let (shapes, numbers) = both();
        assert_eq!(both(), (shapes.clone(), numbers.clone()));
        let file = File::options().write(true).open(&weights).expect("there");
        file.write_all_at(&[2], (3 << 20) - 1).expect("written");
        let (same, others) = both();
        assert_eq!(same, shapes);
        assert_ne!(others, numbers);
    }

    #[test]
    fn of_a_large_file_a_mebibyte_is_seen_wherever_it_lies() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let file = File::create(&path).expect("made");
        file.set_len(WHOLE + EVERY + 1).expect("sparse");
        let before = hashed(folder.path());
        file.write_all_at(&vec![1; EVERY as usize], 7 * EVERY + EVERY / 2).expect("written");
        assert_ne!(hashed(folder.path()), before);
        let asked = Cell::new(0);
        let third = || asked.replace(asked.get() + 1) == 2;
        assert!(
            matches!(of_weights(folder.path(), &third), Err(TrainError::Stopped)),
            "whoever wants to stop need not wait"
        );
        assert_eq!(asked.get(), 3);
    }

    fn hashed(base: &Path) -> String {
        of_weights(base, &|| false).expect("hashed")
    }
}
