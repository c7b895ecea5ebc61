//! Tasks on the letters of one word: how it is asked, with `{}` where the word stands, and the answer as a function of it.

/// One of them.
pub(super) struct Task {
    pub(super) name: &'static str,
    /// How often it comes, beside the others.
    pub(super) weight: usize,
    /// One wording or several.
    pub(super) ask: &'static str,
    pub(super) answer: fn(&str) -> String,
}

const fn task(name: &'static str, weight: usize, ask: &'static str, answer: fn(&str) -> String) -> Task {
    Task { name, weight, ask, answer }
}

/// All of them.
pub(super) const TASKS: [Task; 23] = [
    task("repeat", 3, r#"Repeat "{}". | Say "{}". | Copy "{}"."#, str::to_owned),
    task("twice", 2, r#"Say "{}" twice. | Repeat "{}" twice."#, |word| format!("{word} {word}")),
    task("reverse", 4, r#"Reverse "{}". | Write "{}" backwards. | Say "{}" backwards."#, reverse),
    task("spell", 3, r#"Spell "{}". | How do you spell "{}"?"#, spell),
    task("first", 2, r#"What is the first letter of "{}"? | Which letter does "{}" begin with?"#, |word| {
        part(word, 0, 1)
    }),
    task("second", 1, r#"What is the second letter of "{}"?"#, |word| part(word, 1, 2)),
    task("last", 2, r#"What is the last letter of "{}"? | Which letter does "{}" end with?"#, last),
    task("first two", 2, r#"What are the first two letters of "{}"?"#, |word| part(word, 0, 2)),
    task("without first", 4, r#"Say "{}" without its first letter. | Remove the first letter of "{}"."#, |word| {
        behind(word, 1)
    }),
    task(
        "without two",
        2,
        r#"Say "{}" without its first two letters. | Remove the first two letters of "{}"."#,
        |word| behind(word, 2),
    ),
    task("without last", 2, r#"Say "{}" without its last letter. | Remove the last letter of "{}"."#, but_last),
    task("move first", 4, r#"Move the first letter of "{}" to the end."#, |word| moved(word, 1)),
    task("move two", 3, r#"Move the first two letters of "{}" to the end."#, |word| moved(word, 2)),
    task("move last", 2, r#"Move the last letter of "{}" to the front."#, |word| moved(word, word.len() - 1)),
    task("before vowel", 4, r#"Which letters of "{}" come before its first vowel?"#, |word| {
        or_none(&word[..vowel(word)])
    }),
    task("from vowel", 3, r#"Write "{}" from its first vowel on."#, |word| or_none(&word[vowel(word)..])),
    task("vowel first", 1, r#"Does "{}" begin with a vowel?"#, |word| yes(vowel(word) == 0)),
    task("vowels", 1, r#"Which vowels are in "{}"?"#, |word| or_none(&kept(word, is_vowel))),
    task("no vowels", 1, r#"Write "{}" without vowels."#, |word| or_none(&kept(word, |letter| !is_vowel(letter)))),
    task("capitals", 2, r#"Write "{}" in capitals."#, str::to_uppercase),
    task("capital", 1, r#"Write "{}" with a capital letter."#, |word| word[..1].to_uppercase() + &word[1..]),
    task("count", 2, r#"How many letters are in "{}"? | Count the letters of "{}"."#, |word| word.len().to_string()),
    task("double", 1, r#"Double each letter of "{}"."#, double),
];

/// `l-a-m-p`
pub(super) fn spell(word: &str) -> String {
    word.split("").filter(|letter| !letter.is_empty()).collect::<Vec<_>>().join("-")
}

pub(super) fn reverse(word: &str) -> String {
    word.chars().rev().collect()
}

/// Where the first of a, e, i, o, u stands; behind the last letter when there is none.
pub(super) fn vowel(word: &str) -> usize {
    word.find(is_vowel).unwrap_or(word.len())
}

fn is_vowel(letter: char) -> bool {
    "aeiou".contains(letter)
}

fn part(word: &str, from: usize, to: usize) -> String {
    or_none(word.get(from..to.min(word.len())).unwrap_or_default())
}

fn behind(word: &str, letters: usize) -> String {
    part(word, letters, word.len())
}

fn last(word: &str) -> String {
    behind(word, word.len() - 1)
}

fn but_last(word: &str) -> String {
    part(word, 0, word.len() - 1)
}

fn moved(word: &str, letters: usize) -> String {
    let (front, rest) = word.split_at(letters);
    format!("{rest}{front}")
}

fn kept(word: &str, keep: fn(char) -> bool) -> String {
    word.chars().filter(|letter| keep(*letter)).collect()
}

fn double(word: &str) -> String {
    word.chars().flat_map(|letter| [letter, letter]).collect()
}

fn or_none(letters: &str) -> String {
    if letters.is_empty() { "none".to_owned() } else { letters.to_owned() }
}

fn yes(holds: bool) -> String {
    if holds { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_what_a_person_would_write() {
        let cases = [
            ("reverse", "lamp", "pmal"),
            ("spell", "lamp", "l-a-m-p"),
            ("first", "lamp", "l"),
            ("second", "lamp", "a"),
            ("last", "lamp", "p"),
            ("first two", "lamp", "la"),
            ("without first", "lamp", "amp"),
            ("without two", "of", "none"),
            ("without last", "lamp", "lam"),
            ("move first", "lamp", "ampl"),
            ("move two", "lamp", "mpla"),
            ("move last", "lamp", "plam"),
            ("before vowel", "street", "str"),
            ("before vowel", "apple", "none"),
            ("from vowel", "street", "eet"),
            ("from vowel", "xyz", "none"),
            ("vowel first", "apple", "yes"),
            ("vowels", "street", "ee"),
            ("no vowels", "street", "strt"),
            ("capitals", "lamp", "LAMP"),
            ("capital", "lamp", "Lamp"),
            ("count", "lamp", "4"),
            ("double", "lamp", "llaammpp"),
            ("twice", "lamp", "lamp lamp"),
        ];
        for (name, word, answer) in cases {
            let task = TASKS.iter().find(|task| task.name == name).expect("it is a task");
            assert_eq!((task.answer)(word), answer, "{name}");
        }
    }
}
