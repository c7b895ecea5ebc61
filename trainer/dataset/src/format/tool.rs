//! Tools and their calls, brought to the one form that chat templates read.
//!
//! Files write `arguments` as an object or, as the OpenAI API does, as the text of one; templates print an object and would
//! print the text with its quotes escaped. Likewise `tools` may be a list or the text of a list, because columns of a table
//! cannot hold objects of different shapes.

use super::node::Node;
use crate::{Fault, Json};

/// The calls of one message, several when they are made in parallel.
pub(super) fn calls(node: &Node<'_>) -> Result<Vec<Json>, Fault> {
    node.items()?.map(|call| read_call(&call)).collect()
}

/// `{"function": {"name", "arguments"}, …}`, or the function alone.
fn read_call(node: &Node<'_>) -> Result<Json, Fault> {
    let members = node.object()?;
    if let Some(kind) = node.find("type")
        && kind.text()? != "function"
    {
        return Err(kind.fault(format!("expected \"function\", found {:?}", kind.text()?)));
    }
    if node.find("function").is_none() {
        return function(node);
    }
    let inner = function(&node.get("function")?)?;
    let replaced = members
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), if name == "function" { inner.clone() } else { value.clone() }));
    Ok(Json::Object(replaced.collect()))
}

/// A name and arguments as an object.
pub(super) fn function(node: &Node<'_>) -> Result<Json, Fault> {
    node.get("name")?.some_text()?;
    let mut members = Vec::new();
    for (name, value) in node.object()?.iter().filter(|(_, value)| !value.is_null()) {
        let value = if name == "arguments" { arguments(&node.get("arguments")?)? } else { value.clone() };
        members.push((name.clone(), value));
    }
    Ok(Json::Object(members))
}

fn arguments(node: &Node<'_>) -> Result<Json, Fault> {
    let value = match node.value.as_str() {
        Some(text) => parsed(node, text)?,
        None => node.value.clone(),
    };
    if value.as_object().is_none() {
        return Err(node.fault(format!("expected an object or the text of one, found {}", value.kind())));
    }
    Ok(value)
}

/// The tools beside a conversation; none when the key is absent, null or an empty list.
pub(super) fn list(node: &Node<'_>) -> Result<Vec<Json>, Fault> {
    let Some(tools) = node.find("tools") else { return Ok(Vec::new()) };
    let value = match tools.value.as_str() {
        Some(text) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(text) => parsed(&tools, text)?,
        None => tools.value.clone(),
    };
    let listed = Node::new(&value, tools.line, tools.path.clone());
    listed.items()?.map(|tool| described(&tool)).collect()
}

/// A tool has a name, its own or its function's.
fn described(node: &Node<'_>) -> Result<Json, Fault> {
    let function = node.find("function");
    function.as_ref().unwrap_or(node).get("name")?.some_text()?;
    Ok(node.value.clone())
}

/// JSON inside a string.
pub(super) fn parsed(node: &Node<'_>, text: &str) -> Result<Json, Fault> {
    serde_json::from_str(text).map_err(|error| node.fault(format!("the text is no JSON: {error}")))
}
