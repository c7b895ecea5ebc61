//! Tasks that are not about letters: what was just said, opposites, days and months, sums, plurals, and a few words of greeting.

use super::random::Random;
use super::word::Words;

/// A question and its answer.
pub(super) struct Turn {
    pub(super) ask: String,
    pub(super) answer: String,
}

/// One of the tasks.
pub(super) struct Task {
    pub(super) name: &'static str,
    /// How often it comes, beside the others.
    pub(super) weight: usize,
    pub(super) make: fn(&Words, &mut Random) -> Turn,
}

const fn task(name: &'static str, weight: usize, make: fn(&Words, &mut Random) -> Turn) -> Task {
    Task { name, weight, make }
}

/// All of them.
pub(super) const TASKS: [Task; 12] = [
    task("where", 3, place),
    task("who", 2, owner),
    task("which colour", 2, colour),
    task("opposite", 1, opposite),
    task("day", 1, day),
    task("month", 1, month),
    task("sum", 1, sum),
    task("plural", 1, plural),
    task("letter beside", 1, letter),
    task("ending", 3, ending),
    task("join letters", 2, join),
    task("greeting", 1, greeting),
];

const COLOURS: &str = "red blue green black white brown grey yellow";
const DAYS: &str = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday";
const MONTHS: &str = "January February March April May June July August September October November December";
const OPPOSITES: &str = "big small, hot cold, up down, left right, open closed, day night, old young, fast slow, happy sad, \
    rich poor, hard soft, high low, light heavy, early late, near far, wet dry, full empty, long short, strong weak, good bad";
const ENDINGS: &str = "s ed er ing ly ness less ful ity ish est ment";
const GREETINGS: [(&str, &str); 8] = [
    ("Hello!", "Hello! How can I help?"),
    ("Good morning!", "Good morning! How can I help?"),
    ("Who are you?", "I am a small model. I know words and letters."),
    ("What can you do?", "I can spell, count and turn words around."),
    ("How are you?", "I am fine, thank you."),
    ("Thank you!", "You are welcome."),
    ("Goodbye!", "Goodbye!"),
    ("What is your name?", "I have no name. I am a small model."),
];

fn place(words: &Words, random: &mut Random) -> Turn {
    let (one, other) = (words.of("animals", random), words.of("things", random));
    let (here, there) = (words.of("places", random), words.of("places", random));
    let story = format!("The {one} is in the {here}. The {other} is in the {there}.");
    let (what, at) = if random.percent(50) { (one, here) } else { (other, there) };
    turn(format!("{story} Where is the {what}?"), format!("In the {at}."))
}

fn owner(words: &Words, random: &mut Random) -> Turn {
    let (one, other) = (words.of("names", random), words.of("names", random));
    let (this, that) = (words.of("things", random), words.of("things", random));
    let story = format!("{one} has the {this}. {other} has the {that}.");
    let (what, who) = if random.percent(50) { (this, one) } else { (that, other) };
    turn(format!("{story} Who has the {what}?"), format!("{who}."))
}

fn colour(words: &Words, random: &mut Random) -> Turn {
    let (one, other) = (word_of(COLOURS, random), word_of(COLOURS, random));
    let (this, that) = (words.of("things", random), words.of("things", random));
    let (what, is) = if random.percent(50) { (this, one) } else { (that, other) };
    turn(format!("I see a {one} {this} and a {other} {that}. Which colour is the {what}?"), is.to_owned())
}

fn opposite(_: &Words, random: &mut Random) -> Turn {
    let pairs: Vec<&str> = OPPOSITES.split(", ").collect();
    let (one, other) = random.one(&pairs).split_once(' ').expect("opposites come in pairs");
    let (one, other) = if random.percent(50) { (one, other) } else { (other, one) };
    turn(format!("What is the opposite of \"{one}\"?"), other.to_owned())
}

fn day(_: &Words, random: &mut Random) -> Turn {
    beside("day", DAYS, random)
}

fn month(_: &Words, random: &mut Random) -> Turn {
    beside("month", MONTHS, random)
}

/// The next or the last, round and round.
fn beside(what: &str, all: &str, random: &mut Random) -> Turn {
    let all: Vec<&str> = all.split(' ').collect();
    let at = random.below(all.len());
    let (word, found) = if random.percent(50) { ("after", at + 1) } else { ("before", at + all.len() - 1) };
    turn(format!("Which {what} comes {word} {}?", all[at]), all[found % all.len()].to_owned())
}

fn sum(_: &Words, random: &mut Random) -> Turn {
    let (one, other) = (random.below(11), random.below(11));
    turn(format!("What is {one} + {other}?"), (one + other).to_string())
}

fn plural(words: &Words, random: &mut Random) -> Turn {
    let thing = words.of("things", random);
    let hisses = ["s", "x", "ch", "sh"].iter().any(|end| thing.ends_with(end));
    turn(format!("One {thing}, two …?"), format!("{thing}{}", if hisses { "es" } else { "s" }))
}

fn letter(_: &Words, random: &mut Random) -> Turn {
    let at = random.between(1, 24) as u8;
    let name = |at: u8| char::from(b'a' + at);
    let (word, found) = if random.percent(50) { ("after", at + 1) } else { ("before", at - 1) };
    turn(format!("Which letter comes {word} \"{}\"?", name(at)), name(found).to_string())
}

fn ending(words: &Words, random: &mut Random) -> Turn {
    let (word, end) = (words.any(random), word_of(ENDINGS, random));
    turn(format!("Add \"{end}\" to the end of \"{word}\"."), format!("{word}{end}"))
}

fn join(words: &Words, random: &mut Random) -> Turn {
    let word = words.any(random);
    turn(format!("Join {}.", super::letter::spell(&word)), word)
}

fn greeting(_: &Words, random: &mut Random) -> Turn {
    let (ask, answer) = GREETINGS[random.below(GREETINGS.len())];
    turn(ask.to_owned(), answer.to_owned())
}

fn word_of(words: &'static str, random: &mut Random) -> &'static str {
    random.one(&words.split(' ').collect::<Vec<_>>())
}

fn turn(ask: String, answer: String) -> Turn {
    Turn { ask, answer }
}
