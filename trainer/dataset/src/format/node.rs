//! A JSON value that knows where it stands, so that whatever is missing or of the wrong kind is named by line and path.

use crate::{Fault, Json};

/// A value, its line and its path.
pub(super) struct Node<'a> {
    pub(super) value: &'a Json,
    pub(super) line: u64,
    pub(super) path: String,
}

impl<'a> Node<'a> {
    pub(super) fn new(value: &'a Json, line: u64, path: impl Into<String>) -> Node<'a> {
        Node { value, line, path: path.into() }
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(self.line, &self.path, message)
    }

    /// The member of that name, which must be there; `null` is a value.
    pub(super) fn get(&self, key: &str) -> Result<Node<'a>, Fault> {
        self.object()?;
        let path = format!("{}.{key}", self.path);
        match self.value.get(key) {
            Some(value) => Ok(Node { value, line: self.line, path }),
            None => Err(Fault::new(self.line, path, "the key is missing")),
        }
    }

    /// The member of that name; absent and `null` are the same.
    pub(super) fn find(&self, key: &str) -> Option<Node<'a>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(Node { value, line: self.line, path: format!("{}.{key}", self.path) })
    }

    pub(super) fn object(&self) -> Result<&'a [(String, Json)], Fault> {
        self.value.as_object().ok_or_else(|| self.expected("an object"))
    }

    pub(super) fn text(&self) -> Result<&'a str, Fault> {
        self.value.as_str().ok_or_else(|| self.expected("a string"))
    }

    /// A text with more in it than blanks.
    pub(super) fn some_text(&self) -> Result<&'a str, Fault> {
        let text = self.text()?;
        if text.trim().is_empty() { Err(self.fault("is empty")) } else { Ok(text) }
    }

    pub(super) fn items(&self) -> Result<impl Iterator<Item = Node<'a>> + use<'a>, Fault> {
        let list = self.value.as_list().ok_or_else(|| self.expected("a list"))?;
        let (line, path) = (self.line, self.path.clone());
        Ok(list.iter().enumerate().map(move |(i, value)| Node { value, line, path: format!("{path}[{i}]") }))
    }

    pub(super) fn number(&self) -> Result<f64, Fault> {
        self.value.as_f64().ok_or_else(|| self.expected("a number"))
    }

    /// A whole number from 1, written as an integer or with a zero fraction.
    pub(super) fn ordinal(&self) -> Result<u32, Fault> {
        let number = self.number()?;
        if number >= 1.0 && number <= f64::from(u32::MAX) && number.fract() == 0.0 {
            return Ok(number as u32);
        }
        Err(self.fault(format!("expected a whole number from 1, found {number}")))
    }

    pub(super) fn flag(&self) -> Result<bool, Fault> {
        if let Json::Bool(flag) = self.value { Ok(*flag) } else { Err(self.expected("true or false")) }
    }

    pub(super) fn expected(&self, what: &str) -> Fault {
        self.fault(format!("expected {what}, found {}", self.value.kind()))
    }
}
