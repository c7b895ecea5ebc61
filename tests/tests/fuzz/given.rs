//! What people and child processes hand over: signing requests, what an inspection answers, adapters, tokenizers, chat templates.

use crate::{
    fuzz,
    targets::{JSON, json, lines, memory_folder},
};
use lorikeet_coordinator::link;
use lorikeet_dataset::{Message, Role, Tokenizer};
use lorikeet_plan::ModelConfig;
use lorikeet_protocol::inspect::Inspection;
use lorikeet_trainer::lora::{LoraLayout, read_config};
use std::fs;

#[test]
fn signing_requests() {
    let request = |names: &[&str]| {
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).expect("names");
        params.serialize_request(&key).expect("a request can be signed").der().to_vec()
    };
    fuzz("signing_requests", vec![request(&[]), request(&["a.example", "b.example"])], &[], &|bytes| {
        match link::read_signing_request(bytes) {
            Ok(()) => "ok".into(),
            Err(error) => lorikeet_protocol::chain(&error),
        }
    });
}

#[test]
fn answers_of_inspections() {
    let valid = lines("protocol/tests/pins/inspections.jsonl");
    let words = ["\"kind\":\"job\"", "\"kind\":\"refused\"", "faults", "18446744073709551615", "1e400", "samples"];
    fuzz(
        "answers_of_inspections",
        valid,
        &[JSON, &words].concat(),
        &|bytes| match serde_json::from_slice::<Inspection>(bytes) {
            Ok(answer) => {
                let again = serde_json::from_slice::<Inspection>(&json(&answer)).expect("what we write we read");
                assert_eq!(json(&again), json(&answer));
                format!("ok {:.12?}", answer)
            }
            Err(error) => error.to_string(),
        },
    );
}

/// A decoder of two layers.
const MODEL: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_act":"silu","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":256,"max_position_embeddings":512,"rms_norm_eps":1e-5,"rope_theta":10000.0}"#;

#[test]
fn settings_of_adapters() {
    let folder = memory_folder();
    let file = folder.path().join("adapter_config.json");
    let model = ModelConfig::parse(MODEL).expect("our own config");
    let plain = r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj","v_proj"]}"#;
    let rich = r#"{"r":4,"lora_alpha":8.5,"target_modules":"all-linear","exclude_modules":["lm_head"],"layers_to_transform":[0,1],"rank_pattern":{"q_proj":2},"alpha_pattern":{"^model.*":3.0},"use_rslora":true,"use_dora":true}"#;
    let pattern = r#"{"r":1,"lora_alpha":1,"target_modules":".*(q|k)_proj$","layers_to_transform":1}"#;
    let words =
        ["18446744073709551615", "4294967296", "(a*)*", "(((((", "{99999}", "\\", "-1", "1e308", "rank_pattern"];
    let valid = [plain, rich, pattern].map(|text| text.as_bytes().to_vec()).to_vec();
    fuzz("settings_of_adapters", valid, &[JSON, &words].concat(), &|bytes| {
        fs::write(&file, bytes).expect("the folder is ours");
        match read_config(folder.path()).and_then(|config| LoraLayout::new(&model, &config)) {
            Ok(layout) => format!("ok {}", layout.len() > 0),
            Err(error) => error.to_string().replace(&folder.path().display().to_string(), ""),
        }
    });
}

#[test]
fn tokenizers() {
    let folder = memory_folder();
    lorikeet_dataset::write_byte_tokenizer(folder.path()).expect("a tokenizer can be written");
    let file = folder.path().join("tokenizer.json");
    let valid = fs::read(&file).expect("it was written a moment ago");
    let words = [
        "\"BPE\"",
        "\"WordPiece\"",
        "\"Unigram\"",
        "\"WordLevel\"",
        "\"Split\"",
        "\"Regex\":\"(a|b)+\"",
        "\"ByteLevel\"",
        "\"Sequence\"",
        "4294967295",
        "\"merges\":",
        "\"vocab\":",
        "\"added_tokens\":",
        "\"truncation\":",
        "\"padding\":",
    ];
    fuzz("tokenizers", vec![valid], &[JSON, &words].concat(), &|bytes| {
        fs::write(&file, bytes).expect("the folder is ours");
        match Tokenizer::load(folder.path()) {
            Ok(tokenizer) => {
                let tokens = tokenizer.encode("Hello, who is there?").unwrap_or_default();
                format!("ok {} {}", tokens.is_empty(), tokenizer.decode(&tokens).is_ok())
            }
            Err(error) => error.to_string().replace(&folder.path().display().to_string(), ""),
        }
    });
}

#[test]
fn chat_templates() {
    let folder = memory_folder();
    lorikeet_dataset::write_byte_tokenizer(folder.path()).expect("a tokenizer can be written");
    let file = folder.path().join("chat_template.jinja");
    let valid = [
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m | tojson }}{% endfor %}{{ raise_exception('no') if ns.n > 9 }}",
        "{% macro say(m) %}{{ m.content.split('a')[0].upper() }}{% endmacro %}{% for m in messages if m.role != 'system' %}{{ say(m) }}{% endfor %}{{ strftime_now('%d') }}",
    ];
    let words = [
        "{% for i in range(99999) %}",
        "{% endfor %}",
        "{{ ",
        " }}",
        "{% if ",
        "{% endif %}",
        " * 99999999",
        "| tojson",
        "|center(99999999)",
        ".ljust(99999999)",
        "|join",
        "|list",
        "| indent(99999999)",
        "~",
        "{% set x = x ~ x %}",
        "{% include 'chat' %}",
        "{% import 'chat' as chat %}",
        "{{ say(say) }}",
        "'%9999999d'",
        "|format",
    ];
    let valid = valid.map(|text| text.as_bytes().to_vec()).to_vec();
    let said = |role, text: &str| Message::new(role, text);
    let messages = [said(Role::User, "Hello there"), said(Role::Assistant, "Who is there?")];
    fuzz("chat_templates", valid, &words, &|bytes| {
        fs::write(&file, bytes).expect("the folder is ours");
        match Tokenizer::load(folder.path()) {
            Ok(tokenizer) => match tokenizer.render(&messages, true) {
                Ok(text) => format!("ok {}", text.is_empty()),
                Err(error) => error.to_string().replace(&folder.path().display().to_string(), ""),
            },
            Err(error) => error.to_string().replace(&folder.path().display().to_string(), ""),
        }
    });
}
