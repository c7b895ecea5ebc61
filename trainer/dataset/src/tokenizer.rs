//! A base model's tokenizer and chat template, read from its directory.
//!
//! `tokenizer.json` is needed; `chat_template.jinja`, `tokenizer_config.json`, `special_tokens_map.json` and
//! `generation_config.json` are read where they stand. The post-processor is left out: templates write the special tokens
//! themselves, so it would only add them twice, and byte-level ones also move the offsets that decide what is a target. What
//! it puts before a text is remembered for texts that no template touches.

mod train;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;
use tokenizers::PostProcessorWrapper;

pub use train::{train_tokenizer, write_byte_tokenizer};

use crate::guard::guarded;
use crate::template::{BUILT_IN, Template};
use crate::{Json, Message, Role};

/// Said of a `tokenizer.json` at which the library ends its thread.
const CONTRADICTS: &str = "it is not a sound one: what it holds contradicts itself";

/// The largest `tokenizer.json` known has some thirty megabytes.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A tokenizer that cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// A file of the directory is absent, unreadable or broken.
    #[error("read tokenizer file {}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The chat template does not compile, or refused a conversation.
    #[error("render the chat template: {reason}")]
    Template {
        /// The template's own words.
        reason: String,
    },
    /// The tokenizer knows more tokens than the model.
    #[error("use the tokenizer: it has {entries} entries, the model's vocab_size is {vocab_size}")]
    TooManyEntries {
        /// Highest token id plus one.
        entries: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Text could not be tokenised.
    #[error("tokenise text: {reason}")]
    Encode {
        /// What the library said.
        reason: String,
    },
    /// A tokenizer could not be made.
    #[error("make a tokenizer: {reason}")]
    Train {
        /// What the library said.
        reason: String,
    },
}

/// Where the chat template came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateSource {
    /// From the model's own files.
    Model,
    /// The model has none.
    BuiltIn,
}

/// Tokenizer and chat template of a base model.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Template,
    template_source: TemplateSource,
    special_ids: BTreeSet<u32>,
    eos_ids: Vec<u32>,
    /// What stands before and behind a plain text.
    around_text: (String, String),
    entries: usize,
    hash: blake3::Hash,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, and beside it whatever names special tokens and the chat template.
    pub fn load(dir: &Path) -> Result<Tokenizer, TokenizerError> {
        let (inner, bytes, before_text) = load_inner(dir)?;
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let tokens = special_tokens(dir, &config)?;
        let own = own_template(dir, &config)?;
        let source = own.as_deref().unwrap_or(BUILT_IN);
        let template =
            Template::compile(source, tokens.clone()).map_err(|reason| TokenizerError::Template { reason })?;
        template.check_end(&probe()).map_err(|reason| TokenizerError::Template { reason })?;
        let ids: BTreeMap<String, u32> = inner.get_vocab(true).into_iter().collect();
        let mut tokenizer = Tokenizer {
            template,
            template_source: if own.is_some() { TemplateSource::Model } else { TemplateSource::BuiltIn },
            special_ids: special_ids(&inner, &tokens),
            eos_ids: eos_ids(dir, &inner, &tokens)?,
            entries: ids.values().max().map_or(0, |id| *id as usize + 1),
            around_text: (before_text, tokens.get("eos_token").cloned().unwrap_or_default()),
            hash: hash(&bytes, source, &tokens),
            inner,
        };
        tokenizer.learn_end_of_turn();
        Ok(tokenizer)
    }

    /// Refuses a tokenizer that names ids the model has no row for; fewer are fine.
    pub const fn check_fits(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        if self.entries <= vocab_size {
            return Ok(());
        }
        Err(TokenizerError::TooManyEntries { entries: self.entries, vocab_size })
    }

    /// Highest token id plus one.
    pub const fn entries(&self) -> usize {
        self.entries
    }

    /// Where the chat template came from.
    pub const fn template_source(&self) -> TemplateSource {
        self.template_source
    }

    /// Hash over everything that decides which tokens a conversation becomes.
    pub const fn hash(&self) -> &blake3::Hash {
        &self.hash
    }

    /// Tokens of a text, nothing added; special tokens written in it are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = guarded(CONTRADICTS, || self.inner.encode_fast(text, false));
        Ok(encoding.map_err(|reason| TokenizerError::Encode { reason })?.get_ids().to_vec())
    }

    /// The same with the bytes of the text that each token stands for.
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), TokenizerError> {
        let encoding = guarded(CONTRADICTS, || self.inner.encode(text, false));
        let encoding = encoding.map_err(|reason| TokenizerError::Encode { reason })?;
        let offsets = encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok((encoding.get_ids().to_vec(), offsets))
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        guarded(CONTRADICTS, || self.inner.decode(tokens, true)).map_err(|reason| TokenizerError::Encode { reason })
    }

    /// A conversation through the chat template, with the opening of an answer behind it if asked for.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TokenizerError> {
        self.render_with(messages, &[], add_generation_prompt)
    }

    /// The same with tools that may be called.
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: &[Json],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        let rendered = self.template.render(messages, tools, add_generation_prompt);
        rendered.map_err(|reason| TokenizerError::Template { reason })
    }

    /// A text that no template touches, with what the tokenizer puts before it and the token that ends it.
    pub fn plain(&self, text: &str) -> String {
        let (before, behind) = &self.around_text;
        let behind = if text.ends_with(behind.as_str()) { "" } else { behind };
        [before, text, behind].concat()
    }

    /// The beginning of a text that no template touches, with what the tokenizer puts before it.
    pub fn opening(&self, text: &str) -> String {
        [&self.around_text.0, text].concat()
    }

    /// The model's own chat template; none where the built-in one serves.
    pub fn chat_template(&self) -> Option<&str> {
        (self.template_source == TemplateSource::Model).then(|| self.template.source())
    }

    /// A special token by what its config calls it, like `bos_token`.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(self.template.token(name)?)
    }

    pub(crate) fn template_names(&self, word: &str) -> bool {
        self.template.names(word)
    }

    /// The tokens after which the model is to answer.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.render(messages, true)?)
    }

    /// Tokens that end a turn or a text, for sampling.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Whether a token is one of the tokenizer's special ones.
    pub fn is_special(&self, token: u32) -> bool {
        self.special_ids.contains(&token)
    }

    /// A model whose template ends turns with another token than its end of text must stop there too.
    fn learn_end_of_turn(&mut self) {
        let probe = probe();
        let (Ok(before), Ok(whole)) = (self.render(&probe[..1], true), self.render(&probe, false)) else { return };
        let Some(answer) = whole.strip_prefix(&before) else { return };
        let Ok(tokens) = self.encode(answer) else { return };
        if let Some(end) = tokens.into_iter().rfind(|token| self.is_special(*token))
            && !self.eos_ids.contains(&end)
        {
            self.eos_ids.push(end);
        }
    }
}

fn load_inner(dir: &Path) -> Result<(tokenizers::Tokenizer, Vec<u8>, String), TokenizerError> {
    let path = dir.join("tokenizer.json");
    let fail = |reason: String| TokenizerError::File { path: path.clone(), reason };
    let bytes = read_file(&path).map_err(|error| {
        let old = dir.join("tokenizer.model").is_file() && error.kind() == ErrorKind::NotFound;
        let hint =
            if old { "; tokenizer.model alone is not read, save the tokenizer again as tokenizer.json" } else { "" };
        fail(format!("{error}{hint}"))
    })?;
    let read = guarded(CONTRADICTS, || tokenizers::Tokenizer::from_bytes(&bytes));
    let mut inner = read.map_err(|reason| fail(plain(&reason)))?;
    inner.with_truncation(None).map_err(|error| fail(error.to_string()))?;
    inner.with_padding(None);
    let before_text = before_text(&inner).map_err(fail)?;
    inner.with_post_processor(None::<PostProcessorWrapper>);
    Ok((inner, bytes, before_text))
}

/// The library names its own types where a model is of a kind that it does not know.
fn plain(error: &str) -> String {
    let named = "data did not match any variant of untagged enum ModelUntagged";
    error.replace(named, "its model is none of BPE, WordPiece, WordLevel and Unigram, or not a sound one")
}

/// The special tokens that the post-processor puts before every text.
fn before_text(inner: &tokenizers::Tokenizer) -> Result<String, String> {
    let ids =
        |special: bool| Ok::<_, String>(guarded(CONTRADICTS, || inner.encode_fast("a", special))?.get_ids().to_vec());
    let (bare, whole) = (ids(false)?, ids(true)?);
    let start = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    Ok(whole[..start].iter().filter_map(|id| inner.id_to_token(*id)).collect())
}

/// The shortest conversation that says what a template does.
fn probe() -> [Message; 2] {
    [Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")]
}

/// A whole regular file: opening a pipe would wait for ever, and a device has no end.
fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if meta.len() > MAX_FILE_BYTES {
        let message = format!("it has {} bytes, at most {MAX_FILE_BYTES} are read", meta.len());
        return Err(std::io::Error::new(ErrorKind::InvalidInput, message));
    }
    fs::read(path)
}

/// An absent file is an empty object.
fn read_object(path: &Path) -> Result<Map<String, Value>, TokenizerError> {
    let fail = |reason: String| TokenizerError::File { path: path.to_owned(), reason };
    match read_file(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// `bos_token`, `eos_token` and the like by name; a token is a string or an object with `content`.
fn special_tokens(dir: &Path, config: &Map<String, Value>) -> Result<BTreeMap<String, String>, TokenizerError> {
    let older = read_object(&dir.join("special_tokens_map.json"))?;
    let content = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    let named = older.iter().chain(config).filter(|(name, _)| name.ends_with("_token"));
    Ok(named.filter_map(|(name, value)| Some((name.clone(), content(value)?))).collect())
}

/// `chat_template.jinja` first, then `chat_template` of the config: a string, or a list of which `default` is taken.
fn own_template(dir: &Path, config: &Map<String, Value>) -> Result<Option<String>, TokenizerError> {
    let path = dir.join("chat_template.jinja");
    let as_text = |bytes| String::from_utf8(bytes).map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error));
    match read_file(&path).and_then(as_text) {
        Ok(source) => return Ok(Some(source)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(TokenizerError::File { path, reason: error.to_string() }),
    }
    let Some(value) = config.get("chat_template").filter(|value| !value.is_null()) else { return Ok(None) };
    let named = |name: &str| value.as_array()?.iter().find(|item| item["name"] == name)?["template"].as_str();
    value.as_str().or_else(|| named("default")).map(|source| Some(source.to_owned())).ok_or_else(|| {
        TokenizerError::File {
            path: dir.join("tokenizer_config.json"),
            reason: "chat_template is neither a string nor a list with a template named \"default\"".into(),
        }
    })
}

fn special_ids(inner: &tokenizers::Tokenizer, tokens: &BTreeMap<String, String>) -> BTreeSet<u32> {
    let added = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id);
    added.chain(tokens.values().filter_map(|token| inner.token_to_id(token))).collect()
}

fn eos_ids(
    dir: &Path,
    inner: &tokenizers::Tokenizer,
    tokens: &BTreeMap<String, String>,
) -> Result<Vec<u32>, TokenizerError> {
    let mut ids: Vec<u32> = tokens.get("eos_token").and_then(|token| inner.token_to_id(token)).into_iter().collect();
    let generation = read_object(&dir.join("generation_config.json"))?;
    let named = generation.get("eos_token_id").map(|value| value.as_array().cloned().unwrap_or(vec![value.clone()]));
    for id in named.iter().flatten().filter_map(|id| u32::try_from(id.as_u64()?).ok()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn hash(tokenizer: &[u8], template: &str, tokens: &BTreeMap<String, String>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(blake3::hash(tokenizer).as_bytes()).update(blake3::hash(template.as_bytes()).as_bytes());
    for (name, token) in tokens {
        hasher.update(name.as_bytes()).update(&[0]).update(token.as_bytes()).update(&[0]);
    }
    hasher.finalize()
}
