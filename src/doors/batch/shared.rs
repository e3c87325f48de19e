//! A desk for all connections of one thread, with the thread's clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::LocalClock;
use crate::doors::{Desk, Instance};
use crate::engine::time::Timestamp;
use crate::metrics::cells::Protocol;

use super::room::Room;

/// A desk for all connections of one thread of a door. They hold it while they decide, never while
/// they wait.
pub struct SharedDesk(Mutex<Inner>);

pub(super) struct Inner {
    pub(super) desk: Desk,
    pub(super) clock: LocalClock,
    pub(super) rooms: Vec<Room>,
}

impl SharedDesk {
    /// A desk for one thread of the door that speaks `protocol`.
    pub fn new(protocol: Protocol, instance: &Arc<Instance>) -> Arc<Self> {
        let (desk, clock) = (Desk::of(protocol, Arc::clone(instance)), instance.clock.local());
        Arc::new(Self(Mutex::new(Inner { desk, clock, rooms: Vec::new() })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends the desk to what asks without deciding.
    pub fn with<R>(&self, ask: impl FnOnce(&mut Desk) -> R) -> R {
        ask(&mut self.lock().desk)
    }

    /// The moment now, on the clock by which requests are decided.
    pub fn now(&self) -> Timestamp {
        self.lock().clock.now().time
    }

    /// Counts requests and how many of them were answered with an error.
    pub fn count_requests(&self, requests: u64, errors: u64) {
        let inner = self.lock();
        inner.desk.cells.requests.add(requests);
        inner.desk.cells.errors.add(errors);
    }

    /// Counts a connection that was closed for breaking the protocol or a deadline.
    pub fn count_dropped(&self) {
        self.lock().desk.cells.connections_dropped.add(1);
    }
}
