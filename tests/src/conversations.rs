//! A training file of our own: short conversations, enough for a run of a few dozen steps.

use std::{fmt::Write as _, path::Path};

/// Writes `count` conversations as CHAT_MESSAGES.
pub fn write(path: &Path, count: usize) {
    let mut text = String::new();
    for number in 0..count {
        let question = format!("What is {number} and one more?");
        let answer = format!("It is {}, and that is {} times sure.", number + 1, number % 7 + 2);
        let messages =
            serde_json::json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        writeln!(text, "{}", serde_json::json!({ "messages": messages })).expect("a string grows");
    }
    std::fs::write(path, text).expect("the folder is ours");
}
