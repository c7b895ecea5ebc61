//! PROMPT_COMPLETION: `{"prompt": "…", "completion": "…"}`, a conversation of one question and one answer.

use super::chat::text_hash;
use super::node::Node;
use crate::read::Item;
use crate::{Fault, Key, Message, Record, Role, Target};

/// Reads one pair. Pairs with the same prompt count as one conversation, so that a split never parts them.
pub(super) fn item(node: &Node<'_>) -> Result<Item, Fault> {
    let prompt = Message::new(Role::User, node.get("prompt")?.text()?);
    let completion = Message::new(Role::Assistant, node.get("completion")?.some_text()?);
    Ok(Item::Record(Record {
        key: Key { conversation: text_hash(std::slice::from_ref(&prompt)), turn: 0 },
        line: node.line,
        path: node.path.clone(),
        messages: vec![prompt, completion],
        target: Target::AsSettings,
        quality: None,
    }))
}
