//! How Python prints: `{{ value }}`, `| string` and `| tojson` as Jinja2 does them under transformers.
//!
//! `None`, `True` and `False` have capitals, texts inside lists have quotes, floats keep a point, and JSON has a blank behind each
//! comma and colon.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};

/// Prints a value as `{{ … }}` does.
pub(super) fn format(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    out.write_str(&shown(value)?).map_err(Error::from)
}

/// The filter `string`.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    shown(value).map(Value::from)
}

/// Python's `str`.
fn shown(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => written(value, &REPR, 0),
    }
}

/// The filter `tojson`: `json.dumps(value, ensure_ascii=False, indent=…, separators=…, sort_keys=…)`.
pub(super) fn tojson(value: &Value, args: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let separators: Option<Vec<String>> = args.get("separators")?;
    let sorted = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    args.assert_all_used()?;
    let (comma, colon) = match separators.as_deref() {
        Some([comma, colon]) => (comma.as_str(), colon.as_str()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are a pair")),
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    written(value, &Style { json: true, indent, comma, colon, sorted, ascii }, 0).map(Value::from)
}

/// A way of writing.
struct Style<'a> {
    json: bool,
    indent: Option<usize>,
    comma: &'a str,
    colon: &'a str,
    sorted: bool,
    ascii: bool,
}

const REPR: Style<'static> = Style { json: false, indent: None, comma: ", ", colon: ": ", sorted: false, ascii: false };

fn written(value: &Value, style: &Style<'_>, depth: usize) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(if style.json { quoted_json(text, style.ascii) } else { quoted_python(text) });
    }
    let word = |json: &str, python: &str| Ok(if style.json { json } else { python }.to_owned());
    match value.kind() {
        ValueKind::None => word("null", "None"),
        ValueKind::Bool if value.is_true() => word("true", "True"),
        ValueKind::Bool => word("false", "False"),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => f64::try_from(value.clone()).map(float),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| written(&item, style, depth + 1));
            Ok(enclosed(items.collect::<Result<_, _>>()?, ["[", "]"], style, depth))
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sorted {
                keys.sort();
            }
            let members = keys.into_iter().map(|key| member(value, &key, style, depth));
            Ok(enclosed(members.collect::<Result<_, _>>()?, ["{", "}"], style, depth))
        }
        kind @ (ValueKind::Undefined
        | ValueKind::Bytes
        | ValueKind::Plain
        | ValueKind::Invalid
        | ValueKind::String
        | _) => {
            if style.json {
                return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} is not JSON serializable")));
            }
            Ok(value.to_string())
        }
    }
}

fn member(map: &Value, key: &Value, style: &Style<'_>, depth: usize) -> Result<String, Error> {
    let name = written(key, style, depth)?;
    let name = if style.json && key.as_str().is_none() { format!("\"{name}\"") } else { name };
    Ok([&name, style.colon, &written(&map.get_item(key)?, style, depth + 1)?].concat())
}

fn enclosed(items: Vec<String>, [open, close]: [&str; 2], style: &Style<'_>, depth: usize) -> String {
    match style.indent {
        Some(width) if !items.is_empty() => {
            let line = |depth: usize| format!("\n{}", " ".repeat(width * depth));
            let inner = line(depth + 1);
            let items = items.join(&[style.comma, &inner].concat());
            [open, &inner, &items, &line(depth), close].concat()
        }
        Some(_) | None => [open, &items.join(style.comma), close].concat(),
    }
}

/// Python's `repr` of a float: the shortest digits that read back, an exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if !number.is_finite() {
        let word = if number.is_nan() { "NaN" } else { "Infinity" };
        return if number < 0.0 { format!("-{word}") } else { word.to_owned() };
    }
    if number != 0.0 && (number.abs() < 1e-4 || number.abs() >= 1e16) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, size) = exponent.strip_prefix('-').map_or(('+', exponent), |size| ('-', size));
        return format!("{digits}e{sign}{size:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

fn quoted_json(text: &str, ascii: bool) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            other if other < ' ' || (ascii && !other.is_ascii()) => escape_units(other, &mut out),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// `\uXXXX`, twice for what lies beyond.
fn escape_units(character: char, out: &mut String) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        let _a_string_takes_everything = write!(out, "\\u{unit:04x}");
    }
}

/// Python's `repr` of a text: single quotes unless only those stand inside.
fn quoted_python(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other if other == quote => out.extend(['\\', other]),
            other if other < ' ' || other == '\u{7f}' => {
                let _a_string_takes_everything = write!(out, "\\x{:02x}", u32::from(other));
            }
            other => out.push(other),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let numbers = [0.0, 1.0, -2.5, 1e15, 1e16, 1.5e300, 1e-4, 9.9e-5, 1e22, 123_456_789.125];
        let python = [
            "0.0",
            "1.0",
            "-2.5",
            "1000000000000000.0",
            "1e+16",
            "1.5e+300",
            "0.0001",
            "9.9e-05",
            "1e+22",
            "123456789.125",
        ];
        assert_eq!(numbers.map(float), python);
    }

    #[test]
    fn values_are_printed_as_python_prints_them() {
        let value = Value::from_pairs([("it's", 1.0), ("\"", 2.0)]);
        assert_eq!(shown(&value).expect("prints"), "{\"it's\": 1.0, '\"': 2.0}");
        let printed = [Value::from(()), true.into(), Value::UNDEFINED, "a\n".into(), 3.into()]
            .map(|v| shown(&v).expect("prints"));
        assert_eq!(printed, ["None", "True", "", "a\n", "3"]);
    }

    #[test]
    fn tojson_writes_what_json_dumps_writes() {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        let render = |source: &str| {
            env.render_str(source, context! { v => context! { b => (1, 2.5, true), a => () } }).expect("renders")
        };
        assert_eq!(render("{{ {'a': [1, 2.5, true], 'ü<': none} | tojson }}"), "{\"a\": [1, 2.5, true], \"ü<\": null}");
        assert_eq!(render("{{ [1, {'k': []}] | tojson(indent=2) }}"), "[\n  1,\n  {\n    \"k\": []\n  }\n]");
        assert_eq!(render("{{ [1, {'k': 2}] | tojson(separators=(',', ':')) }}"), "[1,{\"k\":2}]");
        assert_eq!(
            render("{{ {'b': 1, 'a': '🙂\\u0001'} | tojson(sort_keys=true, ensure_ascii=true) }}"),
            "{\"a\": \"\\ud83d\\ude42\\u0001\", \"b\": 1}"
        );
    }
}
