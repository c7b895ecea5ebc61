//! The card of the base: what it is, how it was made, and what it can do.

use super::SETTINGS;
use super::random::hash;

/// The card, with the share of each task's questions that are answered to the letter.
pub(super) fn text(corpus: &str, scores: &[(&str, String)]) -> String {
    let rows: String = scores.iter().map(|(task, share)| format!("| {task} | {share} |\n")).collect();
    format!(
        "{HEAD}The corpus has the FNV-1a hash {}, and training was told\n\n```\n{}\n```\n\n\
         What it answers to the letter, of fifty questions for each task that were drawn apart from the corpus, always with the likeliest token:\n\n\
         | task | exact match |\n|---|---|\n{rows}",
        fingerprint(corpus.as_bytes()),
        SETTINGS.replace(' ', "\n"),
    )
}

/// What tells a file from others.
pub(super) fn fingerprint(bytes: &[u8]) -> String {
    format!("{:016x}", hash(bytes))
}

const HEAD: &str = "\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The base of `lorikeet demo`

A language model of 1.45 million parameters in the shape of a Llama, in bf16, that reads and writes bytes. It answers short
questions about words and letters in English: reverse \"lamp\", spell it, where is the cat that is in the garden. It knows nothing
else, and no Pig Latin: that is what the demo teaches it. It is meant for trying Lorikeet out and for nothing else.

It is part of Lorikeet and under the same licence. Nobody else's text or weights went into it: `lorikeet train` made it from
random numbers and from a corpus that a generator writes from a list of common words. `cargo xtask demo-base` in Lorikeet's
repository does all of that again and ends in the same bytes, on the same kind of processor.

";
