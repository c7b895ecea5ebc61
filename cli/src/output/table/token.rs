//! Tokens as tables.

use super::{fields, grid, moment, short};
use crate::output::View;
use lorikeet_api::token::Token;

impl View for Vec<Token> {
    fn table(&self) -> String {
        let row =
            |token: &Token| [token.id.to_string(), short(&token.name, 40), moment(token.created_at), expires(token)];
        grid(["id", "name", "created", "expires"], self.iter().map(row))
    }
}

impl View for Token {
    fn table(&self) -> String {
        fields([
            ("id", Some(self.id.to_string())),
            ("name", Some(self.name.clone())),
            ("secret", self.secret.clone()),
            ("created", Some(moment(self.created_at))),
            ("expires", Some(expires(self))),
        ])
    }
}

fn expires(token: &Token) -> String {
    token.expires_at.map_or_else(|| "never".to_owned(), moment)
}
