//! From a file to examples by index: read, encode on all cores, cache, split by conversation.
//!
//! The cache holds the whole file in order and does not depend on seed or split, so another split costs nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cache::Entry;
use crate::memo::content_hash;
use crate::pipeline::{Outcome, Pipeline};
use crate::split::split;
use crate::{
    CacheWriter, Cut, DatasetError, Encoder, Example, Faults, Filters, Format, Supervise, TokenCache, Tokenizer,
};

/// Goes up whenever the same file, tokenizer and settings would become other tokens than before.
const RULES_VERSION: u32 = 3;

/// What happens when a record is at fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFault {
    /// The dataset is refused, with every fault named.
    #[default]
    Refuse,
    /// The record is left out and counted.
    Skip,
}

/// Everything that decides which examples come out.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareConfig {
    /// The dataset.
    pub file: PathBuf,
    /// A second file to validate on, instead of a part of the first.
    pub validation_file: Option<PathBuf>,
    /// Share of conversations to validate on; 0 for none.
    pub validation_fraction: f64,
    /// The longest example, in tokens.
    pub max_seq_length: usize,
    /// Which tokens are targets.
    pub supervise: Supervise,
    /// Decides the split.
    pub seed: u64,
    /// Which records are used.
    pub filters: Filters,
    /// What happens to faulty ones.
    pub on_fault: OnFault,
    /// Where token caches are kept.
    pub cache_dir: PathBuf,
}

impl PrepareConfig {
    /// A job's defaults for that file.
    pub fn new(file: &Path, cache_dir: &Path) -> PrepareConfig {
        PrepareConfig {
            file: file.to_owned(),
            validation_file: None,
            validation_fraction: 0.1,
            max_seq_length: 2048,
            supervise: Supervise::Assistant,
            seed: 42,
            filters: Filters::default(),
            on_fault: OnFault::Refuse,
            cache_dir: cache_dir.to_owned(),
        }
    }
}

/// How far preparing has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the file read.
    pub bytes: u64,
    /// Bytes of the file.
    pub total_bytes: u64,
    /// Examples made.
    pub examples: u64,
}

/// Examples in two parts that share no conversation.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// To train on.
    pub train: Examples,
    /// To validate on; may be empty.
    pub validation: Examples,
    /// What was done.
    pub report: PrepareReport,
}

/// What preparing did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareReport {
    /// The format found.
    pub format: Format,
    /// Conversations with at least one example.
    pub conversations: u64,
    /// Of them, to train on.
    pub train_conversations: u64,
    /// Of them, to validate on.
    pub validation_conversations: u64,
    /// Tokens of all training examples.
    pub train_tokens: u64,
    /// Targets among them.
    pub train_supervised_tokens: u64,
    /// Tokens of all validation examples.
    pub validation_tokens: u64,
    /// The longest example of all.
    pub longest_example: u64,
    /// What was cut to fit.
    pub cut: CutTotal,
    /// Examples left out because of faults (only when those are skipped).
    pub skipped: u64,
    /// Records left out by filters.
    pub filtered: u64,
    /// Worth knowing, not wrong.
    pub warnings: Vec<String>,
    /// BLAKE3 of the training file.
    #[serde(default)]
    pub file_hash: String,
    /// And of the file to validate on, if there is one.
    #[serde(default)]
    pub validation_file_hash: Option<String>,
    /// Hash over the file, the tokenizer and every setting that decides the examples and their split.
    pub fingerprint: String,
}

/// What was cut, over all examples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutTotal {
    /// Examples that lost something.
    pub examples: u64,
    /// Messages dropped.
    pub messages: u64,
    /// Tokens dropped.
    pub tokens: u64,
}

impl CutTotal {
    pub(crate) fn add(&mut self, cut: Cut) {
        self.examples += u64::from(cut != Cut::default());
        self.messages += u64::from(cut.messages);
        self.tokens += u64::from(cut.tokens);
    }
}

/// One side of a split: examples by index, read from the cache when asked for.
#[derive(Debug, Clone)]
pub struct Examples {
    cache: Arc<TokenCache>,
    numbers: Arc<[u32]>,
}

impl Examples {
    pub(crate) fn new(cache: Arc<TokenCache>, numbers: Vec<u32>) -> Examples {
        Examples { cache, numbers: numbers.into() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// One example; an error when its tokens on disk are damaged.
    ///
    /// # Panics
    /// When `index` is not below [`Examples::len`].
    pub fn get(&self, index: usize) -> Result<Example, DatasetError> {
        self.cache.example(self.numbers[index] as usize)
    }

    /// Its number of tokens, without reading it.
    pub fn tokens_in(&self, index: usize) -> usize {
        self.entry(index).tokens as usize
    }

    /// Its number of targets, without reading it.
    pub fn supervised_in(&self, index: usize) -> usize {
        self.entry(index).supervised as usize
    }

    /// Its ordinal in the whole file; names it in dropout keys and messages.
    pub fn id(&self, index: usize) -> u64 {
        u64::from(self.numbers[index])
    }

    /// Tokens of the longest one; 0 when there is none.
    pub fn longest(&self) -> usize {
        (0..self.len()).map(|index| self.tokens_in(index)).max().unwrap_or(0)
    }

    fn entry(&self, index: usize) -> Entry {
        self.cache.entry(self.numbers[index] as usize)
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.len()).map(|index| self.entry(index))
    }

    /// How many different conversations they are of.
    fn conversations(&self) -> u64 {
        let mut seen = Vec::new();
        for entry in self.entries() {
            let ordinal = entry.conversation as usize;
            if seen.len() <= ordinal {
                seen.resize(ordinal + 1, false);
            }
            seen[ordinal] = true;
        }
        seen.into_iter().filter(|seen| *seen).count() as u64
    }

    fn names(&self) -> HashSet<[u8; 16]> {
        self.entries().map(|entry| entry.name).collect()
    }
}

/// Prepares a dataset. `progress` is called now and then; `stop` is looked at as often and ends the work.
pub fn prepare(
    config: &PrepareConfig,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Prepared, DatasetError> {
    let mut open = |file: &Path| Source::open(config, file, tokenizer, progress, stop);
    let train = open(&config.file)?;
    let validation = config.validation_file.as_deref().map(&mut open).transpose()?;
    let (examples, validation_examples) = match &validation {
        Some(source) => (train.all(), source.all()),
        None => {
            let (train_side, held_out) = split(train.cache.entries(), config.validation_fraction, config.seed);
            let train_side = Examples::new(Arc::clone(&train.cache), train_side);
            (train_side, Examples::new(Arc::clone(&train.cache), held_out))
        }
    };
    if examples.is_empty() {
        return Err(DatasetError::Empty { path: config.file.clone() });
    }
    let report = report(config, &train, validation.as_ref(), &examples, &validation_examples);
    Ok(Prepared { train: examples, validation: validation_examples, report })
}

/// What the cache notes of how it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Notes {
    format: Format,
    warnings: Vec<String>,
    skipped: u64,
    filtered: u64,
}

/// One file's examples.
struct Source {
    cache: Arc<TokenCache>,
    notes: Notes,
    /// Of the file's bytes.
    content: blake3::Hash,
    fingerprint: blake3::Hash,
}

impl Source {
    /// From its cache when there is a sound one, else by reading it.
    fn open(
        config: &PrepareConfig,
        file: &Path,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(Progress),
        stop: &dyn Fn() -> bool,
    ) -> Result<Source, DatasetError> {
        let content = content_hash(file, &config.cache_dir)?;
        let fingerprint = fingerprint(config, &content, tokenizer);
        let path = config.cache_dir.join(format!("{}.tokens", &fingerprint.to_hex()[..32]));
        let cache = match TokenCache::open(&path) {
            Ok(cache) => cache,
            // absent or damaged: made again, and then it replaces what stands there
            Err(_) => build(config, file, tokenizer, &path, progress, stop)?,
        };
        let notes = serde_json::from_value(cache.notes().clone())
            .map_err(|error| DatasetError::Damaged { path, reason: format!("the notes are broken: {error}") })?;
        Ok(Source { cache: Arc::new(cache), notes, content, fingerprint })
    }

    fn all(&self) -> Examples {
        let len = u32::try_from(self.cache.len()).expect("a cache is built with fewer examples");
        Examples::new(Arc::clone(&self.cache), (0..len).collect())
    }
}

fn build(
    config: &PrepareConfig,
    file: &Path,
    tokenizer: &Tokenizer,
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<TokenCache, DatasetError> {
    let encoder = Encoder { tokenizer, supervise: config.supervise, max_seq_length: config.max_seq_length };
    let pipeline = Pipeline { path: file, encoder: Some(encoder), filters: &config.filters, stop };
    let mut writer = CacheWriter::create(cache)?;
    let (mut faults, mut filtered) = (Faults::default(), 0);
    let summary = pipeline.run(progress, &mut |outcome| {
        match outcome {
            // the first fault refuses the dataset: the rest is read for its faults, not for its tokens
            Outcome::Example(_, example) if faults.is_empty() || config.on_fault == OnFault::Skip => {
                writer.push(&example)?;
            }
            Outcome::Example(..) | Outcome::NoTarget(..) => {}
            Outcome::Filtered(..) => filtered += 1,
            Outcome::Fault(fault) => faults.push(fault),
        }
        Ok(())
    })?;
    if !faults.is_empty() && config.on_fault == OnFault::Refuse {
        return Err(DatasetError::Faulty { path: file.to_owned(), faults: faults.concluded() });
    }
    if writer.is_empty() {
        return Err(DatasetError::Empty { path: file.to_owned() });
    }
    if writer.len() > u64::from(u32::MAX) {
        return Err(DatasetError::TooMany { path: file.to_owned(), examples: writer.len() });
    }
    let notes = Notes { format: summary.format, warnings: summary.warnings, skipped: faults.count, filtered };
    writer.finish(&serde_json::to_value(notes).expect("plain data is always JSON"))
}

/// Everything that decides the tokens of a file; neither seed nor split do.
fn fingerprint(config: &PrepareConfig, content: &blake3::Hash, tokenizer: &Tokenizer) -> blake3::Hash {
    let settings = (RULES_VERSION, config.max_seq_length, config.supervise, &config.filters, config.on_fault);
    let settings = serde_json::to_vec(&settings).expect("plain data is always JSON");
    let mut hasher = blake3::Hasher::new();
    hasher.update(content.as_bytes()).update(tokenizer.hash().as_bytes()).update(&settings);
    hasher.finalize()
}

fn report(
    config: &PrepareConfig,
    train: &Source,
    validation: Option<&Source>,
    examples: &Examples,
    held_out: &Examples,
) -> PrepareReport {
    let mut cut = CutTotal::default();
    examples.entries().chain(held_out.entries()).for_each(|entry| cut.add(entry.cut));
    let both = |part: fn(&Notes) -> u64| part(&train.notes) + validation.map_or(0, |source| part(&source.notes));
    let (train_count, held_out_count) = (examples.conversations(), held_out.conversations());
    // a split of one file never parts a conversation
    let shared = validation.map_or(0, |_| examples.names().intersection(&held_out.names()).count()) as u64;
    PrepareReport {
        format: train.notes.format,
        conversations: train_count + held_out_count - shared,
        train_conversations: train_count,
        validation_conversations: held_out_count,
        train_tokens: examples.entries().map(|entry| u64::from(entry.tokens)).sum(),
        train_supervised_tokens: examples.entries().map(|entry| u64::from(entry.supervised)).sum(),
        validation_tokens: held_out.entries().map(|entry| u64::from(entry.tokens)).sum(),
        longest_example: examples.longest().max(held_out.longest()) as u64,
        cut,
        skipped: both(|notes| notes.skipped),
        filtered: both(|notes| notes.filtered),
        warnings: warnings(config, train, validation, shared, held_out),
        file_hash: train.content.to_hex().to_string(),
        validation_file_hash: validation.map(|source| source.content.to_hex().to_string()),
        fingerprint: split_fingerprint(config, train, validation),
    }
}

fn warnings(
    config: &PrepareConfig,
    train: &Source,
    validation: Option<&Source>,
    shared: u64,
    held_out: &Examples,
) -> Vec<String> {
    let mut warnings = train.notes.warnings.clone();
    warnings.extend(validation.into_iter().flat_map(|source| source.notes.warnings.clone()));
    if shared > 0 {
        warnings.push(format!("{shared} conversation(s) stand in the training file and in the validation file"));
    }
    if config.validation_fraction > 0.0 && held_out.is_empty() {
        warnings.push("there is only one conversation, so nothing is held out to validate on".into());
    }
    warnings
}

fn split_fingerprint(config: &PrepareConfig, train: &Source, validation: Option<&Source>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(train.fingerprint.as_bytes());
    match validation {
        Some(source) => hasher.update(source.fingerprint.as_bytes()),
        None => hasher.update(&config.validation_fraction.to_le_bytes()).update(&config.seed.to_le_bytes()),
    };
    hasher.finalize().to_hex().to_string()
}
