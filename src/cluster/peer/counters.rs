//! What the transport counts. Plain numbers; `metrics` is handed copies.

use std::sync::atomic::AtomicU64;

/// Counts since the start, over all peers.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes written.
    pub bytes_sent: AtomicU64,
    /// Bytes read.
    pub bytes_received: AtomicU64,
    /// Frames handed to connections.
    pub frames_sent: AtomicU64,
    /// Whole frames read.
    pub frames_received: AtomicU64,
    /// Connections made to peers.
    pub dialed: AtomicU64,
    /// Tries to make one that failed.
    pub dial_failures: AtomicU64,
    /// Connections of peers that were let in.
    pub accepted: AtomicU64,
    /// Connections that were refused, or said something that is no greeting.
    pub refused: AtomicU64,
    /// Connections closed because of what came through them.
    pub broken: AtomicU64,
    /// Snapshots sent whole.
    pub snapshots_sent: AtomicU64,
    /// Snapshots received whole and verified.
    pub snapshots_received: AtomicU64,
}
