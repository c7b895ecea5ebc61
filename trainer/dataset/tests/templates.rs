//! Chat templates against transformers: texts that `goldens/make.py` recorded, rendered here to the same characters, and the
//! targets found in them.

use std::fs;
use std::path::Path;

use lorikeet_dataset::{
    Encoder, Key, Message, Record, Role, Supervise, Target, TemplateSource, Tokenizer, write_byte_tokenizer,
};
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn every_recorded_text_is_rendered_to_the_same_characters() {
    for golden in goldens() {
        let (_dir, tokenizer) = tokenizer(&golden);
        assert_eq!(tokenizer.template_source(), TemplateSource::Model);
        for case in golden["cases"].as_array().expect("cases") {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).expect("messages");
            let prompt = case["add_generation_prompt"].as_bool().expect("flag");
            let rendered = tokenizer.render(&messages, prompt);
            match case["error"].as_str() {
                None => assert_eq!(rendered.expect("renders"), case["text"], "{}", golden["name"]),
                Some(words) => {
                    let error = rendered.expect_err("refused there").to_string();
                    assert!(error.contains(words), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_target_is_the_answer_and_its_end_of_turn_in_every_family() {
    let learnt = [
        ("chatml", [" It is true. 🙂 <|im_end|>", "You're welcome\n<|im_end|>"]),
        ("llama3", ["It is true. 🙂<|eot_id|>", "You're welcome<|eot_id|>"]),
        ("mistral", [" It is true. 🙂</s>", " You're welcome</s>"]),
    ];
    for (family, [first, last]) in learnt {
        let golden = goldens().into_iter().find(|golden| golden["name"] == family).expect("golden");
        let (_dir, tokenizer) = tokenizer(&golden);
        let messages: Vec<Message> = serde_json::from_value(golden["cases"][3]["messages"].clone()).expect("messages");
        let pieces = |supervise| supervised(&tokenizer, supervise, Target::AsSettings, messages.clone());
        assert_eq!(pieces(Supervise::Assistant), [first, last], "{family}");
        assert_eq!(pieces(Supervise::Last), [last], "{family}");
        assert_eq!(pieces(Supervise::Completion), [last], "{family}");
        let whole = golden["cases"][3]["text"].as_str().expect("text");
        let all = pieces(Supervise::All).concat();
        assert!(
            whole.ends_with(&all) && whole.len() - all.len() <= 20,
            "{family}: only the first token is left out: {all}"
        );
        let own = supervised(&tokenizer, Supervise::All, Target::LastMessage, messages);
        assert_eq!(own, [last], "a format's own target overrules the settings");
    }
}

#[test]
fn a_template_that_looks_ahead_is_named_with_the_sample() {
    let dir = directory(json!({
        "chat_template": "{{ messages | length }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    }));
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let encoder = Encoder { tokenizer: &tokenizer, supervise: Supervise::Assistant, max_seq_length: 1000 };
    let fault = encoder.encode(&record(two(), Target::AsSettings), 0).expect_err("refused");
    assert!(fault.message.contains("sample (c, turn 3)") && fault.message.contains("message 1"), "{}", fault.message);
    assert_eq!((fault.line, fault.path.as_str()), (7, "$[6]"));
}

#[test]
fn a_template_that_prints_no_answer_leaves_no_target_which_is_a_fault() {
    let dir =
        directory(json!({"chat_template": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"}));
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let encoder = Encoder { tokenizer: &tokenizer, supervise: Supervise::Assistant, max_seq_length: 1000 };
    let fault = encoder.encode(&record(two(), Target::AsSettings), 0).expect_err("refused");
    assert!(fault.message.contains("no token of this sample is a target"), "{}", fault.message);
}

#[test]
fn templates_are_found_wherever_models_keep_them() {
    let named =
        json!({"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]});
    assert_eq!(render(&directory(named.clone())), "yes");
    let dir = directory(named);
    fs::write(dir.path().join("chat_template.jinja"), "file").expect("writes");
    assert_eq!(render(&dir), "file");
    let dir = directory(json!({"eos_token": {"content": "<|im_end|>", "special": true}}));
    assert_eq!(render(&dir), "User: q\n\nAssistant: a<|im_end|>\n\n");
    let dir = directory(json!({"chat_template": [{"name": "rag", "template": "x"}]}));
    assert!(Tokenizer::load(dir.path()).expect_err("no default").to_string().contains("\"default\""));
    let dir = directory(json!({"chat_template": "{% for %}"}));
    assert!(Tokenizer::load(dir.path()).expect_err("broken").to_string().contains("line 1 of the template"));
}

#[test]
fn a_directory_without_a_tokenizer_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let error = Tokenizer::load(dir.path()).expect_err("absent").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    fs::write(dir.path().join("tokenizer.model"), "sentencepiece").expect("writes");
    let error = Tokenizer::load(dir.path()).expect_err("absent").to_string();
    assert!(error.contains("save the tokenizer again"), "{error}");
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused_and_a_smaller_one_accepted() {
    let dir = directory(json!({}));
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    assert_eq!(tokenizer.entries(), 259);
    tokenizer.check_fits(259).expect("fits");
    tokenizer.check_fits(300).expect("fits");
    let error = tokenizer.check_fits(258).expect_err("too many").to_string();
    assert!(error.contains("259 entries") && error.contains("258"), "{error}");
}

#[test]
fn every_text_comes_back_from_plain_bytes() {
    let dir = directory(json!({}));
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let text = "naïve — 🙂\n\ttabs, \u{0}, and   spaces";
    let tokens = tokenizer.encode(text).expect("encodes");
    assert_eq!(tokens.len(), text.len());
    assert_eq!(tokenizer.decode(&tokens).expect("decodes"), text);
}

#[test]
fn generation_stops_at_the_end_of_a_turn() {
    let dir = tempfile::tempdir().expect("dir");
    write_byte_tokenizer(dir.path()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    assert_eq!(tokenizer.eos_ids(), tokenizer.encode("<|im_end|>").expect("encodes"));
    let prompt = tokenizer.prompt(&two()[..1]).expect("renders");
    assert_eq!(prompt, tokenizer.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n").expect("encodes"));
}

fn goldens() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/templates.json");
    serde_json::from_str(&fs::read_to_string(path).expect("goldens")).expect("JSON")
}

/// A byte tokenizer that also knows the special tokens of a golden family, each as one token.
fn tokenizer(golden: &Value) -> (TempDir, Tokenizer) {
    let mut config = golden["tokens"].clone();
    config["chat_template"] = golden["template"].clone();
    let dir = directory(config);
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).expect("tokenizer")).expect("JSON");
    for (i, token) in golden["tokens"].as_object().expect("tokens").values().enumerate() {
        let added = json["added_tokens"].as_array_mut().expect("added tokens");
        if added.iter().all(|known| known["content"] != *token) {
            added.push(json!({"id": 259 + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}));
        }
    }
    fs::write(&path, json.to_string()).expect("writes");
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    (dir, tokenizer)
}

fn directory(config: Value) -> TempDir {
    let dir = tempfile::tempdir().expect("dir");
    write_byte_tokenizer(dir.path()).expect("writes");
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("writes");
    dir
}

fn render(dir: &TempDir) -> String {
    Tokenizer::load(dir.path()).expect("loads").render(&two(), false).expect("renders")
}

fn two() -> Vec<Message> {
    vec![Message::new(Role::User, "q"), Message::new(Role::Assistant, "a")]
}

fn record(messages: Vec<Message>, target: Target) -> Record {
    let key = Key { conversation: "c".into(), turn: 3 };
    Record { key, line: 7, path: "$[6]".into(), messages, target, quality: None }
}

fn supervised(tokenizer: &Tokenizer, supervise: Supervise, target: Target, messages: Vec<Message>) -> Vec<String> {
    let encoder = Encoder { tokenizer, supervise, max_seq_length: 10_000 };
    let sample = encoder.sample(&record(messages, target)).expect("encodes");
    sample.pieces.into_iter().filter(|piece| piece.supervised).map(|piece| piece.text).collect()
}
