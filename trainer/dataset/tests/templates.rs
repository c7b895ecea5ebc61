//! Chat templates against transformers: texts that `goldens/make.py` recorded, rendered here to the same characters, and the
//! targets found in them.

use std::fs;
use std::path::{Path, PathBuf};

use lorikeet_dataset::{
    Body, Encoder, Json, Key, Marks, Message, Record, Role, Supervise, Target, TemplateSource, Tokenizer,
    write_byte_tokenizer,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn every_recorded_text_is_rendered_to_the_same_characters() {
    let goldens = goldens();
    for family in &goldens.families {
        let (_dir, tokenizer) = tokenizer(family);
        assert_eq!(tokenizer.template_source(), TemplateSource::Model);
        for (number, (conversation, result)) in goldens.conversations.iter().zip(&family.results).enumerate() {
            let place = format!("{}, conversation {number}", family.name);
            let tools = conversation.tools.clone().unwrap_or_default();
            let rendered = tokenizer.render_with(&conversation.messages, &tools, conversation.add_generation_prompt);
            match (&result.text, &result.error) {
                (Some(text), _) => assert_eq!(rendered.expect(&place), *text, "{place}"),
                (None, Some(words)) => {
                    let error = rendered.expect_err(&place).to_string();
                    // the template's own words are kept, Python's are not
                    assert!(error.contains(words) || words.starts_with("'dict object'"), "{place}: {error}");
                }
                (None, None) => panic!("{place}: neither text nor error"),
            }
        }
    }
}

#[test]
fn a_target_is_the_answer_and_its_end_of_turn_in_every_family() {
    let learnt = [
        ("llama2", [" It is true. 🙂 </s>", " You're welcome </s>"]),
        ("llama3", ["It is true. 🙂<|eot_id|>", "You're welcome<|eot_id|>"]),
        ("llama3_1", ["It is true. 🙂<|eot_id|>", "You're welcome<|eot_id|>"]),
        ("llama3_2", ["It is true. 🙂<|eot_id|>", "You're welcome<|eot_id|>"]),
        ("mistral", ["  It is true. 🙂 </s>", " You're welcome\n</s>"]),
        ("mistral_v3", [" It is true. 🙂</s>", " You're welcome</s>"]),
        ("smollm2", [" It is true. 🙂 <|im_end|>", "You're welcome\n<|im_end|>"]),
        ("qwen2_5", [" It is true. 🙂 <|im_end|>", "You're welcome\n<|im_end|>"]),
        ("gemma2", ["It is true. 🙂<end_of_turn>", "You're welcome<end_of_turn>"]),
        ("gemma3", ["It is true. 🙂<end_of_turn>", "You're welcome<end_of_turn>"]),
        ("phi3", [" It is true. 🙂 <|end|>", "You're welcome\n<|end|>\n<|endoftext|>"]),
        ("phi3_5", [" It is true. 🙂 <|end|>", "You're welcome\n<|end|>\n<|endoftext|>"]),
        ("phi4", [" It is true. 🙂 <|im_end|>", "You're welcome\n<|im_end|>"]),
        ("phi4_mini", [" It is true. 🙂 <|end|>", "You're welcome\n<|end|><|endoftext|>"]),
    ];
    let goldens = goldens();
    let conversation = &goldens.conversations[3];
    for (name, [first, last]) in learnt {
        let family = goldens.family(name);
        let (_dir, tokenizer) = tokenizer(family);
        let pieces = |supervise| supervised(&tokenizer, supervise, chat(conversation, Target::AsSettings)).expect(name);
        assert_eq!(pieces(Supervise::Assistant), [first, last], "{name}");
        assert_eq!(pieces(Supervise::Last), [last], "{name}");
        assert_eq!(pieces(Supervise::Completion), [last], "{name}");
        let whole = family.results[3].text.as_deref().expect("text");
        let all = pieces(Supervise::All).concat();
        assert!(
            whole.ends_with(&all) && whole.len() - all.len() <= 20,
            "{name}: only the first token is left out: {all}"
        );
        let own = supervised(&tokenizer, Supervise::All, chat(conversation, Target::LastMessage)).expect(name);
        assert_eq!(own, [last], "a format's own target overrules the settings");
    }
}

#[test]
fn a_call_of_tools_is_a_target_and_their_answers_are_not() {
    let goldens = goldens();
    let conversation = &goldens.conversations[6];
    for (name, call, end) in [
        ("llama3_1", "{\"name\": \"temperature\", \"parameters\": {\"place\": \"Köln <Dom>\"", "<|eot_id|>"),
        ("qwen2_5", "<tool_call>\n{\"name\": \"temperature\", \"arguments\": {\"place\": \"Köln <Dom>\"", "<|im_end|>"),
        ("mistral_v3", "[TOOL_CALLS] [{\"name\": \"temperature\", \"arguments\": {\"place\": \"Köln <Dom>\"", "</s>"),
    ] {
        let (_dir, tokenizer) = tokenizer(goldens.family(name));
        let pieces = supervised(&tokenizer, Supervise::Assistant, chat(conversation, Target::AsSettings)).expect(name);
        assert_eq!(pieces.len(), 2, "{name}: {pieces:?}");
        assert!(pieces[0].starts_with(call) && pieces[0].ends_with(end), "{name}: {pieces:?}");
        assert!(pieces[1].trim_start().starts_with("It is 21.5 °C.") && pieces[1].ends_with(end), "{name}: {pieces:?}");
    }
}

#[test]
fn tools_are_refused_where_the_template_has_no_place_for_them() {
    let goldens = goldens();
    let (_dir, tokenizer) = tokenizer(goldens.family("smollm2"));
    let refused = |messages: Vec<Message>, tools: Vec<Json>| {
        let body = Body::Chat { messages, tools, target: Target::AsSettings };
        supervised(&tokenizer, Supervise::Assistant, body).expect_err("refused")
    };
    let conversation = &goldens.conversations[6];
    assert!(refused(conversation.messages.clone(), Vec::new()).contains("no place for tool_calls"));
    assert!(refused(two(), conversation.tools.clone().expect("tools")).contains("no place for tools"));
}

#[test]
fn a_template_that_rewrites_earlier_answers_trains_the_last_one_and_refuses_the_rest() {
    let goldens = goldens();
    let (_dir, tokenizer) = tokenizer(goldens.family("qwen3"));
    let conversation = &goldens.conversations[3];
    let error =
        supervised(&tokenizer, Supervise::Assistant, chat(conversation, Target::AsSettings)).expect_err("refused");
    assert!(error.contains("sample (c, turn 3)") && error.contains("supervise = \"last\""), "{error}");
    let last = supervised(&tokenizer, Supervise::Last, chat(conversation, Target::AsSettings)).expect("one answer");
    assert_eq!(last, ["<think>\n\n</think>\n\nYou're welcome\n<|im_end|>"]);
}

#[test]
fn an_answer_of_weight_zero_is_no_target() {
    let goldens = goldens();
    let (_dir, tokenizer) = tokenizer(goldens.family("smollm2"));
    let mut messages = goldens.conversations[3].messages.clone();
    messages[1].trained = false;
    let body = Body::Chat { messages, tools: Vec::new(), target: Target::AsSettings };
    assert_eq!(supervised(&tokenizer, Supervise::Assistant, body).expect("encodes"), ["You're welcome\n<|im_end|>"]);
}

#[test]
fn a_plain_text_is_learnt_whole_between_the_tokens_that_frame_it() {
    let dir = directory(json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}));
    frame(&dir);
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let pieces = supervised(&tokenizer, Supervise::Last, Body::Text("a b".into())).expect("encodes");
    assert_eq!(pieces, ["a b<|im_end|>"]);
    assert_eq!(tokenizer.plain("a b"), "<|im_start|>a b<|im_end|>");
    assert_eq!(tokenizer.plain("a<|im_end|>"), "<|im_start|>a<|im_end|>", "an end that is there is not doubled");
}

#[test]
fn a_template_that_looks_ahead_is_named_with_the_sample() {
    let dir = directory(json!({
        "chat_template": "{{ messages | length }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    }));
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let encoder = Encoder { tokenizer: &tokenizer, supervise: Supervise::Assistant, max_seq_length: 1000 };
    let fault = encoder.encode(&record(plain_two()), 0).expect_err("refused");
    assert!(fault.message.contains("sample (c, turn 3)") && fault.message.contains("message 1"), "{}", fault.message);
    assert_eq!((fault.line, fault.path.as_str()), (7, "$[6]"));
}

#[test]
fn a_template_that_says_more_behind_a_shorter_conversation_is_refused() {
    let turns = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}";
    let open = "{% if add_generation_prompt %}assistant:{% endif %}";
    for (behind, learns) in [("<|im_end|>", true), (" \n", true), ("The end.", false)] {
        let once = format!("{{% if messages | length == 2 and not add_generation_prompt %}}{behind}{{% endif %}}");
        let dir = directory(json!({"chat_template": format!("{turns}{open}{once}")}));
        let tokenizer = Tokenizer::load(dir.path()).expect("loads");
        let encoder = Encoder { tokenizer: &tokenizer, supervise: Supervise::Assistant, max_seq_length: 1000 };
        let body = Body::Chat { messages: [two(), two()].concat(), tools: Vec::new(), target: Target::AsSettings };
        let encoded = encoder.encode(&record(body), 0);
        assert_eq!(encoded.is_ok(), learns, "{behind:?}: {encoded:?}");
    }
}

#[test]
fn a_template_that_prints_no_answer_leaves_no_target_which_is_a_fault() {
    let dir =
        directory(json!({"chat_template": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"}));
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let encoder = Encoder { tokenizer: &tokenizer, supervise: Supervise::Assistant, max_seq_length: 1000 };
    let fault = encoder.encode(&record(plain_two()), 0).expect_err("refused");
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

/// `templates.json`, as `make.py` writes it.
#[derive(Deserialize)]
struct Goldens {
    conversations: Vec<Conversation>,
    families: Vec<Family>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    tools: Option<Vec<Json>>,
    add_generation_prompt: bool,
}

#[derive(Deserialize)]
struct Family {
    name: String,
    tokens: serde_json::Map<String, Value>,
    special: Vec<String>,
    results: Vec<Rendered>,
}

#[derive(Deserialize)]
struct Rendered {
    text: Option<String>,
    error: Option<String>,
}

impl Goldens {
    fn family(&self, name: &str) -> &Family {
        self.families.iter().find(|family| family.name == name).expect("a family of that name")
    }
}

fn goldens() -> Goldens {
    serde_json::from_str(&fs::read_to_string(golden_file("templates.json")).expect("goldens")).expect("JSON")
}

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// A byte tokenizer that also knows the special tokens of a family, each as one token.
fn tokenizer(family: &Family) -> (TempDir, Tokenizer) {
    let mut config = Value::Object(family.tokens.clone());
    let template = golden_file("templates").join(format!("{}.jinja", family.name));
    config["chat_template"] = fs::read_to_string(template).expect("template").into();
    let dir = directory(config);
    let named = family.tokens.values().filter_map(Value::as_str).chain(family.special.iter().map(String::as_str));
    change(&dir, |json| {
        for (i, token) in named.enumerate() {
            let added = json["added_tokens"].as_array_mut().expect("added tokens");
            if added.iter().all(|known| known["content"] != token) {
                added.push(json!({"id": 259 + i, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true}));
            }
        }
    });
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    (dir, tokenizer)
}

/// Gives a tokenizer the post-processor of a model whose texts begin with a special token.
fn frame(dir: &TempDir) {
    let start = json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    change(dir, |json| {
        json["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [start, text("A", 0)],
            "pair": [start, text("A", 0), text("B", 1)],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        });
    });
}

fn change(dir: &TempDir, edit: impl FnOnce(&mut Value)) {
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).expect("tokenizer")).expect("JSON");
    edit(&mut json);
    fs::write(&path, json.to_string()).expect("writes");
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

fn plain_two() -> Body {
    Body::Chat { messages: two(), tools: Vec::new(), target: Target::AsSettings }
}

fn chat(conversation: &Conversation, target: Target) -> Body {
    let tools = conversation.tools.clone().unwrap_or_default();
    Body::Chat { messages: conversation.messages.clone(), tools, target }
}

fn record(body: Body) -> Record {
    let key = Key { conversation: "c".into(), turn: 3 };
    Record { key, line: 7, path: "$[6]".into(), body, marks: Marks::default() }
}

/// What is learnt of a record, piece by piece, or why nothing is.
fn supervised(tokenizer: &Tokenizer, supervise: Supervise, body: Body) -> Result<Vec<String>, String> {
    let encoder = Encoder { tokenizer, supervise, max_seq_length: 10_000 };
    let sample = encoder.sample(&record(body)).map_err(|fault| fault.message)?;
    Ok(sample.pieces.into_iter().filter(|piece| piece.supervised).map(|piece| piece.text).collect())
}
