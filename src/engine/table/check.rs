//! Checks: one charge on a narrow counter by compare-and-swap, everything else under holds.

use alloc::vec::Vec;

use crate::engine::command::{CHARGES_MAX, Charge};
use crate::engine::decision::{Decision, Reading, Refusal, Verdict, binding};
use crate::engine::key::Key;
use crate::engine::kinds::{Fill, NARROW_HORIZON};
use crate::engine::quota::Quota;
use crate::engine::sync::Backoff;
use crate::engine::time::Now;

use super::shard::{Path, Place, Shard};
use super::slot::{Meta, Payload, Slot, State, Word};
use super::{Pinned, Stamp, Table};

/// A counter that this thread alone may change, until it is released.
struct Held<'g> {
    slot: &'g Slot,
    /// What its word said.
    payload: Payload,
}

/// What becomes of a held counter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It stays as it is, and so do all others of the check.
    Refused,
    /// It stays as it is.
    None,
    /// It becomes this full.
    To(Fill),
}

/// How a check of one narrow counter ended.
enum Narrow {
    Decided(Reading),
    /// Numbers or counter need the wide form.
    NeedsHold,
}

impl Pinned<'_> {
    /// Decides a check of one charge, as [`Pinned::check`] does of several.
    ///
    /// # Errors
    /// See [`Refusal`]; nothing is charged then.
    #[inline(always)]
    pub fn check_one<F: FnMut() -> Now>(
        &self,
        charge: &Charge,
        stamp: &mut Stamp<F>,
    ) -> Result<Reading, Refusal> {
        within_horizon(stamp.now())?;
        let shard = self.table.shard(charge.key);
        if let Some(reading) = self.check_present(shard, charge, stamp.now()) {
            return Ok(reading);
        }
        self.check_one_anyhow(shard, charge, stamp)
    }

    /// The common case of [`Pinned::check_one`], and no other: a narrow bucket whose counter is
    /// there, in a shard that is not growing, with no other thread at it. `None` is no answer.
    #[inline(always)]
    fn check_present(&self, shard: &Shard, charge: &Charge, now: Now) -> Option<Reading> {
        let Quota::Bucket(bucket) = &charge.quota else { return None };
        if !bucket.is_narrow() || charge.cost == 0 || charge.cost > bucket.burst() {
            return None;
        }
        let slot = shard.find_settled(charge.key, self.table.shape, &self.guard)?;
        let word = slot.word();
        let State::Live(payload) = word.state() else { return None };
        if payload.cell().is_some() {
            return None;
        }
        let (value, fits) = match bucket.charge_narrow(payload.value(), charge.cost, now) {
            Some(value) => (value, true),
            None => (payload.value(), false),
        };
        if fits && !slot.swap(word, Word::live(Payload::narrow(value))) {
            return None;
        }
        let fill = Fill::Bucket { backlog: bucket.backlog_narrow(value, now) };
        Some(Reading { fits, ..reading(charge, fill) })
    }

    #[cold]
    fn check_one_anyhow<F: FnMut() -> Now>(
        &self,
        shard: &Shard,
        charge: &Charge,
        stamp: &mut Stamp<F>,
    ) -> Result<Reading, Refusal> {
        shard.help_move(self.table.shape, &self.guard);
        if let Narrow::Decided(reading) = self.check_narrow(shard, charge, stamp)? {
            return Ok(reading);
        }
        let mut readings = [None];
        self.check_held(core::slice::from_ref(charge), stamp, &mut readings)?;
        Ok(readings[0].expect("a check reads each of its charges"))
    }

    /// Decides a check: all of its charges are made, or none. `readings` becomes one reading for
    /// each charge, in order. One counter may occur several times, by the same numbers; its costs
    /// add up.
    ///
    /// # Errors
    /// See [`Refusal`]; nothing is charged then.
    pub fn check<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut Vec<Reading>,
    ) -> Result<Decision, Refusal> {
        readings.clear();
        if let [charge] = charges {
            readings.push(self.check_one(charge, stamp)?);
            return Ok(decision(readings, stamp.now()));
        }
        // A limit that refuses now refuses the check, whatever the others say, so most denials
        // need no hold and leave no trace.
        let seen = self.peek(charges, stamp, readings)?;
        if seen.verdict == Verdict::Deny || charges.is_empty() {
            return Ok(seen);
        }
        for charge in charges {
            self.table.shard(charge.key).help_move(self.table.shape, &self.guard);
        }
        let mut decided = [None; CHARGES_MAX];
        self.check_held(charges, stamp, &mut decided[..charges.len()])?;
        readings.clear();
        readings.extend(decided.into_iter().flatten());
        Ok(decision(readings, stamp.now()))
    }

    /// What [`Pinned::check`] would say, charging nothing. Each limit is read by itself: others
    /// may charge between two readings.
    ///
    /// # Errors
    /// See [`Refusal`]; the table being full is none here.
    pub fn peek<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut Vec<Reading>,
    ) -> Result<Decision, Refusal> {
        readings.clear();
        within_horizon(stamp.now())?;
        within_charges(charges)?;
        for charge in charges {
            let cost = cost_on_key(charges, charge)?;
            let fill = self.read(charge, stamp);
            readings.push(Reading {
                cost,
                fits: charge.quota.fits(fill, cost),
                ..reading(charge, fill)
            });
        }
        Ok(decision(readings, stamp.now()))
    }

    /// Sets each charge's counter to `cost` units used, whatever was used before; zero makes it
    /// fresh. The moment of opening of a window that is open stays.
    ///
    /// # Errors
    /// More than the limit, or see [`Refusal`]; nothing is set then.
    pub fn set<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut Vec<Reading>,
    ) -> Result<Decision, Refusal> {
        readings.clear();
        within_horizon(stamp.now())?;
        within_charges(charges)?;
        for charge in charges {
            let (used, limit) = (cost_on_key(charges, charge)?, charge.quota.limit());
            if used > limit {
                return Err(Refusal::UsedAboveLimit { used, limit });
            }
        }
        for charge in charges {
            self.table.shard(charge.key).help_move(self.table.shape, &self.guard);
        }
        let mut decided = [None; CHARGES_MAX];
        let set = |quota: &Quota, fill, used| Change::To(quota.with_used(fill, used));
        self.with_held(charges, stamp, &mut decided[..charges.len()], set)?;
        readings
            .extend(decided.into_iter().flatten().map(|set: Reading| Reading { cost: 0, ..set }));
        Ok(decision(readings, stamp.now()))
    }

    /// How full a counter stands. Holds a wide one for the moment of reading.
    fn read<F: FnMut() -> Now>(&self, charge: &Charge, stamp: &mut Stamp<F>) -> Fill {
        let shard = self.table.shard(charge.key);
        let mut path = shard.path(charge.key, self.table.shape, &self.guard);
        let mut backoff = Backoff::new();
        while let Some(slot) = path.find() {
            let word = slot.word();
            match word.state() {
                State::Dead => break,
                State::Moved => path.follow(slot),
                State::Held => {
                    backoff.wait();
                    stamp.renew();
                }
                State::Live(payload) | State::Moving(payload) if payload.cell().is_none() => {
                    return charge.quota.fill_narrow(payload.value(), stamp.now());
                }
                State::Moving(_) => path.follow(slot),
                State::Live(payload) => {
                    if slot.swap(word, Word::held(payload)) {
                        let fill = fill(shard, charge, payload, stamp.renew());
                        slot.release(word);
                        return fill;
                    }
                }
                State::Unborn | State::Killed => {
                    unreachable!("a search ends at slots that have a key")
                }
            }
        }
        charge.quota.fill_narrow(0, stamp.now())
    }

    /// A counter in narrow form, by numbers that fit it, whatever state it is in.
    fn check_narrow<F: FnMut() -> Now>(
        &self,
        shard: &Shard,
        charge: &Charge,
        stamp: &mut Stamp<F>,
    ) -> Result<Narrow, Refusal> {
        let Charge { key, ref quota, cost, .. } = *charge;
        let mut path = shard.path(key, self.table.shape, &self.guard);
        let mut backoff = Backoff::new();
        loop {
            let (slot, word) = match path.locate() {
                Place::Found(slot) => (slot, Some(slot.word())),
                Place::Vacant(slot) => (slot, None),
            };
            let payload = match word.map(Word::state) {
                Some(State::Live(payload)) => payload,
                None | Some(State::Dead) => Payload::FRESH,
                Some(State::Moving(_) | State::Moved) => {
                    path.follow(slot);
                    continue;
                }
                Some(State::Held) => {
                    backoff.wait();
                    stamp.renew();
                    continue;
                }
                Some(State::Unborn | State::Killed) => continue,
            };
            if payload.cell().is_some() {
                return Ok(Narrow::NeedsHold);
            }
            let now = stamp.now();
            let fill = quota.fill_narrow(payload.value(), now);
            let fits = quota.fits(fill, cost);
            if !fits || cost == 0 {
                return Ok(Narrow::Decided(Reading { fits, ..reading(charge, fill) }));
            }
            let charged = quota.charged(fill, cost);
            let Some(value) = quota.narrow(charged, now) else {
                return Ok(Narrow::NeedsHold);
            };
            let to = Word::live(Payload::narrow(value));
            let written = match word {
                Some(word) if !payload.is_fresh() => slot.swap(word, to),
                Some(dead) => {
                    self.table.count(shard, charge)?;
                    slot.swap(dead, to) || self.table.uncount(shard, charge)
                }
                None => {
                    let Some(meta) = self.table.meta_narrow(charge) else {
                        return Ok(Narrow::NeedsHold);
                    };
                    self.table.count(shard, charge)?;
                    path.insert(slot, meta, to) || self.table.uncount(shard, charge)
                }
            };
            if written {
                return Ok(Narrow::Decided(reading(charge, charged)));
            }
        }
    }

    /// Decides under holds: reads all counters, charges all of them if every cost fits.
    fn check_held<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut [Option<Reading>],
    ) -> Result<(), Refusal> {
        self.with_held(charges, stamp, readings, |quota, fill, cost| match cost {
            _ if !quota.fits(fill, cost) => Change::Refused,
            0 => Change::None,
            _ => Change::To(quota.charged(fill, cost)),
        })
    }

    /// Holds every counter in key order, takes the time, asks for each counter's change, and makes
    /// all of them if none is refused, else none.
    fn with_held<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut [Option<Reading>],
        change: impl Fn(&Quota, Fill, u64) -> Change,
    ) -> Result<(), Refusal> {
        within_charges(charges)?;
        let mut order = [0; CHARGES_MAX];
        let order = order_by_key(charges, &mut order);
        let mut costs = [0; CHARGES_MAX];
        for (cost, &place) in costs.iter_mut().zip(order) {
            *cost = cost_on_key(charges, &charges[place])?;
        }
        let mut held: [Option<Held<'_>>; CHARGES_MAX] = [const { None }; CHARGES_MAX];
        for (place, hold) in order.iter().zip(&mut held) {
            match self.hold(&charges[*place]) {
                Ok(taken) => *hold = Some(taken),
                Err(refusal) => {
                    for (hold, &place) in held.iter().flatten().zip(order) {
                        self.release(hold, &charges[place]);
                    }
                    return Err(refusal);
                }
            }
        }
        let now = stamp.renew();
        let mut changes = [Change::None; CHARGES_MAX];
        let mut all = true;
        for (index, hold) in held.iter().flatten().enumerate() {
            let (charge, cost) = (&charges[order[index]], costs[index]);
            let fill = fill(self.table.shard(charge.key), charge, hold.payload, now);
            changes[index] = change(&charge.quota, fill, cost);
            let fits = changes[index] != Change::Refused;
            all &= fits;
            note(charges, readings, Reading { cost, fits, ..reading(charge, fill) }, charge.key);
        }
        for (index, hold) in held.iter().flatten().enumerate() {
            let (charge, cost) = (&charges[order[index]], costs[index]);
            match changes[index] {
                Change::To(fill) if all => {
                    self.release_with(hold, charge, fill, now);
                    note(charges, readings, Reading { cost, ..reading(charge, fill) }, charge.key);
                }
                _ => self.release(hold, charge),
            }
        }
        Ok(())
    }

    /// Takes a counter for this thread alone, made fresh if there was none.
    fn hold(&self, charge: &Charge) -> Result<Held<'_>, Refusal> {
        let shard = self.table.shard(charge.key);
        let mut path: Path<'_> = shard.path(charge.key, self.table.shape, &self.guard);
        let mut backoff = Backoff::new();
        loop {
            match path.locate() {
                Place::Vacant(slot) => {
                    self.table.count(shard, charge)?;
                    let meta = self.table.meta(charge);
                    if path.insert(slot, meta, Word::held(Payload::FRESH)) {
                        return Ok(Held { slot, payload: Payload::FRESH });
                    }
                    self.table.uncount(shard, charge);
                }
                Place::Found(slot) => {
                    let word = slot.word();
                    match word.state() {
                        State::Live(payload) => {
                            if slot.swap(word, Word::held(payload)) {
                                return Ok(Held { slot, payload });
                            }
                        }
                        State::Dead => {
                            self.table.count(shard, charge)?;
                            if slot.swap(word, Word::held(Payload::FRESH)) {
                                return Ok(Held { slot, payload: Payload::FRESH });
                            }
                            self.table.uncount(shard, charge);
                        }
                        State::Moving(_) | State::Moved => path.follow(slot),
                        State::Held => backoff.wait(),
                        State::Unborn | State::Killed => {}
                    }
                }
            }
        }
    }

    /// Ends a hold and leaves the counter as it was.
    fn release(&self, hold: &Held<'_>, charge: &Charge) {
        if hold.payload.is_fresh() {
            hold.slot.release(Word::DEAD);
            self.table.uncount(self.table.shard(charge.key), charge);
        } else {
            hold.slot.release(Word::live(hold.payload));
        }
    }

    /// Ends a hold with a new state.
    fn release_with(&self, hold: &Held<'_>, charge: &Charge, fill: Fill, now: Now) {
        let shard = self.table.shard(charge.key);
        let cell = hold.payload.cell();
        if fill.is_fresh() {
            hold.slot.release(Word::DEAD);
            self.table.uncount(shard, charge);
        } else if let Some(cell) = cell {
            shard.cells.write(cell, charge.quota.wide(fill, now));
            return hold.slot.release(Word::live(hold.payload));
        } else if let Some(value) = self.narrow(hold, charge, fill, now) {
            return hold.slot.release(Word::live(Payload::narrow(value)));
        } else {
            let cell = shard.cells.take();
            shard.cells.write(cell, charge.quota.wide(fill, now));
            return hold.slot.release(Word::live(Payload::wide(cell)));
        }
        if let Some(cell) = cell {
            shard.cells.give(cell);
        }
    }

    /// The narrow value of a fill, if this slot can hold one and the sweeper can judge it.
    fn narrow(&self, hold: &Held<'_>, charge: &Charge, fill: Fill, now: Now) -> Option<u64> {
        let value = charge.quota.narrow(fill, now)?;
        hold.slot.meta().can_be_narrow().then_some(value)
    }
}

impl Table {
    /// Counts a counter that is about to come.
    fn count(&self, shard: &Shard, charge: &Charge) -> Result<(), Refusal> {
        self.counts.add(charge.limit)?;
        shard.count_live();
        Ok(())
    }

    /// Takes back [`Table::count`]; always false, for a counter that did not come after all.
    fn uncount(&self, shard: &Shard, charge: &Charge) -> bool {
        self.counts.remove(charge.limit);
        shard.uncount_live();
        false
    }

    /// What a new slot with a narrow counter is for. `None`: its window's length has no number,
    /// so the sweeper could not tell when the counter is over.
    fn meta_narrow(&self, charge: &Charge) -> Option<Meta> {
        let window = match &charge.quota {
            Quota::Bucket(_) => Meta::NO_WINDOW,
            Quota::Fixed(fixed) => self.windows.number(fixed.window())?,
        };
        Some(Meta::new(charge.key, charge.quota.kind(), charge.limit, window))
    }

    /// What a new slot is for whose counter may become wide. A wide one knows its own window.
    fn meta(&self, charge: &Charge) -> Meta {
        let kind = charge.quota.kind();
        let wide = || Meta::new(charge.key, kind, charge.limit, Meta::WINDOW_IN_CELL);
        self.meta_narrow(charge).unwrap_or_else(wide)
    }
}

fn fill(shard: &Shard, charge: &Charge, payload: Payload, now: Now) -> Fill {
    match payload.cell() {
        Some(cell) => charge.quota.fill_wide(shard.cells.read(cell), now),
        None => charge.quota.fill_narrow(payload.value(), now),
    }
}

#[inline]
fn reading(charge: &Charge, fill: Fill) -> Reading {
    Reading { quota: charge.quota, fill, cost: charge.cost, fits: true }
}

fn decision(readings: &[Reading], now: Now) -> Decision {
    let fits = readings.iter().all(|reading| reading.fits);
    let verdict = if fits { Verdict::Allow } else { Verdict::Deny };
    Decision { verdict, binding: binding(verdict, readings), now }
}

/// Gives every charge on `key` its reading.
fn note(charges: &[Charge], readings: &mut [Option<Reading>], read: Reading, key: Key) {
    for (charge, reading) in charges.iter().zip(readings) {
        if charge.key == key {
            *reading = Some(read);
        }
    }
}

/// What the check takes from this charge's counter in all.
fn cost_on_key(charges: &[Charge], of: &Charge) -> Result<u64, Refusal> {
    let mut cost = 0_u64;
    for charge in charges.iter().filter(|charge| charge.key == of.key) {
        if charge.quota != of.quota {
            return Err(Refusal::UnlikeQuotas);
        }
        cost = cost.saturating_add(charge.cost);
    }
    Ok(cost)
}

/// Places of the charges in key order, each key once: holds are taken in one order everywhere,
/// so two checks never wait for each other.
fn order_by_key<'a>(charges: &[Charge], order: &'a mut [usize; CHARGES_MAX]) -> &'a [usize] {
    let mut len = 0;
    for (place, charge) in charges.iter().enumerate() {
        let at = order[..len].partition_point(|&other| charges[other].key < charge.key);
        if at < len && charges[order[at]].key == charge.key {
            continue;
        }
        order.copy_within(at..len, at + 1);
        order[at] = place;
        len += 1;
    }
    &order[..len]
}

#[inline]
fn within_horizon(now: Now) -> Result<(), Refusal> {
    if now.time.as_nanos() < NARROW_HORIZON { Ok(()) } else { Err(Refusal::HorizonPassed) }
}

fn within_charges(charges: &[Charge]) -> Result<(), Refusal> {
    let found = charges.len();
    if found <= CHARGES_MAX { Ok(()) } else { Err(Refusal::TooManyCharges { found }) }
}
