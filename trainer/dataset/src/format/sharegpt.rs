//! SHAREGPT: `{"conversations": [{"from", "value"}], "system"?, "tools"?}`. Speakers go by several names; each is one of ours.

use super::chat;
use super::node::Node;
use super::tool;
use crate::read::Item;
use crate::{Fault, Json, Message, Role};

/// Reads one conversation. What follows its last answer is dropped and counted in `trimmed`.
pub(super) fn item(node: &Node<'_>, trimmed: &mut u64) -> Result<Item, Fault> {
    let list = node.get("conversations")?;
    let mut messages = Vec::new();
    if let Some(system) = node.find("system") {
        let text = Some(system.text()?).filter(|text| !text.trim().is_empty());
        messages.extend(text.map(|text| Message::new(Role::System, text)));
    }
    for turn in list.items()? {
        messages.push(read_turn(&turn)?);
    }
    chat::conversation(node, &list, messages, trimmed)
}

fn read_turn(node: &Node<'_>) -> Result<Message, Fault> {
    let from = node.get("from")?;
    let role = match from.text()? {
        "system" => Role::System,
        "human" | "user" => Role::User,
        "gpt" | "assistant" | "chatgpt" | "model" => Role::Assistant,
        "tool" | "observation" => Role::Tool,
        "function_call" => return called(&node.get("value")?),
        name => {
            let known = "system, human, user, gpt, assistant, chatgpt, model, tool, observation or function_call";
            return Err(from.fault(format!("expected {known}, found {name:?}")));
        }
    };
    let value = node.get("value")?;
    let text = if role == Role::Assistant { value.some_text()? } else { value.text()? };
    Ok(Message::new(role, text))
}

/// The text of one call or of a list of them.
fn called(node: &Node<'_>) -> Result<Message, Fault> {
    let value = tool::parsed(node, node.some_text()?)?;
    let calls = if value.as_list().is_some() { value } else { Json::List(vec![value]) };
    let mut tool_calls = Vec::new();
    for call in Node::new(&calls, node.line, node.path.clone()).items()? {
        let function = tool::function(&call)?;
        let kind = Json::String("function".to_owned());
        tool_calls.push(Json::Object(vec![("type".to_owned(), kind), ("function".to_owned(), function)]));
    }
    Ok(Message { tool_calls, ..Message::silent(Role::Assistant) })
}
