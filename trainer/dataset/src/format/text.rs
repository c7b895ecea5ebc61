//! TEXT: `{"text"}`, to be learnt as it stands: no chat template, only what the tokenizer itself puts before and behind a text.

use super::chat::{record, short};
use super::node::Node;
use crate::read::Item;
use crate::record::Body;
use crate::{Fault, Key};

/// Reads one text.
pub(super) fn item(node: &Node<'_>) -> Result<Item, Fault> {
    let text = node.get("text")?.some_text()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(text.as_bytes());
    Ok(record(node, Key { conversation: short(&hasher), turn: 0 }, Body::Text(text.to_owned())))
}
