//! Rendered examples with what is learnt marked: in colour on a terminal, in brackets elsewhere.

/// How a stretch of text is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// Green, for eyes.
    Colour,
    /// Brackets that no template prints, for files and pipes.
    Brackets,
}

/// Stretches one after the other. Control characters of a file must not reach the terminal.
pub(crate) fn text<'a>(pieces: impl Iterator<Item = (&'a str, bool)>, marks: Marks) -> String {
    let (open, close) = match marks {
        Marks::Colour => ("\u{1b}[32m", "\u{1b}[0m"),
        Marks::Brackets => ("⟦", "⟧"),
    };
    let shown = pieces.map(|(text, learnt)| {
        let text = printable(text);
        if learnt { [open, &text, close].concat() } else { text }
    });
    shown.collect()
}

fn printable(text: &str) -> String {
    let shown = |character: char| {
        let harmless = !character.is_control() || character == '\n' || character == '\t';
        if harmless { character } else { char::REPLACEMENT_CHARACTER }
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learnt_is_marked_and_escape_codes_are_defused() {
        let pieces = [("ask\u{1b}[31m", false), ("answer\n", true)];
        assert_eq!(text(pieces.into_iter(), Marks::Brackets), "ask\u{fffd}[31m⟦answer\n⟧");
        assert_eq!(text(pieces[1..].iter().copied(), Marks::Colour), "\u{1b}[32manswer\n\u{1b}[0m");
    }
}
