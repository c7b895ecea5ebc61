//! What a job comes to, said before it runs, is what preparing then makes.

mod samples;

use std::collections::BTreeSet;

use lorikeet_dataset::{Examples, Filters, PrepareConfig, Tokenizer, check, check_job, prepare, write_byte_tokenizer};
use tempfile::TempDir;

#[test]
fn a_job_check_counts_what_preparing_makes() {
    let (files, dir, tokenizer) = set_up();
    for (validation_file, max_seq_length) in [(None, 1 << 20), (None, 3000), (Some(files.jsonl.clone()), 3000)] {
        let config = PrepareConfig {
            validation_file,
            max_seq_length,
            ..PrepareConfig::new(&files.json, &dir.path().join("cache"))
        };
        let job = check_job(&config, &tokenizer, &mut |_| {}, &|| false).expect("checks");
        let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
        let report = &prepared.report;
        assert_eq!(job.examples, prepared.train.len() as u64);
        assert_eq!(job.validation_examples, prepared.validation.len() as u64);
        assert_eq!((job.epoch_tokens, job.supervised_tokens), (report.train_tokens, report.train_supervised_tokens));
        assert_eq!((job.longest_tokens, job.cut), (report.longest_example, report.cut));
        assert_eq!(job.steps(4, 3), job.examples.div_ceil(4) * 3);
        assert_eq!(job.rendered.len(), 3);
        let overlap = report.warnings.iter().any(|warning| warning.contains("stand in the training file"));
        assert_eq!(overlap, config.validation_file.is_some());
    }
}

#[test]
fn a_rendered_sample_is_the_whole_text_with_the_target_marked() {
    let (files, dir, tokenizer) = set_up();
    let config = PrepareConfig { max_seq_length: 1 << 20, ..PrepareConfig::new(&files.json, dir.path()) };
    let job = check_job(&config, &tokenizer, &mut |_| {}, &|| false).expect("checks");
    let sample = &job.rendered[0];
    let text: String = sample.pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert!(
        text.starts_with("<|im_start|>system\nYou are calm.<|im_end|>\n<|im_start|>user\nConversation 0, turn 1"),
        "{text}"
    );
    let marked: Vec<&str> =
        sample.pieces.iter().filter(|piece| piece.supervised).map(|piece| piece.text.as_str()).collect();
    assert!(
        matches!(marked[..], [target] if target.starts_with("Conversation 0, turn 2") && target.ends_with("<|im_end|>"))
    );
}

#[test]
fn a_check_with_a_base_counts_tokens() {
    let (files, dir, tokenizer) = set_up();
    let found = check(&files.json, Some(&tokenizer), &mut |_| {}, &|| false).expect("checks");
    let config = PrepareConfig {
        max_seq_length: 1 << 20,
        validation_fraction: 0.0,
        ..PrepareConfig::new(&files.json, dir.path())
    };
    let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    assert_eq!(found.tokens, Some(prepared.report.train_tokens));
    assert_eq!(found.longest_example, Some(prepared.report.longest_example));
    assert_eq!(found.average_tokens_per_turn, Some(prepared.report.train_supervised_tokens as f64 / 44.0));
    assert_eq!(found.rendered.len(), 3);
}

#[test]
fn a_split_follows_its_seed_and_its_share() {
    let (files, dir, tokenizer) = set_up();
    let held_out = |seed: u64, validation_fraction: f64| {
        let config = PrepareConfig { seed, validation_fraction, ..PrepareConfig::new(&files.json, dir.path()) };
        let config = PrepareConfig { max_seq_length: 1 << 20, ..config };
        let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
        assert_eq!(prepared.train.len() + prepared.validation.len(), 44);
        conversations(&prepared.validation)
    };
    assert_eq!(held_out(1, 0.25), held_out(1, 0.25));
    assert!((2..9).any(|seed| held_out(seed, 0.25) != held_out(1, 0.25)));
    assert_eq!([0.0, 0.01, 0.25, 0.5, 0.99].map(|share| held_out(7, share).len()), [0, 1, 3, 6, 11]);
    assert!(held_out(7, 0.25).is_subset(&held_out(7, 0.5)), "a larger share keeps what was held out before");
}

#[test]
fn low_scores_are_filtered_and_counted() {
    let (files, dir, tokenizer) = set_up();
    let filters = Filters { quality_min: Some(3.2), ..Filters::default() };
    let config = PrepareConfig { filters, ..PrepareConfig::new(&files.json, dir.path()) };
    let config = PrepareConfig { max_seq_length: 1 << 20, ..config };
    let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    assert_eq!((prepared.train.len() + prepared.validation.len(), prepared.report.filtered), (12, 32));
}

#[test]
fn every_mark_of_a_pair_can_be_asked_for() {
    let (files, dir, tokenizer) = set_up();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let none = Filters::default;
    let asked = [
        (Filters { tiers: names(&["production"]), ..none() }, 12),
        (Filters { tiers: names(&["EXPERIMENTAL", "production"]), ..none() }, 44),
        (Filters { human_reviewed: Some(true), ..none() }, 4),
        (Filters { human_reviewed: Some(false), ..none() }, 40),
        (Filters { personas: names(&["planner"]), ..none() }, 22),
        (Filters { arcs: names(&["Fear → Calm"]), ..none() }, 44),
        (Filters { topics: names(&["savings"]), personas: names(&["planner", "avoider"]), ..none() }, 44),
    ];
    for (filters, expected) in asked {
        for file in [&files.json, &files.jsonl] {
            let config = PrepareConfig { filters: filters.clone(), ..PrepareConfig::new(file, dir.path()) };
            let config = PrepareConfig { max_seq_length: 1 << 20, ..config };
            let job = check_job(&config, &tokenizer, &mut |_| {}, &|| false).expect("checks");
            assert_eq!(job.examples + job.validation_examples, expected, "{filters:?} of {}", file.display());
        }
    }
    let filters = Filters { topics: names(&["debts"]), ..none() };
    let config = PrepareConfig { filters, ..PrepareConfig::new(&files.json, dir.path()) };
    let error = check_job(&config, &tokenizer, &mut |_| {}, &|| false).expect_err("nothing is left").to_string();
    assert!(error.contains("no trainable example"), "{error}");
}

fn set_up() -> (samples::Files, TempDir, Tokenizer) {
    let dir = tempfile::tempdir().expect("dir");
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    (samples::generated(), dir, tokenizer)
}

fn conversations(examples: &Examples) -> BTreeSet<String> {
    (0..examples.len()).map(|index| examples.get(index).expect("sound").key.conversation).collect()
}
