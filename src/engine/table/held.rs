//! Holds: counters that one thread alone may change for a moment, and what is done with them.

use crate::engine::command::{Amend, Charge, LimitId};
use crate::engine::decision::Refusal;
use crate::engine::key::Key;
use crate::engine::kinds::{Fill, Form};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::quota::{Kind, Quota};
use crate::engine::sync::Backoff;
use crate::engine::time::Now;

use super::overlay::Noted;
use super::permits::Heap;
use super::shard::{Path, Place, Shard};
use super::slot::{Holds, Meta, Payload, Slot, State, Tag, Word};
use super::{Pinned, Table};

/// A counter that this thread alone may change, until it is released.
pub(super) struct Held<'g> {
    pub(super) slot: &'g Slot,
    /// What its word says when it is released.
    pub(super) payload: Payload,
    /// On which side of a snapshot's moment the changes are that are made now.
    pub(super) side: Tag,
}

impl<'g> Held<'g> {
    /// A slot that was just taken, its counter as it is.
    pub(super) const fn new(slot: &'g Slot, payload: Payload) -> Self {
        Self { slot, payload, side: Tag::NONE }
    }
}

/// What becomes of a held counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// So many units are charged.
    Charge(u64),
    /// So many units are charged as far as there are any.
    Saturate(u64),
    /// It is changed after the fact.
    Amend(Amend),
}

impl Pinned<'_> {
    /// Takes a counter for this thread alone, made fresh if there was none.
    pub(super) fn hold(&self, charge: &Charge) -> Result<Held<'_>, Refusal> {
        let shard = self.table.shard(charge.key);
        let mut path: Path<'_> = shard.path(charge.key, self.table.shape, &self.guard);
        let mut backoff = Backoff::new();
        loop {
            match path.locate() {
                Place::Vacant(slot) => {
                    self.table.count(shard, charge.limit)?;
                    let meta = self.table.meta(charge);
                    if path.insert(slot, meta, Word::held(Payload::FRESH)) {
                        return Ok(Held::new(slot, Payload::FRESH));
                    }
                    self.table.uncount(shard, charge.limit);
                }
                Place::Found(slot) => match slot.word().state() {
                    State::Dead => {
                        self.table.count(shard, charge.limit)?;
                        if slot.swap(Word::DEAD, Word::held(Payload::FRESH)) {
                            return Ok(Held::new(slot, Payload::FRESH));
                        }
                        self.table.uncount(shard, charge.limit);
                    }
                    State::Held => backoff.wait(),
                    _ => {
                        if let Some(held) = take(&mut path, slot) {
                            return Ok(held);
                        }
                    }
                },
            }
        }
    }

    /// Takes the counter of `key` for this thread alone, if there is one.
    pub(super) fn hold_present(&self, key: Key) -> Option<Held<'_>> {
        let shard = self.table.shard(key);
        let mut path: Path<'_> = shard.path(key, self.table.shape, &self.guard);
        let mut backoff = Backoff::new();
        loop {
            let slot = path.find()?;
            match slot.word().state() {
                State::Dead => return None,
                State::Held => backoff.wait(),
                _ => {
                    if let Some(held) = take(&mut path, slot) {
                        return Some(held);
                    }
                }
            }
        }
    }

    /// Ends a hold. A counter without a payload is fresh and makes room.
    pub(super) fn end_hold(&self, hold: &Held<'_>, key: Key) {
        if hold.payload.is_fresh() {
            let limit = hold.slot.meta().limit();
            hold.slot.release(Word::DEAD);
            self.table.uncount(self.table.shard(key), limit);
        } else {
            hold.slot.release(Word::live(hold.payload));
        }
    }

    /// On which side of a snapshot's moment the changes are that will be made to the counters held
    /// now. To be asked once for all of them, see `overlay`.
    #[inline]
    pub(super) fn side(&self) -> Tag {
        self.table.notes.side()
    }

    /// Notes a held counter, before its first change, for the snapshot on whose side that is.
    #[inline]
    pub(super) fn preserve(&self, hold: &mut Held<'_>, key: Key, side: Tag) {
        hold.side = side;
        if side != Tag::NONE {
            self.note_held(hold, key, side);
        }
    }

    #[cold]
    fn note_held(&self, hold: &Held<'_>, key: Key, side: Tag) {
        let meta = hold.slot.meta();
        // Of permits each share is noted by itself.
        if meta.tag() == side || meta.holds() == Holds::Counter(Kind::Concurrent) {
            return;
        }
        if planted(Mutant::ChangeNotNoted) && !hold.payload.is_fresh() {
            return;
        }
        let noted = if hold.payload.is_fresh() {
            // One that comes in the middle of a snapshot is not part of it.
            self.table.shard(key).overlay.tag() == side && !planted(Mutant::NewcomerNotTagged)
        } else {
            self.table.note(side, &Noted { key, meta, payload: hold.payload })
        };
        if noted {
            hold.slot.set_tag(side);
        }
    }

    /// Brings a held counter to the moment and to the charge's numbers, whatever becomes of the
    /// check: permits that have lapsed are gone, and a bucket that other numbers filled keeps the
    /// time at which it is full, but no longer than a refill ahead.
    pub(super) fn settle(&self, hold: &mut Held<'_>, charge: &Charge, now: Now) {
        match &charge.quota {
            Quota::Bucket(bucket) if !hold.payload.is_fresh() => {
                let other = hold.slot.meta().generation() != bucket.generation();
                if (other && !planted(Mutant::ConversionForgotten))
                    || planted(Mutant::CheckClampsDebt)
                {
                    let fill = self.numbers(hold.payload, &charge.quota, now);
                    let converted = charge.quota.converted(fill);
                    if converted != fill {
                        self.put_numbers(hold, &charge.quota, converted, now);
                    }
                    hold.slot.set_generation(bucket.generation());
                }
            }
            Quota::Bucket(bucket) => hold.slot.set_generation(bucket.generation()),
            Quota::Concurrent(_) => {
                let mut heap = self.heap(hold);
                if self.lapse(hold, &mut heap, now) {
                    self.put_heap(hold, heap);
                }
            }
            _ => {}
        }
    }

    /// How full a held counter would stand once it is settled, which it is not.
    pub(super) fn settled_fill(
        &self,
        hold: &Held<'_>,
        charge: &Charge,
        cost: u64,
        now: Now,
    ) -> Fill {
        let fill = self.fill(hold, &charge.quota, cost, now);
        match &charge.quota {
            Quota::Bucket(bucket)
                if !hold.payload.is_fresh()
                    && hold.slot.meta().generation() != bucket.generation()
                    && !planted(Mutant::ConversionForgotten) =>
            {
                charge.quota.converted(fill)
            }
            _ => fill,
        }
    }

    /// How full a held and settled counter stands for a check of `cost`.
    pub(super) fn fill(&self, hold: &Held<'_>, quota: &Quota, cost: u64, now: Now) -> Fill {
        match quota.form() {
            Form::Numbers => self.numbers(hold.payload, quota, now),
            Form::Ring => match hold.payload.ring_id() {
                Some(id) => self.table.rings.at(id).fill(quota.limit(), cost, now),
                None => Fill::EMPTY_SLIDING,
            },
            Form::Permits => self.heap(hold).fill(self, now),
            Form::None => Fill::Stateless,
        }
    }

    /// Makes a change to a held and settled counter, all but the giving of permits. Returns how
    /// full it then stands for a check of `cost`.
    pub(super) fn change(
        &self,
        hold: &mut Held<'_>,
        charge: &Charge,
        change: Change,
        cost: u64,
        now: Now,
    ) -> Fill {
        let quota = &charge.quota;
        match quota.form() {
            Form::Numbers => {
                let fill = self.numbers(hold.payload, quota, now);
                let fill = match change {
                    Change::Charge(cost) => quota.charged(fill, cost),
                    Change::Saturate(cost) => quota.saturated(fill, cost),
                    Change::Amend(amend) => quota.amended(fill, amend),
                };
                self.put_numbers(hold, quota, fill, now);
                fill
            }
            Form::Ring => {
                self.change_ring(hold, quota, change, now);
                self.fill(hold, quota, cost, now)
            }
            Form::Permits => {
                if change == Change::Amend(Amend::Set(0)) {
                    let mut heap = self.heap(hold);
                    self.release_all(hold, &mut heap);
                    self.put_heap(hold, heap);
                }
                self.heap(hold).fill(self, now)
            }
            Form::None => Fill::Stateless,
        }
    }

    /// How full a counter of a few numbers stands.
    fn numbers(&self, payload: Payload, quota: &Quota, now: Now) -> Fill {
        match payload.cell() {
            Some(cell) => quota.fill_wide(self.table.cells.read(cell), now),
            None => quota.fill_narrow(payload.value(), now),
        }
    }

    fn put_numbers(&self, hold: &mut Held<'_>, quota: &Quota, fill: Fill, now: Now) {
        let cells = &self.table.cells;
        let cell = hold.payload.cell();
        let narrow = || quota.narrow(fill, now).filter(|_| hold.slot.meta().can_be_narrow());
        if fill.is_fresh() {
            hold.payload = Payload::FRESH;
        } else if let Some(cell) = cell {
            return cells.write(cell, quota.wide(fill, now));
        } else if let Some(value) = narrow() {
            hold.payload = Payload::narrow(value);
        } else {
            let cell = cells.take();
            cells.write(cell, quota.wide(fill, now));
            hold.payload = Payload::wide(cell);
        }
        if let Some(cell) = cell {
            cells.give(cell);
        }
    }

    /// Makes the same changes to a ring as [`Quota::charged`], [`Quota::saturated`] and
    /// [`Quota::amended`] make to numbers.
    fn change_ring(&self, hold: &mut Held<'_>, quota: &Quota, change: Change, now: Now) {
        let Quota::Sliding(sliding) = quota else {
            unreachable!("only sliding windows have rings")
        };
        let rings = &self.table.rings;
        let (at, units) = (hold.payload.ring_id(), sliding.units());
        if let Some(id) = at {
            rings.at(id).advance(now);
        }
        let total = at.map_or(0, |id| rings.at(id).total());
        let room = |most: u64| most.saturating_sub(total);
        let deepest = units.saturating_mul(2);
        let (more, less) = match change {
            Change::Charge(cost) => (cost, 0),
            Change::Saturate(cost) if planted(Mutant::AlwaysIntoDebt) => (cost, 0),
            Change::Saturate(cost) => (cost.min(room(units)), 0),
            Change::Amend(Amend::Add(units)) if planted(Mutant::DebtUnbounded) => (units, 0),
            Change::Amend(Amend::Add(units)) => (units.min(room(deepest)), 0),
            Change::Amend(Amend::GiveBack(units)) => (0, units),
            Change::Amend(Amend::Set(used)) => {
                let used = used.min(units);
                (room(used), total.saturating_sub(used))
            }
        };
        if more > 0 {
            let id = at.unwrap_or_else(|| {
                let id = rings.take_for(sliding);
                rings.at(id).advance(now);
                id
            });
            let id = rings.with_room(id, more);
            rings.at(id).charge(more);
            hold.payload = Payload::ring(id);
        }
        if let Some(id) = hold.payload.ring_id() {
            rings.at(id).give_back(less);
            if rings.at(id).total() == 0 {
                hold.payload = Payload::FRESH;
                rings.give(id);
            }
        }
    }

    /// The permits of a held counter.
    pub(super) fn heap(&self, hold: &Held<'_>) -> Heap {
        match hold.payload.cell() {
            Some(cell) => Heap::from_words(self.table.cells.read(cell)),
            None => Heap::default(),
        }
    }

    pub(super) fn put_heap(&self, hold: &mut Held<'_>, heap: Heap) {
        let cells = &self.table.cells;
        match (hold.payload.cell(), heap.is_empty()) {
            (Some(cell), false) => cells.write(cell, heap.to_words()),
            (Some(cell), true) => {
                hold.payload = Payload::FRESH;
                cells.give(cell);
            }
            (None, false) => {
                let cell = cells.take();
                cells.write(cell, heap.to_words());
                hold.payload = Payload::wide(cell);
            }
            (None, true) => {}
        }
    }
}

/// Takes a live slot, or goes on from one that has moved. `None`: look again.
fn take<'g>(path: &mut Path<'g>, slot: &'g Slot) -> Option<Held<'g>> {
    let word = slot.word();
    match word.state() {
        State::Live(payload) => {
            slot.swap(word, Word::held(payload)).then_some(Held::new(slot, payload))
        }
        State::Moving(_) | State::Moved => {
            path.follow(slot);
            None
        }
        _ => None,
    }
}

impl Table {
    /// Counts a counter that is about to come.
    pub(super) fn count(&self, shard: &Shard, limit: LimitId) -> Result<(), Refusal> {
        self.counts.add(limit)?;
        shard.count_live();
        Ok(())
    }

    /// Takes back [`Table::count`]; always false, for a counter that did not come after all.
    pub(super) fn uncount(&self, shard: &Shard, limit: LimitId) -> bool {
        self.counts.remove(limit);
        shard.uncount_live();
        false
    }

    /// What a new slot with a narrow counter is for. `None`: its window's length has no number,
    /// so the sweeper could not tell when the counter is over.
    pub(super) fn meta_narrow(&self, charge: &Charge) -> Option<Meta> {
        let window = match &charge.quota {
            Quota::Bucket(bucket) => {
                return Some(Meta::bucket(charge.key, charge.limit, bucket.generation()));
            }
            Quota::Fixed(fixed) => self.windows.number(fixed.window())?,
            Quota::Calendar(calendar) => self.windows.number(calendar.period().longest())?,
            _ => Meta::NO_WINDOW,
        };
        Some(Meta::counter(charge.key, charge.quota.kind(), charge.limit, window))
    }

    /// What a new slot is for whose counter may become wide. A wide one knows its own window.
    fn meta(&self, charge: &Charge) -> Meta {
        let kind = charge.quota.kind();
        let wide = || Meta::counter(charge.key, kind, charge.limit, Meta::NO_WINDOW);
        self.meta_narrow(charge).unwrap_or_else(wide)
    }
}
