//! What every format is read into: conversations of plain messages, each with a key that survives another encoding.

use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// As templates and files spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    /// The role of that name.
    pub fn from_name(name: &str) -> Option<Role> {
        [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.name() == name)
    }
}

/// One utterance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of that role.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// Which conversation, and which turn of it. Conversations without an id are known by a hash of their text, so that equal
/// ones never stand on both sides of a split.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The conversation's uuid or text hash.
    pub conversation: String,
    /// Turn number; 0 where one record is the whole conversation.
    pub turn: u32,
}

/// Which of a record's tokens a format itself calls the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The format leaves it to `supervise`.
    AsSettings,
    /// The last message and nothing else, whatever `supervise` says.
    LastMessage,
}

/// One example before rendering. Its last message is the assistant's.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Which conversation and turn.
    pub key: Key,
    /// The line it begins on, from 1.
    pub line: u64,
    /// Its place in the document.
    pub path: String,
    /// System, history, user, assistant.
    pub messages: Vec<Message>,
    /// What the format calls the target.
    pub target: Target,
    /// Quality where the format scores it.
    pub quality: Option<f64>,
}
