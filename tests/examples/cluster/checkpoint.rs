//! B11: what a checkpoint costs on its way. Upload of a file of its size over the blob connection, again after the line was cut and after
//! the coordinator was killed in the middle; and how long a real worker stands still for each.

use crate::{
    Size,
    place::{Place, job},
    report::{Report, millis},
};
use lorikeet_protocol::{
    file::{CHUNK_BYTES, FileManifest},
    id::{AttemptId, Hash},
};
use lorikeet_tests::{
    crowd::{Bulk, Member, Script},
    lab::Machine,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(300);
/// Chunks on their way, as the product's agents have.
const PARALLEL: usize = 4;

pub(crate) fn path(size: Size, report: &mut Report) {
    upload(size, report);
    pause(size, report);
}

fn upload(size: Size, report: &mut Report) {
    let mut place = Place::new();
    let script = Script { lasts: Duration::from_secs(3_600), ..Script::default() };
    let members = place.members(1);
    let member = members[0].clone();
    let crowd = place.connect(members, &script);
    place.submit(1, 1, &job());
    place.until("the job to run", PATIENCE, || !crowd.board.read().running.is_empty());
    let attempt = *crowd.board.read().running.keys().next().expect("it runs");
    let chunks = size.of(6, 64);
    let load = |what: &str| format!("a file of {} MiB, {PARALLEL} chunks at a time{what}", chunks << 4);

    let file = File::new(1, chunks);
    let before = place.used();
    let took = place.runtime.block_on(async {
        let bulk = dial(&place, &member).await;
        let began = Instant::now();
        let wanted = bulk.offer(attempt, file.manifest.clone()).await.expect("it is taken");
        file.bring(&bulk, attempt, &wanted, chunks).await;
        bulk.finish(attempt, file.manifest.hash).await.expect("it is whole");
        began.elapsed()
    });
    let rate = file.manifest.size as f64 / 1e9 / took.as_secs_f64();
    report.row(
        "B11",
        &load(""),
        format!("{rate:.2} GB/s until verified, synced and named"),
        "",
        place.cost_since(before),
    );

    for (seed, what, killed) in [(2, ", line cut after half", false), (3, ", coordinator killed after half", true)] {
        let file = File::new(seed, chunks);
        let before = place.used();
        file.bring_half(&place, &member, attempt);
        let (stored, restarted) = (file.stored(), Instant::now());
        if killed {
            place.lab.restart_coordinator();
            place.runtime.block_on(crowd.until_welcomed(1, restarted, PATIENCE));
        }
        let again = place.runtime.block_on(file.bring_rest(&place, &member, attempt, &stored));
        let twice = file.sent.load(Ordering::Relaxed) - file.manifest.size;
        let measured = format!(
            "{again} of {} verified chunks asked for again; {} MiB that were under way sent twice",
            stored.len(),
            twice >> 20
        );
        let cost = if killed { place.cost_of_start() } else { place.cost_since(before) };
        report.row("B11", &load(what), measured, "no verified chunk again", cost);
    }
    place.runtime.block_on(crowd.leave());
}

async fn dial(place: &Place, member: &Member) -> Bulk {
    Bulk::dial(place.lab.link(), member).await.expect("a node with a session is let in")
}

/// A file of chunks that differ, and what of it has left.
struct File {
    bytes: Vec<u8>,
    manifest: FileManifest,
    stored: Mutex<BTreeSet<u32>>,
    /// Bytes of chunks that were handed to the line.
    sent: AtomicU64,
}

impl File {
    fn new(seed: u64, chunks: u64) -> Self {
        let mut state = seed;
        let words = (0..chunks * CHUNK_BYTES / 8).flat_map(|_| {
            // What a compressing layer could not make smaller.
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state.to_le_bytes()
        });
        let bytes: Vec<u8> = words.collect();
        let hash = |bytes: &[u8]| Hash(*blake3::hash(bytes).as_bytes());
        let hashes = bytes.chunks(CHUNK_BYTES as usize).map(hash).collect();
        let manifest = FileManifest { size: bytes.len() as u64, hash: hash(&bytes), chunks: hashes };
        Self { bytes, manifest, stored: Mutex::default(), sent: AtomicU64::new(0) }
    }

    fn stored(&self) -> BTreeSet<u32> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until so many are stored, or all that is wanted; then the line may be cut in the middle of others.
    async fn bring(&self, bulk: &Bulk, attempt: AttemptId, wanted: &[u32], until: u64) {
        let queue = Mutex::new(wanted.iter().copied());
        let one = async || {
            while let Some(chunk) = { queue.lock().unwrap_or_else(PoisonError::into_inner).next() } {
                let bytes = self.bytes.chunks(CHUNK_BYTES as usize).nth(chunk as usize).expect("it was asked for");
                self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if bulk.put(attempt, self.manifest.hash, chunk, bytes).await.is_err() {
                    return;
                }
                let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
                stored.insert(chunk);
                if stored.len() as u64 >= until && until < self.manifest.chunks.len() as u64 {
                    bulk.cut();
                }
            }
        };
        let [a, b, c, d] = [(); PARALLEL].map(|()| one());
        tokio::join!(a, b, c, d);
    }

    fn bring_half(&self, place: &Place, member: &Member, attempt: AttemptId) {
        place.runtime.block_on(async {
            let bulk = dial(place, member).await;
            let wanted = bulk.offer(attempt, self.manifest.clone()).await.expect("it is taken");
            assert_eq!(wanted.len(), self.manifest.chunks.len(), "nothing of it was there");
            self.bring(&bulk, attempt, &wanted, wanted.len() as u64 / 2).await;
        });
    }

    /// The rest; how many verified chunks were asked for again.
    async fn bring_rest(&self, place: &Place, member: &Member, attempt: AttemptId, stored: &BTreeSet<u32>) -> usize {
        let bulk = dial(place, member).await;
        let wanted = bulk.offer(attempt, self.manifest.clone()).await.expect("it is taken");
        let again = wanted.iter().filter(|chunk| stored.contains(chunk)).count();
        self.bring(&bulk, attempt, &wanted, self.manifest.chunks.len() as u64).await;
        bulk.finish(attempt, self.manifest.hash).await.expect("it is whole");
        again
    }
}

/// A real agent and a real worker: what lies between two steps, where a checkpoint lies between them and where none does.
fn pause(size: Size, report: &mut Report) {
    let place = Place::new();
    let agent = place.lab.agent_on("trains", &Machine { as_in_production: true, ..Machine::default() });
    let (steps, every) = (size.of(20, 300), size.of(5, 100));
    let training = json!({ "max_steps": steps, "checkpoint_every": every, "eval_every": 100_000, "batch_size": 4,
        "micro_tokens": 256, "max_seq_length": 256 });
    let body = json!({ "base": "tiny", "dataset": "chats", "training": training, "lora": { "rank": 64 } });
    let client = place.client();
    let before = place.used();
    let (status, answer) = place.runtime.block_on(client.post("/api/jobs", &body));
    assert_eq!(status, 201, "{answer}");
    let id = answer["data"]["id"].as_str().expect("an id").to_owned();
    // The attempt's directory goes when the job is over: its events are read as long as they are there.
    let (mut text, mut done) = (String::new(), Value::Null);
    place.until("the job to end", PATIENCE, || {
        text = events(&agent.data).unwrap_or(std::mem::take(&mut text));
        done = place.runtime.block_on(client.get(&format!("/api/jobs/{id}")));
        assert!(done["phase"] != "failed" && done["phase"] != "rejected", "{done:#}");
        done["phase"] == "succeeded"
    });
    let checkpoints = place.runtime.block_on(client.get(&format!("/api/jobs/{id}/checkpoints")));
    let bytes = checkpoints[0]["sizeBytes"].as_u64().expect("the last one is kept");
    let Gaps { mut pauses, plain, wall } = gaps(&text);
    pauses.sort();
    let all: Duration = pauses.iter().sum();
    let share = all.as_secs_f64() / wall.as_secs_f64() * 100.0;
    let measured = format!(
        "{} ms each (longest {}; {} ms between other steps), {share:.2} % of {:.1} s",
        millis(pauses[pauses.len() / 2]),
        millis(pauses[pauses.len() - 1]),
        millis(plain),
        wall.as_secs_f64()
    );
    let load = format!("a worker of {steps} steps, a checkpoint of {:.0} MB every {every}", bytes as f64 / 1e6);
    report.row("B11", &load, measured, "pause ≤ 2 % of wall", place.cost_since(before));
}

/// What was written of the one attempt below a folder.
fn events(data: &std::path::Path) -> Option<String> {
    let mut attempts = std::fs::read_dir(data.join("attempts")).ok()?;
    std::fs::read_to_string(attempts.next()?.ok()?.path().join("events.jsonl")).ok()
}

/// What lies between the ends of two steps beside the second of them.
struct Gaps {
    /// Where a checkpoint is made.
    pauses: Vec<Duration>,
    /// The middle of the others.
    plain: Duration,
    /// From the first step's end to the last one's.
    wall: Duration,
}

fn gaps(text: &str) -> Gaps {
    let (mut pauses, mut plain, mut last, mut saved, mut wall) = (vec![], vec![], None, false, Duration::ZERO);
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let time = Duration::from_millis(line["time"].as_u64().expect("a time"));
        if line["type"] == "checkpoint" {
            saved = true;
        } else if line["type"] == "step" {
            if let Some(before) = last.replace(time) {
                let between = time.saturating_sub(before);
                wall += between;
                let step = Duration::from_secs_f64(line["seconds"].as_f64().expect("how long it took"));
                let of = if std::mem::take(&mut saved) { &mut pauses } else { &mut plain };
                of.push(between.saturating_sub(step));
            }
            saved = false;
        }
    }
    assert!(!pauses.is_empty() && !plain.is_empty(), "the worker's events were not read: {text}");
    plain.sort();
    Gaps { pauses, plain: plain[plain.len() / 2], wall }
}
