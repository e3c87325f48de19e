//! What one read of a door asks, decided together: the way to the desk for every door but the
//! binary one.
//!
//! A batch owns what it was asked, so its answers outlive the wait between asking and deciding.
//! Standalone there is no wait: the table decides at once. Whatever else comes to decide, comes
//! into [`Batch::decide`], and no door changes.

mod shared;

mod room;

mod deciding;

mod outcome;

use std::sync::Arc;

use crate::engine::command::{Amend, Charge};
use crate::engine::permit::PermitId;
use crate::engine::time::{Nanos, Timestamp};
use crate::policy::{Handle, Part, Request};

use super::{Intent, Loaded};

use room::{Ask, Asked, AskedPart, Item, Room, Settled};

pub(crate) use deciding::TRIES_MAX;
pub use outcome::{Outcome, PartOutcome};
pub use shared::SharedDesk;

/// Rooms that a thread keeps for batches to come.
const ROOMS_MAX: usize = 16;

/// The most values' bytes, or items, that a room may have room for and be kept.
const ROOM_KEPT_MAX: usize = 4096;

/// What one read asks, under one policy.
pub struct Batch {
    desk: Arc<SharedDesk>,
    loaded: Arc<Loaded>,
    room: Room,
    /// From when on nobody waits for the answers.
    late_at: Option<Timestamp>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut room = core::mem::take(&mut self.room);
        room.clear();
        let largest =
            room.bytes.capacity().max(room.parts.capacity()).max(room.readings.capacity());
        let rooms = &mut self.desk.lock().rooms;
        if largest <= ROOM_KEPT_MAX && rooms.len() < ROOMS_MAX {
            rooms.push(room);
        }
    }
}

impl Batch {
    /// An empty batch under the policy in force.
    pub fn new(desk: &Arc<SharedDesk>) -> Self {
        let (loaded, room) = {
            let mut inner = desk.lock();
            (inner.desk.instance.policy.load_full(), inner.rooms.pop().unwrap_or_default())
        };
        Self { desk: Arc::clone(desk), loaded, room, late_at: None }
    }

    /// What is asked is not decided at `late_at` or later, by the clock of [`SharedDesk::now`], and
    /// what came before that stays as it was decided. In a cluster it is too late to begin with it.
    pub fn due(&mut self, late_at: Timestamp) {
        self.late_at = Some(late_at);
    }

    /// The policy by which the batch is resolved.
    pub fn loaded(&self) -> &Arc<Loaded> {
        &self.loaded
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.room.items.len()
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.room.items.is_empty()
    }

    /// Asks for a request of a handle of [`Batch::loaded`]. Returns the item's index.
    pub fn check(&mut self, handle: &Handle, request: &Request<'_>, intent: Intent) -> usize {
        let request = self.own(handle, request);
        self.push(Ask::Check { request, intent })
    }

    /// Asks for several requests of one handle as one check: all of them pass and are charged, or
    /// none. One whose values do not fit the policy passes or denies as its limits'
    /// `when_unavailable` says, and takes nothing from the others. Returns the item's index.
    pub fn check_together(&mut self, handle: &Handle, parts: &[Part<'_>], intent: Intent) -> usize {
        let from = self.room.parts.len();
        for part in parts {
            let request = self.own_named(handle, &part.request, part.limits);
            self.room.parts.push(AskedPart { request, resolved: None });
        }
        self.push(Ask::Together { parts: from..self.room.parts.len(), intent })
    }

    /// Amends the counters of some limits of a request, as [`Batch::check_together`] picks them.
    /// Returns the item's index.
    pub fn amend_part(&mut self, handle: &Handle, part: &Part<'_>, amend: Amend) -> usize {
        let request = self.own_named(handle, &part.request, part.limits);
        self.push(Ask::Amend { request, limit: None, amend })
    }

    /// Asks for a request of inline limits. Returns the item's index.
    pub fn inline(&mut self, charges: &[Charge], intent: Intent) -> usize {
        let from = self.room.charges.len();
        self.room.charges.extend_from_slice(charges);
        self.push(Ask::Inline { charges: from..self.room.charges.len(), intent })
    }

    /// Amends the counters of a request: all of them, or that of the limit with this index in the
    /// handle. Returns the item's index.
    pub fn amend(
        &mut self,
        handle: &Handle,
        request: &Request<'_>,
        limit: Option<u16>,
        amend: Amend,
    ) -> usize {
        let request = self.own(handle, request);
        self.push(Ask::Amend { request, limit, amend })
    }

    /// Amends the counter of an inline limit. Returns the item's index.
    pub fn amend_inline(&mut self, charge: Charge, amend: Amend) -> usize {
        self.room.charges.push(charge);
        self.push(Ask::AmendInline { charge: self.room.charges.len() - 1, amend })
    }

    /// Gives a permit back. Returns the item's index.
    pub fn release(&mut self, permit: PermitId) -> usize {
        self.push(Ask::Release(permit))
    }

    /// Keeps a permit for `lease`, or for as long as it was given. Returns the item's index.
    pub fn renew(&mut self, permit: PermitId, lease: Option<Nanos>) -> usize {
        self.push(Ask::Renew(permit, lease))
    }

    fn push(&mut self, ask: Ask) -> usize {
        self.room.items.push(Item { ask, outcome: Settled::Pending });
        self.room.items.len() - 1
    }

    fn own(&mut self, handle: &Handle, request: &Request<'_>) -> Asked {
        let (values_from, costs_from) = (self.room.values.len(), self.room.costs.len());
        for value in request.values {
            let place = value.map(|value| {
                self.room.bytes.extend_from_slice(value);
                self.room.bytes.len() - value.len()..self.room.bytes.len()
            });
            self.room.values.push(place);
        }
        self.room.costs.extend_from_slice(request.costs);
        Asked {
            handle: handle.number(),
            values: values_from..self.room.values.len(),
            costs: costs_from..self.room.costs.len(),
            named: None,
        }
    }

    fn own_named(
        &mut self,
        handle: &Handle,
        request: &Request<'_>,
        limits: Option<&[u16]>,
    ) -> Asked {
        let named = limits.map(|limits| {
            self.room.named.extend_from_slice(limits);
            self.room.named.len() - limits.len()..self.room.named.len()
        });
        Asked { named, ..self.own(handle, request) }
    }
}

#[cfg(test)]
mod tests;
