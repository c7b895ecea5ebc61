//! The program that inspects: how it is started, and whether it is one of ours. That is found out when the coordinator starts, not by the
//! first person whose file nobody can read.

use crate::config::Inspect;
use lorikeet_api::FieldError;
use std::{io, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
    time::timeout,
};

/// A program's name and version.
const LONGEST_VERSION: u64 = 256;
/// Ours says it in some 50 ms; a machine that has just started is slow.
const VERSION_WITHIN: Duration = Duration::from_secs(10);

/// With an empty environment, in nobody's folder, and gone with whoever asks.
pub(super) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// Whether the program of the config can be started and is a `lorikeet`.
pub(crate) async fn check(config: &Inspect) -> Result<(), FieldError> {
    let Some(program) = &config.program else { return Ok(()) };
    let refused = |why: &dyn std::fmt::Display| {
        let expected = format!("a program that may be started here ({why})");
        Err(FieldError::new("inspect.program", program.display(), expected))
    };
    match (program.metadata(), rustix::fs::access(program, rustix::fs::Access::EXEC_OK)) {
        (Err(error), _) => refused(&error),
        (Ok(file), _) if !file.is_file() => refused(&"it is no file"),
        (Ok(_), Err(error)) => refused(&error),
        (Ok(_), Ok(())) => match version(program).await {
            Ok(text) if text.starts_with("lorikeet ") => Ok(()),
            Ok(text) => refused(&format!("its version is `{}`, not lorikeet's", text.escape_debug())),
            Err(error) => refused(&error),
        },
    }
}

/// What it says when it is asked for its version, as far as that is short and soon.
async fn version(program: &Path) -> io::Result<String> {
    let mut child = command(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let out = child.stdout.take().expect("it was asked for");
    let mut text = Vec::new();
    let mut out = BufReader::new(out.take(LONGEST_VERSION));
    let late =
        || io::Error::new(io::ErrorKind::TimedOut, format!("it did not say its version within {VERSION_WITHIN:?}"));
    timeout(VERSION_WITHIN, out.read_until(b'\n', &mut text)).await.map_err(|_| late())??;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}
