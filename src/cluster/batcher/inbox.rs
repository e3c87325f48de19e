//! What comes from other nodes, on its way to the batcher.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::entry::Malformed;

use super::handed_over::HandedOver;

/// The most bytes of requests handed over by other nodes that wait at a leader. A link from which
/// more comes is not read until there is room.
const INBOX_BYTES_MAX: usize = 64 << 20;

/// Requests handed over by other nodes, as they came.
#[derive(Default)]
pub struct Inbox {
    frames: Mutex<VecDeque<HandedOver>>,
    bytes: AtomicUsize,
    pub(super) relinked: AtomicBool,
    heard_at: AtomicU64,
    committed: AtomicU64,
}

impl Inbox {
    /// Takes in a frame from another node. Returns whether there is room for more.
    ///
    /// # Errors
    /// If the frame is none.
    pub fn take(&self, frame: Bytes) -> Result<bool, Malformed> {
        let bytes = frame.len();
        let handed_over = HandedOver::decode(frame)?;
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).push_back(handed_over);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(before + bytes < INBOX_BYTES_MAX)
    }

    /// A link to another node is new: what came of frames on the one before is not known.
    pub fn note_relinked(&self) {
        self.relinked.store(true, Ordering::Release);
    }

    /// A leader was heard of, at this moment of the raw clock, which has committed its log up to
    /// this index.
    pub fn note_heard(&self, raw: u64, committed: u64) {
        self.committed.store(committed, Ordering::Relaxed);
        self.heard_at.store(raw, Ordering::Release);
    }

    /// How far the leader had committed its log when it was last heard of; 0 if it never was.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Whether a leader was heard of less than `span` before this moment of the raw clock.
    pub fn has_heard(&self, raw: u64, span: Duration) -> bool {
        let heard_at = self.heard_at.load(Ordering::Acquire);
        heard_at > 0 && u128::from(raw.saturating_sub(heard_at)) < span.as_nanos()
    }

    /// Whether a frame has room.
    pub fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < INBOX_BYTES_MAX
    }

    pub(super) fn drain(&self) -> VecDeque<HandedOver> {
        self.bytes.store(0, Ordering::Relaxed);
        core::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
