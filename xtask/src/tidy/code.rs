//! Rust source with everything that is not code blanked out: comments, and the insides of strings and characters. What is
//! left keeps its place, so that a rule can look for a word and name the line.

/// `source` with spaces in the place of prose. Line breaks stay.
pub(super) fn only(source: &str) -> String {
    let mut scan = Scan { rest: source, code: String::with_capacity(source.len()), in_word: false };
    while !scan.rest.is_empty() {
        scan.step();
    }
    scan.code
}

/// Whether `word` stands alone in a line of code.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

struct Scan<'a> {
    rest: &'a str,
    code: String,
    /// The last character belonged to an identifier, so an `r` here does not open a raw string.
    in_word: bool,
}

impl Scan<'_> {
    fn step(&mut self) {
        let blank = self.comment().or_else(|| self.raw_string()).or_else(|| self.string()).or_else(|| self.character());
        match blank {
            Some(length) => self.blank(length),
            None => self.keep(),
        }
    }

    fn keep(&mut self) {
        let next = self.rest.chars().next().expect("step is called while something is left");
        self.code.push(next);
        self.in_word = is_word(next);
        self.rest = &self.rest[next.len_utf8()..];
    }

    fn blank(&mut self, length: usize) {
        let (gone, rest) = self.rest.split_at(length);
        self.code.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.in_word = false;
        self.rest = rest;
    }

    fn comment(&self) -> Option<usize> {
        if self.rest.starts_with("//") {
            return Some(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
        self.rest.starts_with("/*").then(|| block_comment(self.rest))
    }

    /// `r"…"`, `r#"…"#`, `br"…"`, `cr"…"`.
    fn raw_string(&self) -> Option<usize> {
        let prefix = ["r", "br", "cr"].into_iter().find(|prefix| self.rest.starts_with(prefix))?;
        let hashes = self.rest[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
        let body = prefix.len() + hashes + 1;
        if self.in_word || self.rest.as_bytes().get(body - 1) != Some(&b'"') {
            return None;
        }
        let end = format!("\"{}", "#".repeat(hashes));
        Some(self.rest[body..].find(&end).map_or(self.rest.len(), |at| body + at + end.len()))
    }

    fn string(&self) -> Option<usize> {
        self.rest.starts_with('"').then(|| quoted(self.rest, b'"'))
    }

    /// `'x'` and `'\n'`, told apart from a lifetime by where the second quote stands.
    fn character(&self) -> Option<usize> {
        let mut chars = self.rest.strip_prefix('\'')?.chars();
        let (first, second) = (chars.next(), chars.next());
        (first == Some('\\') || second == Some('\'')).then(|| quoted(self.rest, b'\''))
    }
}

/// The length of a literal that opens with a quote, ends with the same one, and escapes with a backslash.
fn quoted(text: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Block comments nest in Rust.
fn block_comment(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_blanked_and_code_keeps_its_place() {
        let source = "let a = \"redb\"; // redb\n/* redb /* deeper */ redb */ let b = redb::open();";
        let code = only(source);
        assert_eq!(code.len(), source.len());
        assert_eq!(code.match_indices("redb").map(|(at, _)| at).collect::<Vec<_>>(), [source.rfind("redb").unwrap()]);
    }

    #[test]
    fn raw_strings_characters_and_lifetimes_are_told_apart() {
        assert_eq!(only(r####"f(r#"a " redb"#, 'x', '"', '\'', b"\"redb")"####).matches("redb").count(), 0);
        assert!(only("fn f<'a>(x: &'a redb::Table) {}").contains("redb"));
        assert!(only("let for_r = number\"text\" ; redb").contains("redb"));
    }

    #[test]
    fn a_text_in_other_scripts_does_not_split_a_character() {
        assert_eq!(only("// größer →\nlet x = '→'; \"é\"").lines().count(), 2);
    }

    #[test]
    fn a_word_is_not_found_inside_another() {
        assert!(has_word("use redb::Database;", "redb"));
        assert!(!has_word("let redb_like = credb;", "redb"));
    }
}
