//! A marked line, and the branch that stands in its place in the scratch copy: one way as it is written, the other with the
//! sign flipped.

use anyhow::{Context, Result, bail};

use crate::tree::Tree;

pub(super) const MARK: &str = "// mutate: flip";
pub(super) const SOURCES: &str = "trainer/src/";

/// One marked line.
pub(super) struct Mark {
    /// Counted from 1 over all files in the order of their names; 0 is no flip at all.
    pub(super) number: usize,
    pub(super) file: String,
    /// Counted from 1.
    pub(super) line: usize,
    /// What stands there in the scratch copy.
    pub(super) branch: String,
}

/// Every marked line of the trainer's sources.
pub(super) fn find(tree: &Tree) -> Result<Vec<Mark>> {
    let mut marks = Vec::new();
    for (file, text) in tree.texts("rs")?.into_iter().filter(|(file, _)| file.starts_with(SOURCES)) {
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| text.trim_end().ends_with(MARK)) {
            let number = marks.len() + 1;
            let branch = branch(text, number).with_context(|| format!("{file}:{line}"))?;
            marks.push(Mark { number, file: file.clone(), line, branch });
        }
    }
    Ok(marks)
}

/// A line that does both, by the number of the flip that is asked for.
fn branch(line: &str, number: usize) -> Result<String> {
    let code = line.split_once("//").map_or(line, |(code, _)| code).trim();
    if !is_whole(code) {
        bail!("the mark has to stand on a statement of one line");
    }
    let Some(flipped) = flip(code) else { bail!("there is no sign to flip") };
    let asked = format!("if crate::mutant::is({number})");
    // What a `let` names has to live on behind the branch.
    let Some(("let", _)) = code.split_once(' ') else {
        return Ok(format!("{asked} {{ {flipped} }} else {{ {code} }}"));
    };
    let (Some((names, value)), Some((same, other))) = (code.split_once(" = "), flipped.split_once(" = ")) else {
        bail!("a marked `let` has a value");
    };
    if names != same {
        bail!("the sign to flip stands in front of the value");
    }
    let [value, other] = [value, other].map(|value| value.trim_end_matches(';'));
    Ok(format!("{names} = {asked} {{ {other} }} else {{ {value} }};"))
}

/// Whether nothing of it stands on the line before or behind.
fn is_whole(code: &str) -> bool {
    let depth = |open: char, close: char| {
        let count = |wanted: char| code.chars().filter(|char| *char == wanted).count();
        count(open) == count(close)
    };
    let goes_on = [".", "+", "-", "&&", "||", ")", "}"].iter().any(|sign| code.starts_with(sign));
    code.ends_with(';') && !goes_on && depth('(', ')') && depth('{', '}') && depth('[', ']')
}

/// The other sign: of the first `+=` or `-=` in the code, else of its first `+` or `-`.
fn flip(code: &str) -> Option<String> {
    let swap = |from: &str, to: &str| code.find(from).map(|at| (at, code.replacen(from, to, 1)));
    let first = |plus: &str, minus: &str| [swap(plus, minus), swap(minus, plus)].into_iter().flatten().min();
    let (_, flipped) = first(" += ", " -= ").or_else(|| first(" + ", " - "))?;
    Some(flipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_flipped_before_a_plain_sign() {
        assert_eq!(flip("sum += a + b;").as_deref(), Some("sum -= a + b;"));
        assert_eq!(flip("x -= y;").as_deref(), Some("x += y;"));
    }

    #[test]
    fn the_first_plain_sign_is_flipped() {
        assert_eq!(flip("let d = a - b + c;").as_deref(), Some("let d = a + b + c;"));
    }

    #[test]
    fn a_negation_is_not_a_sign_between_two_terms() {
        assert_eq!(flip("let d = -a;"), None);
    }

    #[test]
    fn a_line_becomes_a_branch_and_what_it_names_lives_on() {
        let both = branch("    x += y; // mutate: flip", 7).unwrap();
        assert_eq!(both, "if crate::mutant::is(7) { x -= y; } else { x += y; }");
        let both = branch("    let d = a - b; // mutate: flip", 8).unwrap();
        assert_eq!(both, "let d = if crate::mutant::is(8) { a + b } else { a - b };");
    }

    #[test]
    fn a_mark_that_cannot_be_a_branch_is_refused() {
        for line in [
            "let d = a * b; // a + b // mutate: flip",
            ".map(|x| x + 1); // mutate: flip",
            "sum(a + b, // mutate: flip",
            "for x in a + b { // mutate: flip",
        ] {
            assert!(branch(line, 1).is_err(), "{line}");
        }
    }
}
