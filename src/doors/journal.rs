//! What is to be logged. Doors hand it over without formatting anything; whoever has the log takes
//! it from here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::engine::command::LimitId;
use crate::engine::time::{SECOND, Timestamp};
use crate::metrics::cells::LIMITS_MAX;
use crate::policy::{Handle, Request};

/// Events that wait to be logged; more are dropped.
const WAITING_MAX: usize = 8192;

/// The most bytes of an attribute's value that are logged.
const VALUE_BYTES_MAX: usize = 128;

/// Something to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A limit denies: one of its denials, at most one a second.
    Denied(Denial),
    /// An operator changed something: who, what and why.
    Changed(String),
}

/// One denial for all those of its limit since the last that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Name of the API.
    pub api: String,
    /// Name of the limit, with its window.
    pub limit: String,
    /// Its number in counts.
    pub id: LimitId,
    /// Version of the policy that it was decided by.
    pub policy_version: u64,
    /// What the policy lets be logged of the request.
    pub attributes: Vec<(String, String)>,
}

/// Events on their way to the log.
pub struct Journal {
    events: mpsc::Sender<Event>,
    waiting: Mutex<Option<mpsc::Receiver<Event>>>,
    /// For each limit when its last denial was handed over; 0 is never.
    denied_at: Box<[AtomicU64]>,
}

impl Journal {
    pub(super) fn new() -> Self {
        let (events, waiting) = mpsc::channel(WAITING_MAX);
        let denied_at = (0..LIMITS_MAX).map(|_| AtomicU64::new(0)).collect();
        Self { events, waiting: Mutex::new(Some(waiting)), denied_at }
    }

    /// The end at which events come out. There is one.
    pub fn take(&self) -> Option<mpsc::Receiver<Event>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it is time for a denial of a limit to be told, which then is up to the caller: this
    /// says yes once a second to one thread.
    #[inline]
    pub fn is_denial_due(&self, limit: LimitId, now: Timestamp) -> bool {
        let Some(denied_at) = self.denied_at.get(usize::from(limit.0)) else { return false };
        // Relaxed: the exchange makes one thread of several the one that tells, and nothing else
        // in memory hangs on it.
        let last = denied_at.load(Ordering::Relaxed);
        let now = now.as_nanos().max(1);
        if last != 0 && now.saturating_sub(last) < SECOND {
            return false;
        }
        denied_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Hands over a denial by the limit with this index in its handle.
    #[cold]
    pub fn denied(&self, handle: &Handle, index: u16, policy_version: u64, request: &Request<'_>) {
        let Some(limit) = handle.limits().get(usize::from(index)) else { return };
        let logged = handle.logged().filter_map(|slot| {
            let value = request.values.get(slot).copied().flatten()?;
            let cut = &value[..value.len().min(VALUE_BYTES_MAX)];
            let name = handle.slots()[slot].name.to_string();
            Some((name, String::from_utf8_lossy(cut).into_owned()))
        });
        self.tell(Event::Denied(Denial {
            api: handle.api().to_owned(),
            limit: limit.full_name(),
            id: limit.id,
            policy_version,
            attributes: logged.collect(),
        }));
    }

    /// Hands over an event. If too many wait it is dropped: a log is no reason to wait.
    pub fn tell(&self, event: Event) {
        let _ = self.events.try_send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_is_due_once_a_second_for_each_limit() {
        let journal = Journal::new();
        let due = |limit, millis: u64| {
            journal.is_denial_due(LimitId(limit), Timestamp::from_nanos(millis * 1_000_000))
        };
        assert!(due(1, 0) && !due(1, 1) && !due(1, 999));
        assert!(due(2, 500));
        assert!(due(1, 1001) && !due(1, 2000) && due(1, 2001));
        // Threads' moments may come out of order.
        assert!(!due(1, 1500));
    }
}
