//! Runs what waits for a disk where the event loop does not wait for it.

use std::io;

/// What comes of work that waits for a disk. In a simulation it is done in place: threads would
/// make each run another one.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    #[cfg(test)]
    if super::sim::is_running() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
