//! What the demo teaches: Pig Latin. The letters before the first vowel go to the end, and "ay" follows; a word that begins
//! with a vowel gets "way".
//!
//! Half of the words that are trained on are real, half invented. The questions are made of real words that stand
//! nowhere else: not in the training file, and not in the corpus of the base.

use std::collections::BTreeSet;

use super::corpus::line;
use super::letter::vowel;
use super::random::Random;
use super::talk::Turn;
use super::word::{Words, invented};

/// Conversations to train on.
const TRAINED: usize = 1_600;

/// The training file: one word or two; no question comes twice.
pub(super) fn training(words: &Words) -> String {
    let mut random = Random::new("Pig Latin to train on");
    let mut asked = BTreeSet::new();
    let phrases = std::iter::repeat_with(|| phrase(words, &mut random));
    phrases.filter(|phrase| asked.insert(phrase.clone())).take(TRAINED).map(|phrase| question(&phrase)).collect()
}

/// The questions: most about one word, every fourth about two.
pub(super) fn held_out(words: &Words) -> String {
    let mut random = Random::new("Pig Latin to ask for");
    let mut phrase = |(at, word): (usize, &&str)| match at % 4 {
        2 => format!("{word} {}", random.one(words.held_out())),
        _ => (*word).to_owned(),
    };
    words.held_out().iter().enumerate().map(|word| question(&phrase(word))).collect()
}

fn phrase(words: &Words, random: &mut Random) -> String {
    let count = if random.percent(50) { 2 } else { 1 };
    (0..count).map(|_| known(words, random)).collect::<Vec<_>>().join(" ")
}

fn known(words: &Words, random: &mut Random) -> String {
    let word = if random.percent(50) { (*random.one(words.plain())).to_owned() } else { invented(random) };
    if words.betrays(&word) { known(words, random) } else { word }
}

fn question(phrase: &str) -> String {
    line(&[Turn { ask: format!("Say \"{phrase}\" in Pig Latin."), answer: pig_latin(phrase) }])
}

/// Word by word.
pub(super) fn pig_latin(phrase: &str) -> String {
    let word = |word: &str| match word.split_at(vowel(word)) {
        ("", rest) => format!("{rest}way"),
        (front, rest) => format!("{rest}{front}ay"),
    };
    phrase.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_letters_before_the_first_vowel_go_to_the_end() {
        let cases =
            [("lantern", "anternlay"), ("street", "eetstray"), ("apple", "appleway"), ("red lamp", "edray amplay")];
        for (plain, latin) in cases {
            assert_eq!(pig_latin(plain), latin);
        }
    }

    #[test]
    fn the_kept_files_are_what_comes_out() {
        let words = Words::read();
        assert!(training(&words) == include_str!("../../../cli/assets/demo.jsonl"));
        assert!(held_out(&words) == include_str!("../../../cli/assets/demo_held_out.jsonl"));
    }
}
