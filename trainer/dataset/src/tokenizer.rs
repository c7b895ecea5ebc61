//! A base model's tokenizer and chat template, read from its directory.

use std::path::{Path, PathBuf};

use thiserror::Error;

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
}

/// Tokenizer and chat template of a base model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, and beside it whatever names special tokens and the chat template.
    pub fn load(dir: &Path) -> Result<Tokenizer, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|error| TokenizerError::File { path, reason: error.to_string() })?;
        Ok(Tokenizer { inner, eos_ids: Vec::new() })
    }

    /// Refuses a tokenizer that names ids the model has no row for; fewer are fine.
    pub fn check_fits(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        let entries = self.entries();
        if entries <= vocab_size { Ok(()) } else { Err(TokenizerError::TooManyEntries { entries, vocab_size }) }
    }

    /// Highest token id plus one.
    pub fn entries(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Tokens of a text, nothing added; special tokens written in it are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|error| TokenizerError::Encode { reason: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(tokens, true).map_err(|error| TokenizerError::Encode { reason: error.to_string() })
    }

    /// Tokens that end a turn or a text, for sampling.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }
}
