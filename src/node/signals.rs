//! The signals that end a process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::StartError;

/// Hears SIGTERM and SIGINT from the moment it is made. One for the life of the process: once the
/// system's own handling is replaced, a signal that nobody hears would be lost.
pub(super) struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    /// Begins to hear. To be called within a runtime.
    ///
    /// # Errors
    /// If the system does not let it.
    pub(super) fn hear() -> Result<Self, StartError> {
        Ok(Self {
            terminate: hear(SignalKind::terminate())?,
            interrupt: hear(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one; one that came since the last is not lost.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Hears one kind of signal.
pub(super) fn hear(kind: SignalKind) -> Result<Signal, StartError> {
    let what = "signal handler";
    signal(kind).map_err(|source: io::Error| StartError::System { what, source })
}
