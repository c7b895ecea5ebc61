//! Tables for people, and how numbers, sizes and times look in them.

mod adapter;
pub(crate) mod base;
mod ca;
pub(crate) mod dataset;
pub(crate) mod job;
mod node;
pub(crate) mod plan;
pub(crate) mod preview;
mod sweep;
mod token;

use bytesize::ByteSize;
use comfy_table::{Table, presets};
use lorikeet_api::{Pagination, Timestamp};

/// Rows under a header.
pub(crate) fn grid<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.map(str::to_uppercase)).add_rows(rows);
    trim(&mut table)
}

/// Names beside values; what has no value is left out.
pub(crate) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in fields {
        if let Some(value) = value {
            table.add_row([name.to_owned(), value]);
        }
    }
    trim(&mut table)
}

/// Columns two blanks apart, from the left edge, nothing after the last word of a line.
fn trim(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Where a page stands in its list, when it is not the whole of it.
pub(crate) fn place(pagination: Option<Pagination>) -> Option<String> {
    let Pagination { page, page_size, total, .. } = pagination?;
    let pages = total.div_ceil(page_size.max(1).into()).max(1);
    (pages > 1).then(|| format!("page {page} of {pages}, {total} in all"))
}

/// `1.2 GiB`
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// `2026-01-31 12:00:00 UTC`
pub(crate) fn moment(time: Timestamp) -> String {
    let text = time.to_string();
    format!("{} UTC", text.get(..19).unwrap_or(&text).replace('T', " "))
}

/// `3 min 5 s`
pub(crate) fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// `1,234,567`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(",")
}

/// `$0.00`
pub(crate) fn dollars(micros: u64) -> String {
    let cents = (micros + 5_000) / 10_000;
    format!("${}.{:02}", count(cents / 100), cents % 100)
}

/// The word that an enum is in JSON.
pub(crate) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

/// The beginning of a text, on one line.
pub(crate) fn short(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= most { line } else { line.chars().take(most - 1).chain(['…']).collect() }
}

/// A table, then what belongs under it.
pub(crate) fn with_below(table: String, title: &str, below: Option<String>) -> String {
    match below {
        Some(below) if !below.is_empty() => format!("{table}\n\n{title}\n{below}"),
        _ => table,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_people_write_them() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 4_999, 5_000, 12_500_000].map(dollars), ["$0.00", "$0.00", "$0.01", "$12.50"]);
        assert_eq!([0.4, 59.6, 3_599.0, 7_260.0].map(span), ["0 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"]);
        assert_eq!(short("one  two\nthree", 8), "one two…");
    }

    #[test]
    fn a_table_has_no_frame_and_no_blanks_at_its_lines_ends() {
        let table = grid(["name", "size"], [["a".into(), "10".into()], ["longer".into(), "1".into()]]);
        assert_eq!(table, "NAME    SIZE\na       10\nlonger  1");
        assert_eq!(
            fields([("one", Some("1".into())), ("none", None), ("three", Some("3".into()))]),
            "one    1\nthree  3"
        );
    }
}
