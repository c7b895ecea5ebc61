//! `[sweep]`: one job file that stands for many, each with other values of some settings.
//!
//! ```toml
//! [sweep]
//! count = 8                                               # draws; without it, every combination of the lists
//! seed = 1
//! max_parallel = 2
//! training.learning_rate = { log_uniform = [1e-5, 1e-3] } # or a list of values
//! lora.rank = [8, 16]
//! stop = { min_steps = 50, reduction = 3 }                # lets go of the worse ones early: asha.rs of the coordinator
//! ```
//! Pure: the same file gives the same children, in the same order.

use super::{FieldError, JobFile, Presets, read};
use lorikeet_protocol::job::{JobSpec, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;

/// Settings by their dotted name.
pub type Values = BTreeMap<String, Value>;

/// Children of one sweep: more would only wait for each other, and each is judged before it starts.
pub const MOST: u64 = 256;
/// Values of one setting.
const LIST: usize = 64;
/// What a sweep may vary: settings, and nothing that places or names a job.
const SECTIONS: [&str; 3] = ["training", "lora", "data"];

const COUNT: &str = "a whole number 1…256";
const SEED: &str = "a whole number 0…9223372036854775807";
const STOP: &str = "{ min_steps = 1…1000000, reduction = 2…10 }";
const CHOICE: &str = "a list of 1…64 values, or { uniform = [least, most] }, or { log_uniform = [least, most] }";

/// Many jobs of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// What people call it.
    pub name: String,
    /// In the order in which they are submitted.
    pub children: Vec<Child>,
    /// So many of them hold devices at once.
    pub max_parallel: Option<u32>,
    /// Which of them end early.
    pub stop: Option<StopRule>,
}

/// One of the jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// What makes it another one: settings by their dotted name.
    pub values: Values,
    /// The complete job.
    pub spec: JobSpec,
}

/// Asynchronous successive halving: who is not among the best at a rung ends there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRule {
    /// The first rung, in optimizer steps.
    pub min_steps: u64,
    /// Of so many one goes on; the next rung is so many times as far.
    #[serde(default = "three")]
    pub reduction: u32,
}

fn three() -> u32 {
    3
}

/// What a setting may be.
enum Choice {
    Listed(Vec<Value>),
    Drawn { least: f64, most: f64, scale: Scale, whole: bool },
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
}

type Faults = Vec<FieldError>;

impl JobFile {
    /// The jobs that the file's `[sweep]` stands for; `None` without one.
    pub fn sweep(&self, presets: &Presets) -> Result<Option<Sweep>, Faults> {
        let Some(keys) = &self.sweep else { return Ok(None) };
        let base = Self { sweep: None, ..self.clone() };
        let spec = base.resolve(presets)?;
        let mut faults = Faults::new();
        let table = Keys::read(keys, &mut faults);
        if faults.is_empty() && table.choices.is_empty() {
            faults.push(FieldError::plain(
                "sweep",
                "sweep varies nothing; expected a setting like training.learning_rate",
            ));
        }
        let draws = if faults.is_empty() { table.draws(&mut faults) } else { Vec::new() };
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut children = Vec::new();
        for (index, values) in draws.into_iter().enumerate() {
            let name = numbered(&spec.name, index + 1);
            children.push(Child { spec: JobSpec { name, ..child(&base, &values, presets)? }, values });
        }
        if table.stop.is_some() && children.iter().any(|child| !has_validation(&child.spec)) {
            let message = "sweep.stop compares validation losses, and training.validation_fraction holds nothing out";
            return Err(vec![FieldError::plain("sweep.stop", message)]);
        }
        Ok(Some(Sweep { name: spec.name, children, max_parallel: table.max_parallel, stop: table.stop }))
    }
}

fn has_validation(spec: &JobSpec) -> bool {
    let Task::Train(train) = &spec.task;
    train.training.validation_fraction > 0.0 || spec.validation_dataset.is_some()
}

/// The job file with these values; a fault of one of them is the sweep's.
fn child(base: &JobFile, values: &Values, presets: &Presets) -> Result<JobSpec, Faults> {
    let mut file = base.clone();
    let set = values.iter().try_for_each(|(key, value)| file.set_value(key, value.clone()));
    let of_sweep = |fault: FieldError| {
        let varied = values.contains_key(&fault.field);
        let field = if varied { format!("sweep.{}", fault.field) } else { fault.field };
        FieldError { message: format!("sweep: {}", fault.message), field, ..fault }
    };
    let faults = |faults: Faults| faults.into_iter().map(of_sweep).collect::<Vec<_>>();
    set.and_then(|()| file.resolve(presets)).map_err(faults)
}

/// `tone #3`, shortened where it would grow too long.
fn numbered(name: &str, number: usize) -> String {
    let suffix = format!(" #{number}");
    let stem: String = name.chars().take(200 - suffix.len()).collect();
    stem + &suffix
}

/// `[sweep]`, read.
struct Keys {
    count: Option<u64>,
    seed: u64,
    max_parallel: Option<u32>,
    stop: Option<StopRule>,
    choices: BTreeMap<String, Choice>,
}

impl Keys {
    fn read(keys: &Map<String, Value>, faults: &mut Faults) -> Self {
        let mut left = keys.clone();
        let mut whole = |key: &str, range: std::ops::RangeInclusive<u64>, expected: &str| {
            let value = left.remove(key)?;
            let number = value.as_u64().filter(|number| range.contains(number));
            if number.is_none() {
                faults.push(FieldError::new(format!("sweep.{key}"), value, expected));
            }
            number
        };
        let count = whole("count", 1..=MOST, COUNT);
        let seed = whole("seed", 0..=i64::MAX as u64, SEED).unwrap_or(0);
        let max_parallel = whole("max_parallel", 1..=MOST, COUNT).and_then(|most| u32::try_from(most).ok());
        let stop = left.remove("stop").and_then(|value| {
            let rule = StopRule::deserialize(&value).ok();
            let fits =
                |rule: &StopRule| (1..=1_000_000).contains(&rule.min_steps) && (2..=10).contains(&rule.reduction);
            let rule = rule.filter(fits);
            if rule.is_none() {
                faults.push(FieldError::new("sweep.stop", value, STOP));
            }
            rule
        });
        let mut choices = BTreeMap::new();
        for (section, value) in left {
            let known = SECTIONS.contains(&section.as_str());
            if let (true, Value::Object(settings)) = (known, value) {
                for (key, value) in settings {
                    let name = format!("{section}.{key}");
                    choices.extend(choice(&name, value, faults).map(|choice| (name, choice)));
                }
            } else {
                faults.push(FieldError::plain(
                    format!("sweep.{section}"),
                    format!("sweep.{section} is unknown; expected count, seed, max_parallel, stop, or settings of training, lora or data"),
                ));
            }
        }
        Self { count, seed, max_parallel, stop, choices }
    }

    /// The values of each child.
    fn draws(&self, faults: &mut Faults) -> Vec<Values> {
        let mut sizes = self.choices.values().map(|choice| match choice {
            Choice::Listed(values) => Some(values.len() as u64),
            Choice::Drawn { .. } => None,
        });
        let combinations = sizes.try_fold(1_u64, |product, size| product.checked_mul(size?));
        match (self.count, combinations) {
            (None, None) => {
                faults.push(FieldError::plain(
                    "sweep.count",
                    "sweep.count is missing: a range has no end of values to try",
                ));
                Vec::new()
            }
            (None, Some(all)) if all > MOST => {
                let message =
                    format!("sweep has {all} combinations, at most {MOST} are allowed; sweep.count draws some of them");
                faults.push(FieldError::plain("sweep", message));
                Vec::new()
            }
            (None, Some(all)) => (0..all).map(|index| self.combination(index)).collect(),
            (Some(count), Some(all)) if count > all => {
                faults.push(FieldError::new(
                    "sweep.count",
                    count,
                    format!("at most {all}, for there are no more combinations"),
                ));
                Vec::new()
            }
            (Some(count), _) => self.drawn(count),
        }
    }

    /// One of all, counted like an odometer: the last setting turns fastest.
    fn combination(&self, mut index: u64) -> Values {
        let mut values = Values::new();
        for (name, choice) in self.choices.iter().rev() {
            if let Choice::Listed(list) = choice {
                let size = list.len() as u64;
                values.insert(name.clone(), list[(index % size) as usize].clone());
                index /= size;
            }
        }
        values
    }

    /// Different ones, each drawn anew.
    fn drawn(&self, count: u64) -> Vec<Values> {
        let mut random = Random(self.seed);
        let mut children: Vec<Values> = Vec::new();
        // A range of whole numbers may hold fewer values than were asked for: then some come twice.
        let mut patience = 100 * count;
        while (children.len() as u64) < count {
            let values: BTreeMap<_, _> =
                self.choices.iter().map(|(name, choice)| (name.clone(), choice.draw(&mut random))).collect();
            patience = patience.saturating_sub(1);
            if patience == 0 || !children.contains(&values) {
                children.push(values);
            }
        }
        children
    }
}

fn choice(name: &str, value: Value, faults: &mut Faults) -> Option<Choice> {
    let listed = value.as_array().filter(|values| (1..=LIST).contains(&values.len()) && values.iter().all(is_plain));
    let listed = listed.map(|values| Choice::Listed(values.clone()));
    let range = value.as_object().filter(|range| range.len() == 1).and_then(|range| range.iter().next());
    let read = listed.or_else(|| range.and_then(|(word, bounds)| drawn(word, bounds.as_array()?)));
    if read.is_none() {
        faults.push(FieldError::new(format!("sweep.{name}"), value, CHOICE));
    } else if let Some(again) = twice(value.as_array().map_or(&[][..], Vec::as_slice)) {
        let message = format!("sweep.{name} has {again} twice; the same job twice would tell nothing new");
        faults.push(FieldError::plain(format!("sweep.{name}"), message));
    }
    read
}

/// The first value that came before; `1.0` is `1` once more.
fn twice(values: &[Value]) -> Option<&Value> {
    let same = |one: &Value, other: &Value| {
        one == other || ((one.is_f64() || other.is_f64()) && one.is_number() && one.as_f64() == other.as_f64())
    };
    let before = |(index, value)| values[..index].iter().any(|earlier| same(earlier, value));
    values.iter().enumerate().find(|&pair| before(pair)).map(|(_, value)| value)
}

/// A number, a word or a yes or no; what is a list itself is no one value.
fn is_plain(value: &Value) -> bool {
    value.is_number() || value.is_string() || value.is_boolean()
}

fn drawn(word: &str, bounds: &[Value]) -> Option<Choice> {
    let scale = match word {
        "uniform" => Scale::Linear,
        "log_uniform" => Scale::Logarithmic,
        _ => return None,
    };
    let [least, most] = bounds else { return None };
    let whole = least.is_i64() && most.is_i64();
    let (least, most) = (least.as_f64()?, most.as_f64()?);
    (least < most && (scale == Scale::Linear || least > 0.0)).then_some(Choice::Drawn { least, most, scale, whole })
}

impl Choice {
    fn draw(&self, random: &mut Random) -> Value {
        match self {
            Self::Listed(values) => values[(random.next() % values.len() as u64) as usize].clone(),
            Self::Drawn { least, most, scale, whole } => {
                let share = random.unit();
                let drawn = match scale {
                    // Both ends of whole numbers are as likely as the others.
                    Scale::Linear if *whole => (least + share * (most - least + 1.0)).floor(),
                    Scale::Linear => least + share * (most - least),
                    Scale::Logarithmic => (least.ln() + share * (most.ln() - least.ln())).exp(),
                };
                let drawn = drawn.clamp(*least, *most);
                if *whole { Value::from(drawn.round() as i64) } else { readable(drawn, *least, *most) }
            }
        }
    }
}

/// Four digits: more say nothing, and people have to read and write it.
fn readable(value: f64, least: f64, most: f64) -> Value {
    let rounded: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    Number::from_f64(rounded.clamp(least, most)).map_or(Value::Null, Value::Number)
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for settings, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The line of a fault that is found in a child is the line of the setting.
pub(super) fn read_keys(value: Option<Value>, faults: &mut Faults) -> Option<Map<String, Value>> {
    let value = value.filter(|value| !value.is_null())?;
    if let Value::Object(keys) = value {
        return Some(keys);
    }
    faults.push(FieldError::new("sweep", value, "a table"));
    None
}

impl JobFile {
    fn set_value(&mut self, key: &str, value: Value) -> Result<(), Faults> {
        let mut tree = serde_json::to_value(&*self).expect("a job file is plain data");
        read::put(&mut tree, key, value).map_err(|fault| vec![fault])?;
        *self = Self::from_value(&tree)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "base = \"b\"\ndataset = \"d\"\nname = \"tone\"\n";

    #[test]
    fn lists_become_every_combination_in_a_fixed_order() {
        let sweep = of(
            "training.learning_rate = [1e-4, 3e-4]\nlora.rank = [8, 16]\ntraining.schedule = ['cosine', 'linear']\n",
        )
        .unwrap();
        assert_eq!(sweep.children.len(), 8);
        let told: Vec<_> = sweep.children.iter().map(|child| serde_json::to_string(&child.values).unwrap()).collect();
        assert_eq!(told[0], r#"{"lora.rank":8,"training.learning_rate":0.0001,"training.schedule":"cosine"}"#);
        assert_eq!(told[7], r#"{"lora.rank":16,"training.learning_rate":0.0003,"training.schedule":"linear"}"#);
        let Task::Train(train) = &sweep.children[7].spec.task;
        assert_eq!((train.lora.rank, train.training.learning_rate), (16, 3e-4));
        assert_eq!(sweep.children[7].spec.name, "tone #8");
    }

    #[test]
    fn a_seed_draws_the_same_children_again_within_their_ranges() {
        let text = |seed: u32| {
            format!(
                "count = 40\nseed = {seed}\ntraining.learning_rate = {{ log_uniform = [1e-5, 1e-3] }}\nlora.rank = {{ log_uniform = [4, 64] }}\nlora.dropout = {{ uniform = [0.0, 0.5] }}\n"
            )
        };
        let (one, again, other) = (of(&text(7)).unwrap(), of(&text(7)).unwrap(), of(&text(8)).unwrap());
        assert!(one == again && one != other);
        let rates: Vec<f64> =
            one.children.iter().map(|child| child.values["training.learning_rate"].as_f64().unwrap()).collect();
        assert!(rates.iter().all(|rate| (1e-5..=1e-3).contains(rate)));
        let low = rates.iter().filter(|rate| **rate < 1e-4).count();
        assert!((10..=30).contains(&low), "half of the draws are below the geometric mean, {low} of 40 were");
        assert!(one.children.iter().all(|child| (4..=64).contains(&child.values["lora.rank"].as_i64().unwrap())));
    }

    #[test]
    fn draws_out_of_lists_are_different_and_no_more_than_there_are() {
        let sweep = of("count = 6\nlora.rank = [1, 2, 3]\nlora.rslora = [true, false]\n").unwrap();
        let mut told: Vec<_> =
            sweep.children.iter().map(|child| serde_json::to_string(&child.values).unwrap()).collect();
        told.sort();
        told.dedup();
        assert_eq!(told.len(), 6);
        assert_eq!(told_of("count = 7\nlora.rank = [1, 2, 3]\nlora.rslora = [true, false]\n")[0].0, "sweep.count");
    }

    #[test]
    fn a_steps_key_takes_the_epochs_away_as_on_the_command_line() {
        let sweep = of("training.max_steps = [10, 20]\n").unwrap();
        assert_eq!(sweep.children.len(), 2);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field_and_line() {
        for (text, field, words) in [
            ("", "sweep", "varies nothing"),
            ("lora.rank = []\n", "sweep.lora.rank", "a list of 1…64 values"),
            ("lora.rank = [[1]]\n", "sweep.lora.rank", "a list of 1…64 values"),
            ("lora.rank = 8\n", "sweep.lora.rank", "a list of 1…64 values"),
            ("lora.rank = [8, 16, 8]\n", "sweep.lora.rank", "sweep.lora.rank has 8 twice"),
            ("training.learning_rate = [1e-4, 0.0001]\n", "sweep.training.learning_rate", "has 0.0001 twice"),
            ("lora.alpha = [1, 1.0]\n", "sweep.lora.alpha", "has 1.0 twice"),
            ("lora.rank = [8, 1000]\n", "sweep.lora.rank", "lora.rank is 1000, expected a whole number 1…256"),
            ("lora.rnk = [8]\n", "sweep.lora.rnk", "lora.rnk is unknown"),
            ("resources.gpus = [1]\n", "sweep.resources", "is unknown"),
            ("lora.rank = { uniform = [1, 8] }\n", "sweep.count", "is missing"),
            ("count = 2\nlora.rank = { log_uniform = [0, 8] }\n", "sweep.lora.rank", "log_uniform"),
            ("count = 2\nlora.rank = { uniform = [9, 8] }\n", "sweep.lora.rank", "uniform"),
            ("count = 0\nlora.rank = [8]\n", "sweep.count", "1…256"),
            ("max_parallel = 1.5\nlora.rank = [8]\n", "sweep.max_parallel", "1…256"),
            ("stop = { min_steps = 0 }\nlora.rank = [8]\n", "sweep.stop", "min_steps"),
            ("stop = { min_steps = 5 }\ntraining.validation_fraction = [0.0]\n", "sweep.stop", "holds nothing out"),
        ] {
            let faults = told_of(text);
            assert!(faults[0].0 == field && faults[0].1.contains(words), "{text:?}: {faults:?}");
        }
        let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
        let list = many.join(",");
        let faults = told_of(&format!("training.seed = [{list}]\nlora.rank = [{}]\n", &list[2..]));
        assert!(faults[0].1.contains("272 combinations"), "{faults:?}");
        let text = format!("{LEAST}[sweep]\nlora.rank = [8, 1000]\n");
        let faults =
            super::super::locate(JobFile::from_toml(&text).unwrap().sweep(&Presets::embedded()).unwrap_err(), &text);
        assert_eq!(faults[0].line, Some(5));
    }

    #[test]
    fn a_sweep_survives_its_way_as_json() {
        let file = JobFile::from_toml(&format!("{LEAST}[sweep]\nmax_parallel = 2\nlora.rank = [8, 16]\n")).unwrap();
        let again = JobFile::from_json(&serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(again, file);
        assert_eq!(again.sweep(&Presets::embedded()), file.sweep(&Presets::embedded()));
    }

    fn of(text: &str) -> Result<Sweep, Faults> {
        let file = JobFile::from_toml(&format!("{LEAST}[sweep]\n{text}"))?;
        Ok(file.sweep(&Presets::embedded())?.expect("there is one"))
    }

    fn told_of(text: &str) -> Vec<(String, String)> {
        of(text).unwrap_err().into_iter().map(|fault| (fault.field, fault.message)).collect()
    }
}
