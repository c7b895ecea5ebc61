//! Every word printed to a person or a script passes here.
//!
//! What others wrote – names, messages, logs – is shown and never obeyed by a terminal: every text for people goes through
//! [`shown`]. Answers go to standard output, as tables or as JSON; everything said on the way (notes, progress, errors) to standard
//! error, so that a pipe carries answers alone.

pub(crate) mod curve;
mod json;
pub(crate) mod progress;
pub(crate) mod table;

use crate::{args::Form, failure::Failure};
use lorikeet_api::name::shown;
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// The process has one standard output.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Something that can be answered.
pub(crate) trait View: Serialize {
    /// For people, without a line end at its end.
    fn table(&self) -> String;
}

/// Where words go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    form: Form,
}

impl Output {
    /// As `--output` says.
    pub(crate) fn new(form: Form) -> Self {
        Self { form }
    }

    /// The same place, but what happens on the way is told to people.
    pub(crate) fn for_people(self) -> Self {
        Self { form: Form::Table }
    }

    /// Whether a program reads.
    pub(crate) fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    /// Whether a person reads at a terminal that shows colours.
    pub(crate) fn has_colour(&self) -> bool {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        self.form == Form::Table && io::stdout().is_terminal() && !refused
    }

    /// The answer.
    pub(crate) fn answer<T: View + ?Sized>(&self, answer: &T) -> Result<(), Failure> {
        match self.form {
            Form::Table => self.line(&shown(&answer.table())),
            Form::Json => self.line(&json::pretty(answer)?),
        }
    }

    /// One of many answers that come one by one: a line of JSON each, or what `text` makes of it.
    pub(crate) fn item<T: Serialize>(&self, item: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.form {
            Form::Table => self.line(&shown(&text(item))),
            Form::Json => self.line(&json::compact(item)?),
        }
    }

    /// Whether who read us is gone: what is only said from now on need not be made.
    pub(crate) fn is_unread(&self) -> bool {
        UNREAD.load(Ordering::Relaxed)
    }

    /// A program's answer whatever `--output` says: what `inspect` prints.
    pub(crate) fn object<T: Serialize>(&self, object: &T) -> Result<(), Failure> {
        self.line(&json::compact(object)?)
    }

    /// A line of standard output as it is.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        self.write(&format!("{text}\n"))
    }

    /// Words of a line that goes on, for people.
    pub(crate) fn part(&self, text: &str) -> Result<(), Failure> {
        self.write(&shown(text))
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Who reads us has seen enough (`| head`): no mistake of anybody's, and what comes of the command is decided elsewhere.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                UNREAD.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(Failure::mistake(format!("write to standard output: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    /// Something said on the way, to people only.
    pub(crate) fn note(&self, text: &str) {
        say(text);
    }
}

/// The last words of a command that failed.
pub(crate) fn failed(failure: &Failure) {
    say(&format!("error: {failure}"));
    if let Some(hint) = &failure.hint {
        say(&format!("hint: {hint}"));
    }
}

/// Standard error may be closed; then nobody wanted to hear it.
fn say(text: &str) {
    _ = writeln!(io::stderr().lock(), "{}", shown(text));
}
