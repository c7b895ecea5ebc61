//! Tokens to text as they come. A token may be a part of a character, and what a token looks like may depend on the one before it;
//! so text is told once the token behind it can no longer change it.

use lorikeet_dataset::Tokenizer;

/// Text in the making.
pub(super) struct Words<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// Where the tokens begin that the next text is read with.
    context: usize,
    /// Before which token everything was told.
    told: usize,
    text: String,
}

impl<'a> Words<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), context: 0, told: 0, text: String::new() }
    }

    /// The text that this token completes; nothing while a character is broken off.
    pub(super) fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        self.take(false)
    }

    /// What is left, broken or not.
    pub(super) fn finish(&mut self) -> String {
        self.take(true)
    }

    /// Everything told.
    pub(super) fn text(&self) -> String {
        self.text.clone()
    }

    fn take(&mut self, all: bool) -> String {
        let read = |tokens: &[u32]| self.tokenizer.decode(tokens).unwrap_or_default();
        let before = read(&self.tokens[self.context..self.told]);
        let whole = read(&self.tokens[self.context..]);
        if !all && whole.ends_with(char::REPLACEMENT_CHARACTER) {
            return String::new();
        }
        let new = whole.get(before.len()..).unwrap_or_default().to_owned();
        (self.context, self.told) = (self.told, self.tokens.len());
        self.text.push_str(&new);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_characters_are_told_once_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        lorikeet_dataset::write_byte_tokenizer(folder.path()).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let mut words = Words::new(&tokenizer);
        let tokens = tokenizer.encode("a ü 漢 z").unwrap();
        let parts: Vec<String> = tokens.iter().map(|token| words.push(*token)).collect();
        assert!(parts.iter().all(|part| !part.contains(char::REPLACEMENT_CHARACTER)), "{parts:?}");
        assert_eq!(parts.concat() + &words.finish(), "a ü 漢 z");
        words.push(tokens[2]);
        assert_eq!(words.finish(), "\u{fffd}", "what never came whole");
        assert_eq!(words.text(), "a ü 漢 z\u{fffd}");
    }
}
