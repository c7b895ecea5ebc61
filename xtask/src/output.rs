//! Every word that a task prints passes here.

use std::time::Duration;

/// One line to the person who started the task.
#[expect(clippy::print_stdout, reason = "a task talks to the person who started it; this is the one place")]
pub(crate) fn say(line: impl AsRef<str>) {
    println!("{}", line.as_ref());
}

/// Rows under a heading, each column as wide as its widest cell; numbers look best in the last column.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..heading.len()).map(|column| width(heading[column], rows, column)).collect();
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        say(cells.join("  ").trim_end());
    }
}

/// `75.3 s`, so that a column of times can be compared by eye.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:7.1} s", time.as_secs_f64())
}

fn width(heading: &str, rows: &[Vec<String>], column: usize) -> usize {
    let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
    cells.max().unwrap_or(0).max(heading.chars().count())
}
