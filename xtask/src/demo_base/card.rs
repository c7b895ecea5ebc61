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
questions about words and letters in English: spell \"lamp\", move its first letter to the end, which day comes after Monday. Of other
tasks in the table below it has learnt only half or nothing, and of everything else nothing: no Pig Latin either, which the demo
teaches it. It is meant for trying Lorikeet out and for nothing else.

It is part of Lorikeet and under the same licence. Nobody else's text or weights went into it: `lorikeet train` made it from
random numbers and from a corpus that a generator writes from a list of common words. `cargo xtask demo-base` in Lorikeet's
repository does all of that again and ends in the same bytes, on the same kind of processor.

";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_card_says_what_a_new_one_would() {
        let kept = include_str!("../../../cli/assets/base/README.md");
        assert!(kept.starts_with(HEAD));
        let mut settings = SETTINGS.split(' ').filter(|setting| !setting.is_empty());
        assert!(settings.all(|setting| kept.contains(&format!("\n{setting}\n"))), "{SETTINGS}");
    }
}
