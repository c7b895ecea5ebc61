//! The job file as people get it wrong, and as they get it right.

use super::start::Wants;
use super::*;
use lorikeet_protocol::{
    id::UnixMillis,
    job::{Every, GpuRequest, TargetModules, Task, Train, TrainingLength},
};

const LEAST: &str = "base = \"b\"\ndataset = \"d\"\n";

#[test]
fn the_shortest_file_is_filled_by_the_balanced_preset() {
    let spec = resolve(LEAST).unwrap();
    let Task::Train(Train { training, lora, .. }) = &spec.task;
    assert_eq!((spec.name.as_str(), spec.preset.as_str(), spec.priority), ("d on b", "balanced", 50));
    assert_eq!((training.learning_rate, training.batch_size), (2e-4, 8));
    assert_eq!(training.length, TrainingLength::Epochs(5));
    assert_eq!((training.eval_every, training.checkpoint_every), (Every::Epoch, Every::Steps(100)));
    assert_eq!((lora.rank, lora.alpha, lora.dropout), (16, 32.0, 0.1));
    assert_eq!(lora.target_modules, TargetModules::AllLinear);
    assert_eq!((spec.resources.gpus, &spec.resources.gpu), (1, &GpuRequest::Any));
}

#[test]
fn the_three_presets_hold_the_platforms_numbers() {
    let table = [
        ("conservative", 1e-4, 4, 3, 8, 16.0, 0.05, 100),
        ("balanced", 2e-4, 8, 5, 16, 32.0, 0.1, 100),
        ("aggressive", 3e-4, 16, 10, 32, 64.0, 0.1, 50),
    ];
    for (preset, rate, batch, epochs, rank, alpha, dropout, every) in table {
        let spec = resolve(&format!("{LEAST}preset = \"{preset}\"")).unwrap();
        let Task::Train(Train { training, lora, .. }) = spec.task;
        assert_eq!((training.learning_rate, training.batch_size), (rate, batch), "{preset}");
        assert_eq!(training.length, TrainingLength::Epochs(epochs), "{preset}");
        assert_eq!((lora.rank, lora.alpha, lora.dropout), (rank, alpha, dropout), "{preset}");
        assert_eq!(training.checkpoint_every, Every::Steps(every), "{preset}");
        assert_eq!((training.warmup_ratio, training.max_grad_norm, training.max_seq_length), (0.1, 1.0, 2048));
    }
}

#[test]
fn every_range_is_kept_at_both_ends_and_named_beyond_them() {
    let table = [
        ("priority", "0", "100", "-1", "101", "a whole number 0…100"),
        ("training.learning_rate", "1e-6", "1e-2", "1e-7", "0.011", "a number 1e-6…0.01"),
        ("training.batch_size", "1", "256", "0", "257", "a whole number 1…256"),
        ("training.micro_tokens", "16", "1048576", "15", "1048577", "a whole number 16…1048576"),
        ("training.epochs", "1", "100", "0", "101", "a whole number 1…100"),
        ("training.max_steps", "1", "10000000", "0", "10000001", "a whole number 1…10000000"),
        ("training.max_seq_length", "64", "131072", "63", "131073", "a whole number 64…131072"),
        ("training.adam_beta1", "0", "0.9999", "-0.1", "1.0", "a number 0…0.9999"),
        ("training.adam_beta2", "0.0", "0.999999", "-0.1", "1.0", "a number 0…0.999999"),
        ("training.adam_epsilon", "1e-12", "1e-2", "0.0", "0.1", "a number 1e-12…0.01"),
        ("training.warmup_ratio", "0", "1", "-0.1", "1.1", "a number 0…1"),
        ("training.weight_decay", "0", "1", "-0.1", "1.1", "a number 0…1"),
        ("training.max_grad_norm", "1e-6", "1e6", "0", "1e7", "a number 1e-6…1e6"),
        ("training.seed", "0", "9223372036854775807", "-1", "-2", "a whole number 0…9223372036854775807"),
        ("training.validation_fraction", "0", "0.5", "-0.1", "0.6", "a number 0…0.5"),
        ("training.eval_every", "1", "1000000", "0", "1000001", "a whole number 1…1000000"),
        ("training.checkpoint_every", "1", "1000000", "0", "1000001", "a whole number 1…1000000"),
        ("training.early_stopping", "1", "1000", "0", "1001", "a whole number 1…1000"),
        ("data.quality_min", "1", "5", "0.9", "5.1", "a number 1…5"),
        ("lora.rank", "1", "256", "0", "257", "a whole number 1…256"),
        ("lora.alpha", "0.001", "65536", "0", "65537", "a number 0.001…65536"),
        ("lora.dropout", "0", "0.5", "-0.1", "0.51", "a number 0…0.5"),
        ("resources.gpus", "1", "1", "0", "9", "a whole number 1…8"),
        ("resources.max_runtime", "1s", "72h", "999ms", "73h", "a time 1s…3days, like \"90m\" or \"24h\""),
        ("policy.retries", "0", "100", "-1", "101", "a whole number 0…100"),
        ("policy.lost_after", "100ms", "7d", "99ms", "8d", "a time 100ms…7days, like \"90m\" or \"24h\""),
    ];
    for (key, least, most, below, above, range) in table {
        for value in [least, most] {
            assert!(with(key, value).is_ok(), "{key} = {value}: {:?}", with(key, value));
        }
        for value in [below, above] {
            let faults = with(key, value).unwrap_err();
            assert_eq!(faults.len(), 1, "{key} = {value}: {faults:?}");
            assert_eq!(faults[0].field, key);
            assert_eq!(faults[0].expected.as_deref(), Some(range), "{key} = {value}");
            assert!(faults[0].message.contains(range) && faults[0].message.contains(key), "{}", faults[0].message);
        }
    }
}

#[test]
fn a_number_that_is_none_is_refused() {
    for value in ["nan", "inf", "-inf", "'five'", "[1]", "true", "1979-05-27"] {
        let faults = with("training.learning_rate", value).unwrap_err();
        assert_eq!(faults[0].field, "training.learning_rate", "{value}");
    }
    assert!(with("training.batch_size", "99999999999999999999").is_err(), "does not fit 64 bits");
    assert!(with("training.batch_size", "8.5").is_err());
    assert_eq!(with("training.learning_rate", "1e-3"), with("training.learning_rate", "0.001"));
}

#[test]
fn words_are_those_that_are_known() {
    for (key, good, bad) in [
        ("training.schedule", &["cosine", "linear", "constant"][..], "cosin"),
        ("training.supervise", &["assistant", "last", "completion", "all"], "some"),
        ("training.base_dtype", &["auto", "f32", "bf16", "int8", "nf4"], "f64"),
        ("policy.on_lost", &["requeue", "wait", "fail"], "panic"),
        ("preset", &["conservative", "balanced", "aggressive"], "bold"),
    ] {
        for word in good {
            assert!(with(key, word).is_ok(), "{key} = {word}");
        }
        let faults = with(key, bad).unwrap_err();
        assert_eq!(faults[0].message, format!("{key} is \"{bad}\", expected {}", faults[0].expected.clone().unwrap()));
    }
}

#[test]
fn every_wrong_key_and_type_is_told_with_its_line() {
    let text = "base = \"b\"\ndataset = 7\nbatch = 3\n[training]\nbatch_size = \"eight\"\nlerning_rate = 1\n[lora]\nrank = 1.5\nalpha = 0\n";
    let faults = JobFile::from_toml(text).unwrap_err();
    let told: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "line 2: dataset is 7, expected the name or id of a dataset",
            "line 5: training.batch_size is \"eight\", expected a whole number 1…256",
            "line 6: training.lerning_rate is unknown; did you mean training.learning_rate?",
            "line 8: lora.rank is 1.5, expected a whole number 1…256",
            "line 3: batch is unknown",
            "line 9: lora.alpha is 0, expected a number 0.001…65536",
        ]
    );
}

#[test]
fn a_key_outside_its_table_is_told_where_it_belongs() {
    let faults = JobFile::from_toml("base = \"b\"\ndataset = \"d\"\nepochs = 3\n").unwrap_err();
    let told: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["line 3: epochs is unknown; did you mean training.epochs?"]);
    let faults = JobFile::new("b", "d").set("rank", "8").unwrap_err();
    assert!(faults[0].message.ends_with("did you mean lora.rank?"), "{faults:?}");
}

#[test]
fn a_value_that_begins_as_a_text_or_a_list_and_is_none_is_told_so() {
    for value in ["\".*\\.[qk]_proj\"", "'open", "[1, 2"] {
        let faults = JobFile::new("b", "d").set("lora.target_modules", value).unwrap_err();
        assert!(faults[0].message.contains("is no value in TOML"), "{faults:?}");
    }
    JobFile::new("b", "d").set("lora.target_modules", "'.*\\.[qk]_proj'").unwrap();
}

#[test]
fn a_key_by_its_name_in_peft_or_transformers_is_told_ours() {
    for (theirs, ours) in [
        ("lora.r", "lora.rank"),
        ("lora.lora_alpha", "lora.alpha"),
        ("training.lr", "training.learning_rate"),
        ("lr", "training.learning_rate"),
    ] {
        let faults = JobFile::new("b", "d").set(theirs, "8").unwrap_err();
        assert!(faults[0].message.ends_with(&format!("did you mean {ours}?")), "{faults:?}");
    }
}

#[test]
fn a_file_that_is_no_toml_names_the_line() {
    for (text, line) in [("base = \"b\"\ndataset = \n", 2), ("base = \"b\"\nbase = \"c\"\n", 2), ("base = \"b\n", 1)] {
        let faults = JobFile::from_toml(text).unwrap_err();
        assert_eq!(faults[0].line, Some(line), "{text:?}: {faults:?}");
        assert!(faults[0].message.starts_with("not valid TOML"), "{faults:?}");
    }
}

#[test]
fn base_and_dataset_are_asked_for() {
    let fields = |faults: Vec<FieldError>| faults.into_iter().map(|fault| fault.field).collect::<Vec<_>>();
    assert_eq!(fields(JobFile::from_toml("").unwrap_err()), ["base", "dataset"]);
    assert_eq!(fields(resolve("base = \"\"\ndataset = \" \"").unwrap_err()), ["base", "dataset"]);
    assert_eq!(fields(JobFile::from_toml("base = \"b\"\ndataset = \"d\"\ntraining = 3").unwrap_err()), ["training"]);
}

#[test]
fn a_device_without_an_example_in_a_step_is_not_asked_for() {
    let both = |gpus: u8| format!("{LEAST}\n[training]\nbatch_size = 2\n[resources]\ngpus = {gpus}\n");
    assert_eq!(resolve(&both(2)).unwrap().resources.gpus, 2);
    let faults = resolve(&both(3)).unwrap_err();
    assert!(faults.len() == 1 && faults[0].field == "resources.gpus", "{faults:?}");
    assert!(faults[0].message.contains("at most training.batch_size = 2"), "{faults:?}");
}

#[test]
fn keys_of_a_later_version_are_refused_and_never_ignored() {
    let faults = with("policy.max_cost", "12.5").unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].field == "policy.max_cost" && faults[0].message.ends_with("is not available yet"), "{faults:?}");
    assert!(resolve(&in_toml("hold", "false")).is_ok(), "it asks for nothing new");
}

#[test]
fn what_a_job_waits_for_is_read_and_written_back() {
    let text =
        "after = [\"prep: a\", \"job_1:any\", \"x:fail\"]\nhold = true\nnot_before = 2026-12-01T09:00:00+01:00\n";
    let file = JobFile::from_toml(&format!("{text}{LEAST}")).unwrap();
    let start = file.start().unwrap();
    let after: Vec<_> = start.after.iter().map(|after| (after.job.as_str(), after.wants)).collect();
    assert_eq!(after, [("prep: a", Wants::Ok), ("job_1", Wants::Any), ("x", Wants::Fail)]);
    assert_eq!((start.hold, start.not_before), (true, Some(UnixMillis(1_796_112_000_000))));
    let spec = file.resolve(&Presets::embedded()).unwrap();
    let again = JobFile::from(&spec).starting(&start);
    assert_eq!(again.start().unwrap(), start);
    assert_eq!(JobFile::from_json(&serde_json::to_vec(&again).unwrap()).unwrap(), again);
    let day = JobFile::from_toml(&format!("not_before = \"2026-12-01\"\n{LEAST}")).unwrap();
    assert_eq!(day.start().unwrap().not_before, Some(UnixMillis(1_796_083_200_000)));
}

#[test]
fn what_a_job_would_rather_have_is_checked_like_what_it_must_have() {
    for (key, value, field) in [
        ("resources.prefer.gpu", "{ min_compute = \"eight\" }", "resources.prefer.gpu.min_compute"),
        ("resources.gpu", "{ min_memory = \"99999999999999999TiB\" }", "resources.gpu.min_memory"),
        ("resources.prefer.labels", "{ \"\" = \"a\" }", "resources.prefer.labels"),
        ("resources.prefer.rack", "a", "resources.prefer"),
        ("resources.min_driver", "new", "resources.min_driver"),
    ] {
        let faults = with(key, value).unwrap_err();
        assert!(faults.len() == 1 && faults[0].field == field, "{key} = {value}: {faults:?}");
    }
}

#[test]
fn a_condition_that_says_nothing_is_refused() {
    let many = format!("[{}]", vec!["'a'"; 65].join(","));
    for (key, value) in [
        ("after", "['']"),
        ("after", "[':ok']"),
        ("after", &many),
        ("after", "'a'"),
        ("hold", "1"),
        ("not_before", "soon"),
    ] {
        let faults = with(key, value).unwrap_err();
        assert!(faults.len() == 1 && faults[0].field == key, "{key} = {value}: {faults:?}");
    }
}

#[test]
fn what_is_out_of_range_in_a_pattern_is_named() {
    for (key, value) in [
        ("lora.rank_pattern", "{ q_proj = 0 }"),
        ("lora.rank_pattern", "{ q_proj = 'four' }"),
        ("lora.alpha_pattern", "{ q_proj = -1.0 }"),
        ("lora.layers_to_transform", "[-1]"),
        ("lora.exclude_modules", "['']"),
        ("lora.init", "olora"),
        ("lora.plus_ratio", "0.5"),
        ("training.sample_prompts", "['']"),
        ("training.sample_prompts", "'one'"),
        ("training.sample_prompts", "['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']"),
        ("training.grad_norms", "'modules'"),
        ("data.validation_dataset", "''"),
        ("init_adapter", "''"),
    ] {
        let faults = with(key, value).unwrap_err();
        assert!(faults.len() == 1 && faults[0].field == key, "{key} = {value}: {faults:?}");
    }
}

#[test]
fn epochs_and_max_steps_exclude_each_other() {
    assert!(resolve(&format!("{LEAST}[training]\nepochs = 2\nmax_steps = 9")).is_err());
    let mut file = JobFile::from_toml(&format!("{LEAST}[training]\nepochs = 2")).unwrap();
    file.set("training", "{ seed = 7 }").unwrap();
    file.set("training", "{ batch_size = 3 }").unwrap();
    assert_eq!(
        (file.training.seed, file.training.batch_size),
        (Some(7), Some(3)),
        "what a section does not name stays"
    );
    file.set("training.max_steps", "9").unwrap();
    let Task::Train(train) = file.resolve(&Presets::embedded()).unwrap().task;
    assert_eq!(train.training.length, TrainingLength::Steps(9));
    file.set("training.epochs", "3").unwrap();
    let Task::Train(train) = file.resolve(&Presets::embedded()).unwrap().task;
    assert_eq!(train.training.length, TrainingLength::Epochs(3));
}

#[test]
fn what_is_set_on_the_command_line_wins_and_is_checked_as_a_file_is() {
    let mut file = JobFile::from_toml(LEAST).unwrap();
    for (key, value) in [
        ("name", "support tone, 2nd try"),
        ("lora.rank", "8"),
        ("lora.target_modules", "['q_proj', 'v_proj']"),
        ("training.shuffle", "false"),
        ("resources.labels.rack", "a"),
    ] {
        file.set(key, value).unwrap();
    }
    let spec = file.resolve(&Presets::embedded()).unwrap();
    let Task::Train(train) = &spec.task;
    assert_eq!((spec.name.as_str(), train.lora.rank, train.training.shuffle), ("support tone, 2nd try", 8, false));
    assert_eq!(train.lora.target_modules, TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(spec.resources.labels["rack"], "a");
    for (key, value) in [("lora.rnk", "8"), ("lora.rank", "eight"), ("", "1"), ("lora.", "1"), ("name.x", "1")] {
        assert!(file.set(key, value).is_err(), "{key} = {value}");
    }
    assert_eq!(file.resolve(&Presets::embedded()).unwrap(), spec, "a refused value changes nothing");
}

#[test]
fn toml_and_json_say_the_same() {
    let text = "base = \"b\"\ndataset = \"d\"\nname = \"n\"\npriority = 7\n\
        [training]\nlearning_rate = 1e-3\nmax_steps = 5\nmicro_tokens = \"auto\"\neval_every = 10\n\
        [lora]\ntarget_modules = [\"q_proj\"]\n[resources]\ngpu = { min_memory = \"40GiB\", min_compute = \"8.0\" }\n\
        labels = { rack = \"a\" }\n[policy]\nretries = 3\n";
    let json = br#"{"base":"b","dataset":"d","name":"n","priority":7,
        "training":{"learning_rate":1e-3,"max_steps":5,"micro_tokens":"auto","eval_every":10},
        "lora":{"target_modules":["q_proj"]},
        "resources":{"gpu":{"min_memory":"40GiB","min_compute":"8.0"},"labels":{"rack":"a"}},
        "policy":{"retries":3}}"#;
    let (toml, json) = (JobFile::from_toml(text).unwrap(), JobFile::from_json(json).unwrap());
    assert_eq!(toml, json);
    let spec = toml.resolve(&Presets::embedded()).unwrap();
    assert_eq!(spec.policy.retries, 3);
    let least = GpuRequest::Least { min_memory_bytes: Some(40 << 30), min_compute: Some((8, 0)) };
    assert_eq!(spec.resources.gpu, least);
    assert!(JobFile::from_json(b"{\"base\":\"b\",\"dataset\":\"d\",\"batch\":1}").is_err());
    assert!(serde_json::from_str::<JobFile>("{\"base\":\"b\",\"dataset\":\"d\",\"batch\":1}").is_err());
    assert_eq!(JobFile::from_json(b"{\n\"base\":").unwrap_err()[0].line, Some(2));
    let twice = br#"{"base":"b","dataset":"d","lora":{"rank":8,
        "target_modules":["q_proj"],"rank":16}}"#;
    let fault = JobFile::from_json(twice).unwrap_err().remove(0);
    assert_eq!(
        (fault.field.as_str(), fault.message.as_str(), fault.line),
        ("lora.rank", "lora.rank stands twice", Some(2))
    );
    let twice =
        JobFile::from_toml("base = \"b\"\ndataset = \"d\"\n[lora]\nrank = 8\nrank = 16\n").unwrap_err().remove(0);
    assert!(twice.line == Some(5) && twice.message.contains("duplicate"), "{twice}");
}

#[test]
fn a_resolved_job_written_out_resolves_to_itself() {
    let presets = Presets::embedded();
    for extra in [
        "",
        "preset = \"aggressive\"\n[training]\nmax_steps = 7\nlearning_rate = 0.0011\n[policy]\nlost_after = \"1s 200ms\"",
        "[training]\nmethod = \"full\"\nschedule = \"wsd\"\n[lora]\ntarget_modules = [\"q_proj\", \"up_proj\"]\nexclude_modules = \".*0.mlp.up_proj\"\n\
            layers_to_transform = [0, 2]\nrank_pattern = { q_proj = 4 }\nalpha_pattern = { \"1.mlp.up_proj\" = 2.5 }\n\
            dora = true\ninit = \"pissa\"\nplus_ratio = 16",
        "init_adapter = \"tone\"\n[training]\nearly_stopping = 3\nsample_prompts = [\"Where is my parcel?\", \"Danke!\"]\ngrad_norms = true\n\
            [data]\nvalidation_dataset = \"held-out\"",
        "[resources]\nmin_driver = \"580.65\"\nprefer = { gpu = \"H200\", labels = { rack = \"a\" } }",
        "[resources]\ngpu = { min_memory = \"1537MiB\" }\nmax_runtime = \"90m\"\n[lora]\ntarget_modules = \".*q_proj\"",
    ] {
        let spec = resolve(&format!("{LEAST}{extra}")).unwrap();
        let again = JobFile::from(&spec);
        assert_eq!(again.resolve(&presets).unwrap(), spec, "{extra}");
        let json = serde_json::to_vec(&again).unwrap();
        assert_eq!(JobFile::from_json(&json).unwrap(), again);
    }
}

#[test]
fn a_model_that_is_trained_itself_is_not_taken_in_few_bits() {
    for (dtype, is_taken) in [("auto", true), ("f32", true), ("bf16", true), ("int8", false), ("nf4", false)] {
        let file = format!("{LEAST}[training]\nmethod = \"full\"\nbase_dtype = \"{dtype}\"");
        let faults = resolve(&file).err().unwrap_or_default();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, if is_taken { &[][..] } else { &["training.base_dtype"] }, "{dtype}");
    }
}

#[test]
fn a_long_value_is_cut_in_its_message() {
    let faults = with("training.schedule", &"x".repeat(1_000)).unwrap_err();
    assert!(faults[0].message.len() < 300, "{}", faults[0].message.len());
}

#[test]
fn the_examples_of_the_repository_are_read() {
    for text in [
        include_str!("../../../../configs/jobs/quickstart.toml"),
        include_str!("../../../../configs/jobs/support-tone.toml"),
    ] {
        resolve(text).unwrap();
    }
}

fn resolve(text: &str) -> Result<JobSpec, Vec<FieldError>> {
    JobFile::from_toml(text)?.resolve(&Presets::embedded())
}

/// The shortest file with one more key, given as on the command line.
fn with(key: &str, value: &str) -> Result<JobSpec, Vec<FieldError>> {
    let mut file = JobFile::from_toml(LEAST)?;
    file.set(key, value)?;
    file.resolve(&Presets::embedded())
}

fn in_toml(key: &str, value: &str) -> String {
    let word =
        value.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic()) && !["true", "false"].contains(&value);
    let value = if word { format!("{value:?}") } else { value.to_owned() };
    match key.split_once('.') {
        Some((table, key)) => format!("{LEAST}[{table}]\n{key} = {value}\n"),
        None => format!("{LEAST}{key} = {value}\n"),
    }
}

#[test]
fn filters_of_the_data_are_kept_and_strange_ones_refused() {
    let data = "[data]\nquality_min = 3.5\ntiers = [\"production\"]\nhuman_reviewed = true\npersonas = [\"anxious_planner\"]\narcs = []\n";
    let faults = resolve(&format!("{LEAST}{data}")).unwrap_err();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].field, "data.arcs", "an empty list says neither all nor none");
    let data = data.replace("arcs = []", "topics = [\"Estate planning\"]");
    let spec = resolve(&format!("{LEAST}{data}")).unwrap();
    let Task::Train(train) = &spec.task;
    let filter = &train.data;
    assert_eq!((filter.quality_min, filter.human_reviewed), (Some(3.5), Some(true)));
    assert_eq!(
        (filter.tiers.concat(), filter.personas.concat(), filter.topics.concat()),
        ("production".into(), "anxious_planner".into(), "Estate planning".into())
    );
    assert_eq!(JobFile::from(&spec).resolve(&Presets::embedded()).unwrap(), spec, "and back again");
    let faults = resolve(&format!("{LEAST}[data]\ntiers = [\"best\"]\n")).unwrap_err();
    assert!(faults[0].message.contains("expected a list of seed_dataset"), "{faults:?}");
}

#[test]
fn nothing_of_a_job_file_is_longer_than_it_needs_to_be() {
    let names = |count: usize, length: usize| {
        let names = vec![format!("'{}'", "x".repeat(length)); count];
        with("lora.target_modules", &format!("[{}]", names.join(",")))
    };
    assert!(names(1_024, 128).is_ok());
    for faults in [names(1_025, 1), names(1, 129), with("lora.target_modules", &format!("'{}'", "x".repeat(4_097)))] {
        let faults = faults.unwrap_err();
        assert_eq!((faults.len(), faults[0].field.as_str()), (1, "lora.target_modules"));
        assert!(faults[0].message.contains("at most") && faults[0].message.len() < 300, "{}", faults[0].message);
    }
    assert!(with("lora.target_modules", &format!("'{}'", "x".repeat(4_096))).is_ok());
    for field in ["name", "base", "dataset", "resources.gpu"] {
        assert_eq!(with(field, &format!("'{}'", "x".repeat(201))).unwrap_err()[0].field, field);
    }
}

#[test]
fn a_name_with_a_terminal_escape_is_refused() {
    for field in ["name", "base", "dataset", "resources.gpu"] {
        let faults = with(field, "\"\\u001b[31mred\"").unwrap_err();
        assert_eq!(faults[0].field, field);
        assert!(!faults[0].message.contains('\u{1b}'), "{}", faults[0].message);
    }
}
