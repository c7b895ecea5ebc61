//! The corpus that the base is trained on: conversations of one to three turns, each turn one task, drawn by weight.

use serde_json::Value;

use super::random::Random;
use super::talk::Turn;
use super::word::Words;
use super::{letter, phrase, talk};

/// A task of any kind.
#[derive(Clone, Copy)]
enum Task {
    Letter(&'static letter::Task),
    Phrase(&'static phrase::Task),
    Talk(&'static talk::Task),
}

/// `count` conversations, one a line.
pub(super) fn lines(count: usize, words: &Words) -> String {
    let (mut random, tasks) = (Random::new("corpus"), by_weight());
    let mut conversation = || {
        let turns = [1, 1, 1, 2, 3][random.below(5)];
        let turns: Vec<_> = (0..turns).map(|_| tasks[random.below(tasks.len())].turn(words, &mut random)).collect();
        line(&turns)
    };
    (0..count).map(|_| conversation()).collect()
}

/// For every task a file of questions, drawn apart from the corpus.
pub(super) fn questions(count: usize, words: &Words) -> Vec<(&'static str, String)> {
    let of = |task: Task| {
        let mut random = Random::new(&format!("questions: {}", task.name()));
        (task.name(), (0..count).map(|_| line(&[task.turn(words, &mut random)])).collect())
    };
    all().map(of).collect()
}

/// One conversation as a line of JSON.
pub(super) fn line(turns: &[Turn]) -> String {
    let message = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": {}}}"#, Value::from(text));
    let pair = |turn: &Turn| [message("user", &turn.ask), message("assistant", &turn.answer)].join(", ");
    let messages: Vec<String> = turns.iter().map(pair).collect();
    format!("{{\"messages\": [{}]}}\n", messages.join(", "))
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Self::Letter(task) => task.name,
            Self::Phrase(task) => task.name,
            Self::Talk(task) => task.name,
        }
    }

    fn weight(self) -> usize {
        match self {
            Self::Letter(task) => task.weight,
            Self::Phrase(task) => task.weight,
            Self::Talk(task) => task.weight,
        }
    }

    /// One question of it, in which no word stands that is held out.
    fn turn(self, words: &Words, random: &mut Random) -> Turn {
        let turn = self.any_turn(words, random);
        if words.betrays(&turn.ask) || words.betrays(&turn.answer) { self.turn(words, random) } else { turn }
    }

    fn any_turn(self, words: &Words, random: &mut Random) -> Turn {
        match self {
            Self::Letter(task) => {
                let word = words.any(random);
                Turn { ask: wording(task.ask, random).replace("{}", &word), answer: (task.answer)(&word) }
            }
            Self::Phrase(task) => {
                let phrase: Vec<String> = (0..random.between(2, task.most)).map(|_| words.any(random)).collect();
                let phrase: Vec<&str> = phrase.iter().map(String::as_str).collect();
                Turn { ask: wording(task.ask, random).replace("{}", &phrase.join(" ")), answer: (task.answer)(&phrase) }
            }
            Self::Talk(task) => (task.make)(words, random),
        }
    }
}

/// One of those that a task lists.
fn wording(ask: &'static str, random: &mut Random) -> &'static str {
    random.one(&ask.split(" | ").collect::<Vec<_>>())
}

fn all() -> impl Iterator<Item = Task> {
    let letters = letter::TASKS.iter().map(Task::Letter);
    letters.chain(phrase::TASKS.iter().map(Task::Phrase)).chain(talk::TASKS.iter().map(Task::Talk))
}

/// Each task as often as it weighs.
fn by_weight() -> Vec<Task> {
    all().flat_map(|task| std::iter::repeat_n(task, task.weight())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo_base::CONVERSATIONS;
    use crate::demo_base::card::fingerprint;
    use crate::demo_base::latin;

    /// Enough for every task to come often.
    const MANY: usize = 4_000;

    #[test]
    fn the_corpus_is_the_same_every_time() {
        let words = Words::read();
        assert_eq!(lines(MANY, &words), lines(MANY, &Words::read()));
        assert!(lines(2 * MANY, &words).starts_with(&lines(MANY, &words)), "a longer one begins with it");
    }

    #[test]
    fn the_kept_base_was_made_from_this_corpus() {
        let card = include_str!("../../../cli/assets/base/README.md");
        let corpus = fingerprint(lines(CONVERSATIONS, &Words::read()).as_bytes());
        assert!(card.contains(&corpus), "`cargo xtask demo-base` makes another base, from {corpus}");
    }

    #[test]
    fn nothing_in_it_is_pig_latin() {
        let pairs = pairs(&lines(MANY, &Words::read()));
        for (ask, answer) in &pairs {
            assert!(!ask.to_lowercase().contains("pig latin"), "{ask}");
            let mut quoted = ask.split('"').skip(1).step_by(2);
            assert!(quoted.all(|phrase| latin::pig_latin(phrase) != *answer), "{ask} {answer}");
        }
        assert!(pairs.len() > MANY);
    }

    #[test]
    fn no_word_that_is_held_out_stands_in_anything_that_is_trained_on() {
        let words = Words::read();
        let (corpus, demo, asked) = (lines(MANY, &words), latin::training(&words), latin::held_out(&words));
        let said = |text: &str| pairs(text).into_iter().flat_map(|(ask, answer)| [ask, answer]).collect::<Vec<_>>();
        assert!(said(&corpus).iter().chain(&said(&demo)).all(|text| !words.betrays(text)));
        assert!(said(&asked).iter().step_by(2).all(|text| words.betrays(text)), "the questions are about them");
    }

    #[test]
    fn every_task_has_questions_that_it_can_answer() {
        for (task, text) in questions(20, &Words::read()) {
            let pairs = pairs(&text);
            assert!(pairs.len() == 20 && pairs.iter().all(|(_, answer)| !answer.is_empty()), "{task}");
        }
    }

    fn pairs(text: &str) -> Vec<(String, String)> {
        let messages = |line| serde_json::from_str::<Value>(line).unwrap()["messages"].as_array().unwrap().clone();
        let text_of = |message: &Value| message["content"].as_str().unwrap().to_owned();
        let pair = |pair: &[Value]| (text_of(&pair[0]), text_of(&pair[1]));
        text.lines().flat_map(|line| messages(line).chunks(2).map(pair).collect::<Vec<_>>()).collect()
    }
}
