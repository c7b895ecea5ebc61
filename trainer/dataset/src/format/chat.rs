//! CHAT_MESSAGES: `{"messages": [{"role": "system|user|assistant", "content": "…"}]}`, further keys ignored.

use super::node::Node;
use crate::read::Item;
use crate::{Fault, Key, Message, Record, Role, Target};

/// Reads one conversation. What follows its last answer is dropped and counted in `trimmed`.
pub(super) fn item(node: &Node<'_>, trimmed: &mut u64) -> Result<Item, Fault> {
    let list = node.get("messages")?;
    let mut messages = list.items()?.map(|message| read_message(&message)).collect::<Result<Vec<_>, _>>()?;
    let Some(last) = messages.iter().rposition(|message| message.role == Role::Assistant) else {
        return Err(list.fault("holds no assistant message, so there is nothing to learn"));
    };
    if last + 1 < messages.len() {
        messages.truncate(last + 1);
        *trimmed += 1;
    }
    Ok(Item::Record(Record {
        key: Key { conversation: text_hash(&messages), turn: 0 },
        line: node.line,
        path: node.path.clone(),
        messages,
        target: Target::AsSettings,
        quality: None,
    }))
}

/// A role and a text; an answer must not be empty.
pub(super) fn read_message(node: &Node<'_>) -> Result<Message, Fault> {
    let role = node.get("role")?;
    let name = role.text()?;
    let role = Role::from_name(name)
        .ok_or_else(|| role.fault(format!("expected system, user or assistant, found {name:?}")))?;
    let content = node.get("content")?;
    let text = if role == Role::Assistant { content.some_text()? } else { content.text()? };
    Ok(Message::new(role, text))
}

/// Equal conversations get equal names, wherever they stand.
pub(super) fn text_hash(messages: &[Message]) -> String {
    let mut hasher = blake3::Hasher::new();
    for message in messages {
        hasher.update(message.role.name().as_bytes()).update(&(message.content.len() as u64).to_le_bytes());
        hasher.update(message.content.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}
