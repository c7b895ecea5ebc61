//! The tokenizer as llama.cpp reads it: tokens with their kinds, merges or scores, special tokens, the chat template.
//!
//! Two kinds of `tokenizer.json` are known: byte-level BPE (`gpt2` there), whose way of splitting text before merging has a name
//! that must be the right one, and BPE over characters with bytes to fall back on (`llama` there), where the scores that are
//! asked for follow from the order of the merges.

use std::collections::BTreeMap;
use std::path::Path;

use lorikeet_dataset::Tokenizer;
use lorikeet_plan::read_file;
use serde::Deserialize;
use serde_json::Value;

use super::file::Fact;

/// The largest known have some 30 million bytes.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Splits of text by what they are called there.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `tokenizer.json`, as far as it is needed.
#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    vocab: BTreeMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
}

/// `"a b"`, or `["a", "b"]` in newer files.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair([String; 2]),
}

impl Merge {
    fn pair(&self) -> [&str; 2] {
        match self {
            Merge::Text(text) => text.split_once(' ').map_or([text, ""], |(a, b)| [a, b]),
            Merge::Pair([a, b]) => [a, b],
        }
    }
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// Everything that the file says of the tokenizer in `dir`, for a model with `rows` tokens.
pub(super) fn facts(
    dir: &Path,
    tokenizer: &Tokenizer,
    rows: usize,
    pre: Option<&str>,
) -> Result<Vec<(String, Fact)>, String> {
    let path = dir.join("tokenizer.json");
    let text = read_file(&path, MAX_TOKENIZER_BYTES).map_err(|error| format!("read tokenizer.json: {error}"))?;
    let file: File = serde_json::from_slice(&text).map_err(|error| format!("tokenizer.json is no BPE: {error}"))?;
    if file.model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        let kind = file.model.kind.unwrap_or_default();
        return Err(format!("tokenizer.json holds a {kind} model, expected BPE"));
    }
    let mut facts = if file.model.byte_fallback { characters(&file, rows)? } else { bytes(&file, rows, pre)? };
    for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        facts.extend(tokenizer.special(name).map(|id| (format!("tokenizer.ggml.{key}_token_id"), Fact::U32(id))));
    }
    facts.push(("tokenizer.ggml.add_bos_token".into(), Fact::Bool(!tokenizer.opening("").is_empty())));
    facts.push(("tokenizer.ggml.add_eos_token".into(), Fact::Bool(false)));
    facts.extend(tokenizer.chat_template().map(|source| ("tokenizer.chat_template".into(), source.into())));
    Ok(facts)
}

/// Byte-level BPE.
fn bytes(file: &File, rows: usize, pre: Option<&str>) -> Result<Vec<(String, Fact)>, String> {
    let pre = match pre {
        Some(name) => name,
        None => split_name(file).ok_or(
            "its tokenizer splits text in a way whose name in llama.cpp is not known here; say it with --tokenizer-pre",
        )?,
    };
    let merges = file.model.merges.iter().map(|merge| merge.pair().join(" ")).collect();
    let (tokens, kinds) = tokens(file, rows)?;
    Ok(vec![
        fact("model", "gpt2".into()),
        fact("pre", pre.into()),
        fact("tokens", Fact::Texts(tokens)),
        fact("token_type", Fact::I32s(kinds)),
        fact("merges", Fact::Texts(merges)),
    ])
}

/// BPE over characters. A merge that comes earlier has the higher score; of a token that several merges make, the first counts.
fn characters(file: &File, rows: usize) -> Result<Vec<(String, Fact)>, String> {
    let (tokens, kinds) = tokens(file, rows)?;
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for (rank, merge) in file.model.merges.iter().enumerate() {
        ranks.entry(merge.pair().concat()).or_insert(rank);
    }
    let score = |(token, kind): (&String, &i32)| match ranks.get(token).filter(|_| *kind == NORMAL) {
        Some(rank) => -(*rank as f32),
        // what no merge makes is never made; single characters need no score
        None if *kind == NORMAL && token.chars().count() > 1 => -1e9,
        None => 0.0,
    };
    let scores = tokens.iter().zip(&kinds).map(score).collect();
    Ok(vec![
        fact("model", "llama".into()),
        fact("pre", "default".into()),
        fact("tokens", Fact::Texts(tokens)),
        fact("scores", Fact::F32s(scores)),
        fact("token_type", Fact::I32s(kinds)),
        fact("add_space_prefix", Fact::Bool(prepends(file))),
    ])
}

fn fact(key: &str, fact: Fact) -> (String, Fact) {
    (format!("tokenizer.ggml.{key}"), fact)
}

/// Every row's text and kind; a row that the tokenizer does not know is padding.
fn tokens(file: &File, rows: usize) -> Result<(Vec<String>, Vec<i32>), String> {
    let mut known: BTreeMap<u32, (String, i32)> = BTreeMap::new();
    let unknown = file.model.unk_token.as_deref();
    for (text, id) in &file.model.vocab {
        let is_byte = file.model.byte_fallback && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = if is_byte {
            BYTE
        } else if file.model.byte_fallback && unknown == Some(text) {
            UNKNOWN
        } else {
            NORMAL
        };
        known.insert(*id, (text.clone(), kind));
    }
    for token in &file.added_tokens {
        let is_unknown = file.model.byte_fallback && unknown == Some(token.content.as_str());
        let kind = match token.special {
            _ if is_unknown => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        known.insert(token.id, (token.content.clone(), kind));
    }
    if let Some(id) = known.keys().find(|id| **id as usize >= rows) {
        return Err(format!("tokenizer.json names token {id}, the model has {rows}"));
    }
    let row = |id: u32| known.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
    Ok((0..rows as u32).map(row).unzip())
}

/// What llama.cpp calls this way of splitting text; none for one that is not known here.
fn split_name(file: &File) -> Option<&'static str> {
    // nothing is ever merged: however text is split, it becomes the same bytes
    if file.model.merges.is_empty() {
        return Some("gpt-2");
    }
    let steps = steps(file.pre_tokenizer.as_ref()?);
    let kind = |step: &Value| step["type"].as_str().map(str::to_owned).unwrap_or_default();
    let kinds: Vec<String> = steps.iter().map(|step| kind(step)).collect();
    let flag = |step: &Value, key: &str, absent: bool| step[key].as_bool().unwrap_or(absent);
    match (kinds.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), steps.as_slice()) {
        (["ByteLevel"], [level]) if flag(level, "use_regex", true) && !flag(level, "add_prefix_space", true) => {
            Some("gpt-2")
        }
        (["Digits", "ByteLevel"], [digits, level])
            if flag(digits, "individual_digits", false)
                && flag(level, "use_regex", true)
                && !flag(level, "add_prefix_space", true) =>
        {
            Some("smollm")
        }
        (["Split", "ByteLevel"], [split, level]) if !flag(level, "use_regex", true) => {
            match split["pattern"]["Regex"].as_str()? {
                LLAMA_3 => Some("llama-bpe"),
                QWEN_2 => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    }
}

fn steps(pre_tokenizer: &Value) -> Vec<&Value> {
    match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![pre_tokenizer],
    }
}

/// Whether a text gets a blank before it.
fn prepends(file: &File) -> bool {
    let normalizers = file.normalizer.iter().flat_map(|normalizer| match normalizer["normalizers"].as_array() {
        Some(steps) => steps.iter().collect::<Vec<_>>(),
        None => vec![normalizer],
    });
    let meta = file.pre_tokenizer.iter().flat_map(|step| steps(step));
    normalizers.chain(meta).any(|step| match step["type"].as_str() {
        Some("Prepend") => true,
        Some("Metaspace") => step["prepend_scheme"].as_str().is_none_or(|scheme| scheme != "never"),
        _ => false,
    })
}
