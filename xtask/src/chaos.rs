//! `cargo xtask chaos`: the fault tests that `docs/reliability.md` promises, the slow ones too, and what became of each row.
//!
//! The page is the list: each row of its table names its tests, and a name that no test has fails. `--record` writes the results
//! back into the page. nextest runs them, because only it says what became of each test in a form that a program can read.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::output::{say, table};
use crate::program::Program;
use crate::test;
use crate::tree::Tree;

/// Where the rows stand.
const PAGE: &str = "docs/reliability.md";
/// What nextest leaves.
const REPORT: &str = "target/nextest/chaos/junit.xml";
/// What a test prints that cannot run on this machine.
const SKIPPED: &str = "SKIPPED: ";

/// One line of the table that names tests.
struct Row {
    /// The number of the fault.
    number: String,
    tests: Vec<String>,
}

/// What became of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Passed,
    Failed,
    /// Why.
    Skipped(String),
}

/// Runs every test that the page names, prints the table, and fails when a row did.
pub(crate) fn run(tree: &Tree, record: bool) -> Result<()> {
    if !test::nextest() {
        bail!("cargo-nextest is missing: it says what became of each test (cargo install cargo-nextest --locked)");
    }
    let path = tree.root().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
    let rows = rows(&page);
    if rows.is_empty() {
        bail!("{PAGE} has no row that names a test");
    }
    test::build(tree)?;
    let report = tree.root().join(REPORT);
    // What an earlier run left is not this one's result.
    let _ = std::fs::remove_file(&report);
    let names: Vec<&str> = rows.iter().flat_map(|row| &row.tests).map(String::as_str).collect();
    let filter = format!("test(/(^|::)({})$/)", names.join("|"));
    let line = "cargo nextest run --workspace --profile chaos --filterset";
    let ran = Program::new(tree.root(), line).args(&[filter]).run();
    let text = std::fs::read_to_string(&report).with_context(|| format!("read {REPORT}"))?;
    let fates = fates(&text);
    let results: Vec<(&Row, String)> = rows.iter().map(|row| (row, row.result(&fates))).collect();
    say("");
    let shown: Vec<Vec<String>> = results
        .iter()
        .map(|(row, result)| vec![row.number.clone(), row.tests.len().to_string(), result.clone()])
        .collect();
    table(&["fault", "tests", "result"], &shown);
    if record {
        let results = results.iter().map(|(row, result)| (row.number.as_str(), result.as_str())).collect();
        std::fs::write(&path, recorded(&page, &results)).with_context(|| format!("write {PAGE}"))?;
    }
    let bad: Vec<&str> =
        results.iter().filter(|(_, result)| !is_good(result)).map(|(row, _)| row.number.as_str()).collect();
    if !bad.is_empty() {
        bail!("not as the page says: {}", bad.join(", "));
    }
    ran
}

impl Row {
    fn result(&self, fates: &BTreeMap<String, Fate>) -> String {
        let missing: Vec<&str> =
            self.tests.iter().filter(|name| !fates.contains_key(*name)).map(String::as_str).collect();
        if !missing.is_empty() {
            return format!("no such test: {}", missing.join(", "));
        }
        let failed: Vec<&str> =
            self.tests.iter().filter(|name| fates[*name] == Fate::Failed).map(String::as_str).collect();
        if !failed.is_empty() {
            return format!("failed: {}", failed.join(", "));
        }
        let skipped = self.tests.iter().find_map(|name| match &fates[name] {
            Fate::Skipped(why) => Some(why),
            Fate::Passed | Fate::Failed => None,
        });
        skipped.map_or_else(|| "passed".into(), |why| format!("skipped: {why}"))
    }
}

fn is_good(result: &str) -> bool {
    result == "passed" || result.starts_with("skipped: ")
}

/// Cells of a line of a Markdown table.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inside = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inside.split('|').map(str::trim).collect())
}

/// The rows whose first cell is a number of a fault and whose third names tests in backticks.
fn rows(page: &str) -> Vec<Row> {
    let row = |line: &str| {
        let cells = cells(line)?;
        let number = cells.first().filter(|number| number.starts_with('T') || number.starts_with('S'))?;
        let tests: Vec<String> = cells.get(2)?.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (!tests.is_empty()).then(|| Row { number: (*number).to_owned(), tests })
    };
    page.lines().filter_map(row).collect()
}

/// The page with these results in the last cell of their rows.
fn recorded(page: &str, results: &BTreeMap<&str, &str>) -> String {
    let line = |line: &str| match cells(line) {
        Some(cells) if cells.len() == 4 && results.contains_key(cells[0]) && cells[2].contains('`') => {
            format!("| {} | {} | {} | {} |\n", cells[0], cells[1], cells[2], results[cells[0]])
        }
        _ => format!("{line}\n"),
    };
    page.lines().map(line).collect()
}

/// By the last part of a test's path, which is a sentence of its own.
fn fates(report: &str) -> BTreeMap<String, Fate> {
    let mut fates = BTreeMap::new();
    for case in report.split("<testcase ").skip(1) {
        let Some(name) = case.split("name=\"").nth(1).and_then(|rest| rest.split('"').next()) else { continue };
        let case = case.split("</testcase>").next().unwrap_or(case);
        let skipped = case.split(SKIPPED).nth(1).and_then(|rest| rest.split(['\n', '<']).next());
        let fate = match skipped {
            _ if case.contains("<failure") || case.contains("<error") => Fate::Failed,
            Some(why) => Fate::Skipped(why.trim().to_owned()),
            None => Fate::Passed,
        };
        let sentence = name.rsplit("::").next().unwrap_or(name).to_owned();
        // Two crates may have a test of one name: then both count.
        let worse = fates.get(&sentence).is_none_or(|before| *before == Fate::Passed);
        if worse {
            fates.insert(sentence, fate);
        }
    }
    fates
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "| # | what | tests | result |\n|---|---|---|---|\n| T1 | a | `one`, `two` | ? |\n| T2 | b | later | – |\n";

    #[test]
    fn a_row_names_its_tests_and_gets_its_result() {
        let rows = rows(PAGE);
        assert_eq!(
            (rows.len(), rows[0].number.as_str(), &rows[0].tests[..]),
            (1, "T1", &["one".to_owned(), "two".into()][..])
        );
        let page = recorded(PAGE, &[("T1", "passed"), ("T2", "passed")].into());
        assert!(page.contains("| T1 | a | `one`, `two` | passed |") && page.contains("| later | – |"), "{page}");
    }

    #[test]
    fn a_row_is_what_its_worst_test_is() {
        let report = "<testcase name=\"a::one\" time=\"1\">\n</testcase><testcase name=\"b::two\"><failure/></testcase>\
                      <testcase name=\"three\"><system-err>SKIPPED: no right to mount\n</system-err></testcase>";
        let fates = fates(report);
        let row =
            |tests: &[&str]| Row { number: "T1".into(), tests: tests.iter().map(|name| (*name).into()).collect() };
        assert_eq!(row(&["one"]).result(&fates), "passed");
        assert_eq!(row(&["one", "two"]).result(&fates), "failed: two");
        assert_eq!(row(&["one", "three"]).result(&fates), "skipped: no right to mount");
        assert!(!is_good(&row(&["four"]).result(&fates)));
    }
}
