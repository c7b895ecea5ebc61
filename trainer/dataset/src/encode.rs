//! One record to tokens and targets: rendered whole, tokenised whole, once.
//!
//! Which characters an answer takes is found by rendering the conversation up to it (with the opening of an answer) and up to
//! its end. Both must be beginnings of the whole, but for what the template puts behind the end of the last turn, else it looks
//! ahead and nothing can be told apart: a fault. A token is a target when it begins inside an answer, up to the special token that ends the turn; blanks that the template
//! puts behind it are the template's. A plain text knows no template and is all target.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::record::Body;
use crate::{Fault, Json, Key, Message, Record, Role, Target, Tokenizer};

/// Which messages are targets; formats that name their own target overrule it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supervise {
    /// Every assistant message with its end of turn.
    #[default]
    Assistant,
    /// The last assistant message with its end of turn.
    Last,
    /// The same, under the name that prompt and completion files know.
    Completion,
    /// Every token but the first, which nothing predicts.
    All,
}

/// What one example lost to fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Messages dropped, oldest first.
    pub messages: u32,
    /// Tokens dropped.
    pub tokens: u32,
}

/// One example, ready to train on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// The whole conversation.
    pub tokens: Vec<u32>,
    /// Whether token i is a target; as long as `tokens`, never true for the first.
    pub supervised: Vec<bool>,
    /// Ordinal of its conversation in the file.
    pub conversation: u64,
    /// Which conversation and turn.
    pub key: Key,
    /// What was dropped to fit.
    pub cut: Cut,
}

impl Example {
    /// How many tokens are targets.
    pub fn supervised_count(&self) -> usize {
        self.supervised.iter().filter(|on| **on).count()
    }
}

/// A stretch of rendered text, all of it target or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether the model learns to say it.
    pub supervised: bool,
}

/// An example as a person can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedSample {
    /// Which conversation and turn.
    pub key: Key,
    /// The text in order, very long ones shortened in the middle.
    pub pieces: Vec<Piece>,
    /// Tokens of the whole.
    pub tokens: u64,
    /// Targets among them.
    pub supervised_tokens: u64,
    /// What was dropped to fit.
    pub cut: Cut,
}

/// Makes examples with one tokenizer and one set of rules. Shared by all threads.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// Tokenizer and chat template.
    pub tokenizer: &'a Tokenizer,
    /// Which messages are targets.
    pub supervise: Supervise,
    /// The longest example, in tokens.
    pub max_seq_length: usize,
}

/// A rendered, tokenised, masked record.
struct Laid {
    text: String,
    tokens: Vec<u32>,
    offsets: Vec<Range<usize>>,
    supervised: Vec<bool>,
    cut: Cut,
}

/// Why a record is no example.
struct Refusal {
    why: String,
    /// Where only `max_seq_length` is in the way.
    needed_tokens: Option<usize>,
}

impl From<String> for Refusal {
    fn from(why: String) -> Refusal {
        Refusal { why, needed_tokens: None }
    }
}

/// A conversation as the template gets it.
#[derive(Clone, Copy)]
struct Chat<'a> {
    messages: &'a [Message],
    tools: &'a [Json],
    target: Target,
}

impl Encoder<'_> {
    /// Encodes a record; what keeps it from being trained on is a fault at its place.
    pub fn encode(&self, record: &Record, conversation: u64) -> Result<Example, Fault> {
        let Laid { tokens, supervised, cut, .. } = self.lay(record).map_err(|refusal| fault(record, refusal))?;
        Ok(Example { tokens, supervised, conversation, key: record.key.clone(), cut })
    }

    /// Encodes a record for a person to read.
    pub fn sample(&self, record: &Record) -> Result<RenderedSample, Fault> {
        let laid = self.lay(record).map_err(|refusal| fault(record, refusal))?;
        Ok(RenderedSample {
            key: record.key.clone(),
            pieces: pieces(&laid),
            tokens: laid.tokens.len() as u64,
            supervised_tokens: laid.supervised.iter().filter(|on| **on).count() as u64,
            cut: laid.cut,
        })
    }

    /// Tokens of what is left of a record when all that may go is gone; `None` where nothing may.
    pub(crate) fn shortest(&self, record: &Record) -> Option<usize> {
        let Body::Chat { messages, tools, target } = &record.body else { return None };
        let messages = &without(messages, cut_points(messages).last()?);
        let text = self.render(Chat { messages, tools, target: *target }, false).ok()?;
        Some(self.tokenise(&text).ok()?.0.len())
    }

    fn lay(&self, record: &Record) -> Result<Laid, Refusal> {
        let mut laid = match &record.body {
            Body::Text(text) => self.lay_text(text)?,
            Body::Chat { messages, tools, target } => self.lay_chat(Chat { messages, tools, target: *target })?,
        };
        // nothing comes before the first token, so nothing predicts it
        if let Some(first) = laid.supervised.first_mut() {
            *first = false;
        }
        if laid.supervised.contains(&true) {
            Ok(laid)
        } else {
            Err("no token of this sample is a target".to_owned().into())
        }
    }

    /// A text cannot lose its oldest side without becoming another, so one that does not fit is refused.
    fn lay_text(&self, text: &str) -> Result<Laid, Refusal> {
        let text = self.tokenizer.plain(text);
        let (tokens, offsets) = self.tokenise(&text)?;
        if tokens.len() > self.max_seq_length {
            let (found, limit) = (tokens.len(), self.max_seq_length);
            let why = format!("the text takes {found} tokens, more than max_seq_length = {limit}; split it");
            return Err(Refusal { why, needed_tokens: Some(found) });
        }
        let supervised = vec![true; tokens.len()];
        Ok(Laid { text, tokens, offsets, supervised, cut: Cut::default() })
    }

    fn lay_chat(&self, chat: Chat<'_>) -> Result<Laid, Refusal> {
        self.check_tools(chat)?;
        let text = self.render(chat, false)?;
        let (tokens, offsets) = self.tokenise(&text)?;
        if tokens.len() <= self.max_seq_length {
            return self.mask(chat, Laid::new(text, tokens, offsets));
        }
        self.lay_cut(chat, tokens.len())
    }

    /// A template that knows nothing of tools would leave them out without a word.
    fn check_tools(&self, chat: Chat<'_>) -> Result<(), String> {
        let calls = chat.messages.iter().any(|message| !message.tool_calls.is_empty());
        let missing =
            |what: &str| Err(format!("the base's chat template has no place for {what}, which this sample has"));
        if calls && !self.tokenizer.template_names("tool_calls") {
            return missing("tool_calls");
        }
        if !chat.tools.is_empty() && !self.tokenizer.template_names("tools") {
            return missing("tools");
        }
        Ok(())
    }

    /// Drops as few of the oldest messages as make the rest fit. More dropped never takes more tokens, so halving finds it.
    fn lay_cut(&self, chat: Chat<'_>, whole: usize) -> Result<Laid, Refusal> {
        let cuts = cut_points(chat.messages);
        let mut best = None;
        let (mut low, mut high) = (0, cuts.len());
        let mut shortest = whole;
        while low < high {
            let middle = low.midpoint(high);
            let messages = without(chat.messages, &cuts[middle]);
            let text = self.render(Chat { messages: &messages, ..chat }, false)?;
            let (tokens, offsets) = self.tokenise(&text)?;
            shortest = shortest.min(tokens.len());
            if tokens.len() <= self.max_seq_length {
                best = Some((cuts[middle].len(), messages, Laid::new(text, tokens, offsets)));
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let Some((dropped, messages, mut laid)) = best else {
            let limit = self.max_seq_length;
            let why = format!(
                "the target with its question and system prompt takes {shortest} tokens, more than max_seq_length = {limit}"
            );
            return Err(Refusal { why, needed_tokens: Some(shortest) });
        };
        laid.cut = Cut { messages: dropped as u32, tokens: (whole - laid.tokens.len()) as u32 };
        self.mask(Chat { messages: &messages, ..chat }, laid)
    }

    fn mask(&self, chat: Chat<'_>, mut laid: Laid) -> Result<Laid, Refusal> {
        let supervise = match chat.target {
            Target::LastMessage => Supervise::Last,
            Target::AsSettings => self.supervise,
        };
        match supervise {
            Supervise::All => laid.supervised.fill(true),
            Supervise::Last | Supervise::Completion => {
                self.mask_answer(chat, chat.messages.len().saturating_sub(1), &mut laid)?;
            }
            Supervise::Assistant => {
                let answers = chat.messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
                for (index, _) in answers {
                    self.mask_answer(chat, index, &mut laid)?;
                }
            }
        }
        Ok(laid)
    }

    fn mask_answer(&self, chat: Chat<'_>, index: usize, laid: &mut Laid) -> Result<(), String> {
        if !chat.messages[index].trained {
            return Ok(());
        }
        let span = self.answer_span(chat, index, laid)?;
        let inside = |range: &Range<usize>| span.contains(&range.start) && range.end > range.start;
        let chosen: Vec<usize> = (0..laid.tokens.len()).filter(|i| inside(&laid.offsets[*i])).collect();
        let end_of_turn = chosen.iter().rposition(|i| self.tokenizer.is_special(laid.tokens[*i]));
        let kept = end_of_turn.map_or(chosen.len(), |position| position + 1);
        for i in &chosen[..kept] {
            laid.supervised[*i] = true;
        }
        Ok(())
    }

    /// Where an answer lies in the text of the whole, the end of its turn included.
    fn answer_span(&self, chat: Chat<'_>, index: usize, laid: &Laid) -> Result<Range<usize>, String> {
        let before = self.render(Chat { messages: &chat.messages[..index], ..chat }, true)?;
        let is_last = index + 1 == chat.messages.len();
        let after = if is_last {
            laid.text.clone()
        } else {
            self.render(Chat { messages: &chat.messages[..=index], ..chat }, false)?
        };
        let end = if laid.text.starts_with(&after) {
            Some(after.len())
        } else {
            self.end_of_turn(before.len(), &after, laid)?
        };
        if let Some(end) = end.filter(|end| laid.text.starts_with(&before) && before.len() <= *end) {
            return Ok(before.len()..end);
        }
        let hint = if is_last { "" } else { "; supervise = \"last\" trains the last answer alone" };
        Err(format!(
            "the chat template renders the conversation up to message {index} otherwise alone than as a part of the whole, \
             so its target cannot be told apart{hint}"
        ))
    }

    /// The end of the turn that begins at `start`, where `after`, which ends with that turn, goes on in its own way behind it: Phi's
    /// templates end a finished conversation with one more token. Nothing else may follow there.
    fn end_of_turn(&self, start: usize, after: &str, laid: &Laid) -> Result<Option<usize>, String> {
        let shared = laid.text.bytes().zip(after.bytes()).take_while(|(one, other)| one == other).count();
        let is_end = |(token, range): &(&u32, &Range<usize>)| {
            range.start >= start && range.end <= shared && self.tokenizer.is_special(**token)
        };
        let Some((_, turn)) = laid.tokens.iter().zip(&laid.offsets).filter(is_end).last() else { return Ok(None) };
        let rest = &after[turn.end..];
        let (tokens, offsets) = self.tokenise(rest)?;
        let is_nothing = |(token, range): (&u32, &Range<usize>)| {
            self.tokenizer.is_special(*token) || rest.get(range.clone()).is_some_and(|text| text.trim().is_empty())
        };
        Ok(tokens.iter().zip(&offsets).all(is_nothing).then_some(turn.end))
    }

    fn render(&self, chat: Chat<'_>, add_generation_prompt: bool) -> Result<String, String> {
        let rendered = self.tokenizer.render_with(chat.messages, chat.tools, add_generation_prompt);
        rendered.map_err(|error| error.to_string())
    }

    fn tokenise(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), String> {
        self.tokenizer.encode_with_offsets(text).map_err(|error| error.to_string())
    }
}

impl Laid {
    fn new(text: String, tokens: Vec<u32>, offsets: Vec<Range<usize>>) -> Laid {
        let supervised = vec![false; tokens.len()];
        Laid { text, tokens, offsets, supervised, cut: Cut::default() }
    }
}

/// Which messages may go, shortest loss first: from the oldest after the system prompt, so that a question comes first
/// afterwards, and the final question stays with all that follows it, calls of tools and their answers too.
fn cut_points(messages: &[Message]) -> Vec<Range<usize>> {
    let first = messages.iter().take_while(|message| message.role == Role::System).count();
    let target = messages.len().saturating_sub(1);
    let is_user = |end: &usize| messages[*end].role == Role::User;
    let kept_from = (first + 1..target).rev().find(is_user).unwrap_or(if first < target && is_user(&first) {
        first
    } else {
        target
    });
    (first + 1..=kept_from).filter(|end| *end == kept_from || is_user(end)).map(|end| first..end).collect()
}

fn without(messages: &[Message], cut: &Range<usize>) -> Vec<Message> {
    [&messages[..cut.start], &messages[cut.end..]].concat()
}

fn fault(record: &Record, Refusal { why, needed_tokens }: Refusal) -> Fault {
    let Key { conversation, turn } = &record.key;
    let fault = Fault::new(record.line, &record.path, format!("sample ({conversation}, turn {turn}): {why}"));
    Fault { needed_tokens: needed_tokens.map(|tokens| tokens as u64), ..fault }
}

/// Text between the beginnings of runs of tokens with the same mask.
fn pieces(laid: &Laid) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for i in 1..=laid.tokens.len() {
        let ended = i == laid.tokens.len();
        if !ended && laid.supervised[i] == laid.supervised[i - 1] {
            continue;
        }
        let end = if ended { laid.text.len() } else { laid.offsets[i].start };
        let text = laid.text.get(start..end).unwrap_or_default();
        pieces.push(Piece { text: shortened(text), supervised: laid.supervised[i - 1] });
        start = end;
    }
    pieces
}

/// A sample is for reading and travels in reports, so each piece keeps at most 4,000 characters.
pub(crate) fn shortened(text: &str) -> String {
    const HALF: usize = 2_000;
    let count = text.chars().count();
    if count <= 2 * HALF {
        return text.to_owned();
    }
    let head: String = text.chars().take(HALF).collect();
    let tail: String = text.chars().skip(count - HALF).collect();
    format!("{head} […{} characters…] {tail}", count - 2 * HALF)
}
