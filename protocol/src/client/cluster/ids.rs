//! Request ids of a client's own: from sessions that it opens as it needs them.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::client::Session;
use crate::request::RequestId;

/// Sessions of one client. Each has ids for as many requests at a time as the server remembers.
const SESSIONS_MAX: usize = 16;

/// Ids for requests, each within what the server remembers of its session.
#[derive(Debug, Default)]
pub(super) struct Ids {
    sessions: Mutex<Vec<Numbered>>,
    /// Told when a request is done with its id.
    freed: Notify,
}

#[derive(Debug)]
struct Numbered {
    session: Session,
    /// Sequences of requests that may be sent again.
    under_way: BTreeSet<u64>,
    used_at: Instant,
}

impl Numbered {
    /// Another id, if a request that waits would not fall behind what the server remembers.
    fn next(&mut self) -> Option<RequestId> {
        let window = u64::from(self.session.window());
        let lowest = self.under_way.first().copied();
        if lowest.is_some_and(|lowest| self.session.last_sequence() + 1 >= lowest + window) {
            return None;
        }
        let id = self.session.next_id();
        self.under_way.insert(id.sequence);
        self.used_at = Instant::now();
        Some(id)
    }

    /// Whether the server may have forgotten it soon.
    fn is_stale(&self) -> bool {
        self.under_way.is_empty() && self.used_at.elapsed() > self.session.idle() / 2
    }
}

/// What the sessions that there are have.
pub(super) enum Found<'i> {
    Id(Taken<'i>),
    /// No id, and there may be another session.
    None,
    /// No id, and no room for another session.
    Full,
}

/// An id that is its request's until this is dropped.
pub(super) struct Taken<'i> {
    ids: &'i Ids,
    id: RequestId,
}

impl Taken<'_> {
    pub(super) fn id(&self) -> RequestId {
        self.id
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut sessions = self.ids.lock();
        let of = |numbered: &&mut Numbered| numbered.session.number() == self.id.session;
        if let Some(numbered) = sessions.iter_mut().find(of) {
            numbered.under_way.remove(&self.id.sequence);
        }
        drop(sessions);
        self.ids.freed.notify_one();
    }
}

impl Ids {
    fn lock(&self) -> MutexGuard<'_, Vec<Numbered>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An id, if a session has one left.
    pub(super) fn find(&self) -> Found<'_> {
        let mut sessions = self.lock();
        sessions.retain(|numbered| !numbered.is_stale());
        match sessions.iter_mut().find_map(Numbered::next) {
            Some(id) => Found::Id(Taken { ids: self, id }),
            None if sessions.len() >= SESSIONS_MAX => Found::Full,
            None => Found::None,
        }
    }

    /// Another session, which the server has opened.
    pub(super) fn add(&self, session: Session) {
        let numbered = Numbered { session, under_way: BTreeSet::new(), used_at: Instant::now() };
        self.lock().push(numbered);
    }

    /// Waits until a request is done with its id, since this was called.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Forgets a session that the server has forgotten.
    pub(super) fn forget(&self, session: u64) {
        self.lock().retain(|numbered| numbered.session.number() != session);
    }
}
