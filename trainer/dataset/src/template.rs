//! Chat templates, rendered as transformers renders them: Jinja with trimmed blocks, Python's string and dict methods,
//! `tojson`, `raise_exception`, `strftime_now`, and the model's special tokens by name.
//!
//! Printed values and `tojson` follow Python (`template/python.rs`). `strftime_now` answers one fixed day: a template that prints
//! today's date would otherwise give the same file other tokens tomorrow, and a resumed run other data than the one it continues
//! (`docs/design/0006`).

mod python;

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, StringInput, Value};
use minijinja::{Environment, Error, ErrorKind};
use time::macros::datetime;
use time::{PrimitiveDateTime, format_description};

use crate::guard::guarded;
use crate::{Json, Message};

/// Used when a base has no template: roles by name, the end-of-text token after each answer where there is one.
pub(crate) const BUILT_IN: &str = "\
{%- if bos_token is defined %}{{ bos_token }}{% endif %}
{%- for message in messages %}
    {{- message['role'] | capitalize }}: {{ message['content'] }}
    {%- if message['role'] == 'assistant' and eos_token is defined %}{{ eos_token }}{% endif %}
    {{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}";

/// The day that `strftime_now` answers, which Llama 3.1's template names as its own default.
const TODAY: PrimitiveDateTime = datetime!(2024-07-26 0:00);

const NAME: &str = "chat";

/// Said of a template at which the library ends its thread.
const UNREADABLE: &str = "it is not sound Jinja: the engine that reads templates breaks at it";

/// The beginning of what is said of a template that takes too many steps.
const ENDLESS: &str = "it takes more than";

/// Steps that one rendering may take. A message takes some dozens, so this is for a conversation of a hundred thousand; a template
/// that loops for ever is stopped within a second.
const FUEL: u64 = 10_000_000;

/// Bytes of text that one rendering may make beside some copies of what is said in it and a frame around each message: within its steps
/// a template could make gigabytes. A tokenizer that is loaded holds two texts at a time, each of which may have grown by doubling.
const MOST_TEXT: usize = 4 << 20;
const COPIES: usize = 4;
const FRAME: usize = 256;

/// A compiled chat template with the special tokens it may print.
#[derive(Debug)]
pub(crate) struct Template {
    env: Environment<'static>,
    source: String,
    tokens: BTreeMap<String, String>,
}

impl Template {
    /// Compiles a template; the error says where it is broken.
    pub(crate) fn compile(source: &str, tokens: BTreeMap<String, String>) -> Result<Template, String> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| error.to_string())?);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_fuel(Some(FUEL));
        env.set_formatter(python::format);
        env.add_filter("indent", indent);
        env.add_filter("tojson", python::tojson);
        env.add_filter("string", python::string);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        guarded(UNREADABLE, || {
            env.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| in_words(&error))
        })?;
        Ok(Template { env, source: source.to_owned(), tokens })
    }

    /// Its text.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// A special token by its name.
    pub(crate) fn token(&self, name: &str) -> Option<&str> {
        self.tokens.get(name).map(String::as_str)
    }

    /// Whether the template says this word anywhere.
    pub(crate) fn names(&self, word: &str) -> bool {
        self.source.contains(word)
    }

    /// The text of a conversation, with the opening of an answer behind it if asked for.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        tools: &[Json],
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        let mut context: BTreeMap<&str, Value> =
            self.tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        context.insert("messages", messages.iter().map(message).collect());
        context.insert("add_generation_prompt", add_generation_prompt.into());
        let tools = if tools.is_empty() { Value::from(()) } else { tools.iter().map(value).collect() };
        context.insert("tools", tools);
        context.insert("documents", Value::from(()));
        let template = self.env.get_template(NAME).map_err(|error| in_words(&error))?;
        let said: usize = messages.iter().filter_map(|message| message.content.as_deref()).map(str::len).sum();
        let most = MOST_TEXT + COPIES * said + FRAME * messages.len();
        let mut text = Text { bytes: Vec::new(), most, is_full: false };
        let rendered = guarded(UNREADABLE, || {
            template
                .render_captured_to(Value::from_pairs(context), &mut text)
                .map(drop)
                .map_err(|error| in_words(&error))
        });
        if text.is_full {
            return Err(format!("{ENDLESS} {} bytes for the text of one conversation", text.most));
        }
        rendered.map(|()| String::from_utf8(text.bytes).expect("text is written whole"))
    }

    /// Whether a short conversation is rendered at all: a template that refuses it may take another, one that never ends takes none.
    pub(crate) fn check_end(&self, messages: &[Message]) -> Result<(), String> {
        match self.render(messages, &[], false) {
            Err(error) if error.starts_with(ENDLESS) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// What a rendering has made so far.
struct Text {
    bytes: Vec<u8>,
    most: usize,
    /// It wanted to be longer.
    is_full: bool,
}

impl Write for Text {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        self.is_full |= more.len() > self.most - self.bytes.len();
        if self.is_full {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Names of a message's reasoning; templates read the first, some the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// As transformers hands it over: only members that say something, and reasoning under every name that templates know.
fn message(message: &Message) -> Value {
    let mut members = vec![("role", Value::from(message.role.name()))];
    members.extend(message.content.as_deref().map(|content| ("content", Value::from(content))));
    if !message.tool_calls.is_empty() {
        members.push(("tool_calls", message.tool_calls.iter().map(value).collect()));
    }
    members.extend(message.further.iter().map(|(name, json)| (name.as_str(), value(json))));
    let named = |name: &str| message.further.iter().find(|(known, _)| known == name);
    if let Some((_, reasoning)) = REASONING.iter().find_map(|name| named(name)) {
        members.push((REASONING[0], value(reasoning)));
        if named(REASONING[1]).is_none() {
            members.push((REASONING[1], value(reasoning)));
        }
    }
    Value::from_pairs(members)
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::List(items) => items.iter().map(value).collect(),
        Json::Object(members) => Value::from_pairs(members.iter().map(|(name, json)| (name.as_str(), value(json)))),
    }
}

/// transformers marks answers with `{% generation %}` blocks that print nothing; here they become plain blocks.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // Behind the opening: of `{%}` the end is not yet there.
        let Some(length) = rest[start + 2..].find("%}").map(|length| length + 2) else { break };
        let (tag, after) = rest[start..].split_at(length);
        out.push_str(&rest[..start]);
        match tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// More than this no template that people read asks for; the library makes the blanks of one line before it counts them as steps.
const WIDEST: usize = 256;

/// The library's filter, within [`WIDEST`].
fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let asked = width.or(named.peek::<Option<usize>>("width")?).unwrap_or_default();
    if asked > WIDEST {
        let why = format!("indent({asked}): expected {WIDEST} at most");
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    }
    minijinja::filters::indent(text, width, first, blank, named)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let fail = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    };
    let items = format_description::parse_strftime_borrowed(&format).map_err(|error| fail(&error))?;
    TODAY.format(&items).map_err(|error| fail(&error))
}

/// A template's own words where it raised, else the kind of the error and its line.
fn in_words(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("{ENDLESS} {FUEL} steps{line}");
    }
    match error.detail() {
        Some(detail) => format!("{detail}{line}"),
        None => format!("{}{line}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    #[test]
    fn a_template_that_makes_more_text_than_a_conversation_can_need_is_refused() {
        let source = format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "pa".repeat(200));
        let template = Template::compile(&source, BTreeMap::new()).expect("sound");
        let error = template.check_end(&[]).expect_err("40 MB");
        assert!(error.contains("4194304 bytes for the text of one conversation"), "{error}");
        let long = [Message::new(Role::User, "x".repeat(20 << 20))];
        let repeats = Template::compile("{% for m in messages %}{{ m.content }}{% endfor %}", BTreeMap::new());
        assert_eq!(repeats.expect("sound").render(&long, &[], false).map(|text| text.len()), Ok(20 << 20));
    }

    #[test]
    fn a_raised_exception_keeps_the_templates_words() {
        let template = Template::compile("{{ raise_exception('no system role') }}", BTreeMap::new()).expect("compiles");
        let error = template.render(&[], &[], false).expect_err("raises");
        assert!(error.starts_with("no system role"), "{error}");
    }

    #[test]
    fn a_template_that_the_library_cannot_bear_is_refused() {
        let error = Template::compile("{% import 'chat' as 'name' %}", BTreeMap::new()).expect_err("refused");
        assert_eq!(error, UNREADABLE);
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let template = Template::compile(source, BTreeMap::new()).expect("compiles");
        let error = template.check_end(&[]).expect_err("stops");
        assert!(error.starts_with("it takes more than 10000000 steps"), "{error}");
        let refusing = Template::compile("{{ raise_exception('no') }}", BTreeMap::new()).expect("compiles");
        refusing.check_end(&[]).expect("another conversation may do");
    }

    #[test]
    fn an_indent_is_no_way_to_any_amount_of_memory() {
        assert_eq!(
            rendered("{{ 'a\nb' | indent(2) }} {{ 'a\nb' | indent(width=3, first=true) }}"),
            "a\n  b    a\n   b"
        );
        for wide in ["indent(99999999)", "indent(width=99999999)"] {
            let template = Template::compile(&format!("{{{{ 'a' | {wide} }}}}"), BTreeMap::new()).expect("compiles");
            let error = template.render(&[], &[], false).expect_err("refused");
            assert!(error.contains("expected 256 at most"), "{error}");
        }
    }

    #[test]
    fn a_long_conversation_has_fuel_enough() {
        let template = Template::compile(BUILT_IN, BTreeMap::new()).expect("compiles");
        let messages = vec![Message::new(Role::User, "hi"); 100_000];
        template.render(&messages, &[], true).expect("renders");
        let frame = "-".repeat(200);
        let framed = Template::compile(
            &format!("{{% for m in messages %}}{frame}{{{{ m.content }}}}{{% endfor %}}"),
            BTreeMap::new(),
        );
        framed.expect("compiles").render(&messages, &[], true).expect("20 MB of frames renders");
    }

    #[test]
    fn generation_blocks_print_their_content_only() {
        assert_eq!(rendered("a{%- generation %} b {% endgeneration -%} c"), "a b c");
    }

    #[test]
    fn the_day_is_always_the_same() {
        assert_eq!(rendered("{{ strftime_now('%d %b %Y') }}"), "26 Jul 2024");
    }

    #[test]
    fn the_built_in_template_ends_answers_with_the_end_of_text() {
        let tokens = BTreeMap::from([("eos_token".to_owned(), "<e>".to_owned())]);
        let template = Template::compile(BUILT_IN, tokens).expect("compiles");
        let messages = [Message::new(Role::User, "hi"), Message::new(Role::Assistant, "ho")];
        assert_eq!(template.render(&messages, &[], false).expect("renders"), "User: hi\n\nAssistant: ho<e>\n\n");
        assert_eq!(template.render(&messages[..1], &[], true).expect("renders"), "User: hi\n\nAssistant:");
    }

    fn rendered(source: &str) -> String {
        let template = Template::compile(source, BTreeMap::new()).expect("compiles");
        template.render(&[], &[], false).expect("renders")
    }
}
