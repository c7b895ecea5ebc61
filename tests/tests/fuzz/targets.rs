//! The decoders: whatever reads bytes that a peer, a person or a disk brought.

use crate::fuzz;
use lorikeet_api::{JobFile, Presets};
use lorikeet_dataset::TokenCache;
use lorikeet_plan::ModelConfig;
use lorikeet_protocol::{
    agent::{FromAgent, Report, Telemetry, ToAgent, former},
    blob::{BlobAnswer, BlobRequest},
    codec,
    file::{FileManifest, NamedFile, is_plain_path},
    id::{AttemptId, DeviceId, Hash, JobId, NodeId},
    join::{JoinAnswer, JoinRequest, JoinTicket},
    share::{ShareAnswer, ShareRequest},
    worker::{EventLine, Holder, Spec},
};
use lorikeet_trainer::checkpoint;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt::{Debug, Display},
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Of what JSON is made.
pub(crate) const JSON: &[&str] =
    &["{", "}", "[", "]", "\"", ":", ",", "null", "true", "-1", "1e999", "\\u0000", "\\ud800", "{\"a\":"];

#[test]
fn frames_from_agents() {
    frames::<FromAgent>("frames_from_agents", "from_agent");
}

#[test]
fn frames_to_agents() {
    frames::<ToAgent>("frames_to_agents", "to_agent");
}

#[test]
fn frames_of_blobs() {
    frames::<BlobRequest>("frames_of_blobs", "blob_request");
    frames::<BlobAnswer>("frames_of_blob_answers", "blob_answer");
}

#[test]
fn frames_between_nodes() {
    frames::<ShareRequest>("frames_of_sharing", "share_request");
    frames::<ShareAnswer>("frames_of_share_answers", "share_answer");
}

#[test]
fn frames_of_joining() {
    frames::<JoinRequest>("frames_of_joining", "join_request");
    frames::<JoinAnswer>("frames_of_join_answers", "join_answer");
    frames::<JoinTicket>("join_tickets", "join_ticket");
}

#[test]
fn frames_of_telemetry_and_reports() {
    frames::<Telemetry>("frames_of_telemetry", "telemetry_4");
    frames::<former::Telemetry>("frames_of_former_telemetry", "telemetry");
    let report = |bytes: &[u8]| {
        codec::decode::<FromAgent>(bytes).ok().and_then(|said| {
            let FromAgent::Report(report) = said else { return None };
            body(&report)
        })
    };
    let reports = pinned("from_agent").iter().filter_map(|bytes| report(bytes)).collect();
    fuzz("reports_of_an_outbox", reports, &[], &frame::<Report>);
}

#[test]
fn names_and_tokens_of_people() {
    let job = "job_0199a0b2-7c11-7aaa-8bbb-0123456789ab";
    let valid = [job, &format!("{job}-1.2"), &job.replace("job", "node"), "GPU-0", "cpu", &"ab".repeat(32), "a/b.c"];
    let valid = valid.iter().map(|text| text.as_bytes().to_vec()).collect();
    fuzz("names", valid, &["job_", "node_", "-", ".", "/", "..", "\\", "4294967296"], &|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return "not text".into() };
        let path = if is_plain_path(text) { "plain" } else { "no path" };
        let names = [
            said_again::<JobId>(text),
            said_again::<AttemptId>(text),
            said_again::<NodeId>(text),
            said_again::<Hash>(text),
        ];
        format!("ok {path} {names:?} {}", serde_json::to_string(&DeviceId(text.into())).is_ok())
    });
}

#[test]
fn manifests() {
    let chunk = Hash([7; 32]);
    let manifest = FileManifest { size: 40 << 20, hash: chunk, chunks: vec![chunk; 3] };
    let named = NamedFile { path: "adapter/a.bin".into(), manifest: manifest.clone() };
    let valid = vec![json(&manifest), json(&named), json(&FileManifest { size: 0, hash: chunk, chunks: vec![] })];
    fuzz("manifests", valid, JSON, &|bytes| {
        let read = serde_json::from_slice::<FileManifest>(bytes).map(|manifest| manifest.is_consistent());
        let named = serde_json::from_slice::<NamedFile>(bytes).map(|file| is_plain_path(&file.path));
        match (read, named) {
            (Ok(consistent), _) => format!("ok {consistent}"),
            (_, Ok(plain)) => format!("ok named {plain}"),
            (Err(error), Err(_)) => error.to_string(),
        }
    });
}

#[test]
fn manifests_of_checkpoints() {
    let folder = memory_folder();
    let files = ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"];
    let record = |name: &&str| {
        fs::write(folder.path().join(name), name).expect("the folder is ours");
        serde_json::json!({ "path": name, "size": name.len(), "blake3": blake3::hash(name.as_bytes()).to_hex().as_str() })
    };
    let records: Vec<_> = files.iter().map(record).collect();
    let valid = serde_json::json!({ "version": 1, "step": 4, "kind": "periodic", "files": records });
    fuzz("manifests_of_checkpoints", vec![json(&valid)], &["..", "/etc/passwd", "\\"], &|bytes| {
        fs::write(folder.path().join("manifest.json"), bytes).expect("the folder is ours");
        match checkpoint::verify(folder.path()) {
            Ok(found) => format!("ok {}", found.manifest.files.len()),
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn headers_of_safetensors() {
    let two = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}"#;
    let words = ["F32", "BF16", "I64", "data_offsets", "18446744073709551615", "[0,0]", "shape", "__metadata__"];
    fuzz("headers_of_safetensors", vec![two.into(), b"{}".to_vec()], &[JSON, &words].concat(), &|bytes| {
        match lorikeet_plan::parse_header(bytes, 24) {
            Ok(header) => {
                // What was accepted covers the data without a hole.
                let bytes: u64 = header.tensors.values().map(|tensor| tensor.data.end - tensor.data.start).sum();
                assert_eq!(bytes, 24);
                format!("ok {}", header.tensors.len())
            }
            Err(error) => error,
        }
    });
}

#[test]
fn configs_of_base_models() {
    let mut valid = texts("trainer/plan/tests", "json");
    valid.push(
        br#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_act":"silu","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":256,"max_position_embeddings":512,"rms_norm_eps":1e-5,"rope_theta":10000.0}"#.to_vec(),
    );
    let words =
        ["18446744073709551615", "4294967296", "1000000000", "0", "null", "1e308", "head_dim", "num_hidden_layers"];
    fuzz("configs_of_base_models", valid, &words, &|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return "not text".into() };
        match ModelConfig::parse(text) {
            Ok(config) => format!("ok {}", lorikeet_plan::parameters(&config) > 0),
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn datasets() {
    let folder = memory_folder();
    let file = folder.path().join("data");
    let mut valid = vec![
        br#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#.to_vec(),
        br#"{"instruction":"a","input":"","output":"b"}"#.to_vec(),
        br#"{"prompt":"a","completion":"b"}"#.to_vec(),
        br#"{"text":"a"}"#.to_vec(),
    ];
    valid.extend(texts("trainer/dataset/tests/malformed", ""));
    valid.extend(texts("trainer/dataset/tests/packed", ""));
    let words = [
        "messages",
        "role",
        "content",
        "user",
        "assistant",
        "tool",
        "conversations",
        "\n",
        "{\"_meta\":{}}",
        "training_pairs",
        "PAR1",
    ];
    fuzz("datasets", valid, &[JSON, &words].concat(), &|bytes| {
        fs::write(&file, bytes).expect("the folder is ours");
        let (mut records, mut faults) = (0, 0);
        let read = lorikeet_dataset::read(&file, &mut |item, _| {
            match item {
                lorikeet_dataset::Item::Record(_) => records += 1,
                lorikeet_dataset::Item::Fault(_) => faults += 1,
                lorikeet_dataset::Item::NoTarget(_) => {}
            }
            ControlFlow::Continue(())
        });
        match read {
            Ok(_) => format!("ok {} {}", records > 0, faults > 0),
            Err(error) => error.to_string().replace(&file.display().to_string(), ""),
        }
    });
}

#[test]
fn caches_of_tokens() {
    let folder = memory_folder();
    let file = folder.path().join("tokens.cache");
    let made = token_cache(folder.path());
    fuzz("caches_of_tokens", vec![fs::read(made).expect("it was made a moment ago")], &[], &|bytes| {
        // Aside: a cache that is found damaged is removed by who opens it.
        fs::write(&file, bytes).expect("the folder is ours");
        match TokenCache::open(&file) {
            Ok(cache) => {
                let whole = (0..cache.len()).filter(|number| cache.example(*number).is_ok()).count();
                format!("ok {} of {}", whole, cache.len())
            }
            Err(error) => error.to_string().replace(&file.display().to_string(), ""),
        }
    });
}

#[test]
fn job_files() {
    let presets = Presets::embedded();
    let valid = texts("configs/jobs", "toml");
    let words = [
        "[training]",
        "[lora]",
        "[policy]",
        "learning_rate = ",
        "nan",
        "inf",
        "-1",
        "1e400",
        "\"all-linear\"",
        "\"5m\"",
        "= [",
        "'''",
    ];
    fuzz("job_files", valid, &words, &|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return "not text".into() };
        let said = |faults: Vec<lorikeet_api::FieldError>| format!("{:?}", faults.first());
        match JobFile::from_toml(text).map(|file| file.resolve(&presets)) {
            Ok(Ok(spec)) => {
                // A spec is written to the store and sent to agents: it must come back the same.
                let again = serde_json::from_slice::<lorikeet_protocol::job::JobSpec>(&json(&spec));
                assert_eq!(again.ok(), Some(spec));
                "ok".into()
            }
            Ok(Err(faults)) | Err(faults) => said(faults),
        }
    });
}

#[test]
fn job_files_as_json() {
    let presets = Presets::embedded();
    let toml = texts("configs/jobs", "toml");
    let read = |bytes: &Vec<u8>| JobFile::from_toml(std::str::from_utf8(bytes).ok()?).ok();
    let valid = toml.iter().filter_map(read).map(|file| json(&file)).collect();
    fuzz("job_files_as_json", valid, JSON, &|bytes| match serde_json::from_slice::<JobFile>(bytes) {
        Ok(file) => format!("ok {:?}", file.resolve(&presets).map(|_| ()).map_err(|faults| faults.len())),
        Err(error) => error.to_string(),
    });
}

#[test]
fn lines_of_workers() {
    let pins = ["events", "spec", "holder"].map(|name| lines(&format!("protocol/tests/pins/{name}.jsonl"))).concat();
    let words = ["\"type\":\"step\"", "\"seq\":", "18446744073709551615", "NaN", "\"type\":\"finished\""];
    fuzz("lines_of_workers", pins, &[JSON, &words].concat(), &|bytes| {
        let line = serde_json::from_slice::<EventLine>(bytes);
        let ways = [
            line.is_ok(),
            serde_json::from_slice::<Spec>(bytes).is_ok(),
            serde_json::from_slice::<Holder>(bytes).is_ok(),
        ];
        match line {
            Ok(line) => {
                let again = serde_json::from_slice::<EventLine>(&json(&line)).expect("what we write we read");
                assert_eq!(json(&again), json(&line));
                format!("ok {ways:?}")
            }
            Err(error) => format!("{error} {ways:?}"),
        }
    });
}

/// A folder that no disk slows down, where the machine has one: thousands of files a second are written to it.
pub(crate) fn memory_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// One kind of message, with its pinned frames to begin with.
fn frames<T: Serialize + DeserializeOwned>(target: &str, pins: &str) {
    fuzz(target, pinned(pins), &[], &frame::<T>);
}

/// A frame's body; the length in front of it is four bytes that are judged alone.
fn frame<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> String {
    if let Some(header) = bytes.first_chunk() {
        let allowed = codec::body_length(*header).is_ok_and(|length| length <= codec::MAX_FRAME_BYTES);
        let announced = u32::from_le_bytes(*header) as usize;
        assert_eq!(allowed, announced <= codec::MAX_FRAME_BYTES);
    }
    match codec::decode::<T>(bytes) {
        Ok(message) => {
            let written = body(&message).expect("what was read can be written");
            let again = codec::decode::<T>(&written).expect("what we write we read");
            assert_eq!(body(&again), Some(written), "it says something else the second time");
            "ok".into()
        }
        Err(error) => lorikeet_protocol::chain(&error),
    }
}

pub(crate) fn body<T: Serialize>(message: &T) -> Option<Vec<u8>> {
    codec::encode(message).ok().map(|frame| frame[codec::HEADER_BYTES..].to_vec())
}

/// What parses is printed the same.
fn said_again<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    true
}

pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data is JSON")
}

pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The bodies of pinned frames.
pub(crate) fn pinned(name: &str) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(root(&format!("protocol/tests/pins/{name}.hex"))).expect("it is pinned");
    let hex = |line: &str| {
        let digits = line.rsplit(' ').next().unwrap_or_default();
        (0..digits.len() / 2)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("hex"))
            .collect::<Vec<_>>()
    };
    text.lines().map(|line| hex(line)[codec::HEADER_BYTES..].to_vec()).collect()
}

pub(crate) fn lines(path: &str) -> Vec<Vec<u8>> {
    fs::read_to_string(root(path)).expect("it is pinned").lines().map(|line| line.as_bytes().to_vec()).collect()
}

/// Every small file of a folder with this ending, or with any.
pub(crate) fn texts(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(root(folder)).expect("a folder of the repository");
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.retain(|path| path.is_file() && (ending.is_empty() || path.extension().is_some_and(|found| found == ending)));
    let read = paths.iter().map(|path| fs::read(path).expect("a file of the repository"));
    read.filter(|bytes| bytes.len() <= crate::LONGEST).collect()
}

/// Three conversations, prepared as a job would.
fn token_cache(folder: &Path) -> PathBuf {
    let (base, data, caches) = (folder.join("base"), folder.join("chats.jsonl"), folder.join("caches"));
    fs::create_dir_all(&base).and_then(|()| fs::create_dir_all(&caches)).expect("the folder is ours");
    lorikeet_tests::conversations::write(&data, 3);
    lorikeet_dataset::write_byte_tokenizer(&base).expect("a tokenizer can be written");
    let tokenizer = lorikeet_dataset::Tokenizer::load(&base).expect("it was written a moment ago");
    let config = lorikeet_dataset::PrepareConfig::new(&data, &caches);
    lorikeet_dataset::prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("it can be prepared");
    let entries = fs::read_dir(&caches).expect("the folder is ours");
    entries.filter_map(|entry| Some(entry.ok()?.path())).find(|path| path.is_file()).expect("a cache was written")
}
