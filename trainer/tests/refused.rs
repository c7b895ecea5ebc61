//! Memory that the system refuses is an error of every door into the library, never a panic. In a process of its own, because
//! a limit is the whole process's.

mod place;

use std::fs;
use std::process::{Command, Stdio};

use lorikeet_dataset::{PrepareConfig, Tokenizer, prepare};
use lorikeet_trainer::generate::greedy;
use lorikeet_trainer::lora::LoraLayout;
use lorikeet_trainer::model::{Cache, Model};
use lorikeet_trainer::{FailureClass, Run, TrainError, evaluate, step};
use place::Place;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Set in the child.
const CHILD: &str = "LORIKEET_TEST_REFUSED";
/// What a pass must leave beside each new buffer is more than this, so that the first is refused.
const MORE_BYTES: u64 = 8 << 20;

#[test]
fn memory_that_is_refused_is_an_error_of_every_door() {
    let this = std::env::current_exe().expect("this program");
    let mut child = Command::new(this);
    child.args(["--exact", "child", "--nocapture"]).env(CHILD, "1").stdout(Stdio::null());
    let ended = child.output().expect("it starts");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// Not a test of its own: what the child runs.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let place = Place::new(14);
    let config = place.config("attempt");
    let tokenizer = Tokenizer::load(&config.base).expect("a tokenizer");
    let wanted = PrepareConfig::new(&config.data.file, &place.path("cache"));
    let data = prepare(&wanted, &tokenizer, &mut |_| {}, &|| false).expect("a dataset");
    let model = Model::load(&config.base).expect("a base");
    let layout = LoraLayout::new(model.config(), &config.settings.lora).expect("matches");
    let params = model.start(&layout, 1);
    let mut runs = [Run::new(&config.settings, layout, params, data.train.clone())];
    let tokens: Vec<u32> = (0..300).map(|i| i % 200).collect();
    limit();
    let refused = |door: &str, error: Option<TrainError>| {
        let error = error.unwrap_or_else(|| panic!("{door} found memory"));
        assert!(matches!(error, TrainError::Refused { .. }), "{door}: {error}");
        assert_eq!(error.class(), FailureClass::OutOfMemory);
        assert!(error.hint().is_some() && error.to_string().contains("needed for"), "{door}: {error}");
    };
    refused("evaluate", evaluate(&model, None, &data.train, 1024, &|| false).err());
    refused("generate", greedy(&model, None, &tokens, 3, &[], &|| false).err());
    refused("extend", Cache::new(&model, None).and_then(|mut cache| cache.extend(&tokens, &|| false)).err());
    refused("logits", model.logits(&tokens, None).err());
    refused("next_logits", model.next_logits(&tokens, None).err());
    refused("step", step(&model, &mut runs, 1024, &|| false).err());
}

/// From here on the system refuses this process more than a little beyond what it has.
fn limit() {
    let status = fs::read_to_string("/proc/self/status").expect("proc says what we have");
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).expect("it says so on Linux");
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    let limit = (kib << 10) + MORE_BYTES;
    setrlimit(Resource::Data, Rlimit { current: Some(limit), maximum: None }).expect("a limit may be lowered");
}
