//! Tasks on the words of a short phrase: how it is asked, with `{}` where the phrase stands, and the answer as a function of it.
//! Long answers to copy come first and often: from them a model of random numbers learns to look back at all.

use super::letter::{reverse, spell};

/// One of them.
pub(super) struct Task {
    pub(super) name: &'static str,
    /// How often it comes, beside the others.
    pub(super) weight: usize,
    /// Words of the phrase at most; at least there are two.
    pub(super) most: usize,
    /// One wording or several.
    pub(super) ask: &'static str,
    pub(super) answer: fn(&[&str]) -> String,
}

const fn task(
    name: &'static str,
    (weight, most): (usize, usize),
    ask: &'static str,
    answer: fn(&[&str]) -> String,
) -> Task {
    Task { name, weight, most, ask, answer }
}

/// All of them.
pub(super) const TASKS: [Task; 11] = [
    task("repeat words", (8, 7), r#"Repeat "{}". | Say "{}"."#, |words| words.join(" ")),
    task("first word", (1, 3), r#"What is the first word of "{}"?"#, |words| words[0].to_owned()),
    task("second word", (2, 3), r#"What is the second word of "{}"? | Which word is second in "{}"?"#, second),
    task("last word", (1, 3), r#"What is the last word of "{}"?"#, |words| words[words.len() - 1].to_owned()),
    task("turn words", (3, 4), r#"Reverse the order of the words in "{}"."#, turned),
    task("spell words", (2, 3), r#"Spell "{}"."#, |words| each(words, spell)),
    task("join words", (1, 3), r#"Write "{}" as one word."#, |words| words.concat()),
    task("count words", (1, 3), r#"How many words are in "{}"?"#, |words| words.len().to_string()),
    task("shorten words", (4, 4), r#"Remove the first letter of each word in "{}"."#, |words| each(words, shortened)),
    task("turn letters", (1, 3), r#"Reverse each word in "{}"."#, |words| each(words, reverse)),
    task("move letters", (3, 3), r#"Move the first letter of each word in "{}" to its end."#, |words| {
        each(words, moved)
    }),
];

fn each(words: &[&str], change: fn(&str) -> String) -> String {
    words.iter().map(|word| change(word)).collect::<Vec<_>>().join(" ")
}

fn second(words: &[&str]) -> String {
    words[1].to_owned()
}

fn turned(words: &[&str]) -> String {
    words.iter().rev().copied().collect::<Vec<_>>().join(" ")
}

fn shortened(word: &str) -> String {
    word[1..].to_owned()
}

fn moved(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    format!("{rest}{first}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_what_a_person_would_write() {
        let cases = [
            ("repeat words", "red old lamp"),
            ("first word", "red"),
            ("second word", "old"),
            ("last word", "lamp"),
            ("turn words", "lamp old red"),
            ("spell words", "r-e-d o-l-d l-a-m-p"),
            ("join words", "redoldlamp"),
            ("count words", "3"),
            ("shorten words", "ed ld amp"),
            ("turn letters", "der dlo pmal"),
            ("move letters", "edr ldo ampl"),
        ];
        for (name, answer) in cases {
            let task = TASKS.iter().find(|task| task.name == name).expect("it is a task");
            assert_eq!((task.answer)(&["red", "old", "lamp"]), answer, "{name}");
        }
    }
}
