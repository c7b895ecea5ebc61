//! Files of settings: every fault told at once, and values with a unit, as people write them.
//!
//! A reader stops at its first fault. A config whose every key has a default can be judged key by key instead: [`read`] shows the
//! reader each key alone, takes out those it refuses, and gives what is left.

use serde::de::DeserializeOwned;
use std::fmt;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

/// One setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where in the file, from 1.
    pub line: Option<u64>,
    /// Its dotted name; empty when the file is no TOML.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// A section and its keys are judged each alone; a table among those as one.
const DEPTH: usize = 2;

/// What the sound keys say, and what is wrong with the others. A text that is no TOML says nothing.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<(T, Vec<Fault>), Fault> {
    let syntax = |error: toml::de::Error| Fault {
        line: error.span().map(|span| line_of(text, span.start)),
        key: String::new(),
        message: error.message().replace('\n', ", "),
    };
    let spans = DeTable::parse(text).map_err(syntax)?;
    let mut whole: Table = toml::from_str(text).map_err(syntax)?;
    let mut faults = Vec::new();
    for (line, key) in keys(text, spans.get_ref()).into_iter().filter(|(_, key)| key.len() <= DEPTH) {
        if let Some(message) = wrong::<T>(&whole, &key) {
            take_out(&mut whole, &key);
            faults.push(Fault { line: Some(line), key: key.join("."), message });
        }
    }
    let left = whole.try_into::<T>().map_err(syntax)?;
    Ok((left, faults))
}

/// The line of a key, by its dotted name.
pub fn line(text: &str, name: &str) -> Option<u64> {
    let spans = DeTable::parse(text).ok()?;
    keys(text, spans.get_ref()).into_iter().find(|(_, key)| key.join(".") == name).map(|(line, _)| line)
}

/// Sections, each before its keys, and keys, in the order of the file.
fn keys(text: &str, table: &DeTable<'_>) -> Vec<(u64, Vec<String>)> {
    let mut keys = Vec::new();
    collect(text, table, &[], &mut keys);
    keys.sort();
    keys
}

/// As deep as they go: the parser has a limit.
fn collect(text: &str, table: &DeTable<'_>, above: &[String], keys: &mut Vec<(u64, Vec<String>)>) {
    for (name, value) in table {
        let key = [above, &[name.get_ref().to_string()]].concat();
        if let DeValue::Table(inner) = value.get_ref() {
            collect(text, inner, &key, keys);
        }
        keys.push((line_of(text, Spanned::span(name).start), key));
    }
}

fn line_of(text: &str, offset: usize) -> u64 {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count() as u64
}

/// What the reader has against this key alone; of a section only whether there is one of that name.
fn wrong<T: DeserializeOwned>(whole: &Table, key: &[String]) -> Option<String> {
    let (section, value) = (key.first()?, whole.get(key.first()?)?);
    let shown = match (key.get(1), value) {
        (Some(name), Value::Table(inner)) => {
            Value::Table([(name.clone(), inner.get(name)?.clone())].into_iter().collect())
        }
        (None, Value::Table(_)) => Value::Table(Table::new()),
        (_, value) => value.clone(),
    };
    let alone: Table = [(section.clone(), shown)].into_iter().collect();
    alone.try_into::<T>().err().map(|error| error.message().replace('\n', ", "))
}

fn take_out(whole: &mut Table, key: &[String]) {
    match (key, key.first().and_then(|section| whole.get_mut(section))) {
        ([_, name], Some(Value::Table(inner))) => _ = inner.remove(name),
        ([name], _) => _ = whole.remove(name),
        _ => {}
    }
}

/// `5s`, `1m 30s`, `200ms`.
pub mod duration {
    use serde::{Deserialize, Deserializer, de::Error as _};
    use std::time::Duration;

    /// For `#[serde(with = …)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |error| D::Error::custom(format!("expected a duration like \"30s\", found \"{text}\": {error}"));
        humantime::parse_duration(&text).map_err(wrong)
    }
}

/// `512MiB`, `4 GiB`.
pub mod bytes {
    use serde::{Deserialize, Deserializer, de::Error as _};

    /// For `#[serde(with = …)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// A size with its unit.
    pub fn parse(text: &str) -> Result<u64, String> {
        let expected =
            |why: &dyn std::fmt::Display| format!("expected a size like \"512MiB\", found \"{text}\": {why}");
        match text.parse::<bytesize::ByteSize>() {
            // What it cannot hold it takes for the largest.
            Ok(size) if size.0 == u64::MAX => Err(expected(&"more than 64 bits of bytes")),
            Ok(size) => Ok(size.0),
            Err(error) => Err(expected(&error)),
        }
    }
}

/// Whether it is `host:port`: any name that a resolver may know, or an address, in brackets where that has colons.
pub fn is_address(text: &str) -> bool {
    let is_port = |port: &str| port.parse().is_ok_and(|port: u16| port != 0);
    let is_name = |name: &str| !name.is_empty() && !name.contains([':', '/', '[', ']']);
    let in_brackets =
        |name: &str| name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).is_some_and(|v6| v6.contains(':'));
    let parts = text.rsplit_once(':').filter(|_| !text.contains(char::is_whitespace));
    parts.is_some_and(|(name, port)| is_port(port) && (is_name(name) || in_brackets(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::time::Duration;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        name: String,
        timers: Timers,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Timers {
        #[serde(with = "duration")]
        beat: Duration,
        #[serde(with = "bytes")]
        room: u64,
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_the_rest_is_read() {
        let text = "name = \"a\"\nnmae = 1\n[timers]\nbeat = \"soon\"\nroom = \"1KiB\"\nbeet = 2\n[tmiers]\nbeat = 1\n";
        let (config, faults) = read::<Config>(text).unwrap();
        assert_eq!(config, Config { name: "a".into(), timers: Timers { room: 1024, beat: Duration::ZERO } });
        let told: Vec<_> = faults.iter().map(|fault| (fault.line.unwrap(), fault.key.as_str())).collect();
        assert_eq!(told, [(2, "nmae"), (4, "timers.beat"), (6, "timers.beet"), (7, "tmiers")]);
        assert!(faults[1].to_string().starts_with("line 4: timers.beat: expected a duration"), "{}", faults[1]);
        assert_eq!(line(text, "timers.room"), Some(5));
    }

    #[test]
    fn a_text_that_is_no_toml_names_its_line() {
        assert_eq!(read::<Config>("name = \"a\"\n= 3\n").unwrap_err().line, Some(2));
    }
}
