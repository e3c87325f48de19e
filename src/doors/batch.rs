//! What one read of a door asks, decided together: the way to the desk for every door but the
//! binary one.
//!
//! A batch owns what it was asked, so its answers outlive the wait between asking and deciding.
//! Standalone there is no wait: the table decides at once. Whatever else comes to decide, comes
//! into [`Batch::decide`], and no door changes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::LocalClock;
use crate::engine::command::{Amend, Charge};
use crate::engine::decision::{Decision, Reading};
use crate::engine::group::Undecided;
use crate::engine::permit::PermitId;
use crate::engine::quota::QuotaError;
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Nanos, Now, Timestamp};
use crate::metrics::cells::{self, Protocol};
use crate::policy::{
    Handle, Part, Rendered, Request, ResolveError, Resolved, RuleEffect, Unavailable,
};

use super::{Answered, Consensus, Desk, Instance, Intent, Loaded, Problem};

/// How often requests are resolved anew because the policy changed on their way.
pub(crate) const TRIES_MAX: u32 = 3;

/// Rooms that a thread keeps for batches to come.
const ROOMS_MAX: usize = 16;

/// The most values' bytes, or items, that a room may have room for and be kept.
const ROOM_KEPT_MAX: usize = 4096;

/// A desk for all connections of one thread of a door. They hold it while they decide, never while
/// they wait.
pub struct SharedDesk(Mutex<Inner>);

struct Inner {
    desk: Desk,
    clock: LocalClock,
    rooms: Vec<Room>,
}

impl SharedDesk {
    /// A desk for one thread of the door that speaks `protocol`.
    pub fn new(protocol: Protocol, instance: &Arc<Instance>) -> Arc<Self> {
        let (desk, clock) = (Desk::of(protocol, Arc::clone(instance)), instance.clock.local());
        Arc::new(Self(Mutex::new(Inner { desk, clock, rooms: Vec::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
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

/// What one read asks, under one policy.
pub struct Batch {
    desk: Arc<SharedDesk>,
    loaded: Arc<Loaded>,
    room: Room,
    /// From when on nobody waits for the answers.
    late_at: Option<Timestamp>,
}

/// What a batch holds, one item or request after the other. A thread's batches hand it on, because
/// making room anew takes longer than deciding one check.
#[derive(Default)]
struct Room {
    items: Vec<Item>,
    /// Values of all requests, one after the other.
    bytes: Vec<u8>,
    /// Where each value lies.
    values: Vec<Option<Range<usize>>>,
    costs: Vec<u64>,
    /// Limits that callers picked, by their index in the handle.
    named: Vec<u16>,
    /// Requests that are checked together.
    parts: Vec<AskedPart>,
    /// Charges of inline items.
    charges: Vec<Charge>,
    /// For each reading of a handle's item the index of its limit there.
    limits: Vec<u16>,
    readings: Vec<Reading>,
}

impl Room {
    fn clear(&mut self) {
        let Self { items, bytes, values, costs, named, parts, charges, limits, readings } = self;
        items.clear();
        bytes.clear();
        values.clear();
        costs.clear();
        named.clear();
        parts.clear();
        charges.clear();
        limits.clear();
        readings.clear();
    }
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

struct Item {
    ask: Ask,
    outcome: Settled,
}

enum Ask {
    Check {
        request: Asked,
        intent: Intent,
    },
    /// Requests of one handle, by their places in the batch.
    Together {
        parts: Range<usize>,
        intent: Intent,
    },
    Inline {
        charges: Range<usize>,
        intent: Intent,
    },
    Amend {
        request: Asked,
        limit: Option<u16>,
        amend: Amend,
    },
    AmendInline {
        charge: usize,
        amend: Amend,
    },
    Release(PermitId),
    Renew(PermitId, Option<Nanos>),
}

/// A request of a handle.
#[derive(Clone)]
struct Asked {
    handle: u32,
    values: Range<usize>,
    costs: Range<usize>,
    /// On which limits; `None`: on those that apply.
    named: Option<Range<usize>>,
}

/// One of the requests of a check.
struct AskedPart {
    request: Asked,
    /// What it came down to, once it is resolved: its charges' place among those of the check.
    resolved: Option<Result<(Resolved, usize), ResolveError>>,
}

/// What became of one of the requests of a check.
#[derive(Clone, Copy, Debug)]
pub enum PartOutcome<'a> {
    /// These limits were looked at; none if a rule answered, or if none knows the request.
    Decided {
        /// Their counters.
        readings: &'a [Reading],
        /// For each reading the index of its limit in the handle.
        limits: &'a [u16],
        /// What a rule made of it, if one did.
        rule: Option<RuleEffect>,
    },
    /// It does not fit the policy, and `when_unavailable` answered.
    Unresolved(&'a ResolveError),
    /// No decision was made.
    Undecided,
}

/// An outcome, by places in the batch.
enum Settled {
    Pending,
    Decided {
        resolved: Option<Resolved>,
        decision: Decision,
        limits: usize,
        readings: Range<usize>,
    },
    FailedOpen(Problem),
    Failed(Problem),
    Amended {
        counters: usize,
        readings: Range<usize>,
    },
    Released(u64),
    Renewed(Result<Option<Nanos>, QuotaError>),
}

/// What became of an item.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// A check or peek was decided.
    Decided {
        /// How.
        decision: &'a Decision,
        /// Each charge's counter, in their order. None if a rule of the policy decided.
        readings: &'a [Reading],
        /// For each reading the index of its limit in the handle; none of an inline check.
        limits: &'a [u16],
    },
    /// No decision could be had, and `when_unavailable` lets the request pass.
    FailedOpen(&'a Problem),
    /// No decision could be had. Nothing was charged.
    Failed(&'a Problem),
    /// So many counters were amended; how they stand, if they were given inline.
    Amended(usize, &'a [Reading]),
    /// A permit was given back, and held so many units.
    Released(u64),
    /// A permit is kept for so long; `None`: it holds nothing any more.
    Renewed(Option<Nanos>),
    /// The lease asked for is outside its range.
    BadLease(&'a QuotaError),
    /// Not decided yet.
    Pending,
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

    /// Decides all items, in their order and at one moment.
    pub async fn decide(&mut self) {
        let consensus = self.desk.lock().desk.instance.consensus.get().cloned();
        match consensus {
            // In a box, so that whoever decides here does not carry room for it.
            Some(consensus) => Box::pin(self.decide_together(&*consensus)).await,
            None => self.decide_here(),
        }
    }

    /// Has a cluster decide, in two passes over the same items.
    async fn decide_together(&mut self, consensus: &dyn Consensus) {
        let desk = Arc::clone(&self.desk);
        let mut tries = 0;
        let docket = loop {
            let mut docket = {
                let mut inner = desk.lock();
                let Inner { desk, clock, .. } = &mut *inner;
                let left = self.left(clock);
                if left == Some(Nanos::ZERO) {
                    return self.too_late();
                }
                desk.begin_collecting();
                if let Some(left) = left {
                    desk.leave_deadline(left.get());
                }
                self.decide_on(desk, &mut Stamp::new(|| clock.now()));
                self.forget_outcomes();
                desk.end_collecting()
            };
            consensus.count_shortcuts(docket.denied());
            let Some(group) = docket.group() else {
                docket.hear(None);
                break docket;
            };
            let version = self.loaded.policy.version();
            let awaited = consensus.perform(group, version, docket.deadline_nanos());
            let heard = awaited.await;
            tries += 1;
            if matches!(heard, Err(Undecided::Stale)) && tries < TRIES_MAX {
                let loaded = desk.lock().desk.instance.policy.load_full();
                if self.still_fits(&loaded) {
                    self.loaded = loaded;
                    continue;
                }
            }
            docket.hear(Some(heard));
            break docket;
        };
        let mut inner = desk.lock();
        let Inner { desk, clock, .. } = &mut *inner;
        let decided_at = docket.now();
        desk.begin_hearing(docket);
        self.decide_on(desk, &mut Stamp::new(|| decided_at.unwrap_or_else(|| clock.now())));
        desk.end_hearing();
    }

    /// Whether every item asks a handle that another policy has unchanged in its slots.
    fn still_fits(&self, loaded: &Loaded) -> bool {
        (0..self.room.items.len()).filter_map(|index| self.handle(index)).all(|handle| {
            let new = loaded.policy.handle(handle.number());
            new.is_some_and(|new| new.layout() == handle.layout())
        })
    }

    /// Forgets what a pass that only collected left.
    fn forget_outcomes(&mut self) {
        self.room.items.iter_mut().for_each(|item| item.outcome = Settled::Pending);
        self.room.limits.clear();
        self.room.readings.clear();
    }

    /// How long what is asked may take, if there is such a bound.
    fn left(&self, clock: &mut LocalClock) -> Option<Nanos> {
        self.late_at.map(|late_at| late_at.since(clock.now().time))
    }

    fn too_late(&mut self) {
        let late = || Settled::Failed(Problem::Undecided(Undecided::Late));
        self.room.items.iter_mut().for_each(|item| item.outcome = late());
    }

    fn decide_here(&mut self) {
        let desk = Arc::clone(&self.desk);
        let mut inner = desk.lock();
        let Inner { desk, clock, .. } = &mut *inner;
        if self.left(clock) == Some(Nanos::ZERO) {
            return self.too_late();
        }
        let mut stamp = Stamp::new(|| clock.now());
        let began_at = stamp.now().time;
        self.decide_on(desk, &mut stamp);
        let took = clock.now().time.since(began_at);
        desk.cells.duration(took.get(), self.room.items.len() as u64);
    }

    /// Decides at moments that the caller gives.
    #[cfg(test)]
    pub(super) fn decide_at<F: FnMut() -> Now>(&mut self, stamp: &mut Stamp<F>) {
        let desk = Arc::clone(&self.desk);
        self.decide_on(&mut desk.lock().desk, stamp);
    }

    fn decide_on<F: FnMut() -> Now>(&mut self, desk: &mut Desk, stamp: &mut Stamp<F>) {
        let instance = Arc::clone(&desk.instance);
        let loaded = Arc::clone(&self.loaded);
        let table = instance.table.load();
        let pinned = table.pin();
        desk.clear();
        let resolved: Vec<_> = (0..self.room.items.len())
            .map(|index| self.resolve(index, desk, &loaded, &pinned))
            .collect();
        for (index, resolved) in resolved.into_iter().enumerate() {
            self.room.items[index].outcome = match resolved {
                Ok(place) => self.settle(index, place, desk, &loaded, &pinned, stamp),
                Err(unresolved) => self.unresolved(index, &unresolved, desk),
            };
        }
        desk.clear();
    }

    /// The first pass: an item's charges, and their counters on the way.
    fn resolve(
        &mut self,
        index: usize,
        desk: &mut Desk,
        loaded: &Loaded,
        pinned: &Pinned<'_>,
    ) -> Result<Place, Unresolved> {
        let asked = match &self.room.items[index].ask {
            Ask::Check { request, .. } | Ask::Amend { request, .. } => request,
            Ask::Together { parts, .. } => {
                let parts = parts.clone();
                return self.resolve_together(parts, desk, loaded, pinned);
            }
            Ask::Inline { charges, .. } => {
                let from = desk.charges.len();
                desk.charges.extend_from_slice(&self.room.charges[charges.clone()]);
                for charge in &self.room.charges[charges.clone()] {
                    pinned.prefetch(charge.key);
                }
                return Ok(Place::Charges(from..desk.charges.len()));
            }
            Ask::AmendInline { charge, .. } => {
                pinned.prefetch(self.room.charges[*charge].key);
                return Ok(Place::Nowhere);
            }
            Ask::Release(_) | Ask::Renew(..) => return Ok(Place::Nowhere),
        };
        // A handle of the policy that this batch was made under: it is there.
        let Some(handle) = loaded.policy.handle(asked.handle) else { return Ok(Place::Nowhere) };
        let resolved = self.resolve_asked(asked, handle, desk, loaded, pinned);
        let api = handle.api_number();
        resolved.map(Place::Handle).map_err(|error| Unresolved { api, error })
    }

    fn resolve_asked(
        &self,
        asked: &Asked,
        handle: &Handle,
        desk: &mut Desk,
        loaded: &Loaded,
        pinned: &Pinned<'_>,
    ) -> Result<Resolved, ResolveError> {
        self.with_request(asked, |request| match asked.named.clone() {
            None => desk.resolve(loaded, pinned, handle, request),
            Some(named) => {
                desk.resolve_named(loaded, pinned, handle, &self.room.named[named], request)
            }
        })
    }

    /// Resolves requests one after the other, so that their charges lie side by side.
    fn resolve_together(
        &mut self,
        parts: Range<usize>,
        desk: &mut Desk,
        loaded: &Loaded,
        pinned: &Pinned<'_>,
    ) -> Result<Place, Unresolved> {
        let number =
            self.room.parts[parts.start..parts.end].first().map(|part| part.request.handle);
        let Some(handle) = number.and_then(|number| loaded.policy.handle(number)) else {
            return Ok(Place::Nowhere);
        };
        let (from, api) = (desk.charges.len(), handle.api_number());
        let (mut denied, mut passed) = (None, None);
        for index in parts.clone() {
            let asked = &self.room.parts[index].request;
            let resolved = self.resolve_asked(asked, handle, desk, loaded, pinned);
            if let Err(error) = resolved {
                match error {
                    ResolveError::BadAttribute { when_unavailable: Unavailable::Allow, .. } => {
                        passed = passed.or(Some(error));
                    }
                    _ => denied = denied.or(Some(error)),
                }
            }
            let resolved = resolved.map(|resolved| (resolved, resolved.charges().start - from));
            self.room.parts[index].resolved = Some(resolved);
        }
        if let Some(error) = denied {
            return Err(Unresolved { api, error });
        }
        let resolved = self.room.parts[parts].iter().filter_map(|part| part.resolved.as_ref());
        let joined = handle.join(resolved.filter_map(|part| Some(part.as_ref().ok()?.0)));
        match (joined, passed) {
            (Some(resolved), None) => Ok(Place::Handle(resolved)),
            (Some(resolved), Some(_)) => {
                // Some of it is let pass, which is to be seen, whatever becomes of the rest.
                desk.cells.check(api, cells::Outcome::Unavailable);
                Ok(Place::Handle(resolved))
            }
            (None, Some(error)) => Err(Unresolved { api, error }),
            (None, None) => Ok(Place::Nowhere),
        }
    }

    /// What becomes of an item whose request does not fit the policy.
    fn unresolved(&self, index: usize, unresolved: &Unresolved, desk: &Desk) -> Settled {
        let Unresolved { api, error } = *unresolved;
        let (outcome, when_unavailable) = match error {
            ResolveError::BadAttribute { when_unavailable, .. } => {
                (cells::Outcome::Unavailable, when_unavailable)
            }
            ResolveError::CostTooLarge { .. } | ResolveError::TooManyLimits { .. } => {
                (cells::Outcome::Error, Unavailable::Deny)
            }
        };
        let charges = matches!(
            self.room.items[index].ask,
            Ask::Check { intent: Intent::Charge, .. }
                | Ask::Together { intent: Intent::Charge, .. }
        );
        if charges {
            desk.cells.check(api, outcome);
        }
        match (&self.room.items[index].ask, when_unavailable) {
            (Ask::Check { .. } | Ask::Together { .. }, Unavailable::Allow) => {
                Settled::FailedOpen(Problem::Resolve(error))
            }
            _ => Settled::Failed(Problem::Resolve(error)),
        }
    }

    /// The second pass: what becomes of an item.
    fn settle<F: FnMut() -> Now>(
        &mut self,
        index: usize,
        place: Place,
        desk: &mut Desk,
        loaded: &Loaded,
        pinned: &Pinned<'_>,
        stamp: &mut Stamp<F>,
    ) -> Settled {
        match (&self.room.items[index].ask, place) {
            (Ask::Check { .. } | Ask::Together { .. }, Place::Handle(resolved)) => {
                let Some((request, intent)) = self.shown(index, None) else {
                    return Settled::Pending;
                };
                let Some(handle) = loaded.policy.handle(request.handle) else {
                    return Settled::Pending;
                };
                let api = handle.api_number();
                match desk.decide(pinned, api, handle, &resolved, intent, stamp) {
                    Ok(Answered::Decided(decision)) => {
                        if intent.charges()
                            && let Some(limit) = desk.denial_due(&resolved, &decision)
                        {
                            let version = loaded.policy.version();
                            let shown = self.shown(index, decision.binding);
                            let asked = shown.map_or(request, |(asked, _)| asked);
                            self.with_request(asked, |request| {
                                desk.instance.journal.denied(handle, limit, version, request);
                            });
                        }
                        self.decided(desk, Some(resolved), decision)
                    }
                    Ok(Answered::FailedOpen(problem)) => Settled::FailedOpen(problem),
                    Err(problem) => Settled::Failed(problem),
                }
            }
            (Ask::Inline { intent, .. }, Place::Charges(charges)) => {
                match desk.decide_inline(pinned, charges, *intent, stamp) {
                    Ok(decision) => self.decided(desk, None, decision),
                    Err(problem) => Settled::Failed(problem),
                }
            }
            (&Ask::Amend { limit, amend, .. }, Place::Handle(resolved)) => {
                let charges = desk.charges[resolved.charges()].iter();
                let charges: Vec<Charge> = charges
                    .zip(&desk.limits[resolved.limits()])
                    .filter(|(_, index)| limit.is_none_or(|limit| limit == **index))
                    .map(|(charge, _)| *charge)
                    .collect();
                let amended = desk.amend(pinned, &charges, amend, stamp);
                self.amended(desk, amended)
            }
            (&Ask::AmendInline { charge, amend }, _) => {
                let charge = self.room.charges[charge];
                let amended = desk.amend(pinned, &[charge], amend, stamp);
                self.amended(desk, amended)
            }
            (&Ask::Release(permit), _) => match desk.release(pinned, permit, stamp) {
                Ok(units) => Settled::Released(units),
                Err(problem) => Settled::Failed(problem),
            },
            (&Ask::Renew(permit, lease), _) => match desk.renew(pinned, permit, lease, stamp) {
                Ok(renewed) => Settled::Renewed(renewed),
                Err(problem) => Settled::Failed(problem),
            },
            _ => Settled::Pending,
        }
    }

    /// The request that an item's answer shows: of several the one whose charge binds, by its place
    /// among those of the check.
    fn shown(&self, index: usize, binding: Option<usize>) -> Option<(&Asked, Intent)> {
        match &self.room.items.get(index)?.ask {
            Ask::Check { request, intent } => Some((request, *intent)),
            Ask::Together { parts, intent } => {
                let parts = &self.room.parts[parts.clone()];
                let binds = |part: &&AskedPart| match (&part.resolved, binding) {
                    (Some(Ok((resolved, from))), Some(binding)) => {
                        (*from..from + resolved.charges().len()).contains(&binding)
                    }
                    _ => false,
                };
                let part = parts.iter().find(binds).or(parts.first())?;
                Some((&part.request, *intent))
            }
            _ => None,
        }
    }

    /// What became of a request of [`Batch::check_together`], by its place in it.
    pub fn part(&self, index: usize, part: usize) -> PartOutcome<'_> {
        let Some(Item { ask: Ask::Together { parts, .. }, outcome }) = self.room.items.get(index)
        else {
            return PartOutcome::Undecided;
        };
        let resolved =
            self.room.parts[parts.clone()].get(part).and_then(|part| part.resolved.as_ref());
        let (resolved, from) = match resolved {
            Some(Ok(resolved)) => resolved,
            Some(Err(error)) => return PartOutcome::Unresolved(error),
            None => return PartOutcome::Undecided,
        };
        let Settled::Decided { resolved: Some(all), limits, readings, .. } = outcome else {
            return PartOutcome::Undecided;
        };
        let rule = resolved.rule.and_then(|rule| {
            let handle = self.handle(index)?;
            Some(handle.rules().get(usize::from(rule))?.effect)
        });
        // A rule that denied the whole check leaves no readings.
        let count = if all.rule.is_some() { 0 } else { resolved.charges().len() };
        let limits = self.room.limits.get(limits + from..limits + from + count).unwrap_or_default();
        let readings =
            self.room.readings[readings.clone()].get(*from..from + count).unwrap_or_default();
        PartOutcome::Decided { readings, limits, rule }
    }

    fn decided(&mut self, desk: &Desk, resolved: Option<Resolved>, decision: Decision) -> Settled {
        let (limits, from) = (self.room.limits.len(), self.room.readings.len());
        if let Some(resolved) = &resolved {
            self.room.limits.extend_from_slice(&desk.limits[resolved.limits()]);
        }
        self.room.readings.extend_from_slice(&desk.readings);
        Settled::Decided { resolved, decision, limits, readings: from..self.room.readings.len() }
    }

    fn amended(&mut self, desk: &Desk, amended: Result<usize, Problem>) -> Settled {
        match amended {
            Ok(counters) => {
                let from = self.room.readings.len();
                self.room.readings.extend_from_slice(&desk.readings);
                Settled::Amended { counters, readings: from..self.room.readings.len() }
            }
            Err(problem) => Settled::Failed(problem),
        }
    }

    /// What became of an item; indexes are those that asking returned.
    pub fn outcome(&self, index: usize) -> Outcome<'_> {
        match self.room.items.get(index).map(|item| &item.outcome) {
            Some(Settled::Decided { resolved, decision, limits, readings }) => {
                let count = if resolved.is_some() { readings.len() } else { 0 };
                let limits = self.room.limits.get(*limits..limits + count).unwrap_or_default();
                Outcome::Decided {
                    decision,
                    readings: &self.room.readings[readings.clone()],
                    limits,
                }
            }
            Some(Settled::FailedOpen(problem)) => Outcome::FailedOpen(problem),
            Some(Settled::Failed(problem)) => Outcome::Failed(problem),
            Some(Settled::Amended { counters, readings }) => {
                Outcome::Amended(*counters, &self.room.readings[readings.clone()])
            }
            Some(Settled::Released(units)) => Outcome::Released(*units),
            Some(Settled::Renewed(Ok(kept))) => Outcome::Renewed(*kept),
            Some(Settled::Renewed(Err(error))) => Outcome::BadLease(error),
            Some(Settled::Pending) | None => Outcome::Pending,
        }
    }

    /// The handle that an item asked, if it asked one.
    pub fn handle(&self, index: usize) -> Option<&Handle> {
        match &self.room.items.get(index)?.ask {
            Ask::Check { request, .. } | Ask::Amend { request, .. } => {
                self.loaded.policy.handle(request.handle)
            }
            Ask::Together { parts, .. } => {
                let part = self.room.parts.get(parts.start)?;
                self.loaded.policy.handle(part.request.handle)
            }
            _ => None,
        }
    }

    /// Writes the answer to a check of a handle in HTTP's terms. `None`: the item is no such check,
    /// or is not decided.
    pub fn render(&self, index: usize, out: &mut Rendered) -> Option<()> {
        let outcome = &self.room.items.get(index)?.outcome;
        let binding = match outcome {
            Settled::Decided { decision, .. } => decision.binding,
            _ => None,
        };
        let (request, _) = self.shown(index, binding)?;
        let handle = self.loaded.policy.handle(request.handle)?;
        match outcome {
            Settled::Decided { resolved: Some(resolved), decision, limits, readings } => {
                let limits = self.room.limits.get(*limits..limits + readings.len())?;
                let readings = &self.room.readings[readings.clone()];
                self.with_request(request, |request| {
                    handle.render(resolved, limits, request, decision, readings, out);
                });
            }
            Settled::FailedOpen(_) => handle.render_unavailable(Unavailable::Allow, out),
            Settled::Failed(_) => handle.render_unavailable(Unavailable::Deny, out),
            _ => return None,
        }
        Some(())
    }

    fn with_request<R>(&self, asked: &Asked, with: impl FnOnce(&Request<'_>) -> R) -> R {
        let values = self.room.values[asked.values.clone()].iter();
        let values: Vec<Option<&[u8]>> =
            values.map(|place| place.clone().map(|place| &self.room.bytes[place])).collect();
        with(&Request { values: &values, costs: &self.room.costs[asked.costs.clone()] })
    }
}

/// A request of an API, by its number in counts, that does not fit the policy.
struct Unresolved {
    api: usize,
    error: ResolveError,
}

/// Where an item's charges lie on the desk.
enum Place {
    Handle(Resolved),
    Charges(Range<usize>),
    Nowhere,
}

#[cfg(test)]
mod tests;
