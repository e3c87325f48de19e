//! Request ids.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::request::RequestId;
use crate::response::SessionAnswer;

/// A session at the server: it numbers requests, so that one that is sent again, on whatever
/// connection, is done once. Shared by whoever needs ids.
#[derive(Debug)]
pub struct Session {
    number: u64,
    window: u32,
    idle: Duration,
    last_sequence: AtomicU64,
}

impl Session {
    pub(super) fn new(answer: &SessionAnswer) -> Self {
        Self {
            number: answer.session,
            window: answer.window,
            idle: Duration::from_nanos(answer.idle_nanos),
            last_sequence: AtomicU64::new(0),
        }
    }

    /// An id for one more request. It stays that request's, however often it is sent.
    pub fn next_id(&self) -> RequestId {
        // Ids only have to differ; nothing else hangs on their order.
        let sequence = self.last_sequence.fetch_add(1, Ordering::Relaxed) + 1;
        RequestId { session: self.number, sequence }
    }

    /// Its name at the server.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The sequence of the id given last; 0 before the first.
    pub(super) fn last_sequence(&self) -> u64 {
        self.last_sequence.load(Ordering::Relaxed)
    }

    /// How many ids the server remembers. A request is to be sent again before so many later
    /// ones have been.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Unused for so long, the session may be forgotten.
    pub fn idle(&self) -> Duration {
        self.idle
    }
}
