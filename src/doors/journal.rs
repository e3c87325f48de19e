//! What is to be logged. Doors hand it over without formatting anything; whoever has the log takes
//! it from here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::engine::command::LimitId;
use crate::engine::decision::Reading;
use crate::engine::time::{SECOND, Timestamp};
use crate::metrics::cells::{LIMITS_MAX, RULES_MAX};
use crate::policy::{Handle, Request};

/// Events that wait to be logged; more are dropped.
const WAITING_MAX: usize = 8192;

/// The most bytes of an attribute's value that are logged.
const VALUE_BYTES_MAX: usize = 128;

/// Something to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A denial, for all those of its cause since the last that was told.
    Denied(Denial),
    /// An operator changed something: who, what and why.
    Changed(String),
}

/// What denies, or would: of each one line a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A limit; all inline ones are one.
    Limit(LimitId),
    /// A limit in shadow mode, which decides nothing.
    Shadow(LimitId),
    /// A rule, by its number in counts.
    Rule(u16),
}

/// One denial for all those of its cause since the last that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// What denied it, or would have.
    pub cause: Cause,
    /// Who that is.
    pub by: By,
}

/// Who denies, in words and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Something of a policy.
    Policy {
        /// Name of the API.
        api: String,
        /// Name of the limit, with its window; of a rule its title.
        name: String,
        /// Version of the policy that it was decided by.
        version: u64,
        /// What the policy lets be logged of the request.
        attributes: Vec<(String, String)>,
    },
    /// A limit that the request brought, which has no name, and whose key is the caller's.
    Inline(Reading),
}

/// A denial of which it is time to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// What denied it, or would have.
    pub cause: Cause,
    /// Index of the limit, or of the rule, in the handle.
    pub index: u16,
    /// The charge that did not fit, by its place in the check; none of a rule.
    pub place: Option<usize>,
}

/// Events on their way to the log.
pub struct Journal {
    events: mpsc::Sender<Event>,
    waiting: Mutex<Option<mpsc::Receiver<Event>>>,
    limits: ToldAt,
    shadows: ToldAt,
    rules: ToldAt,
}

/// For each cause of one sort when its last denial was handed over; 0 is never.
struct ToldAt(Box<[AtomicU64]>);

impl ToldAt {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    fn is_due(&self, number: u16, now: Timestamp) -> bool {
        let Some(told_at) = self.0.get(usize::from(number)) else { return false };
        // Relaxed: the exchange makes one thread of several the one that tells, and nothing else
        // in memory hangs on it.
        let last = told_at.load(Ordering::Relaxed);
        let now = now.as_nanos().max(1);
        if last != 0 && now.saturating_sub(last) < SECOND {
            return false;
        }
        told_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Journal {
    pub(super) fn new() -> Self {
        let (events, waiting) = mpsc::channel(WAITING_MAX);
        Self {
            events,
            waiting: Mutex::new(Some(waiting)),
            limits: ToldAt::new(LIMITS_MAX),
            shadows: ToldAt::new(LIMITS_MAX),
            rules: ToldAt::new(RULES_MAX),
        }
    }

    /// The end at which events come out. There is one.
    pub fn take(&self) -> Option<mpsc::Receiver<Event>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it is time for a denial to be told, which then is up to the caller: this says yes
    /// once a second to one thread.
    #[inline]
    pub fn is_due(&self, cause: Cause, now: Timestamp) -> bool {
        match cause {
            Cause::Limit(limit) => self.limits.is_due(limit.0, now),
            Cause::Shadow(limit) => self.shadows.is_due(limit.0, now),
            Cause::Rule(rule) => self.rules.is_due(rule, now),
        }
    }

    /// Hands over a denial of a request of `handle`.
    #[cold]
    pub fn denied(&self, handle: &Handle, due: Due, policy_version: u64, request: &Request<'_>) {
        let index = usize::from(due.index);
        let name = match due.cause {
            Cause::Limit(_) | Cause::Shadow(_) => {
                handle.limits().get(index).map(|limit| limit.full_name())
            }
            Cause::Rule(_) => handle.rules().get(index).map(|rule| rule.title()),
        };
        let Some(name) = name else { return };
        let logged = handle.logged().filter_map(|slot| {
            let value = request.values.get(slot).copied().flatten()?;
            let cut = &value[..value.len().min(VALUE_BYTES_MAX)];
            let name = handle.slots()[slot].name.to_string();
            Some((name, String::from_utf8_lossy(cut).into_owned()))
        });
        let by = By::Policy {
            api: handle.api().to_owned(),
            name,
            version: policy_version,
            attributes: logged.collect(),
        };
        self.tell(Event::Denied(Denial { cause: due.cause, by }));
    }

    /// Hands over a denial by an inline limit.
    #[cold]
    pub fn denied_inline(&self, reading: &Reading) {
        let cause = Cause::Limit(LimitId::INLINE);
        self.tell(Event::Denied(Denial { cause, by: By::Inline(*reading) }));
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
    fn a_denial_is_due_once_a_second_for_each_cause() {
        let journal = Journal::new();
        let is_due =
            |cause, millis: u64| journal.is_due(cause, Timestamp::from_nanos(millis * 1_000_000));
        let due = |limit, millis| is_due(Cause::Limit(LimitId(limit)), millis);
        assert!(due(1, 0) && !due(1, 1) && !due(1, 999));
        assert!(due(2, 500));
        // What a limit denies for some keys does not hide what it would for others, nor a rule.
        for cause in [Cause::Shadow(LimitId(1)), Cause::Rule(1)] {
            assert!(is_due(cause, 3) && !is_due(cause, 999) && is_due(cause, 1003));
        }
        assert!(!is_due(Cause::Rule(u16::MAX), 0));
        assert!(due(1, 1001) && !due(1, 2000) && due(1, 2001));
        // Threads' moments may come out of order.
        assert!(!due(1, 1500));
    }
}
