//! ALPACA: `{"instruction", "input"?, "output", "system"?}`: one question, which is the instruction and the input behind it after
//! an empty line, and one answer. The base's chat template takes the place of Alpaca's own "Below is an instruction".

use super::chat::{record, text_hash};
use super::node::Node;
use crate::read::Item;
use crate::record::Body;
use crate::{Fault, Key, Message, Role, Target};

/// Reads one pair. Pairs with the same question count as one conversation, so that a split never parts them.
pub(super) fn item(node: &Node<'_>) -> Result<Item, Fault> {
    let some = |key: &str| -> Result<Option<&str>, Fault> {
        let Some(member) = node.find(key) else { return Ok(None) };
        Ok(Some(member.text()?).filter(|text| !text.trim().is_empty()))
    };
    let instruction = node.get("instruction")?.some_text()?;
    let question = match some("input")? {
        Some(input) => format!("{instruction}\n\n{input}"),
        None => instruction.to_owned(),
    };
    let mut messages: Vec<Message> = some("system")?.map(|text| Message::new(Role::System, text)).into_iter().collect();
    messages.push(Message::new(Role::User, question));
    let key = Key { conversation: text_hash(&messages), turn: 0 };
    messages.push(Message::new(Role::Assistant, node.get("output")?.some_text()?));
    Ok(record(node, key, Body::Chat { messages, tools: Vec::new(), target: Target::AsSettings }))
}
