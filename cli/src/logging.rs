//! Logs of the long-running commands, to standard error, where service manager and worker log pick them up.

use tracing_subscriber::EnvFilter;

/// From now on, at `level` unless `LORIKEET_LOG` says otherwise (`debug`, `lorikeet_agent=trace`, …).
pub(crate) fn start(level: &str) {
    let filter = EnvFilter::try_from_env("LORIKEET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A second start, in a process that runs several parts, leaves the first in place.
    let _first =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).try_init();
}
