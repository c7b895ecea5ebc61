//! PROMPT_COMPLETION: `{"prompt", "completion"}`, a conversation of one question and one answer; or a prompt that is a list of
//! messages and a completion that is a list of one, which alone is then the target.

use super::chat::{read_message, record, text_hash};
use super::node::Node;
use super::tool;
use crate::read::Item;
use crate::record::Body;
use crate::{Fault, Key, Message, Role, Target};

/// Reads one pair. Pairs with the same prompt count as one conversation, so that a split never parts them.
pub(super) fn item(node: &Node<'_>) -> Result<Item, Fault> {
    let (prompt, completion) = (node.get("prompt")?, node.get("completion")?);
    let (mut messages, answer, target) = if prompt.value.as_list().is_some() {
        let messages = prompt.items()?.map(|message| read_message(&message)).collect::<Result<Vec<_>, _>>()?;
        (messages, only_answer(&completion)?, Target::LastMessage)
    } else {
        let answer = Message::new(Role::Assistant, completion.some_text()?);
        (vec![Message::new(Role::User, prompt.text()?)], answer, Target::AsSettings)
    };
    let key = Key { conversation: text_hash(&messages), turn: 0 };
    messages.push(answer);
    Ok(record(node, key, Body::Chat { messages, tools: tool::list(node)?, target }))
}

fn only_answer(node: &Node<'_>) -> Result<Message, Fault> {
    let mut answers = node.items()?;
    match (answers.next(), answers.count()) {
        (Some(answer), 0) => {
            let message = read_message(&answer)?;
            if message.role == Role::Assistant {
                return Ok(message);
            }
            Err(answer.fault(format!("expected the assistant's message, found the {}'s", message.role.name())))
        }
        (first, more) => {
            let found = usize::from(first.is_some()) + more;
            Err(node.fault(format!("expected one message, found {found}")))
        }
    }
}
