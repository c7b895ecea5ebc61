//! What `coordinator` and `agent` have in common as services: a runtime, signals, and words for the service manager.

use crate::{failure::Failure, interrupt};
use std::{fs::File, future::Future, io, os::fd::AsFd, process};
use tokio::{
    net::unix::pipe,
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

/// A runtime for a service.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::bug(format!("start the runtime: {error}")))
}

/// SIGTERM and SIGINT: the first asks, the second ends. The end of the terminal (SIGHUP) asks as well, and so does the end of
/// standard input, where it is listened for.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Not where whoever started us wants us to outlive the terminal.
    hangup: Option<Signal>,
    /// Whoever started us holds its other end.
    parent: Option<pipe::Receiver>,
}

impl Signals {
    /// From now on none of them ends the process by itself.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::bug(format!("listen for signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: (!lorikeet_worker::ignores_hangup()).then(|| listen(SignalKind::hangup())).transpose()?,
            parent: None,
        })
    }

    /// Listens for the end of standard input too, if `wanted`.
    pub(super) fn until_eof(mut self, wanted: bool) -> Result<Self, Failure> {
        if wanted {
            let pipe =
                io::stdin().as_fd().try_clone_to_owned().and_then(|stdin| pipe::Receiver::from_file(File::from(stdin)));
            let pipe = pipe.map_err(|error| Failure::mistake(format!("wait for the end of standard input: {error}")));
            self.parent = Some(pipe.map_err(|failure| failure.hint("--until-eof needs a pipe there"))?);
        }
        Ok(self)
    }

    /// Until one comes.
    pub(super) async fn wait(&mut self) {
        let parent = end(self.parent.as_ref());
        tokio::select! {
            () = either(&mut self.terminate, &mut self.interrupt) => {}
            () = hangup(self.hangup.as_mut()) => {}
            () = parent => tracing::warn!("standard input ended: whoever started this is gone"),
        }
    }

    /// Lets `work` end in order, unless a second signal comes: then the process ends at once, as if it had been killed. A
    /// parent or a terminal that goes meanwhile is no reason for that; of a terminal a shell and the kernel may both tell.
    pub(super) async fn or_at_once<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = either(&mut self.terminate, &mut self.interrupt) => {
                tracing::warn!("a second signal: ending at once");
                process::exit(interrupt::EXIT.into());
            }
        }
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn hangup(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Until nobody holds the other end of a pipe; without a pipe, for ever. What is written into it is for nobody.
async fn end(pipe: Option<&pipe::Receiver>) {
    let Some(pipe) = pipe else { return std::future::pending().await };
    let mut noise = [0; 64];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut noise) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Tells the service manager, if one started us.
pub(super) fn ready(status: &str) {
    tell(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(status)]);
}

/// Likewise.
pub(super) fn stopping() {
    tell(&[sd_notify::NotifyState::Stopping]);
}

fn tell(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
