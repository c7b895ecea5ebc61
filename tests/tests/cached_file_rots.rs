//! A file in a node's cache is no longer what it was when it came, and nothing says so: its size and its time are what they were.

use lorikeet_tests::{Lab, until};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

#[test]
fn a_base_that_rotted_in_a_nodes_cache_is_fetched_anew_and_blames_nobody() {
    let lab = Lab::start();
    let agent = lab.agent("only");
    let first = lab.submit(&lab.job_file("first", 2, 1_000));
    let done = lab.api.until_phase(&first, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");

    let weights = fs::read(lab.path("bases/tiny/model.safetensors")).expect("the lab wrote it");
    let cached = cached(&agent.data, &weights);
    rot(&cached);
    let second = lab.submit(&lab.job_file("second", 2, 1_000));
    let done = lab.api.until_phase(&second, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2")), "{done:#}");
    assert_eq!((&done["retries"], &done["infrastructureFailures"]), (&0.into(), &0.into()), "nobody is blamed");
    let log = fs::read_to_string(lab.root().join("only.log")).expect("the agent has a log");
    assert!(log.contains("has rotted on this disk"), "{log}");
    assert!(fs::read(&cached).is_ok_and(|bytes| bytes == weights), "it is whole again");
    until("the workers to be gone", || agent.workers().is_empty().then_some(()));
}

/// The file of a node's cache that holds these bytes.
fn cached(data: &Path, bytes: &[u8]) -> PathBuf {
    let files = fs::read_dir(data.join("cache/files")).expect("a node has a cache");
    let mut paths = files.map(|file| file.expect("it can be read").path());
    paths.find(|path| fs::read(path).is_ok_and(|found| found == bytes)).expect("the job used it")
}

/// The length of its header is another.
fn rot(path: &Path) {
    let time = path.metadata().and_then(|meta| meta.modified()).expect("a file has a time");
    let mut bytes = fs::read(path).expect("it is there");
    bytes[6] ^= 0x40;
    fs::remove_file(path).and_then(|()| fs::write(path, bytes)).expect("the folder is ours");
    File::open(path).and_then(|file| file.set_modified(time)).expect("the file is ours");
}
