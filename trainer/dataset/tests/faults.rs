//! Files with faults: each is named by line, path and reason, the first hundred kept, and nothing grows with the file.

use std::fs;

use lorikeet_dataset::{
    Check, DatasetError, Format, MAX_RECORD_BYTES, PrepareConfig, TokenCache, Tokenizer, check, prepare,
    write_byte_tokenizer,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

mod samples;

#[test]
fn chat_lines_and_chat_lists_are_the_same_dataset() {
    let chats = [chat("a", "b"), chat("c", "d"), chat("a", "b")];
    let lines: String = chats.iter().map(|chat| format!("{chat}\n\n")).collect();
    let list = format!("\u{feff} {:#}", Value::from(chats.to_vec()));
    for text in [lines, list] {
        let found = checked(text.as_bytes());
        assert_eq!(found.format, Format::ChatMessages);
        assert_eq!((found.conversations, found.pairs, found.trainable_pairs, found.error_count), (2, 3, 3, 0));
        assert_eq!(found.average_turns_per_conversation, 2.0);
    }
}

#[test]
fn prompts_and_completions_are_conversations_of_two() {
    let found = checked(b"{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"completion\": \"d\", \"prompt\": \"p\"}\n");
    assert_eq!(found.format, Format::PromptCompletion);
    assert_eq!((found.conversations, found.trainable_pairs, found.error_count), (1, 2, 0));
}

#[test]
fn each_fault_of_a_line_is_named_and_the_next_line_is_read() {
    let lines: [(&[u8], &str, &str); 10] = [
        (b"{\"messages\": [", "$", "broken JSON at column 14"),
        (b"{\"message\": []}", "$.messages", "the key is missing"),
        (b"{\"messages\": {}}", "$.messages", "expected a list, found an object"),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": 3}]}",
            "$.messages[0].content",
            "expected a string or a list of text parts, found a number",
        ),
        (b"{\"messages\": [{\"role\": \"bot\", \"content\": \"x\"}]}", "$.messages[0].role", "found \"bot\""),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", "$.messages", "no assistant message"),
        (b"{\"messages\": [{\"role\": \"assistant\", \"content\": \" \"}]}", "$.messages[0].content", "is empty"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}", "$", "invalid UTF-8 at byte 43"),
        (b"[1]", "$", "expected an object, found a list"),
        (b"{\"messages\": []} x", "$", "broken JSON"),
    ];
    let mut file = format!("{}\n", chat("a", "b")).into_bytes();
    for (line, _, _) in lines {
        file.extend_from_slice(line);
        file.push(b'\n');
    }
    file.extend(chat("c", "d").to_string().bytes());
    let found = checked(&file);
    assert_eq!((found.trainable_pairs, found.error_count), (2, lines.len() as u64));
    for (i, (_, path, message)) in lines.into_iter().enumerate() {
        let fault = &found.errors[i];
        assert_eq!((fault.line, fault.path.as_str()), (i as u64 + 2, path), "{fault:?}");
        assert!(fault.message.contains(message), "{fault:?}");
    }
}

#[test]
fn a_broken_first_line_does_not_hide_the_format() {
    let found = checked(format!("{{\"messages\": [\n{}\n", chat("a", "b")).as_bytes());
    assert_eq!((found.format, found.trainable_pairs, found.error_count), (Format::ChatMessages, 1, 1));
    assert_eq!(found.errors[0].line, 1);
}

#[test]
fn a_hundred_faults_are_kept_and_all_are_counted() {
    let found = checked(format!("{}\n{}", chat("a", "b"), "{}\n".repeat(250)).as_bytes());
    assert_eq!((found.errors.len(), found.error_count), (100, 250));
}

#[test]
fn an_element_that_never_ends_stops_a_document() {
    let text = format!("[{},\n{}]", chat("a", "b"), chat("c", &"x".repeat(MAX_RECORD_BYTES as usize)));
    let found = checked(text.as_bytes());
    assert_eq!((found.trainable_pairs, found.error_count), (1, 1));
    assert_eq!((found.errors[0].line, found.errors[0].path.as_str()), (2, "$[1]"));
    assert!(found.errors[0].message.contains("longer than"), "{:?}", found.errors);
}

#[test]
fn a_key_of_a_brightrun_document_that_never_ends_stops_it() {
    let start = r#"{"training_file_metadata": {"format_spec": "brightrun-lora-v4"}, "#;
    let long = "x".repeat(MAX_RECORD_BYTES as usize + (1 << 18));
    for (rest, path) in [
        (format!("\"{long}\": 1, \"conversations\": []}}"), "$"),
        (format!("\"conversations\": [{{\"{long}\": 1}}]}}"), "$.conversations[0]"),
    ] {
        let found = checked(format!("{start}{rest}").as_bytes());
        assert_eq!((found.format, found.error_count), (Format::BrightrunLoraV4, 1), "{:?}", found.errors);
        assert_eq!(found.errors[0].path, path);
        assert!(found.errors[0].message.contains("longer than"), "{}", found.errors[0].message);
    }
}

#[test]
fn broken_json_in_a_document_ends_it_with_its_line() {
    let found = checked(format!("[{},\n{},\n{{\"messages\" 3}}]", chat("a", "b"), chat("c", "d")).as_bytes());
    assert_eq!((found.trainable_pairs, found.error_count), (2, 1));
    assert_eq!((found.errors[0].line, found.errors[0].path.as_str()), (3, "$[2]"));
}

#[test]
fn what_is_not_recognised_is_said_with_what_would_be() {
    let refused = |text: &[u8]| {
        let (_dir, path) = written(text);
        check(&path, None, &mut |_| {}, &|| false).expect_err("refused").to_string()
    };
    assert!(refused(b" \n").contains("the file is empty"));
    assert!(refused(b"question,answer\n").contains("begins with 'q'"));
    assert!(refused(b"\x1f\x8b\x08").contains("gzip data ends"));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, b"  ").expect("packed");
    let garbage = [packed.finish().expect("packed"), vec![b'x'; 64]].concat();
    assert!(refused(&garbage).contains("something that is not gzip stands behind the gzip data"));
    let unknown = refused(b"{\"a\": 1, \"b\": 2}");
    assert!(unknown.contains("has the keys a, b") && unknown.contains("ALPACA (instruction, output)"), "{unknown}");
    assert!(refused(b" [ ]").contains("it holds no record"));
    assert!(refused(b"[{}]").contains("no keys"));
    let both = refused(b"{\"messages\": [], \"conversations\": [{\"from\": \"human\", \"value\": \"x\"}]}");
    assert!(both.contains("those of CHAT_MESSAGES and SHAREGPT"), "{both}");
}

#[test]
fn a_brightrun_file_names_its_faults_where_they_stand() {
    let pair = |turn: Value, target: Value| {
        json!({"turn_number": turn, "system_prompt": "s", "conversation_history": [], "current_user_input": "u",
            "target_response": target})
    };
    let mut without_input = pair(json!(4), json!("t"));
    without_input.as_object_mut().expect("object").remove("current_user_input");
    let pairs = [
        pair(json!(1), Value::Null),
        pair(json!(2.0), json!("t")),
        pair(json!(2), json!("again")),
        pair(json!(3), json!("")),
        without_input,
        pair(json!(0), json!("t")),
        pair(json!(5), json!(5)),
    ];
    let file = json!({
        "training_file_metadata": {"format_spec": "brightrun-lora-v5"},
        "conversations": [
            {"training_pairs": pairs, "conversation_metadata": {"conversation_id": "one"}},
            {"conversation_metadata": {}, "training_pairs": [pair(json!(1), json!("t"))]},
        ],
    });
    let found = checked(format!("{file:#}").as_bytes());
    assert_eq!((found.conversations, found.trainable_pairs), (1, 1));
    let named: Vec<(String, String)> = found.errors.into_iter().map(|fault| (fault.path, fault.message)).collect();
    let place = |pair: usize, key: &str| format!("$.conversations[0].training_pairs[{pair}].{key}");
    let expected = [
        (place(2, "turn_number"), "turn 2 of conversation one stands twice"),
        (place(3, "target_response"), "is empty"),
        (place(4, "current_user_input"), "the key is missing"),
        (place(5, "turn_number"), "expected a whole number from 1, found 0"),
        (place(6, "target_response"), "expected a string, found a number"),
        ("$.conversations[1].conversation_metadata.conversation_id".into(), "the key is missing"),
    ];
    assert_eq!(named, expected.map(|(path, message)| (path, message.to_owned())));
}

#[test]
fn a_brightrun_file_of_another_version_or_without_its_keys_is_named() {
    let found =
        checked(br#"{"training_file_metadata": {"format_spec": "brightrun-lora-v3"}, "consultant_profile": {}}"#);
    let paths: Vec<&str> = found.errors.iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(paths, ["$.training_file_metadata.format_spec", "$.conversations"]);
    let found = checked(br#"{"training_file_metadata": {"format_spec": "brightrun-lora-v4"}, "conversations": 3}"#);
    assert!(found.errors[0].message.contains("expected a list of conversations"), "{:?}", found.errors);
}

#[test]
fn a_faulty_dataset_is_refused_unless_its_faults_are_to_be_skipped() {
    let (dir, path) = written(format!("{}\n{{}}\n{}\n", chat("a", "b"), chat("c", "d")).as_bytes());
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let mut config = PrepareConfig::new(&path, &dir.path().join("cache"));
    let error = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect_err("refused");
    assert!(error.to_string().contains("line 2, $.messages: the key is missing"), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("cache")).expect("dir").count(), 0, "nothing half-written stays");
    config.on_fault = lorikeet_dataset::OnFault::Skip;
    let prepared = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    assert_eq!((prepared.train.len(), prepared.validation.len(), prepared.report.skipped), (1, 1, 1));
}

#[test]
fn a_target_too_long_by_itself_is_a_named_fault() {
    let (dir, path) = written(chat("a", &"long ".repeat(100)).to_string().as_bytes());
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let config = PrepareConfig { max_seq_length: 64, ..PrepareConfig::new(&path, &dir.path().join("cache")) };
    let error = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect_err("refused").to_string();
    assert!(error.contains("line 1, $") && error.contains("more than max_seq_length = 64"), "{error}");
}

#[test]
fn who_sets_a_length_that_is_too_short_is_told_the_smallest_that_takes_every_example() {
    let talk = |words: usize| chat("a", &"long ".repeat(words)).to_string();
    let (dir, path) = written([talk(1), talk(450), talk(500), "{}".to_owned()].join("\n").as_bytes());
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let fit = PrepareConfig { validation_fraction: 0.0, ..PrepareConfig::new(&path, &dir.path().join("cache")) };
    let prepare =
        |config: &PrepareConfig| prepare(config, &tokenizer, &mut |_| {}, &|| false).map_err(|error| error.to_string());
    let said = |error: String| {
        let (_, said) = error.split_once("= 2048; ").expect("it says what would do");
        let (count, least) = said.split_once(" too long, training.max_seq_length = ").expect("one length for all");
        (count.to_owned(), least.split(' ').next().and_then(|least| least.parse::<usize>().ok()).expect("a number"))
    };
    let (count, least) = said(prepare(&fit).expect_err("refused"));
    assert_eq!(count, "2 examples are");
    let warned = check(&path, Some(&tokenizer), &mut |_| {}, &|| false).expect("checks").warnings.join("\n");
    assert!(warned.contains(&format!("2 examples are too long, training.max_seq_length = {least} takes every one")));
    let on_fault = lorikeet_dataset::OnFault::Skip;
    let with = |max_seq_length| PrepareConfig { max_seq_length, on_fault, ..fit.clone() };
    assert_eq!(prepare(&with(least)).expect("prepares").train.len(), 3);
    assert_eq!(prepare(&with(least - 1)).expect("prepares").train.len(), 2, "it is the smallest");
}

#[test]
fn an_example_beyond_what_a_job_may_ask_for_has_to_be_split() {
    let (dir, path) = written(chat("a", &"long ".repeat(30_000)).to_string().as_bytes());
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let checked = check(&path, Some(&tokenizer), &mut |_| {}, &|| false).expect("checks");
    let (warned, longest) = (checked.warnings.join("\n"), checked.longest_example.expect("known"));
    let said = format!("1 example is too long, the longest with {longest} tokens has to be split");
    assert!(warned.ends_with(&said), "{warned}");
}

#[test]
fn a_cache_with_a_damaged_index_is_made_again_and_one_with_damaged_tokens_names_itself() {
    let (dir, path) = written(format!("{}\n{}\n", chat("a", "b"), chat("c", "d")).as_bytes());
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let config = PrepareConfig::new(&path, &dir.path().join("cache"));
    let prepared = || prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("prepares");
    let first = prepared().train.get(0).expect("sound");
    let files = fs::read_dir(dir.path().join("cache")).expect("dir").map(|entry| entry.expect("entry").path());
    let cache = files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "tokens")).expect("a cache");
    let sound = fs::read(&cache).expect("reads");
    let damage = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(&cache, &bytes).expect("writes");
    };
    damage(sound.len() - 100);
    assert!(TokenCache::open(&cache).expect_err("damaged").to_string().contains("does not match its hash"));
    assert_eq!(prepared().train.get(0).expect("made again"), first);
    damage(20);
    let error = TokenCache::open(&cache).expect("its index is sound").example(0).expect_err("damaged").to_string();
    assert!(error.contains("example 0") && error.contains("the next start makes it again"), "{error}");
    assert!(!cache.exists());
    assert_eq!(prepared().train.get(0).expect("made again"), first);
    fs::remove_file(&cache).expect("removed");
    let pipe = std::process::Command::new("mkfifo").arg(&cache).status().expect("made");
    assert!(pipe.success() && TokenCache::open(&cache).is_err(), "nobody waits for who would write to it");
    assert_eq!(prepared().train.get(0).expect("made again"), first);
}

#[test]
fn a_pipe_in_the_place_of_a_known_hash_is_not_waited_for() {
    let (dir, path) = written(format!("{}\n{}\n", chat("a", "b"), chat("c", "d")).as_bytes());
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let config = PrepareConfig::new(&path, &dir.path().join("cache"));
    let name = blake3::hash(path.canonicalize().expect("there").as_os_str().as_encoded_bytes()).to_hex();
    let memo = config.cache_dir.join(format!("{}.content", &name[..32]));
    fs::create_dir(&config.cache_dir).expect("made");
    let pipe = std::process::Command::new("mkfifo").arg(&memo).status().expect("made");
    assert!(pipe.success() && prepare(&config, &tokenizer, &mut |_| {}, &|| false).is_ok());
}

#[test]
fn stop_is_answered() {
    let (dir, path) = written(chat("a", "b").to_string().as_bytes());
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let config = PrepareConfig::new(&path, &dir.path().join("cache"));
    let stopped = prepare(&config, &tokenizer, &mut |_| {}, &|| true);
    assert!(matches!(stopped, Err(DatasetError::Stopped)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a file is changed into, it is read to an answer.
    #[test]
    fn mutated_files_never_panic(
        which in 0usize..6, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6)
    ) {
        let mut bytes = sound(which);
        for (place, byte, kind) in edits {
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let (_dir, path) = written(&bytes);
        match check(&path, None, &mut |_| {}, &|| false) {
            Ok(found) => prop_assert!(found.trainable_pairs <= found.pairs),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

fn sound(which: usize) -> Vec<u8> {
    let files = samples::generated();
    match which {
        0 => format!("{}\n{}\n", chat("a", "b"), chat("ü", "🙂")).into_bytes(),
        1 => b"{\"prompt\": \"p\", \"completion\": \"c\"}\n".repeat(3),
        4 => fs::read(packed("chat.jsonl.gz")).expect("reads"),
        5 => fs::read(packed("chat_snappy.parquet")).expect("reads"),
        2 => fs::read(&files.json).expect("reads")[..6000].to_vec(),
        _ => fs::read(&files.jsonl).expect("reads")[..6000].to_vec(),
    }
}

fn packed(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packed").join(name)
}

fn chat(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

fn written(bytes: &[u8]) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("data");
    fs::write(&path, bytes).expect("writes");
    (dir, path)
}

fn checked(bytes: &[u8]) -> Check {
    let (_dir, path) = written(bytes);
    check(&path, None, &mut |_| {}, &|| false).expect("checks")
}
