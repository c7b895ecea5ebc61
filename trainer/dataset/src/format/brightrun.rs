//! BRIGHTRUN_LORA_V4 (and v5, of the same shape): pairs of counselling turns, as a full file or as lines.
//!
//! Traps of real files, each answered here: the last history item repeats `current_user_input` (one is kept); about half the
//! counted pairs have no target (counted apart, they train nothing); a pair's own `conversation_id` is a label in the full
//! file and the uuid in lines (the uuid is the key, with the turn); names of personas, arcs and phases go beyond any list
//! (none is checked); numbers come as integers or floats. Pairs of one conversation hold each other's history, which the
//! split by conversation answers.

use std::mem;

use serde_json::Value;

use super::chat::read_message;
use super::node::Node;
use crate::read::{Found, Item, MAX_RECORD_BYTES, Read};
use crate::{Fault, Key, Message, Record, Role, Target};

const SPECS: [&str; 2] = ["brightrun-lora-v4", "brightrun-lora-v5"];

/// The line encoding: an optional `_meta` line, then one line per pair with a target.
#[derive(Default)]
pub(crate) struct Lines {
    declared: Option<u64>,
    pairs: u64,
}

impl Lines {
    pub(crate) fn items(&mut self, value: &Value, line: u64) -> Read {
        let node = Node::new(value, line, "$");
        if let Some(meta) = node.find("_meta") {
            self.declared = meta.find("total_pairs").and_then(|total| total.value.as_u64());
            return Ok(None);
        }
        self.pairs += 1;
        let uuid = node.get("conversation_id")?.some_text()?.to_owned();
        read_pair(&node, &uuid).map(Some)
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        match self.declared {
            Some(declared) if declared != self.pairs => vec![format!(
                "_meta counts {declared} pairs, the file holds {}: pairs without a target are left out of this encoding",
                self.pairs
            )],
            Some(_) | None => Vec::new(),
        }
    }
}

/// What the full file says of itself, and what was found.
#[derive(Default)]
pub(crate) struct Document {
    has_metadata: bool,
    has_conversations: bool,
    declared_conversations: Option<u64>,
    declared_pairs: Option<u64>,
    conversations: u64,
    pairs: u64,
    without_target: u64,
}

impl Document {
    pub(crate) fn metadata(&mut self, value: &Value, line: u64) -> Result<(), Fault> {
        self.has_metadata = true;
        let node = Node::new(value, line, "$.training_file_metadata");
        let spec = node.get("format_spec")?;
        let name = spec.text()?;
        if !SPECS.contains(&name) {
            return Err(spec.fault(format!("expected {} or {}, found {name:?}", SPECS[0], SPECS[1])));
        }
        self.declared_conversations = value["total_conversations"].as_u64();
        self.declared_pairs = value["total_training_pairs"].as_u64();
        Ok(())
    }

    pub(crate) const fn seen_conversations(&mut self) {
        self.has_conversations = true;
    }

    /// Keys that a whole file must have had by its end.
    pub(crate) fn missing(&self) -> Vec<Fault> {
        let keys = [("training_file_metadata", self.has_metadata), ("conversations", self.has_conversations)];
        let absent = keys.into_iter().filter(|(_, there)| !there);
        absent.map(|(key, _)| Fault::new(1, format!("$.{key}"), "the key is missing")).collect()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.without_target > 0 {
            let Document { without_target, pairs, .. } = self;
            warnings.push(format!(
                "{without_target} of {pairs} pairs have no target: they are the user's turns and train nothing"
            ));
        }
        let counts = [
            ("conversations", self.declared_conversations, self.conversations),
            ("pairs", self.declared_pairs, self.pairs),
        ];
        for (what, declared, found) in counts {
            if let Some(declared) = declared
                && declared != found
            {
                warnings.push(format!("training_file_metadata counts {declared} {what}, the file holds {found}"));
            }
        }
        warnings
    }

    const fn count(&mut self, found: &Read) {
        self.pairs += 1;
        if let Ok(Some(Found { item: Item::NoTarget(_), .. })) = found {
            self.without_target += 1;
        }
    }
}

/// One conversation of the full file. Its metadata should come first; pairs that come before it wait, within a bound.
pub(crate) struct ConversationReader {
    index: usize,
    line: u64,
    uuid: Uuid,
    pairs: usize,
}

enum Uuid {
    /// The metadata has not come; pairs wait with their line.
    Awaited {
        held: Vec<(Value, u64)>,
        since: Option<u64>,
    },
    Known(String),
    /// Said once as a fault; its pairs have no key and are left out.
    Broken,
}

type Reads = Vec<Read>;

impl ConversationReader {
    pub(crate) const fn new(index: usize, line: u64) -> ConversationReader {
        ConversationReader { index, line, uuid: Uuid::Awaited { held: Vec::new(), since: None }, pairs: 0 }
    }

    pub(crate) fn metadata(&mut self, value: &Value, line: u64, document: &mut Document) -> Reads {
        document.conversations += 1;
        let node = Node::new(value, line, self.path("conversation_metadata"));
        let read = node.get("conversation_id").and_then(|id| id.some_text().map(str::to_owned));
        let (uuid, fault) = match read {
            Ok(uuid) => (Uuid::Known(uuid), None),
            Err(fault) => (Uuid::Broken, Some(fault)),
        };
        let before = mem::replace(&mut self.uuid, uuid);
        let mut reads: Reads = fault.map(Err).into_iter().collect();
        if let Uuid::Awaited { held, .. } = before {
            self.pairs = 0;
            reads.extend(held.into_iter().flat_map(|(value, line)| self.pair(value, line, 0, document)));
        }
        reads
    }

    /// Reads a pair; `bytes` were read of the file so far.
    pub(crate) fn pair(&mut self, value: Value, line: u64, bytes: u64, document: &mut Document) -> Reads {
        let path = format!("{}[{}]", self.path("training_pairs"), self.pairs);
        self.pairs += 1;
        match &mut self.uuid {
            Uuid::Known(uuid) => {
                let read = read_pair(&Node::new(&value, line, path), uuid).map(Some);
                document.count(&read);
                vec![read]
            }
            Uuid::Broken => Vec::new(),
            Uuid::Awaited { held, since } => {
                if bytes - *since.get_or_insert(bytes) <= MAX_RECORD_BYTES {
                    held.push((value, line));
                    return Vec::new();
                }
                self.uuid = Uuid::Broken;
                let message =
                    format!("stands behind more than {MAX_RECORD_BYTES} bytes of pairs, expected before them");
                vec![Err(Fault::new(line, self.path("conversation_metadata"), message))]
            }
        }
    }

    pub(crate) fn finish(&self) -> Reads {
        match self.uuid {
            Uuid::Awaited { .. } => {
                vec![Err(Fault::new(self.line, self.path("conversation_metadata"), "the key is missing"))]
            }
            Uuid::Known(_) | Uuid::Broken => Vec::new(),
        }
    }

    fn path(&self, key: &str) -> String {
        format!("$.conversations[{}].{key}", self.index)
    }
}

/// One pair of either encoding. Keys that training does not need are neither asked for nor checked.
fn read_pair(node: &Node<'_>, uuid: &str) -> Result<Found, Fault> {
    let key = Key { conversation: uuid.to_owned(), turn: node.get("turn_number")?.ordinal()? };
    let place = Some((node.line, node.path.clone()));
    let messages = read_messages(node)?;
    let quality = quality(node)?;
    let target = node.get("target_response")?;
    if target.value.is_null() {
        return Ok(Found { item: Item::NoTarget(key), place });
    }
    let mut messages = messages;
    messages.push(Message::new(Role::Assistant, target.some_text()?));
    let (line, path, target) = (node.line, node.path.clone(), Target::LastMessage);
    Ok(Found { item: Item::Record(Record { key, line, path, messages, target, quality }), place })
}

/// System, history, current input; the input once, though real files end the history with it.
fn read_messages(node: &Node<'_>) -> Result<Vec<Message>, Fault> {
    let mut messages = Vec::new();
    if let Some(system) = node.find("system_prompt") {
        messages
            .extend(Some(system.text()?).filter(|text| !text.trim().is_empty()).map(|t| Message::new(Role::System, t)));
    }
    let history = node.get("conversation_history")?;
    for turn in history.items()? {
        messages.push(read_message(&turn)?);
    }
    let input = node.get("current_user_input")?.some_text()?;
    let repeated = |last: &Message| last.role == Role::User && last.content.trim() == input.trim();
    if messages.last().is_some_and(repeated) {
        messages.pop();
    }
    messages.push(Message::new(Role::User, input));
    Ok(messages)
}

fn quality(node: &Node<'_>) -> Result<Option<f64>, Fault> {
    let score = node.find("training_metadata").and_then(|metadata| metadata.find("quality_score"));
    score.map(|score| score.number()).transpose()
}
