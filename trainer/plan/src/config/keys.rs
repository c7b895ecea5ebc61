//! One JSON object read key by key, with the key named in everything that goes wrong.

use serde_json::{Map, Value};

use crate::PlanError;

/// One JSON object and where it lies, for messages.
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
}

impl<'a> Keys<'a> {
    /// The whole file.
    pub(crate) fn of_file(map: &'a Map<String, Value>) -> Keys<'a> {
        Keys { map, prefix: String::new() }
    }

    /// The object under `key`, if there is one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Keys<'a>>, PlanError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { map, prefix: self.full(key) })),
            Some(other) => Err(wrong_type(&self.full(key), "an object or null", other)),
        }
    }

    /// `null` counts as absent, as in transformers.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The key with everything it lies under.
    pub(crate) fn full(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.into() } else { format!("{}.{key}", self.prefix) }
    }

    /// A key whose value is an object of its own, if any is.
    pub(crate) fn nested(&self) -> Option<String> {
        self.map.iter().find(|(_, value)| value.is_object()).map(|(key, _)| self.full(key))
    }

    pub(crate) fn size(&self, key: &'static str, most: usize) -> Result<usize, PlanError> {
        self.optional_size(key, most)?.ok_or(PlanError::Missing { key, expected: "a whole number" })
    }

    /// `most` only keeps later products from overflowing; no real model comes near.
    pub(crate) fn optional_size(&self, key: &str, most: usize) -> Result<Option<usize>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().ok_or_else(|| wrong_type(&self.full(key), "a whole number", value))?;
        match usize::try_from(number) {
            Ok(size) if (1..=most).contains(&size) => Ok(Some(size)),
            Ok(_) | Err(_) => Err(out_of_range(&self.full(key), number, format!("1 to {most}"))),
        }
    }

    /// A size whose absence means `default`, while `null` means none.
    pub(crate) fn size_or_null(&self, key: &str, default: Option<usize>) -> Result<Option<usize>, PlanError> {
        if self.map.contains_key(key) { self.optional_size(key, 1 << 30) } else { Ok(default) }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| wrong_type(&self.full(key), "a number", value))
    }

    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>, PlanError> {
        match self.number(key)? {
            Some(number) if number <= 0.0 || !number.is_finite() => {
                Err(out_of_range(&self.full(key), number, "more than 0".into()))
            }
            number => Ok(number),
        }
    }

    /// A positive number whose absence means `default`, while `null` means none.
    pub(crate) fn positive_or_null(&self, key: &str, default: Option<f64>) -> Result<Option<f64>, PlanError> {
        if self.map.contains_key(key) { self.positive(key) } else { Ok(default) }
    }

    pub(crate) fn required_positive(&self, key: &'static str) -> Result<f64, PlanError> {
        self.positive(key)?.ok_or(PlanError::Missing { key, expected: "a number" })
    }

    /// Exactly `count` positive numbers.
    pub(crate) fn positives(&self, key: &'static str, count: usize) -> Result<Vec<f64>, PlanError> {
        let value = self.get(key).ok_or(PlanError::Missing { key, expected: "a list of numbers" })?;
        let list = value.as_array().ok_or_else(|| wrong_type(&self.full(key), "a list of numbers", value))?;
        let numbers: Option<Vec<f64>> = list.iter().map(|x| x.as_f64().filter(|x| *x > 0.0)).collect();
        match numbers.filter(|numbers| numbers.len() == count) {
            Some(numbers) => Ok(numbers),
            None => Err(out_of_range(&self.full(key), shown(value), format!("{count} numbers above 0"))),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, PlanError> {
        self.flag_or(key, false)
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, PlanError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong_type(&self.full(key), "true or false", value))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong_type(&self.full(key), "a string", value))
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| wrong_type(&self.full(key), "a list of strings", value))
    }

    /// A token of the vocabulary; a negative one counts from its end, as in PyTorch. One that is not there is none.
    pub(crate) fn token(&self, key: &str, default: Option<u32>, vocabulary: usize) -> Result<Option<u32>, PlanError> {
        let id = match self.get(key) {
            Some(value) => value.as_i64().ok_or_else(|| wrong_type(&self.full(key), "a token id", value))?,
            None if self.map.contains_key(key) => return Ok(None),
            None => match default {
                Some(id) => i64::from(id),
                None => return Ok(None),
            },
        };
        let from_end = if id < 0 { vocabulary as i64 } else { 0 };
        let place = u32::try_from(id.saturating_add(from_end)).ok();
        Ok(place.filter(|id| (*id as usize) < vocabulary))
    }

    /// One id or a list of ids.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value.as_array() {
            Some(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            None => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| wrong_type(&self.full(key), "a token id or a list of them", value))
    }
}

pub(crate) fn unsupported(key: &str, value: &str, supported: &'static str) -> PlanError {
    PlanError::Unsupported { key: key.into(), value: value.into(), supported }
}

pub(crate) fn out_of_range(key: &str, found: impl ToString, expected: String) -> PlanError {
    PlanError::OutOfRange { key: key.into(), expected, found: found.to_string() }
}

pub(crate) fn wrong_type(key: &str, expected: &'static str, found: &Value) -> PlanError {
    PlanError::WrongType { key: key.into(), expected, found: shown(found) }
}

/// A value short enough for one line of text.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
