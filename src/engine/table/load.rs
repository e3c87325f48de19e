//! Loading: counters of a snapshot come back into a table that nobody uses yet.
//!
//! What is loaded is looked at first: a number that no counter could have is refused, whoever
//! wrote it. Caps do not count: a live debtor stays, even where its limit's cap is lower now.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::engine::command::LimitId;
use crate::engine::key::Key;
use crate::engine::kinds::{Cell, Ring, VALUE_BITS};
use crate::engine::permit::Serial;
use crate::engine::quota::{Align, Kind, UNITS_MAX, WINDOW_MAX, WINDOW_MIN};
use crate::engine::time::Nanos;

use super::held::Held;
use super::shard::{Place, Shard};
use super::shares::Share;
use super::slot::{Holds, Meta, Payload, Word};
use super::snapshot::{Counter, Permitted, State};
use super::{LIMITS_MAX, Pinned, Table, probe};

/// Loads after which what the epochs keep is let go.
const LOADS_PER_PIN: u32 = 1024;

/// Why a counter cannot be loaded: what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfit(pub(crate) &'static str);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Loads counters into a table. Several may do so at one time, each with counters of its own.
pub(crate) struct Loader<'t> {
    pinned: Pinned<'t>,
    limits: &'t [LimitId],
    /// By number in the snapshot: the length, and its number in this table.
    windows: Vec<(Nanos, Option<u16>)>,
    loaded: Box<[u64]>,
    /// Counters that the shard they came to last does not count yet: keys come shard by shard.
    uncounted: (usize, u32),
    loads: u32,
}

impl Table {
    /// Makes room for so many counters, so that loading them does not grow the table. What it held
    /// is gone.
    pub(crate) fn reserve(&mut self, keys: u64) {
        let shards = self.shards.len() as u64;
        let each = keys.div_ceil(shards);
        // Keys spread evenly: a shard holds more than four deviations above once in 30,000.
        let each = (each + 4 * each.isqrt()).min(u32::MAX.into()) as u32;
        for shard in &mut self.shards {
            if probe::slots_holding(each, shard.slots_at_first) > shard.slots_at_first {
                let pool = alloc::sync::Arc::clone(&shard.pool);
                *shard = Shard::for_keys(each, shard.slots_at_first, &pool);
            }
        }
    }
}

impl<'t> Loader<'t> {
    /// Loads into `table` what was numbered by a snapshot's own limits, of which `limits` gives
    /// the number here, and by its windows. Counters of other limits go with the inline ones.
    ///
    /// # Errors
    /// A length that no window has.
    pub(crate) fn new(
        table: &'t Table,
        limits: &'t [LimitId],
        windows: &[Nanos],
    ) -> Result<Self, Unfit> {
        let number = |&length: &Nanos| {
            let is_length = (WINDOW_MIN..=WINDOW_MAX).contains(&length);
            is_length.then(|| (length, table.windows.number(length)))
        };
        let windows = windows.iter().map(number).collect::<Option<_>>();
        let windows = windows.ok_or(Unfit("a window that is too short or too long"))?;
        let loaded = vec![0; LIMITS_MAX].into();
        Ok(Self { pinned: table.pin(), limits, windows, loaded, uncounted: (0, 0), loads: 0 })
    }

    /// Loads a counter, or a share of a permit. False: it is there already.
    ///
    /// # Errors
    /// What is wrong with it; nothing was changed then.
    pub(crate) fn load(&mut self, counter: &Counter<'_>) -> Result<bool, Unfit> {
        self.loads += 1;
        if self.loads.is_multiple_of(LOADS_PER_PIN) {
            self.pinned.guard.repin();
        }
        let limit = self.limits.get(usize::from(counter.limit.0)).copied();
        let limit = limit.unwrap_or(LimitId::INLINE);
        let (meta, window) = self.meta(counter, limit)?;
        let table = self.pinned.table;
        match counter.state {
            State::Permitted(permitted) => self.load_share(counter.key, meta, limit, permitted),
            State::Narrow(value) => {
                narrow_fits(counter.kind, value, window)?;
                Ok(self.insert(counter.key, meta, limit, Payload::narrow(value)))
            }
            State::Cell(words) => {
                cell_fits(counter.kind, words)?;
                let cell = table.cells.take();
                table.cells.write(cell, words);
                let is_new = self.insert(counter.key, meta, limit, Payload::wide(cell));
                if !is_new {
                    table.cells.give(cell);
                }
                Ok(is_new)
            }
            State::Ring(ring) => {
                ring_fits(counter.kind, ring)?;
                let id = table.rings.take_copy(ring);
                let is_new = self.insert(counter.key, meta, limit, Payload::ring(id));
                if !is_new {
                    table.rings.give(id);
                }
                Ok(is_new)
            }
        }
    }

    /// What the counter's slot is for, and the length of its window.
    fn meta(&self, counter: &Counter<'_>, limit: LimitId) -> Result<(Meta, Option<Nanos>), Unfit> {
        let Counter { key, kind, detail, .. } = *counter;
        match kind {
            Kind::Bucket if detail < 1 << 24 => Ok((Meta::bucket(key, limit, detail), None)),
            Kind::Bucket => Err(Unfit("a bucket's generation of more than 24 bits")),
            Kind::Cap => Err(Unfit("a counter of a cap, which has none")),
            _ => {
                let window = usize::try_from(detail).ok().and_then(|at| self.windows.get(at));
                let number = window.and_then(|(_, number)| *number).unwrap_or(Meta::NO_WINDOW);
                let length = window.filter(|(_, number)| number.is_some());
                let length = length.map(|(length, _)| *length);
                Ok((Meta::counter(key, kind, limit, number), length))
            }
        }
    }

    fn insert(&mut self, key: Key, meta: Meta, limit: LimitId, payload: Payload) -> bool {
        let table = self.pinned.table;
        let shard = table.shard(key);
        shard.help_move(table.shape, &self.pinned.guard);
        let mut path = shard.path(key, table.shape, &self.pinned.guard);
        loop {
            match path.locate() {
                Place::Found(_) => return false,
                Place::Vacant(slot) => {
                    if path.insert(slot, meta, Word::live(payload)) {
                        break;
                    }
                }
            }
        }
        self.count(key, limit);
        true
    }

    fn count(&mut self, key: Key, limit: LimitId) {
        let shard = probe::shard(key.high, self.pinned.table.shape.shard_bits);
        if shard != self.uncounted.0 {
            self.count_live();
            self.uncounted.0 = shard;
        }
        self.uncounted.1 += 1;
        let place = usize::from(limit.0);
        self.loaded[if place < LIMITS_MAX { place } else { 0 }] += 1;
    }

    fn count_live(&mut self) {
        let (shard, counters) = &mut self.uncounted;
        self.pinned.table.shards[*shard].count_more_live(*counters);
        *counters = 0;
    }

    fn load_share(
        &mut self,
        counter: Key,
        meta: Meta,
        limit: LimitId,
        permitted: Permitted,
    ) -> Result<bool, Unfit> {
        let Permitted { serial, number, units, lapses_at, lease } = permitted;
        let serial = Serial::from_word(serial);
        if meta.holds() != Holds::Counter(Kind::Concurrent) || number >= serial.shares() {
            return Err(Unfit("a share that its permit does not have"));
        }
        if !(1..=UNITS_MAX).contains(&units) || !(WINDOW_MIN..=WINDOW_MAX).contains(&lease) {
            return Err(Unfit("a permit's share of units or a lease that none has"));
        }
        let table = self.pinned.table;
        let key = table.permits.key(serial, number);
        if self.pinned.find_share(key).is_some() {
            return Ok(false);
        }
        let link = table.shares.take(&Share { counter, serial, number, units, lapses_at, lease });
        if !self.insert(key, Meta::share(key, limit), limit, Payload::wide(link)) {
            table.shares.give(link);
            return Ok(false);
        }
        let (mut hold, is_new) = hold(&self.pinned, counter, meta);
        if hold.slot.meta().holds() != meta.holds() {
            hold.slot.release(Word::live(hold.payload));
            return Err(Unfit("a permit of a counter of another kind"));
        }
        let mut heap = self.pinned.heap(&hold);
        heap.add(table, link, units);
        self.pinned.put_heap(&mut hold, heap);
        self.pinned.end_hold(&hold, counter);
        if is_new {
            self.count(counter, limit);
        }
        Ok(true)
    }
}

impl Drop for Loader<'_> {
    fn drop(&mut self) {
        self.count_live();
        for (limit, loaded) in self.loaded.iter().enumerate().filter(|(_, loaded)| **loaded > 0) {
            self.pinned.table.counts.restore(LimitId(limit as u16), *loaded);
        }
    }
}

/// Takes a counter, made fresh if there was none; true if so. No slot of the table is dead.
fn hold<'g>(pinned: &'g Pinned<'_>, key: Key, meta: Meta) -> (Held<'g>, bool) {
    let table = pinned.table;
    loop {
        if let Some(hold) = pinned.hold_present(key) {
            return (hold, false);
        }
        let mut path = table.shard(key).path(key, table.shape, &pinned.guard);
        if let Place::Vacant(slot) = path.locate()
            && path.insert(slot, meta, Word::held(Payload::FRESH))
        {
            return (Held::new(slot, Payload::FRESH), true);
        }
    }
}

fn narrow_fits(kind: Kind, value: u64, window: Option<Nanos>) -> Result<(), Unfit> {
    match kind {
        _ if value == 0 || value >> VALUE_BITS != 0 => {
            Err(Unfit("a narrow value of no bit, or of more than 61"))
        }
        Kind::Bucket | Kind::Level => Ok(()),
        Kind::Fixed | Kind::Calendar if window.is_some() => Ok(()),
        Kind::Fixed | Kind::Calendar => Err(Unfit("a narrow window without its length")),
        _ => Err(Unfit("a narrow counter of a kind that has none")),
    }
}

fn cell_fits(kind: Kind, words: Cell) -> Result<(), Unfit> {
    let is_window = |nanos| (WINDOW_MIN.get()..=WINDOW_MAX.get()).contains(&nanos);
    let fits = match (kind, words) {
        (Kind::Bucket, [low, high, ticks, per_ns]) => {
            let ahead = u128::from(high) << 64 | u128::from(low);
            let ahead = ahead.checked_mul(per_ns.into()).filter(|ticks| *ticks < 1 << 121);
            ahead.is_some() && ticks < per_ns
        }
        (Kind::Fixed, [opened, _, window, align]) => {
            let is_align = align == Align::Clock as u64 || align == Align::First as u64;
            opened < u64::MAX && is_window(window) && is_align
        }
        (Kind::Calendar, [_, _, longest, _]) => is_window(longest),
        (Kind::Level, _) => true,
        _ => return Err(Unfit("numbers of a kind that has none")),
    };
    if fits { Ok(()) } else { Err(Unfit("numbers that no counter of its kind has")) }
}

fn ring_fits(kind: Kind, ring: &Ring) -> Result<(), Unfit> {
    let total = ring.counts.iter().try_fold(0_u64, |total, count| total.checked_add(*count));
    // A charge of one nanosecond's sub-window in the year 2500 is far below.
    let is_moment = ring.newest < u64::MAX / 2;
    if kind == Kind::Sliding && is_moment && ring.sub_ns > 0 && total == Some(ring.total) {
        return if ring.total > 0 { Ok(()) } else { Err(Unfit("sub-windows of nothing")) };
    }
    Err(Unfit("sub-windows that no counter has"))
}
