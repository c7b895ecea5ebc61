//! BRIGHTRUN_LORA_V4 (and v5, of the same shape): pairs of counselling turns, as a full file or as lines.
//!
//! Traps of real files, each answered here: the last history item repeats `current_user_input` (one is kept); about half the
//! counted pairs have no target (counted apart, they train nothing); a pair's own `conversation_id` is a label in the full
//! file and the uuid in lines (the uuid is the key, with the turn); names of personas, arcs and phases go beyond any list
//! (none is checked); numbers come as integers or floats. Pairs of one conversation hold each other's history, which the
//! split by conversation answers.

use std::mem;

use super::chat::read_message;
use super::node::Node;
use crate::read::{Found, Item, MAX_RECORD_BYTES, Read};
use crate::record::Body;
use crate::{Fault, Json, Key, Marks, Message, Record, Role, Target};

const SPECS: [&str; 2] = ["brightrun-lora-v4", "brightrun-lora-v5"];

/// The line encoding: an optional `_meta` line, then one line per pair with a target.
#[derive(Default)]
pub(crate) struct Lines {
    declared: Option<u64>,
    pairs: u64,
}

impl Lines {
    pub(crate) fn items(&mut self, value: &Json, line: u64, path: &str) -> Read {
        let node = Node::new(value, line, path);
        if let Some(meta) = node.find("_meta") {
            self.declared = meta.find("total_pairs").and_then(|total| total.value.as_u64());
            return Ok(None);
        }
        self.pairs += 1;
        let uuid = node.get("conversation_id")?.some_text()?.to_owned();
        read_pair(&node, &uuid, &Marks::default()).map(Some)
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
    pub(crate) fn metadata(&mut self, value: &Json, line: u64) -> Result<(), Fault> {
        self.has_metadata = true;
        let node = Node::new(value, line, "$.training_file_metadata");
        let spec = node.get("format_spec")?;
        let name = spec.text()?;
        if !SPECS.contains(&name) {
            return Err(spec.fault(format!("expected {} or {}, found {name:?}", SPECS[0], SPECS[1])));
        }
        self.declared_conversations = value.get("total_conversations").and_then(Json::as_u64);
        self.declared_pairs = value.get("total_training_pairs").and_then(Json::as_u64);
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
    /// What the conversation says of all its pairs.
    marks: Marks,
    pairs: usize,
}

enum Uuid {
    /// The metadata has not come; pairs wait with their line.
    Awaited {
        held: Vec<(Json, u64)>,
        since: Option<u64>,
    },
    Known(String),
    /// Said once as a fault; its pairs have no key and are left out.
    Broken,
}

type Reads = Vec<Read>;

impl ConversationReader {
    pub(crate) fn new(index: usize, line: u64) -> ConversationReader {
        let uuid = Uuid::Awaited { held: Vec::new(), since: None };
        ConversationReader { index, line, uuid, marks: Marks::default(), pairs: 0 }
    }

    pub(crate) fn metadata(&mut self, value: &Json, line: u64, document: &mut Document) -> Reads {
        document.conversations += 1;
        let node = Node::new(value, line, self.path("conversation_metadata"));
        let read = node.get("conversation_id").and_then(|id| id.some_text().map(str::to_owned));
        self.marks = conversation_marks(&node);
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
    pub(crate) fn pair(&mut self, value: Json, line: u64, bytes: u64, document: &mut Document) -> Reads {
        let path = format!("{}[{}]", self.path("training_pairs"), self.pairs);
        self.pairs += 1;
        match &mut self.uuid {
            Uuid::Known(uuid) => {
                let read = read_pair(&Node::new(&value, line, path), uuid, &self.marks).map(Some);
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
fn read_pair(node: &Node<'_>, uuid: &str, of_conversation: &Marks) -> Result<Found, Fault> {
    let key = Key { conversation: uuid.to_owned(), turn: node.get("turn_number")?.ordinal()? };
    let place = Some((node.line, node.path.clone()));
    let mut messages = read_messages(node)?;
    let marks = marks(node, of_conversation)?;
    let target = node.get("target_response")?;
    if target.value.is_null() {
        return Ok(Found { item: Item::NoTarget(key), place });
    }
    messages.push(Message::new(Role::Assistant, target.some_text()?));
    let body = Body::Chat { messages, tools: Vec::new(), target: Target::LastMessage };
    Ok(Found { item: Item::Record(Record { key, line: node.line, path: node.path.clone(), body, marks }), place })
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
        // what else a turn says (its number, its mood) is no part of the conversation
        messages.push(Message { further: Vec::new(), ..read_message(&turn)? });
    }
    let input = node.get("current_user_input")?.some_text()?;
    let repeated = |last: &Message| last.role == Role::User && last.text().trim() == input.trim();
    if messages.last().is_some_and(repeated) {
        messages.pop();
    }
    messages.push(Message::new(Role::User, input));
    Ok(messages)
}

/// What a full file says of a conversation; lines say it in each pair, except for the tier.
fn conversation_marks(node: &Node<'_>) -> Marks {
    let Some(scaffolding) = node.find("scaffolding") else {
        return Marks { tier: name(node, "quality_tier"), ..Marks::default() };
    };
    Marks {
        tier: name(node, "quality_tier"),
        personas: names(&scaffolding, &["persona_key", "persona_name"]),
        arcs: names(&scaffolding, &["emotional_arc_key", "emotional_arc"]),
        topics: names(&scaffolding, &["training_topic_key", "training_topic"]),
        ..Marks::default()
    }
}

/// A pair's own marks, and its conversation's where it has none.
fn marks(node: &Node<'_>, of_conversation: &Marks) -> Result<Marks, Fault> {
    let training = node.find("training_metadata");
    let find = |key: &str| training.as_ref().and_then(|training| training.find(key));
    let quality = find("quality_score").map(|score| score.number()).transpose()?;
    let own = |keys: &[&str], other: &[String]| {
        let own = node.find("conversation_metadata").map(|metadata| names(&metadata, keys)).unwrap_or_default();
        [own, other.to_vec()].concat()
    };
    Ok(Marks {
        quality,
        tier: of_conversation.tier.clone().or_else(|| Some(tier_of(quality).to_owned())),
        human_reviewed: find("human_reviewed").map(|reviewed| reviewed.flag()).transpose()?,
        personas: own(&["persona_archetype", "client_persona"], &of_conversation.personas),
        arcs: own(&["emotional_arc_key", "emotional_arc"], &of_conversation.arcs),
        topics: own(&["training_topic_key", "training_topic"], &of_conversation.topics),
    })
}

/// The format's own bounds; what was not scored is experimental.
fn tier_of(quality: Option<f64>) -> &'static str {
    match quality {
        Some(score) if score >= 4.5 => "seed_dataset",
        Some(score) if score >= 3.5 => "production",
        Some(score) if score < 2.5 => "rejected",
        Some(_) | None => "experimental",
    }
}

fn names(node: &Node<'_>, keys: &[&str]) -> Vec<String> {
    keys.iter().filter_map(|key| name(node, key)).collect()
}

fn name(node: &Node<'_>, key: &str) -> Option<String> {
    node.find(key)?.value.as_str().map(str::to_owned)
}
