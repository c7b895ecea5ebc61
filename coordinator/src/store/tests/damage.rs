//! A file that is not what was written is refused by name, and stays as it was found.

use super::*;
use std::{fs, io::Write as _};

/// Enough rows for a tree of several levels.
fn filled() -> (tempfile::TempDir, PathBuf) {
    let (folder, path) = place();
    let store = Store::open(&path).unwrap();
    let rows: Vec<_> = (1..400).map(|n| Record::Dataset(dataset(n, n % 5))).collect();
    store.commit(&rows).unwrap();
    store.commit(&[Record::User(user(1))]).unwrap();
    (folder, path)
}

fn refused(path: &Path, what: &str) {
    let before = fs::read(path).unwrap();
    let error = Store::open(path).expect_err(what);
    assert!(matches!(error, StoreError::Damaged { .. }), "{what}: {error}");
    let error = error.to_string();
    assert!(error.contains("state.redb") && error.contains("lorikeet restore --from"), "{what}: {error}");
    assert!(fs::read(path).unwrap() == before, "{what}: the file was changed");
}

#[test]
fn a_flipped_bit_in_what_is_used_is_found_wherever_it_is() {
    let (_folder, path) = filled();
    let whole = fs::read(&path).unwrap();
    let all = Store::open(&path).unwrap().scan::<Dataset>(&[], |_| true).unwrap();
    let (mut found, mut harmless) = (0, 0);
    // Every row holds its name, so a byte of each page in use is known by it; and bytes spread over the whole file.
    let named = whole.windows(7).enumerate().filter(|(_, window)| window == b"\"name\":").map(|(at, _)| at).step_by(17);
    for at in named.chain((0..whole.len()).step_by(whole.len() / 40)) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x04;
        fs::write(&path, &flipped).unwrap();
        match Store::open(&path) {
            Err(error) => {
                assert!(matches!(error, StoreError::Damaged { .. }), "byte {at}: {error}");
                found += 1;
            }
            // A page that is not in use may hold anything; what is served is what was written.
            Ok(store) => {
                assert!(store.scan::<Dataset>(&[], |_| true).unwrap() == all, "byte {at}: wrong rows were served");
                harmless += 1;
            }
        }
    }
    assert!(found >= 20, "{found} found, {harmless} harmless");
}

#[test]
fn a_file_that_was_cut_off_or_has_a_hole_of_zeros_is_refused_and_stays_as_it_is() {
    let (_folder, path) = filled();
    let whole = fs::read(&path).unwrap();
    for length in [100, 5_000, whole.len() / 3, whole.len() - 4_096] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(&path, &format!("cut off after {length} bytes"));
    }
    let row = whole.windows(7).position(|window| window == b"\"name\":").unwrap();
    let mut holed = whole.clone();
    holed[row / 4_096 * 4_096..][..4_096].fill(0);
    fs::write(&path, &holed).unwrap();
    refused(&path, "a page of zeros");
    fs::File::create(&path).unwrap().write_all(&vec![0; whole.len()]).unwrap();
    refused(&path, "a file of zeros");
    fs::write(&path, &whole).unwrap();
    Store::open(&path).unwrap();
}

#[test]
fn a_store_that_is_open_is_not_opened_twice() {
    let (_folder, path) = filled();
    let _open = Store::open(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::InUse { .. })));
}

#[test]
fn compaction_gives_room_back_and_loses_nothing() {
    let (_folder, path) = filled();
    let store = Store::open(&path).unwrap();
    let rows: Vec<_> = (1..3_000).map(|n| Record::Dataset(dataset(n, 1))).collect();
    (0..5).for_each(|_| store.commit(&rows).unwrap());
    let before = store.scan::<Dataset>(&[], |_| true).unwrap();
    drop(store);
    let (old, new) = Store::compact(&path).unwrap();
    assert!(new < old, "{old} before, {new} after");
    assert_eq!(Store::open(&path).unwrap().scan::<Dataset>(&[], |_| true).unwrap(), before);
}
