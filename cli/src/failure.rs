//! The one error of the command line: whose doing it was, what happened, and what would help.
//!
//! The kind is the exit code. Clap's own complaints about arguments exit with 2 as well, so a script needs to know one table.

use crate::interrupt;
use lorikeet_api::{ErrorBody, ErrorCode, FieldError};
pub(crate) use lorikeet_protocol::chain;
use lorikeet_protocol::job::FailureClass;
use std::{fmt, path::Path, process::ExitCode};

/// Whose doing it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The person's: arguments, files, settings, this machine's ports and folders.
    Mistake,
    /// The server understood and said no.
    Refused,
    /// Nobody answers, or not as a coordinator does.
    Unreachable,
    /// Everything worked but the job.
    JobFailed,
    /// The person wanted it no more.
    Interrupted,
    /// Ours.
    Bug,
}

impl Kind {
    /// Of what the trainer could not do on this machine, whichever command asked. Files, settings, memory and disk are the
    /// person's or the machine's; only numbers that ran away are the training's own failure.
    fn of(class: FailureClass) -> Self {
        match class {
            FailureClass::Dataset
            | FailureClass::Base
            | FailureClass::Settings
            | FailureClass::OutOfMemory
            | FailureClass::DiskFull
            | FailureClass::Hardware => Self::Mistake,
            FailureClass::NonFinite => Self::JobFailed,
            FailureClass::Internal => Self::Bug,
        }
    }

    /// What a script sees.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Mistake => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
            Self::JobFailed => 5,
            Self::Bug => 70,
            Self::Interrupted => interrupt::EXIT,
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Whose doing.
    pub(crate) kind: Kind,
    /// What happened, one line or several.
    pub(crate) message: String,
    /// What to try.
    pub(crate) hint: Option<String>,
}

impl Failure {
    fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), hint: None }
    }

    /// The person can put it right.
    pub(crate) fn mistake(message: impl fmt::Display) -> Self {
        Self::new(Kind::Mistake, message)
    }

    /// The server said no.
    pub(crate) fn refused(message: impl fmt::Display) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// Nobody answers.
    pub(crate) fn unreachable(message: impl fmt::Display) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    /// The job did not succeed.
    pub(crate) fn job_failed(message: impl fmt::Display) -> Self {
        Self::new(Kind::JobFailed, message)
    }

    /// A signal came; what was half-made is gone.
    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted: nothing was made")
    }

    /// It should not have been possible.
    pub(crate) fn bug(message: impl fmt::Display) -> Self {
        Self::new(Kind::Bug, message).hint("this is a bug of lorikeet; please report it with the command you ran")
    }

    /// The trainer could not do what it was asked, on this machine.
    pub(crate) fn of_trainer(class: FailureClass, message: impl fmt::Display, hint: Option<String>) -> Self {
        let kind = Kind::of(class);
        if kind == Kind::Bug { Self::bug(message) } else { Self { hint, ..Self::new(kind, message) } }
    }

    /// A file or folder of this machine would not do.
    pub(crate) fn file(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::mistake(format!("{doing} {}: {error}", path.display()))
    }

    /// Fields of a job file: one in the same line, several each on its own.
    pub(crate) fn fields(what: &str, faults: &[FieldError]) -> Self {
        if let [fault] = faults {
            return Self::mistake(format!("{what}: {fault}"));
        }
        let lines: Vec<_> = faults.iter().map(|fault| format!("\n  {fault}")).collect();
        Self::mistake(format!("{what} is not valid:{}", lines.concat()))
    }

    /// What would help.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// For the end of `main`.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.exit_code())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ErrorBody> for Failure {
    /// A field that is wrong, or an id that names nothing, is the person's mistake, whoever noticed it.
    fn from(error: ErrorBody) -> Self {
        if error.code == ErrorCode::ValidationError {
            if error.details.len() > 1 {
                return Self::fields("the request", &error.details);
            }
            return Self::mistake(error.message);
        }
        let failure = Self::refused(format!("the server refused: {}", error.message));
        match error.code {
            ErrorCode::Unauthorized => {
                failure.hint("give a token with --token or LORIKEET_TOKEN, or run `lorikeet login`")
            }
            ErrorCode::InsufficientStorage => failure.hint("free space in the coordinator's data directory"),
            ErrorCode::Unavailable | ErrorCode::RateLimited => failure.hint("try again in a moment"),
            ErrorCode::NotFound => Self { kind: Kind::Mistake, ..failure },
            ErrorCode::ValidationError
            | ErrorCode::Forbidden
            | ErrorCode::MethodNotAllowed
            | ErrorCode::Conflict
            | ErrorCode::IdempotencyMismatch
            | ErrorCode::PayloadTooLarge
            | ErrorCode::BudgetExceeded
            | ErrorCode::Internal
            | ErrorCode::Unknown => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_error_of_the_server_is_the_persons_mistake() {
        let fault = FieldError::new("lora.rank", 300, "a whole number 1…256");
        let failure = Failure::from(ErrorBody::fields(vec![fault]));
        assert_eq!((failure.kind, failure.kind.exit_code()), (Kind::Mistake, 2));
        assert_eq!(failure.message, "lora.rank is 300, expected a whole number 1…256");
    }

    #[test]
    fn what_names_nothing_is_the_persons_mistake_by_name_or_by_id() {
        let failure = Failure::from(ErrorBody::new(ErrorCode::NotFound, "no such job"));
        assert_eq!((failure.kind.exit_code(), failure.message.as_str()), (2, "the server refused: no such job"));
    }

    #[test]
    fn what_the_trainer_could_not_do_has_one_exit_code_whichever_command_asked() {
        let code = |class| Failure::of_trainer(class, "it failed", Some("try".into())).kind.exit_code();
        let machine = [FailureClass::OutOfMemory, FailureClass::DiskFull, FailureClass::Hardware].map(code);
        assert_eq!(machine, [2; 3], "this machine's");
        assert_eq!(
            [FailureClass::Dataset, FailureClass::Base, FailureClass::Settings].map(code),
            [2; 3],
            "the person's"
        );
        assert_eq!([FailureClass::NonFinite, FailureClass::Internal].map(code), [5, 70]);
        let bug = Failure::of_trainer(FailureClass::Internal, "it failed", Some("try".into()));
        assert!(bug.hint.is_some_and(|hint| hint.contains("please report it")));
    }

    #[test]
    fn any_other_refusal_is_the_servers() {
        let failure = Failure::from(ErrorBody::new(ErrorCode::Conflict, "the job is over"));
        assert_eq!(failure.kind.exit_code(), 3);
        let failure = Failure::from(ErrorBody::new(ErrorCode::Unauthorized, "no token"));
        assert!(failure.hint.unwrap().contains("lorikeet login"));
    }
}
