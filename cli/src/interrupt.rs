//! Ctrl-C in a command that makes something: the work is told, drops what is half-made, and the exit code is that of an interrupted
//! command. A second one ends at once. SIGTERM is heard in the same way; so is the end of the terminal, but of that a shell and the
//! kernel may both tell, and a second word of it is no second wish.

use crate::failure::Failure;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    flag,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What a shell calls the end of a command that was interrupted.
pub(crate) const EXIT: u8 = 130;
/// Between two looks of somebody who waits for something else; nobody notices so little.
const LOOK: Duration = Duration::from_millis(50);

/// Past a limit on the size of files a write fails, as on a full disk: the signal would end the process before it can say so.
pub(crate) fn outlive_file_limits() {
    // where it cannot be heard it does what it did
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Whether the work is still wanted.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on the first signal does not end the process by itself.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let asked = Arc::new(AtomicBool::new(false));
        let listen = || {
            for signal in [SIGINT, SIGTERM] {
                // in this order: the first signal finds the flag down
                flag::register_conditional_shutdown(signal, i32::from(EXIT), Arc::clone(&asked))?;
                flag::register(signal, Arc::clone(&asked))?;
            }
            if !lorikeet_worker::ignores_hangup() {
                flag::register(SIGHUP, Arc::clone(&asked))?;
            }
            Ok(())
        };
        listen().map_err(|error: std::io::Error| Failure::bug(format!("listen for signals: {error}")))?;
        Ok(Self { asked })
    }

    /// Whether a signal came.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// The work, unless a signal comes first: then it is dropped where it waits.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let asked = async {
            while !self.is_asked() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            done = work => done,
            () = asked => Err(Failure::interrupted()),
        }
    }
}
