//! What every format is read into: conversations of messages, or plain texts, each with a key that survives another encoding.

use serde::{Deserialize, Deserializer, Serialize};

use crate::Json;

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
    /// What a tool answered.
    Tool,
}

impl Role {
    const ALL: [Role; 4] = [Role::System, Role::User, Role::Assistant, Role::Tool];

    /// As templates and files spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role of that name.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// One utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said; `None` where only tools are called.
    pub content: Option<String>,
    /// The calls of tools, each an object as templates read it: `arguments` is an object, never text.
    pub tool_calls: Vec<Json>,
    /// Further members of the message, which a template may read: `name`, `tool_call_id`, `reasoning_content`, …
    pub further: Vec<(String, Json)>,
    /// Whether an answer may be a target (`"weight": 0` says no).
    pub trained: bool,
}

impl Message {
    /// A message of that role.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { content: Some(content.into()), ..Message::silent(role) }
    }

    /// A message that says nothing yet.
    pub const fn silent(role: Role) -> Message {
        Message { role, content: None, tool_calls: Vec::new(), further: Vec::new(), trained: true }
    }

    /// What is said, empty where nothing is.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    /// Bytes of text, calls included, as a measure of the memory it takes.
    pub(crate) fn weight_bytes(&self) -> usize {
        let json = |value: &Json| serde_json::to_string(value).map_or(0, |text| text.len());
        let further = self.further.iter().map(|(_, value)| json(value)).sum::<usize>();
        self.text().len() + self.tool_calls.iter().map(json).sum::<usize>() + further
    }
}

impl<'de> Deserialize<'de> for Message {
    /// As CHAT_MESSAGES writes it, with the same checks.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Message, D::Error> {
        let json = Json::deserialize(deserializer)?;
        crate::format::message(&json)
            .map_err(|fault| serde::de::Error::custom(format_args!("{}: {}", fault.path, fault.message)))
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

/// What a record is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A conversation, for the chat template. Its last message is the assistant's.
    Chat {
        /// System, history, user, assistant.
        messages: Vec<Message>,
        /// The tools that may be called, as the template prints them.
        tools: Vec<Json>,
        /// What the format calls the target.
        target: Target,
    },
    /// A text that no template touches; all of it is target.
    Text(String),
}

/// Which of a conversation's tokens a format itself calls the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The format leaves it to `supervise`.
    AsSettings,
    /// The last message and nothing else, whatever `supervise` says.
    LastMessage,
}

/// What a brightrun file says of a pair beside its text; filters ask for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Marks {
    /// Its score, 1–5.
    pub quality: Option<f64>,
    /// The tier of its conversation, or what its score comes to.
    pub tier: Option<String>,
    /// Whether a person has looked at it.
    pub human_reviewed: Option<bool>,
    /// Every name of the persona: key, name.
    pub personas: Vec<String>,
    /// Every name of the emotional arc.
    pub arcs: Vec<String>,
    /// Every name of the topic.
    pub topics: Vec<String>,
}

/// One example before rendering.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Which conversation and turn.
    pub key: Key,
    /// The line it begins on, or its row in a table, from 1.
    pub line: u64,
    /// Its place in the document.
    pub path: String,
    /// What is said.
    pub body: Body,
    /// What filters may ask for.
    pub marks: Marks,
}

impl Record {
    /// The messages of a conversation; none of a text.
    pub fn messages(&self) -> &[Message] {
        match &self.body {
            Body::Chat { messages, .. } => messages,
            Body::Text(_) => &[],
        }
    }

    /// Pairs of question and answer: one where the format names its target, elsewhere every answer makes one.
    pub(crate) fn pairs(&self) -> u64 {
        match &self.body {
            Body::Text(_) | Body::Chat { target: Target::LastMessage, .. } => 1,
            Body::Chat { messages, target: Target::AsSettings, .. } => {
                messages.iter().filter(|message| message.role == Role::Assistant).count() as u64
            }
        }
    }

    /// Bytes of its text, as a measure of the memory it takes.
    pub(crate) fn weight_bytes(&self) -> usize {
        match &self.body {
            Body::Text(text) => text.len(),
            Body::Chat { messages, tools, .. } => {
                let tools = tools.iter().map(|tool| serde_json::to_string(tool).map_or(0, |text| text.len()));
                messages.iter().map(Message::weight_bytes).sum::<usize>() + tools.sum::<usize>()
            }
        }
    }
}
