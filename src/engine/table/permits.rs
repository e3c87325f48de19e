//! Permits: giving them, giving them back, keeping them longer, letting them lapse.
//!
//! A share of a permit is in two places: in the heap of its counter, and in a slot of its own
//! whose key derives from the permit's id, so that whoever has the id finds it. Both change only
//! while the counter is held; the share's slot is never held itself. Looking for a share
//! therefore begins without any hold, learns which counter to hold, and then looks again.

use crate::engine::command::LimitId;
use crate::engine::decision::Refusal;
use crate::engine::key::Key;
use crate::engine::kinds::{Cell, Concurrent, Fill};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::permit::{Permit, PermitId, Serial};
use crate::engine::quota::{QuotaError, check_lease};
use crate::engine::sync::{Backoff, Ordering};
use crate::engine::time::{Nanos, Now, Timestamp};

use super::held::Held;
use super::overlay::Noted;
use super::shard::Place;
use super::shares::{Link, Share};
use super::slot::{Meta, Payload, State, Tag, Word};
use super::{Pinned, Stamp, Table};

/// The permits of one counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heap {
    /// The share that lapses first.
    top: Link,
    /// Units of all of them.
    held: u64,
}

impl Heap {
    pub(super) const fn from_words([top, held, ..]: Cell) -> Self {
        Self { top: top as Link, held }
    }

    pub(super) const fn to_words(self) -> Cell {
        [self.top as u64, self.held, 0, 0]
    }

    /// Takes in a share of so many units, whose record is in no heap.
    pub(super) fn add(&mut self, table: &Table, link: Link, units: u64) {
        self.top = table.shares.push(self.top, link);
        self.held += units;
    }

    pub(super) const fn is_empty(self) -> bool {
        self.top == 0
    }

    pub(super) fn fill(self, pinned: &Pinned<'_>, now: Now) -> Fill {
        let shares = &pinned.table.shares;
        let (mut held, mut first, mut links) = (self.held, None, Vec::new());
        let mut next = Some(self.top);
        // Those that have lapsed are on top, and there are none where the counter is settled.
        while let Some(link) = next.or_else(|| links.pop()) {
            next = None;
            if link == 0 {
                continue;
            }
            let lapses_at = shares.lapses_at(link);
            if lapses_at > now.time {
                first = Some(first.map_or(lapses_at, |first: Timestamp| first.min(lapses_at)));
            } else {
                held -= shares.share(link).units;
                links.extend([shares.left(link), shares.right(link)]);
            }
        }
        Fill::Permits { held, lapses_after: first.map(|first| first.since(now.time)) }
    }
}

/// A permit in the making: its shares are given one after the other.
pub(super) struct Grant {
    serial: Serial,
    given: u8,
    lapses_after: Nanos,
}

impl Grant {
    pub(super) fn permit(&self, pinned: &Pinned<'_>) -> Permit {
        Permit { id: pinned.table.permits.id(self.serial), lapses_after: self.lapses_after }
    }
}

impl<'t> Pinned<'t> {
    /// Gives a permit back, all of its shares. Returns the units that it still held: none if it
    /// was given back before, has lapsed, or never was. Doing it twice does no harm.
    pub fn release<F: FnMut() -> Now>(&self, id: PermitId, stamp: &mut Stamp<F>) -> u64 {
        let mut units = 0;
        self.for_each_share(id, stamp, |hold, heap, link, _| {
            units += self.table.shares.share(link).units;
            self.remove(hold, heap, link);
            if planted(Mutant::ReleaseFreesMore) {
                heap.held = heap.held.saturating_sub(1);
            }
            self.put_heap(hold, *heap);
        });
        units
    }

    /// Keeps a permit for `lease` from now on, or for as long as each share was given for. Returns
    /// the time until the first of its shares lapses; `None` if it holds nothing any more.
    ///
    /// # Errors
    /// A lease outside the range of leases.
    pub fn renew<F: FnMut() -> Now>(
        &self,
        id: PermitId,
        lease: Option<Nanos>,
        stamp: &mut Stamp<F>,
    ) -> Result<Option<Nanos>, QuotaError> {
        lease.map_or(Ok(()), check_lease)?;
        let mut first: Option<Nanos> = None;
        self.for_each_share(id, stamp, |hold, heap, link, now| {
            let shares = &self.table.shares;
            let lease = lease.unwrap_or(shares.share(link).lease);
            self.preserve_share(hold, link);
            heap.top = shares.move_to(heap.top, link, now.time.after(lease));
            self.put_heap(hold, *heap);
            first = Some(first.map_or(lease, |first| first.min(lease)));
        });
        Ok(first)
    }

    /// Whether a permit may still hold something. Does not look whether it has lapsed.
    pub fn may_hold(&self, id: PermitId) -> bool {
        let permits = &self.table.permits;
        permits.serial(id).is_some_and(|serial| {
            let shares = 0..serial.shares();
            shares.map(|share| permits.key(serial, share)).any(|key| self.find_share(key).is_some())
        })
    }

    /// Holds the counter of each share that has not lapsed, one after the other.
    fn for_each_share<F: FnMut() -> Now>(
        &self,
        id: PermitId,
        stamp: &mut Stamp<F>,
        mut each: impl FnMut(&mut Held<'_>, &mut Heap, Link, Now),
    ) {
        let Some(serial) = self.table.permits.serial(id) else { return };
        for number in 0..serial.shares() {
            let share = self.table.permits.key(serial, number);
            let mut backoff = Backoff::new();
            while let Some(link) = self.find_share(share) {
                let counter = self.table.shares.counter(link);
                let Some(mut hold) = self.hold_present(counter) else {
                    backoff.wait();
                    continue;
                };
                let now = stamp.renew();
                hold.side = self.side();
                let mut heap = self.heap(&hold);
                // The record may have been another share's by the time it was read: only what
                // the holder of its counter sees counts. If that is this counter, nobody else
                // changes the record, and the share's slot says whether it is this share's.
                let is_ours = !heap.is_empty()
                    && self.table.shares.counter(link) == counter
                    && self.find_share(share) == Some(link)
                    || planted(Mutant::ReleaseTrustsFirstLook);
                if is_ours {
                    if !planted(Mutant::RenewAfterLapse) && self.lapse(&hold, &mut heap, now) {
                        self.put_heap(&mut hold, heap);
                    }
                    let trusts = planted(Mutant::ReleaseTrustsFirstLook);
                    if trusts || self.find_share(share) == Some(link) {
                        each(&mut hold, &mut heap, link, now);
                    }
                }
                self.end_hold(&hold, counter);
                if is_ours {
                    break;
                }
                backoff.wait();
            }
        }
    }

    /// The record of a share, as its slot names it.
    pub(super) fn find_share(&self, key: Key) -> Option<Link> {
        let mut path = self.table.shard(key).path(key, self.table.shape, &self.guard);
        loop {
            let slot = path.find()?;
            match slot.word().state() {
                State::Live(payload) | State::Moving(payload) => return payload.cell(),
                State::Moved => path.follow(slot),
                _ => return None,
            }
        }
    }

    /// Takes the room for the shares of a permit, all or none. Nothing is given yet.
    pub(super) fn begin_grant(&self, limits: &[LimitId]) -> Result<Grant, Refusal> {
        for (counted, limit) in limits.iter().enumerate() {
            if let Err(refusal) = self.table.counts.add(*limit) {
                limits[..counted].iter().for_each(|limit| self.table.counts.remove(*limit));
                return Err(refusal);
            }
        }
        let number = self.table.next_permit.fetch_add(1, Ordering::Relaxed);
        let serial = Serial::new(number, limits.len() as u8);
        Ok(Grant { serial, given: 0, lapses_after: Nanos::new(u64::MAX) })
    }

    /// Gives the next share of a permit. The caller holds its counter.
    pub(super) fn grant(
        &self,
        grant: &mut Grant,
        hold: &mut Held<'_>,
        counter: (Key, LimitId),
        (concurrent, units): (&Concurrent, u64),
        now: Now,
    ) {
        let (shares, mut heap) = (&self.table.shares, self.heap(hold));
        let lapses_at = now.time.after(concurrent.lease());
        let lease = concurrent.lease();
        let (serial, number) = (grant.serial, grant.given);
        let share = Share { counter: counter.0, serial, number, units, lapses_at, lease };
        let link = shares.take(&share);
        let key = self.table.permits.key(serial, number);
        let shard = self.table.shard(key);
        // One that is given in the middle of a snapshot is not part of it.
        shares.set_tag(link, hold.side);
        shard.count_live();
        let mut path = shard.path(key, self.table.shape, &self.guard);
        let (meta, word) = (Meta::share(key, counter.1), Word::live(Payload::wide(link)));
        loop {
            // No permit has this number, so the key is new.
            if let Place::Vacant(slot) = path.locate()
                && path.insert(slot, meta, word)
            {
                break;
            }
        }
        heap.add(self.table, link, units);
        self.put_heap(hold, heap);
        grant.given += 1;
        grant.lapses_after = grant.lapses_after.min(lease);
    }

    /// Lets go of the permits that have lapsed at `now`; true if there were any. The caller holds
    /// the counter.
    pub(super) fn lapse(&self, hold: &Held<'_>, heap: &mut Heap, now: Now) -> bool {
        let before = *heap;
        let early = Nanos::new(planted(Mutant::PermitLapsesEarly).into());
        while !heap.is_empty() && self.table.shares.lapses_at(heap.top) <= now.time.after(early) {
            self.remove(hold, heap, heap.top);
        }
        *heap != before
    }

    /// Lets go of all permits. The caller holds the counter.
    pub(super) fn release_all(&self, hold: &Held<'_>, heap: &mut Heap) {
        while !heap.is_empty() {
            self.remove(hold, heap, heap.top);
        }
    }

    fn remove(&self, hold: &Held<'_>, heap: &mut Heap, link: Link) {
        let shares = &self.table.shares;
        self.preserve_share(hold, link);
        let share = shares.share(link);
        heap.top = shares.remove(heap.top, link);
        heap.held -= share.units;
        self.forget_share(self.table.permits.key(share.serial, share.number));
        shares.give(link);
    }

    /// Notes a share, before its first change, for the snapshot on whose side the hold is.
    fn preserve_share(&self, hold: &Held<'_>, link: Link) {
        let (shares, side) = (&self.table.shares, hold.side);
        if side == Tag::NONE || shares.tag(link) == side || planted(Mutant::ShareNotNoted) {
            return;
        }
        let share = shares.share(link);
        let key = self.table.permits.key(share.serial, share.number);
        let meta = Meta::share(key, hold.slot.meta().limit());
        if self.table.note(side, &Noted { key, meta, payload: Payload::wide(link) }) {
            shares.set_tag(link, side);
        }
    }

    /// Takes a share's slot from it. The caller holds the counter, so nobody else does.
    fn forget_share(&self, key: Key) {
        let shard = self.table.shard(key);
        let mut path = shard.path(key, self.table.shape, &self.guard);
        while let Some(slot) = path.find() {
            let word = slot.word();
            match word.state() {
                State::Live(_) => {
                    let limit = slot.meta().limit();
                    if slot.swap(word, Word::DEAD) {
                        self.table.uncount(shard, limit);
                        return;
                    }
                }
                State::Moving(_) | State::Moved => path.follow(slot),
                _ => return,
            }
        }
    }
}
