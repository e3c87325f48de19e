//! Snapshots: every counter as it was at one moment, told while others decide.
//!
//! The moment is when [`Snapshot::begin`] returns for whoever calls it between two checks, and one
//! moment between checks for all others; no check is split by it. Why that is so is told in
//! `overlay`. Permits are told by share, each with its counter's key; a share's own key follows
//! from the permit's id.
//!
//! The walk keeps up with growth instead of forbidding it. Counters move only along a shard's
//! chain of arrays, and arrays are numbered along it; the walk goes through them in that order and
//! lets none go by with a counter on the move. So a counter that moves is met where it was or
//! where it went, or, unchanged, in both: who loads it keeps the first.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;

use crate::engine::command::LimitId;
use crate::engine::key::Key;
use crate::engine::kinds::{Bucket, Calendar, Cell, Fixed, Ring};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::quota::Kind;
use crate::engine::sync::epoch::{self, Guard};
use crate::engine::sync::{AtomicU64, Backoff, Ordering};
use crate::engine::time::{Nanos, Now, Timestamp};

use super::array::Array;
use super::overlay::Noted;
use super::shard::Shard;
use super::shares::Link;
use super::slot::{Holds, Meta, Payload, Slot, State as Stands, Tag, Word};
use super::{Pinned, Table};

/// One counter, or one share of a permit, as it was at the snapshot's moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counter<'a> {
    /// Which counter.
    pub(crate) key: Key,
    /// Its kind.
    pub(crate) kind: Kind,
    /// With whose counters it is counted, by the numbers of the policy then in force.
    pub(crate) limit: LimitId,
    /// Of a bucket, which numbers it was last charged by; of a window, the number of its length in
    /// [`Snapshot::windows`], or one past any.
    pub(crate) detail: u32,
    /// What was charged.
    pub(crate) state: State<'a>,
}

/// The state of a counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State<'a> {
    /// A narrow value.
    Narrow(u64),
    /// A few numbers.
    Cell(Cell),
    /// Sub-windows.
    Ring(&'a Ring),
    /// A share of a permit.
    Permitted(Permitted),
}

/// A share of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permitted {
    /// The permit's number and how many shares it has.
    pub(crate) serial: u64,
    /// The share's number within the permit.
    pub(crate) number: u8,
    /// Units held.
    pub(crate) units: u64,
    /// When they are free again unless the permit is renewed.
    pub(crate) lapses_at: Timestamp,
    /// How long it was given for.
    pub(crate) lease: Nanos,
}

impl Table {
    /// A hash of all counters that differ from fresh ones at `now`, the same for equal ones
    /// wherever they lie. The caller must not have entered the table, and nobody may change it
    /// meanwhile; replicas compare what they have.
    pub fn hash(&self, now: Now) -> u64 {
        let mut sum = 0_u64;
        let Some(ready) = Ready::take(self) else { return 0 };
        let mut snapshot = ready.begin(u64::MAX);
        let mut backoff = Backoff::new();
        while !snapshot.is_settled() {
            backoff.wait();
        }
        let windows = snapshot.windows();
        loop {
            let walked = snapshot.walk(HASHED_PER_STEP, |_, counter| {
                // Addition, since counters come in no order.
                sum = sum.wrapping_add(counter.hash(&windows, now));
            });
            match walked {
                Ok(Walked::Part) => {}
                Ok(Walked::All) => return sum,
                Err(Spent { .. }) => return 0,
            }
        }
    }
}

/// Slots that are hashed before the table is entered anew.
const HASHED_PER_STEP: usize = 65_536;

impl Counter<'_> {
    /// A hash of what the counter holds at `now`; zero if that is nothing. No secret, and not for
    /// tables: it tells replicas apart that should be equal.
    fn hash(&self, windows: &[Nanos], now: Now) -> u64 {
        let window = || windows.get(self.detail as usize).copied().unwrap_or(Nanos::ZERO);
        let mut sum = Mixer::new();
        let [high, low] = self.key.words();
        sum.add(high).add(low).add(self.kind as u64).add(self.limit.0.into());
        match self.state {
            State::Narrow(value) => {
                let fresh = match self.kind {
                    Kind::Bucket => Bucket::narrow_is_fresh(value, now),
                    Kind::Fixed => Fixed::narrow_is_fresh(value, window(), now),
                    Kind::Calendar => Calendar::narrow_is_fresh(value, window(), now),
                    _ => value == 0,
                };
                if fresh {
                    return 0;
                }
                sum.add(value);
            }
            State::Cell(cell) => {
                let fresh = match self.kind {
                    Kind::Bucket => Bucket::wide_is_fresh(cell, now),
                    Kind::Fixed => Fixed::wide_is_fresh(cell, now),
                    Kind::Calendar => Calendar::wide_is_fresh(cell, now),
                    _ => false,
                };
                if fresh {
                    return 0;
                }
                cell.iter().for_each(|word| _ = sum.add(*word));
            }
            State::Ring(ring) => {
                let (newest, units) = ring.live(now);
                if units == 0 {
                    return 0;
                }
                sum.add(newest).add(units);
            }
            State::Permitted(permitted) => {
                if permitted.lapses_at <= now.time {
                    return 0;
                }
                sum.add(permitted.serial).add(permitted.units).add(permitted.lapses_at.as_nanos());
            }
        }
        sum.end()
    }
}

/// Multiplies and folds, word by word (Steele and Vigna, the mixer of SplitMix64).
struct Mixer(u64);

impl Mixer {
    const fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    fn add(&mut self, word: u64) -> &mut Self {
        let mixed = (self.0 ^ word).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.0 = (mixed ^ mixed >> 29).wrapping_add(0x9E37_79B9_7F4A_7C15);
        self
    }

    fn end(&self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) | 1
    }
}

/// How far a snapshot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walked {
    /// There is more to come.
    Part,
    /// All has been told.
    All,
}

/// Where a counter was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// In its slot, in the order of keys but for what probing and growth shift.
    InPlace,
    /// Among those noted before they changed, in no order.
    Noted,
}

/// More counters changed than may be noted: the snapshot is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    /// The most that may be noted.
    pub(crate) noted_max: u64,
}

/// A snapshot in progress. Dropped before its end, it is void and leaves no trace.
pub(crate) struct Snapshot<T: Deref<Target = Table>> {
    table: T,
    tag: Tag,
    noted_max: u64,
    next_permit: u64,
    /// 1 once nobody is left who may not know of the snapshot.
    settled: Arc<AtomicU64>,
    shard: usize,
    /// Number of the array in the shard's chain, and the first slot still to be looked at.
    array: Option<u32>,
    slot: usize,
    is_over: bool,
}

/// The right to take the next snapshot of a table, of which one has it at a time.
pub(crate) struct Ready<T: Deref<Target = Table>> {
    table: T,
    tag: Tag,
    dirty: u64,
    is_over: bool,
}

impl<T: Deref<Target = Table>> Ready<T> {
    /// Makes ready for a snapshot. `None`: there is one in progress. The caller must not have
    /// entered the table, nor hold a lock that is waited for by somebody who has.
    ///
    /// After fifteen snapshots in a row that came to nothing it looks through all slots.
    pub(crate) fn take(table: T) -> Option<Self> {
        let notes = &table.notes;
        // Acquire pairs with the release in `end`: the last snapshot's shards are seen closed.
        if notes.busy.swap(1, Ordering::AcqRel) == 1 {
            return None;
        }
        let mut dirty = notes.dirty.load(Ordering::Relaxed);
        if free_tag(dirty).is_none() {
            table.clean_tags();
            dirty = 0;
        }
        let tag = free_tag(dirty).unwrap_or(Tag::new(1));
        let tag = if planted(Mutant::TagsNotCleaned) { Tag::new(1) } else { tag };
        let is_over = false;
        Some(Self { table, tag, dirty, is_over })
    }
}

impl<T: Deref<Target = Table> + Clone> Ready<T> {
    /// Begins the snapshot, for which at most `noted_max` counters may change before it has come
    /// to them. It waits for nobody.
    pub(crate) fn begin(mut self, noted_max: u64) -> Snapshot<T> {
        self.is_over = true;
        let (table, tag, notes) = (self.table.clone(), self.tag, &self.table.notes);
        notes.dirty.store(self.dirty | 1 << tag.number(), Ordering::Relaxed);
        notes.allow(noted_max);
        for shard in &table.shards {
            shard.overlay.open(tag);
        }
        let next_permit = table.next_permit.load(Ordering::Relaxed);
        notes.set_side(tag);
        let settled = when_all_left();
        let (shard, array, slot, is_over) = (0, None, 0, false);
        Snapshot { table, tag, noted_max, next_permit, settled, shard, array, slot, is_over }
    }
}

impl<T: Deref<Target = Table>> Drop for Ready<T> {
    fn drop(&mut self) {
        if !self.is_over {
            self.table.notes.busy.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
impl<T: Deref<Target = Table> + Clone> Snapshot<T> {
    /// Begins a snapshot as [`Ready::begin`] does, made ready now. `None`: there is one in
    /// progress.
    pub(crate) fn begin(table: T, noted_max: u64) -> Option<Self> {
        Ready::take(table).map(|ready| ready.begin(noted_max))
    }
}

impl<T: Deref<Target = Table>> Snapshot<T> {
    /// Whether all who may not know of the snapshot have left the table, so that [`Snapshot::walk`]
    /// may begin. To be asked until it is so, with a pause in between.
    pub(crate) fn is_settled(&self) -> bool {
        has_settled(&self.settled)
    }

    /// Lengths of windows, by number. To be asked once it is settled.
    pub(crate) fn windows(&self) -> Vec<Nanos> {
        self.table.windows.lengths()
    }

    /// From where on permits were numbered at the snapshot's moment.
    pub(crate) fn next_permit(&self) -> u64 {
        self.next_permit
    }

    /// Counters noted so far.
    pub(crate) fn noted(&self) -> u64 {
        self.table.notes.noted()
    }

    /// Looks at about `slots_max` slots more, within one shard, and tells what they hold. The
    /// snapshot must be settled.
    ///
    /// # Errors
    /// [`Spent`]: nothing that was told counts.
    pub(crate) fn walk(
        &mut self,
        slots_max: usize,
        mut tell: impl FnMut(Found, &Counter<'_>),
    ) -> Result<Walked, Spent> {
        debug_assert!(self.settled.load(Ordering::Relaxed) == 1);
        let Some(shard) = self.table.shards.get(self.shard) else { return Ok(Walked::All) };
        let pinned = self.table.pin();
        let mut walk = Walk { pinned: &pinned, shard, tag: self.tag };
        let mut left = slots_max;
        while left > 0
            && let Some(array) = walk.array(self.array)
        {
            if self.array != Some(array.number) {
                (self.array, self.slot) = (Some(array.number), 0);
            }
            let last = self.slot.saturating_add(left).min(array.slots().len());
            for slot in array.slots().range(self.slot..last) {
                walk.tell_slot(array, slot, &mut tell);
            }
            left -= last - self.slot;
            self.slot = last;
            if last == array.slots().len() {
                (self.array, self.slot) = (Some(array.number.wrapping_add(1)), 0);
            }
        }
        if left > 0 {
            walk.tell_notes(&mut tell);
            (self.shard, self.array, self.slot) = (self.shard + 1, None, 0);
        }
        drop(pinned);
        if self.table.notes.are_spent() {
            return Err(Spent { noted_max: self.noted_max });
        }
        if self.shard < self.table.shards.len() {
            return Ok(Walked::Part);
        }
        self.end();
        // All slots have been looked at, so only this one's tag is left.
        self.table.notes.dirty.store(1 << self.tag.number(), Ordering::Relaxed);
        self.table.notes.busy.store(0, Ordering::Release);
        Ok(Walked::All)
    }

    fn end(&mut self) {
        self.is_over = true;
        self.table.notes.set_side(Tag::NONE);
        for shard in &self.table.shards {
            let mut link = shard.overlay.close();
            while link != 0 {
                let (_, next) = self.table.noted(link);
                self.table.forget_note(link);
                link = next;
            }
        }
    }
}

impl<T: Deref<Target = Table>> Drop for Snapshot<T> {
    fn drop(&mut self) {
        if !self.is_over {
            self.end();
            self.table.notes.busy.store(0, Ordering::Release);
        }
    }
}

/// A tag that no slot has, if there is one.
fn free_tag(dirty: u64) -> Option<Tag> {
    (1..=Tag::MAX).find(|number| dirty >> number & 1 == 0).map(Tag::new)
}

/// Becomes 1 once all who are in the table have left it.
fn when_all_left() -> Arc<AtomicU64> {
    let settled = Arc::new(AtomicU64::new(0));
    let settle = Arc::clone(&settled);
    let guard = epoch::pin();
    // Release pairs with the acquire in `has_settled`: what they did is seen.
    guard.defer(move || settle.store(1, Ordering::Release));
    guard.flush();
    settled
}

fn has_settled(settled: &AtomicU64) -> bool {
    if settled.load(Ordering::Acquire) == 0 {
        // Entering and leaving is what moves the epochs on.
        epoch::pin().flush();
    }
    settled.load(Ordering::Acquire) == 1
}

impl Table {
    /// Takes all tags from all slots. There is no snapshot in progress.
    fn clean_tags(&self) {
        let settled = when_all_left();
        let mut backoff = Backoff::new();
        while !has_settled(&settled) {
            backoff.wait();
        }
        for shard in &self.shards {
            let pinned = self.pin();
            let mut walk = Walk { pinned: &pinned, shard, tag: Tag::NONE };
            let mut number = None;
            while let Some(array) = walk.array(number) {
                for slot in array.slots().range(0..array.slots().len()) {
                    walk.tell_slot(array, slot, &mut |_, _| {});
                }
                number = Some(array.number.wrapping_add(1));
            }
        }
    }
}

/// A look at the slots of one shard.
struct Walk<'a, 't> {
    pinned: &'a Pinned<'t>,
    shard: &'a Shard,
    /// The snapshot's. Slots that have it are not told; from those that have another it is taken.
    tag: Tag,
}

impl<'a> Walk<'a, '_> {
    /// The array with this number, or the first after it; without one the first of the chain.
    fn array(&self, number: Option<u32>) -> Option<&'a Array> {
        let guard: &'a Guard = &self.pinned.guard;
        let mut array = Some(self.shard.array(guard));
        while let (Some(found), Some(number)) = (array, number)
            && (found.number.wrapping_sub(number) as i32) < 0
        {
            array = found.next(guard);
        }
        array
    }

    fn tell_slot(
        &mut self,
        array: &Array,
        slot: &Slot,
        tell: &mut impl FnMut(Found, &Counter<'_>),
    ) {
        let mut backoff = Backoff::new();
        loop {
            // The word first: a value of after the moment was published behind its tag.
            let word = slot.word();
            let meta = slot.meta();
            if meta == Meta::VACANT || meta == Meta::SEALED {
                return;
            }
            let is_stale = meta.tag() != self.tag && meta.tag() != Tag::NONE;
            match word.state() {
                Stands::Held => backoff.wait(),
                Stands::Moving(_) => {
                    // It is met again where it goes.
                    let pinned = self.pinned;
                    self.shard.move_slot(array, slot, pinned.table.shape, &pinned.guard);
                }
                Stands::Dead if is_stale => {
                    if slot.swap(word, Word::held(Payload::FRESH)) {
                        slot.set_tag(Tag::NONE);
                        slot.release(Word::DEAD);
                    }
                }
                Stands::Live(payload) => match meta.holds() {
                    Holds::Share => {
                        if self.tell_share(slot, payload, tell) {
                            return;
                        }
                    }
                    Holds::Counter(Kind::Concurrent) => return,
                    Holds::Counter(kind) => {
                        if meta.tag() == self.tag && self.tag != Tag::NONE {
                            return;
                        }
                        if !payload.is_wide() && !is_stale {
                            let state = State::Narrow(payload.value());
                            return tell(Found::InPlace, &counter(slot.key(), kind, meta, state));
                        }
                        if slot.swap(word, Word::held(payload)) {
                            return self.tell_held(slot, payload, kind, tell);
                        }
                    }
                },
                // One that is unborn now comes after the moment.
                Stands::Unborn | Stands::Killed | Stands::Dead | Stands::Moved => return,
            }
        }
    }

    /// Tells a counter that was just held, and lets go of it.
    fn tell_held(
        &self,
        slot: &Slot,
        payload: Payload,
        kind: Kind,
        tell: &mut impl FnMut(Found, &Counter<'_>),
    ) {
        let (table, meta) = (self.pinned.table, slot.meta());
        if meta.tag() != self.tag || self.tag == Tag::NONE {
            table.told(slot.key(), kind, meta, payload, |counter| tell(Found::InPlace, counter));
            if meta.tag() != Tag::NONE {
                slot.set_tag(Tag::NONE);
            }
        }
        slot.release(Word::live(payload));
    }

    /// Tells a share, which belongs to whoever holds its counter. False: it has gone meanwhile.
    fn tell_share(
        &self,
        slot: &Slot,
        payload: Payload,
        tell: &mut impl FnMut(Found, &Counter<'_>),
    ) -> bool {
        let Some(link) = payload.cell() else { return true };
        let (pinned, shares) = (self.pinned, &self.pinned.table.shares);
        let counter = shares.counter(link);
        let Some(hold) = pinned.hold_present(counter) else { return false };
        // As whoever gives a permit back does: only what the holder of its counter sees counts.
        let is_there = !pinned.heap(&hold).is_empty()
            && shares.counter(link) == counter
            && pinned.find_share(slot.key()) == Some(link);
        if is_there {
            let tag = shares.tag(link);
            if tag != self.tag || tag == Tag::NONE {
                let limit = slot.meta().limit();
                tell(Found::InPlace, &share(pinned.table, link, limit));
                shares.set_tag(link, Tag::NONE);
            }
        }
        pinned.end_hold(&hold, counter);
        is_there
    }

    /// Tells what was noted and ends the snapshot for this shard.
    fn tell_notes(&mut self, tell: &mut impl FnMut(Found, &Counter<'_>)) {
        let table = self.pinned.table;
        let mut link = self.shard.overlay.close();
        while link != 0 {
            let (Noted { key, meta, payload }, next) = table.noted(link);
            match meta.holds() {
                Holds::Share => {
                    if let Some(copy) = payload.cell() {
                        tell(Found::Noted, &share(table, copy, meta.limit()));
                    }
                }
                Holds::Counter(kind) => {
                    table.told(key, kind, meta, payload, |counter| tell(Found::Noted, counter));
                }
            }
            table.forget_note(link);
            link = next;
        }
    }
}

impl Table {
    /// A counter whose payload is the caller's alone.
    fn told(
        &self,
        key: Key,
        kind: Kind,
        meta: Meta,
        payload: Payload,
        tell: impl FnOnce(&Counter<'_>),
    ) {
        let (Some(cell), Some(ring)) = (payload.cell(), payload.ring_id()) else {
            return tell(&counter(key, kind, meta, State::Narrow(payload.value())));
        };
        if kind.has_ring() {
            let ring = self.rings.at(ring).read();
            tell(&counter(key, kind, meta, State::Ring(&ring)));
        } else {
            tell(&counter(key, kind, meta, State::Cell(self.cells.read(cell))));
        }
    }
}

fn counter(key: Key, kind: Kind, meta: Meta, state: State<'_>) -> Counter<'_> {
    let detail = match kind {
        Kind::Bucket => meta.generation(),
        _ => meta.window().into(),
    };
    Counter { key, kind, limit: meta.limit(), detail, state }
}

fn share(table: &Table, link: Link, limit: LimitId) -> Counter<'static> {
    let share = table.shares.share(link);
    let state = State::Permitted(Permitted {
        serial: share.serial.word(),
        number: share.number,
        units: share.units,
        lapses_at: share.lapses_at,
        lease: share.lease,
    });
    let detail = Meta::NO_WINDOW.into();
    Counter { key: share.counter, kind: Kind::Concurrent, limit, detail, state }
}
