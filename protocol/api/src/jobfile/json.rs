//! JSON as a tree in which no key stands twice: serde's own would keep the last and say nothing. TOML has the same rule.

use super::{FieldError, read::join};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// The whole text.
pub(super) fn tree(bytes: &[u8]) -> Result<Value, FieldError> {
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let mut twice = None;
    let read = Tree { name: "", twice: &mut twice }.deserialize(&mut text);
    let ended = read.and_then(|value| text.end().map(|()| value));
    ended.map_err(|error| {
        let fault = match twice {
            Some(name) => FieldError::plain(&name, format!("{name} stands twice")),
            None => FieldError::plain("", format!("not valid JSON: {error}")),
        };
        FieldError { line: Some(error.line() as u64), ..fault }
    })
}

/// A value by its dotted name.
struct Tree<'a> {
    name: &'a str,
    /// The key that was met again.
    twice: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<Value, D::Error> {
        text.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Tree { name: self.name, twice: self.twice })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut keys: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = keys.next_key::<String>()? {
            let name = join(self.name, &key);
            if map.contains_key(&key) {
                *self.twice = Some(name);
                return Err(A::Error::custom("a key stands twice"));
            }
            let value = keys.next_value_seed(Tree { name: &name, twice: self.twice })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
