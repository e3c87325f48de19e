//! How a batch is decided: by the table here, or by a cluster in two passes over the same items.

use std::ops::Range;
use std::sync::Arc;

use crate::clock::LocalClock;
use crate::doors::{Answered, Consensus, Desk, Intent, Loaded, Problem};
use crate::engine::command::Charge;
use crate::engine::decision::Decision;
use crate::engine::group::Undecided;
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Nanos, Now};
use crate::metrics::cells;
use crate::policy::{Handle, ResolveError, Resolved, Unavailable};

use super::Batch;
use super::room::{Ask, Asked, Settled};
use super::shared::Inner;

/// How often requests are resolved anew because the policy changed on their way.
pub(crate) const TRIES_MAX: u32 = 3;

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

impl Batch {
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
    pub(in crate::doors) fn decide_at<F: FnMut() -> Now>(&mut self, stamp: &mut Stamp<F>) {
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
                        if intent.charges() && desk.has_denials(&decision) {
                            let version = loaded.policy.version();
                            desk.denials_due(handle, &resolved, &decision, |due| {
                                let asked = self.concerned(index, due).unwrap_or(request);
                                self.with_request(asked, |request| {
                                    desk.instance.journal.denied(handle, due, version, request);
                                });
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
}
