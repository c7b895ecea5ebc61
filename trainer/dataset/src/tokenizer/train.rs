//! Makes small tokenizers: byte-level BPE trained on texts, and plain bytes for models of a million parameters.
//!
//! Both write a directory that any Hugging Face loader reads: `tokenizer.json` and a `tokenizer_config.json` with ChatML.

use std::fs;
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model, TokenizerBuilder, TokenizerImpl};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::TokenizerError;

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Trains a byte-level BPE with at most `vocab_size` entries and writes it to `out_dir`; answers how many it has.
pub fn train_tokenizer<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
    out_dir: &Path,
) -> Result<usize, TokenizerError> {
    let mut tokenizer = byte_level(BPE::default(), true)?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL.map(special).to_vec())
        .build();
    tokenizer.train(&mut trainer, texts).map_err(train_error)?;
    write(&tokenizer, out_dir)
}

/// Writes the tokenizer of plain bytes: three special tokens, then one entry per byte and no merge; answers 259.
pub fn write_byte_tokenizer(out_dir: &Path) -> Result<usize, TokenizerError> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let specials = SPECIAL.iter().map(|token| (*token).to_owned());
    let entries = specials.chain(alphabet.into_iter().map(String::from));
    let vocab: Vec<(String, u32)> = entries.zip(0..).collect();
    let vocab: [(String, u32); 259] = vocab.try_into().expect("three special tokens and 256 bytes");
    let bpe = BPE::builder().vocab_and_merges(vocab, vec![]);
    let mut tokenizer = byte_level(bpe.build().map_err(train_error)?, false)?;
    tokenizer.add_special_tokens(SPECIAL.map(special)).map_err(train_error)?;
    write(&tokenizer, out_dir)
}

fn byte_level(model: BPE, use_regex: bool) -> Result<Bpe, TokenizerError> {
    let level = ByteLevel::new(false, false, use_regex);
    TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(level)))
        .with_post_processor(Some(PostProcessorWrapper::ByteLevel(level)))
        .with_decoder(Some(DecoderWrapper::ByteLevel(level)))
        .build()
        .map_err(train_error)
}

fn special(text: &str) -> AddedToken {
    AddedToken::from(text, true)
}

fn write(tokenizer: &Bpe, out_dir: &Path) -> Result<usize, TokenizerError> {
    let io = |error: std::io::Error| train_error(format!("write {}: {error}", out_dir.display()));
    fs::create_dir_all(out_dir).map_err(io)?;
    tokenizer.save(out_dir.join("tokenizer.json"), true).map_err(train_error)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 1_000_000,
        "chat_template": CHATML,
    });
    fs::write(out_dir.join("tokenizer_config.json"), format!("{config:#}\n")).map_err(io)?;
    Ok(tokenizer.get_model().get_vocab_size().max(tokenizer.get_vocab_size(true)))
}

fn train_error(error: impl ToString) -> TokenizerError {
    TokenizerError::Train { reason: error.to_string() }
}
