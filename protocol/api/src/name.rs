//! What people may call things, and how words of others are shown: nothing that a terminal obeys instead of printing.

use std::{borrow::Cow, fmt::Write};

/// What a name must be.
pub const NAME: &str = "a text of 1…200 characters, none of them a control character";

/// Whether something may be called this.
pub fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= 200 && is_plain(text)
}

/// Whether every character is one that is printed.
pub fn is_plain(text: &str) -> bool {
    !text.contains(is_obeyed)
}

/// The text with what a terminal would obey written out, `\\u{1b}` for an escape; line ends and tabs stay.
pub fn shown(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| is_obeyed(c) && c != '\n' && c != '\t';
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        let written = if harmful(c) { write!(shown, "{}", c.escape_unicode()) } else { shown.write_char(c) };
        written.expect("a string takes every character");
    }
    Cow::Owned(shown)
}

/// Control characters, and those that change the order in which others are shown.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_character_that_a_terminal_obeys() {
        assert!(is_name("größer 日本 🦜"));
        for name in ["", " ", "red \u{1b}[31m", "two\nlines", "csi \u{9b}31m", "back \u{202e}wards", "nul\0"] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name(&"x".repeat(200)) && !is_name(&"x".repeat(201)));
    }

    #[test]
    fn what_others_wrote_is_shown_and_not_obeyed() {
        assert_eq!(shown("a\u{1b}]0;pwn\u{7}\n\tb"), "a\\u{1b}]0;pwn\\u{7}\n\tb");
        assert!(matches!(shown("plain ü"), Cow::Borrowed(_)));
    }
}
