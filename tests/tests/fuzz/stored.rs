//! What lies on our own disks: a disk that does not keep what it was given is a peer that lies.

use crate::{
    fuzz,
    targets::{JSON, body, json, memory_folder, pinned},
};
use lorikeet_agent::{
    config,
    host::{Event, Host, News, Now, Record, Rules, Seen},
};
use lorikeet_coordinator::{backup, blob, series};
use lorikeet_protocol::{
    agent::{FromAgent, Offer, ToAgent},
    codec,
    file::FileManifest,
    id::{BootId, DeviceId, Hash, UnixMillis},
    job::AttemptPhase,
};
use std::{fs, path::Path, sync::Arc, time::Duration};

/// As `docs/store.md` says.
const SEGMENT: &[u8] = b"LKSEG\0\0\x01";

#[test]
fn segments_of_series() {
    let folder = memory_folder();
    let file = folder.path().join("00000000000000000001.seg");
    let read = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("the folder is ours");
        let (last, lines) = series::read_segment(&file).expect("a file in memory can be read");
        assert_eq!(last, lines.last().map(|line| line.seq), "who writes on and who reads see the same end");
        some(lines.len())
    };
    let two = payload(1, &["{}", r#"{"seq":2}"#]);
    let whole = [SEGMENT, &record(&two), &record(&payload(3, &["x"]))].concat();
    fuzz("segments_of_series", vec![whole], &["LKSEG"], &read);
    // Whatever is behind a checksum that is right.
    fuzz("records_of_series", vec![two, payload(u64::MAX, &["a", "b"])], &[], &|bytes| {
        read(&[SEGMENT, &record(&payload(1, &["first"])), &record(bytes)].concat())
    });
}

/// So many, in words: numbers do not tell ways apart.
fn some(count: usize) -> String {
    ["ok none", "ok one", "ok two", "ok more"][count.min(3)].into()
}

fn payload(first: u64, lines: &[&str]) -> Vec<u8> {
    let line = |line: &&str| [&(line.len() as u32).to_le_bytes()[..], line.as_bytes()].concat();
    let lines_as_bytes: Vec<u8> = lines.iter().flat_map(line).collect();
    [&first.to_le_bytes()[..], &(lines.len() as u32).to_le_bytes(), &lines_as_bytes].concat()
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_le_bytes();
    [&length[..], &blake3::hash(payload).as_bytes()[..8], payload].concat()
}

#[test]
fn outboxes() {
    let read = |bytes: &[u8]| match lorikeet_agent::read_outbox(bytes) {
        Some((base, reports, whole)) => {
            assert!(whole as usize <= bytes.len());
            // The number of the last one is the next one's ground.
            assert!(base.checked_add(reports as u64).is_some());
            some(reports)
        }
        None => "no head".into(),
    };
    let frames: Vec<Vec<u8>> = pinned("from_agent").iter().filter_map(|bytes| report(bytes)).collect();
    let entry = |frame: &[u8]| [frame, &blake3::hash(frame).as_bytes()[..8]].concat();
    let head = |base: u64| [&b"LKO1"[..], &base.to_le_bytes()].concat();
    let whole = frames.iter().map(|frame| [head(0), entry(frame)].concat()).collect();
    fuzz("outboxes", whole, &["LKO1"], &read);
    // Whatever is behind a check that is right: the base, then a report.
    let valid = frames.iter().flat_map(|frame| [0, u64::MAX].map(|base| [&base.to_le_bytes()[..], frame].concat()));
    fuzz("entries_of_outboxes", valid.collect(), &[], &|bytes| {
        let Some((base, frame)) = bytes.split_first_chunk::<8>() else { return "short".into() };
        read(&[head(u64::from_le_bytes(*base)), entry(frame)].concat())
    });
}

/// A pinned report as it lies in an outbox, with its length in front.
fn report(bytes: &[u8]) -> Option<Vec<u8>> {
    let FromAgent::Report(report) = codec::decode::<FromAgent>(bytes).ok()? else { return None };
    body(&report)?;
    codec::encode(&report).ok()
}

#[test]
fn records_of_agents() {
    let boot = BootId(uuid::Uuid::from_u128(7));
    let rules = Rules::new(boot, &config::Worker::default(), &config::Devices::default());
    let now = Now { mono: Duration::from_secs(1_000), wall: UnixMillis(1_000_000) };
    let words = ["18446744073709551615", "999999999", "null", "\"secs\":", "\"running\":", "true", "false"];
    fuzz("records_of_agents", valid_records(boot), &[JSON, &words].concat(), &|bytes| {
        let record: Record = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(error) => return error.to_string(),
        };
        let (id, phase) = (record.id(), record.phase);
        let (mut host, _) = Host::restore(rules.clone(), vec![record], now);
        let later = Now { mono: now.mono + Duration::from_secs(3_600), ..now };
        for (event, now) in [
            (Event::Looked(Seen::default()), now),
            (Event::Prepared(id), now),
            (Event::Worker(id, News::Holds { pid: 1 }), now),
            (Event::Tick, later),
            (Event::Worker(id, News::Gone { how: "it is gone".into() }), later),
            (Event::Delivered(id), later),
        ] {
            drop(host.handle(event, now));
            host.check_invariants();
            let _ = host.next_deadline();
        }
        format!("ok {phase:?}")
    });
}

fn valid_records(boot: BootId) -> Vec<Vec<u8>> {
    let offer = pinned("to_agent").iter().find_map(|bytes| match codec::decode::<ToAgent>(bytes) {
        Ok(ToAgent::Offer(offer)) => Some(*offer),
        _ => None,
    });
    let offer: Arc<Offer> = Arc::new(offer.expect("an offer is pinned"));
    let (accepted, accepted_wall) = (Duration::from_secs(900), UnixMillis(900_000));
    let record = |(phase, spawned, running)| Record {
        offer: Arc::clone(&offer),
        phase,
        accepted_wall,
        boot,
        accepted,
        running,
        spawned,
        used_before: [(DeviceId("GPU-0".into()), 5 << 30)].into(),
        energy: Default::default(),
        stop: None,
        device_fault: None,
        checkpoints_through: 3,
        last_event: 9,
        events_through: 4,
    };
    let phases = [
        (AttemptPhase::Preparing, false, None),
        (AttemptPhase::Running, true, Some(Duration::from_secs(950))),
        (AttemptPhase::Done, true, None),
    ];
    phases.map(|phase| json(&record(phase))).to_vec()
}

#[test]
fn manifest_files_of_blobs() {
    let chunk = Hash([7; 32]);
    let manifest = FileManifest { size: 5, hash: chunk, chunks: vec![chunk] };
    let entry = |place: serde_json::Value| json(&serde_json::json!({ "manifest": manifest, "place": place }));
    let valid = [serde_json::Value::Null, "/bases/a".into(), serde_json::json!(["/bases/a", "/bases/b"])].map(entry);
    fuzz("manifest_files_of_blobs", valid.to_vec(), &[JSON, &["place", "manifest", "/"]].concat(), &|bytes| {
        match blob::read_manifest_file(bytes) {
            Ok((manifest, linked)) => format!("ok {} {linked}", manifest.is_consistent()),
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn backups() {
    let folder = memory_folder();
    let (file, data) = (folder.path().join("backup.tar"), folder.path().join("data"));
    let head = json(&serde_json::json!({
        "format": 1, "taken": 1_700_000_000_000_u64, "version": "0.1.0", "schema": 1, "generation": 1, "full": false
    }));
    let restore = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("the folder is ours");
        let _ = fs::remove_dir_all(&data);
        fs::create_dir(&data).expect("the folder is ours");
        let known = backup::head_of(&file).is_ok();
        match backup::restore(&file, &data, true) {
            Ok(restored) => format!("ok {known} {}", restored.rows > 0),
            Err(error) => {
                let left: Vec<_> = fs::read_dir(&data).expect("the folder is ours").flatten().collect();
                assert!(left.is_empty(), "a backup that was refused left {left:?}");
                format!("{known} {}", lorikeet_protocol::chain(&error))
            }
        }
    };
    fuzz("backups", vec![tar(&head)], &["state.redb", "../", "hashes.json", "ustar"], &restore);
    fuzz("heads_of_backups", vec![head], JSON, &|bytes| restore(&tar(bytes)));
}

/// A backup with this head, and a store that is none: what is behind a store has its own tests.
fn tar(head: &[u8]) -> Vec<u8> {
    let parts = [
        ("backup.json", head),
        ("ca/ca.key", b"secret"),
        ("ca/ca.pem", b"certificate"),
        ("state.redb", b"no store"),
        ("blobs.json", b"[]"),
    ];
    let sum = |(path, bytes): &(&str, &[u8])| serde_json::json!({ "path": path, "hash": Hash(*blake3::hash(bytes).as_bytes()) });
    let sums = json(&parts.iter().map(sum).collect::<Vec<_>>());
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in parts.into_iter().chain([("hashes.json", &sums[..])]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        archive.append_data(&mut header, Path::new(path), bytes).expect("memory takes it");
    }
    archive.into_inner().expect("memory takes it")
}
