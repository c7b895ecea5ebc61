//! Power fails: at every point at which redb asks the disk to keep something, on a disk that until then has kept whatever it liked.
//!
//! What was written since the last such point is there in part, sector by sector and in any order: an old one, a new one, one from
//! between. Then the file is opened as a coordinator opens it, with every page judged, and has to hold what was acknowledged.

use super::*;
use redb::StorageBackend;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;
/// Ways in which the power fails at one point.
const FAILURES: u64 = 4;

/// A disk of which the power fails when it is asked for the `fails_at`-th time to keep what was written.
#[derive(Debug, Clone)]
pub(crate) struct Power(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// As after the last sync.
    kept: Vec<u8>,
    /// As whoever writes it sees it.
    seen: Vec<u8>,
    /// Every version of each sector, and of the length, since the last sync.
    sectors: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    lengths: Vec<usize>,
    syncs: u64,
    fails_at: u64,
    chance: blake3::OutputReader,
}

impl Power {
    fn failing_at(fails_at: u64, seed: u64) -> Self {
        let chance = blake3::Hasher::new().update(&seed.to_le_bytes()).update(&fails_at.to_le_bytes()).finalize_xof();
        let (kept, seen, sectors, lengths) = (vec![], vec![], BTreeMap::new(), vec![]);
        Self(Arc::new(Mutex::new(State { kept, seen, sectors, lengths, syncs: 0, fails_at, chance })))
    }

    pub(in crate::store) fn database(&self) -> Result<Database, redb::DatabaseError> {
        Database::builder().create_with_backend(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// With the power on.
    fn on(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.syncs >= state.fails_at { Err(io::Error::other("there is no power")) } else { Ok(state) }
    }
}

impl State {
    fn below(&mut self, bound: usize) -> usize {
        let mut bytes = [0; 8];
        self.chance.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % bound as u64) as usize
    }

    fn remember(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let mut version = [0; SECTOR];
            let there =
                &self.seen[(sector * SECTOR).min(self.seen.len())..((sector + 1) * SECTOR).min(self.seen.len())];
            version[..there.len()].copy_from_slice(there);
            self.sectors.entry(sector).or_default().push(version);
        }
    }

    fn keep_all(&mut self) {
        self.kept.clone_from(&self.seen);
        self.sectors.clear();
        self.lengths.clear();
    }

    /// One version of each, old or new. A disk that was nearly done and one that had hardly begun are as likely as any other.
    fn keep_some(&mut self) {
        let eagerness = self.below(5);
        let lengths = std::mem::take(&mut self.lengths);
        let length = if self.below(4) < eagerness { lengths.last().copied() } else { None };
        self.kept.resize(length.unwrap_or(self.kept.len()), 0);
        for (sector, versions) in std::mem::take(&mut self.sectors) {
            if self.below(4) >= eagerness {
                continue;
            }
            let version = versions[self.below(versions.len())];
            let at = sector * SECTOR;
            if let Some(place) = self.kept.get_mut(at..at + SECTOR) {
                place.copy_from_slice(&version);
            }
        }
    }
}

impl StorageBackend for Power {
    fn len(&self) -> io::Result<u64> {
        Ok(self.on()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (state, offset) = (self.on()?, offset as usize);
        let bytes = state.seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.on()?;
        state.seen.resize(length as usize, 0);
        state.lengths.push(length as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.on()?;
        state.syncs += 1;
        if state.syncs == state.fails_at {
            state.keep_some();
            return Err(io::Error::other("the power fails"));
        }
        state.keep_all();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut state, offset) = (self.on()?, offset as usize);
        let place = state.seen.get_mut(offset..offset + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        place.copy_from_slice(data);
        state.remember(offset, offset + data.len());
        Ok(())
    }
}

/// What is written, commit by commit: rows with indexes over them, some anew, enough of them that the file grows.
fn commits() -> Vec<Vec<Record>> {
    let many = |from: u128, to: u128| (from..to).map(|n| Record::Dataset(dataset(n, n % 3))).collect::<Vec<_>>();
    let again = |n: u128| Record::Dataset(Dataset { name: "renamed".repeat(400), ..dataset(n, 0) });
    let gone = |n: u128| Record::Dataset(Dataset { deleted_at: Some(UnixMillis(5)), ..dataset(n, 1) });
    vec![
        vec![Record::User(user(1))],
        many(0, 40),
        vec![again(3), gone(4), Record::User(user(2))],
        many(40, 1_500),
        vec![gone(1_000), again(41)],
        vec![Record::User(User { name: "B".into(), ..user(1) })],
    ]
}

/// Commits one after the other until the power fails; how many were acknowledged, `None` when not even the store was.
fn write_all(path: &Path, power: &Power) -> Option<usize> {
    let store = Store::open_on(path, Disk { power: Some(power.clone()), ..Disk::default() }).ok()?;
    Some(commits().iter().take_while(|records| store.commit(records).is_ok()).count())
}

/// All that is in it, and what its lists show.
fn content(store: &Store) -> (Vec<User>, Vec<Dataset>, Vec<Dataset>) {
    let listed = store.listed(None, 0, 5_000, None::<fn(&Dataset) -> bool>).unwrap();
    (store.scan(&[], |_| true).unwrap(), store.scan(&[], |_| true).unwrap(), listed.0)
}

/// The content after each number of commits.
fn contents() -> Vec<(Vec<User>, Vec<Dataset>, Vec<Dataset>)> {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let mut contents = vec![content(&store)];
    for records in commits() {
        store.commit(&records).unwrap();
        contents.push(content(&store));
    }
    contents
}

#[test]
fn power_that_fails_at_any_point_costs_nothing_that_was_acknowledged() {
    let contents = contents();
    let (folder, _) = place();
    let unfailing = Power::failing_at(u64::MAX, 0);
    assert_eq!(write_all(&folder.path().join("unfailing"), &unfailing), Some(commits().len()));
    let points = unfailing.state().syncs;
    assert!(points > 2 * commits().len() as u64, "{points} points are few for two-phase commits");
    let mut unfinished = 0;
    for (point, seed) in (1..=points).flat_map(|point| (0..FAILURES).map(move |seed| (point, seed))) {
        let path = folder.path().join(format!("{point}-{seed}"));
        let power = Power::failing_at(point, seed);
        let acknowledged = write_all(&path, &power);
        if acknowledged.is_some() {
            // Before that it had no name yet.
            std::fs::write(&path, &power.state().kept).unwrap();
        }
        let place = format!("point {point} of {points}, failure {seed}: {acknowledged:?} commits were acknowledged");
        let store = Store::open(&path).unwrap_or_else(|error| panic!("{place}: {}", lorikeet_protocol::chain(&error)));
        let found = content(&store);
        let acknowledged = acknowledged.unwrap_or(0);
        let more = contents.get(acknowledged + 1) == Some(&found);
        assert!(more || contents[acknowledged] == found, "{place}, and that is not what is there");
        unfinished += u32::from(more);
        // And it goes on.
        store.commit(&[Record::User(user(99))]).unwrap();
        drop(store);
        std::fs::remove_file(&path).unwrap();
    }
    assert!(unfinished > 0, "no commit that was cut off was there all the same: the failures are too gentle");
}
