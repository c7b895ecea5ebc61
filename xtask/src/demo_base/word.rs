//! The words of the corpus: real ones from `words.txt`, invented ones and mere letters, so that what is learnt is to read
//! letters and not to know words. A part of the real ones is held out and stands in no file that anything is trained on.

use std::collections::BTreeSet;

use super::random::Random;

const LIST: &str = include_str!("words.txt");
/// The line of the words that only the demo's questions hold.
const HELD_OUT: &str = "held out";
/// Letters of a word at most.
const LONGEST: usize = 9;

const ONSETS: [&str; 40] = [
    "b", "bl", "br", "c", "ch", "cl", "cr", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h", "j", "k", "l", "m", "n",
    "p", "pl", "pr", "r", "s", "sc", "sh", "sl", "sn", "sp", "st", "str", "t", "th", "tr", "v", "w", "y", "z",
];
const VOWELS: [&str; 9] = ["a", "e", "i", "o", "u", "ea", "ee", "oa", "oo"];
const CODAS: [&str; 20] =
    ["", "", "", "b", "ck", "d", "g", "l", "m", "n", "nd", "nt", "p", "r", "rk", "s", "sh", "st", "t", "x"];

/// Every real word by kind.
pub(super) struct Words {
    kinds: Vec<(&'static str, Vec<&'static str>)>,
    plain: Vec<&'static str>,
}

impl Words {
    /// Reads the list.
    pub(super) fn read() -> Self {
        let lines = LIST.lines().filter(|line| !line.starts_with('#'));
        let kinds = lines.map(|line| line.split_once(": ").expect("a line names its kind"));
        let kinds: Vec<_> = kinds.map(|(kind, words)| (kind, words.split(' ').collect())).collect();
        let trained = kinds.iter().filter(|(kind, _)| *kind != HELD_OUT).flat_map(|(_, words): &(_, Vec<&str>)| words);
        let plain: BTreeSet<&str> = trained.copied().filter(|word| is_plain(word)).collect();
        Self { plain: plain.into_iter().collect(), kinds }
    }

    /// Real words in small letters that anything may be trained on.
    pub(super) fn plain(&self) -> &[&'static str] {
        &self.plain
    }

    /// Those that nothing is trained on.
    pub(super) fn held_out(&self) -> &[&'static str] {
        self.kind(HELD_OUT)
    }

    /// A word of that line of the list.
    pub(super) fn of(&self, kind: &str, random: &mut Random) -> &'static str {
        random.one(self.kind(kind))
    }

    /// A real word, an invented one, or letters.
    pub(super) fn any(&self, random: &mut Random) -> String {
        match random.below(10) {
            0..4 => (*random.one(&self.plain)).to_owned(),
            4..8 => invented(random),
            _ => letters(random),
        }
    }

    /// Whether a word that is held out stands in a text.
    pub(super) fn betrays(&self, text: &str) -> bool {
        text.split(|letter: char| !letter.is_ascii_alphabetic()).any(|word| self.held_out().contains(&word))
    }

    fn kind(&self, name: &str) -> &[&'static str] {
        let found = self.kinds.iter().find(|(kind, _)| *kind == name);
        &found.expect("kinds are named as the list names them").1
    }
}

/// Something that could be a word: one to three syllables.
pub(super) fn invented(random: &mut Random) -> String {
    let mut word = String::new();
    for syllable in 0..random.between(1, 3) {
        if syllable > 0 || !random.percent(20) {
            word.push_str(random.one(&ONSETS));
        }
        word.push_str(random.one(&VOWELS));
        word.push_str(random.one(&CODAS));
    }
    if (2..=LONGEST).contains(&word.len()) { word } else { invented(random) }
}

fn letters(random: &mut Random) -> String {
    (0..random.between(2, 7)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
}

fn is_plain(word: &str) -> bool {
    (3..=LONGEST).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_lowercase())
}
