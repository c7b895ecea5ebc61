//! CHAT_MESSAGES: `{"messages": [{"role", "content", "tool_calls"?, …}], "tools"?: […]}`; the list may also be called
//! `conversations`. Contents are texts or lists of text parts. Further members of a message go to the chat template.

use super::node::Node;
use super::tool;
use crate::read::Item;
use crate::record::Body;
use crate::{Fault, Json, Key, Marks, Message, Record, Role, Target};

/// Reads one conversation. What follows its last answer is dropped and counted in `trimmed`.
pub(super) fn item(node: &Node<'_>, trimmed: &mut u64) -> Result<Item, Fault> {
    let list = match (node.find("messages"), node.find("conversations")) {
        (None, Some(list)) => list,
        (Some(_) | None, _) => node.get("messages")?,
    };
    let messages = list.items()?.map(|message| read_message(&message)).collect::<Result<Vec<_>, _>>()?;
    conversation(node, &list, messages, trimmed)
}

/// A conversation that a format has read, up to its last answer, with the tools that stand beside it.
pub(super) fn conversation(
    node: &Node<'_>,
    list: &Node<'_>,
    mut messages: Vec<Message>,
    trimmed: &mut u64,
) -> Result<Item, Fault> {
    let Some(last) = messages.iter().rposition(|message| message.role == Role::Assistant) else {
        return Err(list.fault("holds no assistant message, so there is nothing to learn"));
    };
    if last + 1 < messages.len() {
        messages.truncate(last + 1);
        *trimmed += 1;
    }
    let tools = tool::list(node)?;
    let key = Key { conversation: text_hash(asked(&messages)), turn: 0 };
    Ok(record(node, key, Body::Chat { messages, tools, target: Target::AsSettings }))
}

/// A record at a node, without marks.
pub(super) fn record(node: &Node<'_>, key: Key, body: Body) -> Item {
    Item::Record(Record { key, line: node.line, path: node.path.clone(), body, marks: Marks::default() })
}

/// A message with a role that is known and something said or called.
pub(super) fn read_message(node: &Node<'_>) -> Result<Message, Fault> {
    let role = node.get("role")?;
    let name = role.text()?;
    let role = Role::from_name(name)
        .ok_or_else(|| role.fault(format!("expected system, user, assistant or tool, found {name:?}")))?;
    let tool_calls = calls(node, role)?;
    let content = match node.find("content") {
        Some(content) => Some(text_of(&content)?),
        None if !tool_calls.is_empty() => None,
        None => node.get("content").and_then(|content| content.text().map(str::to_owned)).map(Some)?,
    };
    if role == Role::Assistant && tool_calls.is_empty() && content.as_ref().is_none_or(|text| text.trim().is_empty()) {
        return Err(node.get("content")?.fault("is empty"));
    }
    Ok(Message { role, content, tool_calls, further: further(node)?, trained: is_trained(node)? })
}

fn calls(node: &Node<'_>, role: Role) -> Result<Vec<Json>, Fault> {
    if let Some(older) = node.find("function_call") {
        return Err(older.fault("is the older form of tool_calls, which is not read"));
    }
    match node.find("tool_calls") {
        None => Ok(Vec::new()),
        Some(calls) if role == Role::Assistant => tool::calls(&calls),
        Some(calls) => Err(calls.fault(format!("only an assistant calls tools, this message is {}'s", role.name()))),
    }
}

/// A text, or the texts of a list of parts, one after the other.
fn text_of(node: &Node<'_>) -> Result<String, Fault> {
    if node.value.as_list().is_none() {
        return node.text().map(str::to_owned).map_err(|_| node.expected("a string or a list of text parts"));
    }
    let mut text = String::new();
    for part in node.items()? {
        let kind = part.get("type")?;
        if kind.text()? != "text" {
            return Err(kind.fault(format!("expected \"text\", found {:?}: only text is trained on", kind.text()?)));
        }
        text.push_str(part.get("text")?.text()?);
    }
    Ok(text)
}

/// Members that only a template knows; those that say nothing are left out, as if the file had not named them.
fn further(node: &Node<'_>) -> Result<Vec<(String, Json)>, Fault> {
    const READ_HERE: [&str; 4] = ["role", "content", "tool_calls", "weight"];
    let members = node.object()?.iter();
    Ok(members.filter(|(name, value)| !READ_HERE.contains(&name.as_str()) && !value.is_null()).cloned().collect())
}

fn is_trained(node: &Node<'_>) -> Result<bool, Fault> {
    let Some(weight) = node.find("weight") else { return Ok(true) };
    match weight.number()? {
        0.0 => Ok(false),
        1.0 => Ok(true),
        other => Err(weight.fault(format!("expected 0 or 1, found {other}"))),
    }
}

/// What the last answer answers. Where nobody asked anything, the whole: answers to nothing have nothing in common.
fn asked(messages: &[Message]) -> &[Message] {
    let before = &messages[..messages.len() - 1];
    let is_asked = before.iter().any(|message| matches!(message.role, Role::User | Role::Tool));
    if is_asked { before } else { messages }
}

/// Equal words get equal names, wherever they stand. A conversation is named by all that stands before its last answer, so that
/// two answers to one question are never parted by a split.
pub(super) fn text_hash(messages: &[Message]) -> String {
    let mut hasher = blake3::Hasher::new();
    for message in messages {
        let text = message.text();
        hasher.update(message.role.name().as_bytes()).update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
        for call in &message.tool_calls {
            hasher.update(&serde_json::to_vec(call).unwrap_or_default());
        }
    }
    short(&hasher)
}

/// Half of a hash, as a name.
pub(super) fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..32].to_owned()
}
