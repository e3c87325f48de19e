//! Checks: one charge on a narrow counter by compare-and-swap, several that are there in
//! `together`, everything else under holds.

use alloc::vec::Vec;

use crate::engine::command::{Amend, CHARGES_MAX, Charge, ChargeOn, Effect, LimitId};
use crate::engine::decision::{Decision, Reading, Refusal, Verdict, binding};
use crate::engine::kinds::{Fill, Form, NARROW_HORIZON, Narrowed};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::permit::Permit;
use crate::engine::quota::Quota;
use crate::engine::sync::Backoff;
use crate::engine::time::Now;

use super::held::{Change, Held};
use super::permits::Grant;
use super::shard::{Place, Shard};
use super::slot::{Meta, Payload, Slot, State, Word};
use super::{Pinned, Stamp};

/// Charges that most checks of several have at most.
const FEW: usize = 4;

/// How a check of one narrow counter ended.
enum Narrow {
    Decided(Reading),
    /// Numbers or counter need the wide form.
    NeedsHold,
}

impl Pinned<'_> {
    /// Decides a check of one charge that gives no permit, as [`Pinned::check`] does of any.
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
        let present = match charge.quota {
            Quota::Bucket(_) => self.check_bucket(shard, charge, stamp.now()),
            Quota::Fixed(_) | Quota::Calendar(_) | Quota::Level(_) => {
                self.check_amount(shard, charge, stamp.now())
            }
            _ => None,
        };
        if let Some(reading) = present {
            return Ok(reading);
        }
        self.check_one_anyhow(shard, charge, stamp)
    }

    /// The common case of [`Pinned::check_one`]: a narrow bucket that [`Pinned::narrow_present`]
    /// finds. `None` is no answer. It is what [`Pinned::check_amount`] would say, by itself because
    /// it stands in every caller: 24 to 65 instructions less of some 530.
    #[inline(always)]
    fn check_bucket(&self, shard: &Shard, charge: &Charge, now: Now) -> Option<Reading> {
        let Quota::Bucket(bucket) = &charge.quota else { return None };
        if !bucket.is_narrow() || charge.cost == 0 || charge.cost > bucket.burst() {
            return None;
        }
        let (slot, from) = self.narrow_present(shard, charge)?;
        let (value, fits) = match bucket.charge_narrow(from.value(), charge.cost, now) {
            Some(value) => (value, true),
            None if charge.on == ChargeOn::Always => return None,
            None => (from.value(), false),
        };
        if fits && !slot.swap(Word::live(from), Word::live(Payload::narrow(value))) {
            return None;
        }
        let fill = Fill::Bucket { backlog: bucket.backlog_narrow(value, now) };
        Some(Reading { fits, ..reading(charge, fill) })
    }

    /// The same of a narrow counter of amounts, which is not worth its room at every caller.
    #[inline(never)]
    fn check_amount(&self, shard: &Shard, charge: &Charge, now: Now) -> Option<Reading> {
        within_window(charge, now).ok()?;
        let (slot, from) = self.narrow_present(shard, charge)?;
        let Narrowed { value, fill, fits } =
            charge.quota.charge_narrow(from.value(), charge.cost, now)?;
        if !fits && charge.on == ChargeOn::Always {
            return None;
        }
        let is_charged = fits && charge.cost > 0;
        if is_charged && !slot.swap(Word::live(from), Word::live(Payload::narrow(value))) {
            return None;
        }
        Some(Reading { fits, ..reading(charge, fill) })
    }

    /// The charge's counter and what it holds, if it is there and narrow, was last charged by the
    /// same numbers and need not be noted first, in a shard that is not growing, and if no other
    /// thread is at it.
    #[inline(always)]
    fn narrow_present(&self, shard: &Shard, charge: &Charge) -> Option<(&Slot, Payload)> {
        let slot = shard.find_settled(charge.key, self.table.shape, &self.guard)?;
        let payload = slot.word().narrow_live()?;
        let meta = slot.meta();
        let as_it_is = !is_of_other_numbers(meta, charge) && !shard.awaits(meta);
        as_it_is.then_some((slot, payload))
    }

    #[cold]
    fn check_one_anyhow<F: FnMut() -> Now>(
        &self,
        shard: &Shard,
        charge: &Charge,
        stamp: &mut Stamp<F>,
    ) -> Result<Reading, Refusal> {
        debug_assert!(charge.quota.form() != Form::Permits, "a permit would be lost");
        match charge.quota.form() {
            Form::None => return Ok(stateless(charge)),
            Form::Numbers => {
                shard.help_move(self.table.shape, &self.guard);
                if let Narrow::Decided(reading) = self.check_narrow(shard, charge, stamp)? {
                    return Ok(reading);
                }
            }
            Form::Ring | Form::Permits => shard.help_move(self.table.shape, &self.guard),
        }
        let mut readings = [reading(charge, Fill::Stateless)];
        self.check_held::<1, _>(core::slice::from_ref(charge), stamp, &mut readings)?;
        let [read] = readings;
        Ok(read)
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
        if let [charge] = charges
            && charge.quota.form() != Form::Permits
        {
            readings.push(self.check_one(charge, stamp)?);
            return Ok(decision(readings, stamp.now(), None));
        }
        #[cfg(test)]
        if planted(Mutant::UndoBySubtraction) {
            return self.check_provisionally(charges, stamp, readings);
        }
        within_horizon(stamp.now())?;
        within_charges(charges)?;
        if !charges.is_empty()
            && let Some(verdict) = self.check_together(charges, stamp.now(), readings)
        {
            let binding = binding(verdict, readings);
            return Ok(Decision { verdict, binding, now: stamp.now(), permit: None });
        }
        readings.clear();
        // A limit that refuses now refuses the check, whatever the others say, so most denials
        // need no hold and leave no trace, unless some limit is charged for them too.
        let always = |charge: &Charge| charge.on == ChargeOn::Always;
        let hopeless = charges.iter().any(|charge| self.refuses(charge, stamp.now()))
            && !charges.iter().any(always)
            && !planted(Mutant::ChargeOnDenial);
        if charges.is_empty() || hopeless {
            let seen = self.look(charges, stamp, readings, true)?;
            if seen.verdict == Verdict::Deny || charges.is_empty() {
                return Ok(seen);
            }
            readings.clear();
        }
        self.help_moves(charges);
        readings.extend(charges.iter().map(|charge| reading(charge, Fill::Stateless)));
        // Room on the stack is made for as many as there may be; most checks have few.
        let permit = match charges.len() {
            0..=FEW => self.check_held::<FEW, _>(charges, stamp, readings)?,
            _ => self.check_held::<CHARGES_MAX, _>(charges, stamp, readings)?,
        };
        Ok(decision(readings, stamp.now(), permit))
    }

    /// Whether a limit refuses for certain, by a look at a narrow counter that is there and that
    /// nobody is at. False says nothing.
    #[inline]
    fn refuses(&self, charge: &Charge, now: Now) -> bool {
        if charge.effect == Effect::Shadow || charge.quota.form() != Form::Numbers {
            return false;
        }
        let shard = self.table.shard(charge.key);
        let Some(slot) = shard.find_settled(charge.key, self.table.shape, &self.guard) else {
            return false;
        };
        let Some(payload) = slot.word().narrow_live() else { return false };
        if is_of_other_numbers(slot.meta(), charge) {
            return false;
        }
        let fill = charge.quota.fill_narrow(payload.value(), now);
        !charge.quota.fits(fill, charge.cost)
    }

    /// One step of the growth of every shard that these charges go to. No counter may be held.
    fn help_moves(&self, charges: &[Charge]) {
        for charge in charges.iter().filter(|charge| charge.quota.form() != Form::None) {
            self.table.shard(charge.key).help_move(self.table.shape, &self.guard);
        }
    }

    /// How not to do it, see [`Mutant::UndoBySubtraction`].
    #[cfg(test)]
    fn check_provisionally<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut Vec<Reading>,
    ) -> Result<Decision, Refusal> {
        for (place, charge) in charges.iter().enumerate() {
            stamp.renew();
            let reading = self.check_one(charge, stamp)?;
            readings.push(reading);
            if !reading.passes() {
                stamp.renew();
                for undone in &charges[..place] {
                    self.amend(&[*undone], Amend::GiveBack(undone.cost), stamp, &mut Vec::new())?;
                }
                break;
            }
        }
        Ok(decision(readings, stamp.now(), None))
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
        self.look(charges, stamp, readings, false)
    }

    /// Reads each limit. `settles`: it is a check that looks, at a moment that counts, so what has
    /// lapsed by then is gone, and other numbers convert. A peek leaves no trace: replicas that are
    /// asked differently stay equal.
    fn look<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut Vec<Reading>,
        settles: bool,
    ) -> Result<Decision, Refusal> {
        readings.clear();
        within_horizon(stamp.now())?;
        within_charges(charges)?;
        for charge in charges {
            let cost = cost_on_key(charges, charge)?;
            let fill = self.read(charge, cost, stamp, settles)?;
            let fits = charge.quota.fits(fill, cost);
            readings.push(Reading { cost, fits, ..reading(charge, fill) });
        }
        Ok(decision(readings, stamp.now(), None))
    }

    /// Amends each charge's counter, whatever its `cost`: afterwards, or by hand. One that occurs
    /// several times is amended once. Caps have no counter, and permits can only be set to none,
    /// which releases them all; other amendments leave them as they are. Returns how many counters
    /// were amended, and when.
    ///
    /// # Errors
    /// See [`Refusal`]; nothing is amended then.
    pub fn amend<F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        amend: Amend,
        stamp: &mut Stamp<F>,
        readings: &mut Vec<Reading>,
    ) -> Result<(usize, Now), Refusal> {
        readings.clear();
        within_horizon(stamp.now())?;
        within_charges(charges)?;
        let can = |charge: &&Charge| match charge.quota.form() {
            Form::Numbers | Form::Ring => true,
            Form::Permits => amend == Amend::Set(0),
            Form::None => false,
        };
        if let Amend::Set(used @ 1..) = amend
            && charges.iter().any(|charge| charge.quota.form() == Form::Permits)
        {
            return Err(Refusal::PermitsCannotBeSet { used });
        }
        let charges: Vec<Charge> =
            charges.iter().filter(can).map(|charge| Charge { cost: 0, ..*charge }).collect();
        self.help_moves(&charges);
        readings.extend(charges.iter().map(|charge| reading(charge, Fill::Stateless)));
        self.with_held::<CHARGES_MAX, _, _>(&charges, stamp, |held| {
            let now = held.now;
            for index in 0..held.len() {
                let fill = held.change(index, Change::Amend(amend));
                held.note(readings, index, fill, true);
            }
            Ok((held.len(), now))
        })
    }

    /// How full a counter stands for a check of `cost`. Holds a wide one, and one that other
    /// numbers filled, for the moment of reading.
    fn read<F: FnMut() -> Now>(
        &self,
        charge: &Charge,
        cost: u64,
        stamp: &mut Stamp<F>,
        settles: bool,
    ) -> Result<Fill, Refusal> {
        if charge.quota.form() == Form::None {
            return Ok(Fill::Stateless);
        }
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
                State::Live(payload) | State::Moving(payload)
                    if !payload.is_wide() && !is_of_other_numbers(slot.meta(), charge) =>
                {
                    within_window(charge, stamp.now())?;
                    return Ok(charge.quota.fill_narrow(payload.value(), stamp.now()));
                }
                State::Moving(_) => path.follow(slot),
                State::Live(_) => {
                    let Some(mut hold) = self.hold_present(charge.key) else { break };
                    let now = stamp.renew();
                    let in_window = within_window(charge, now);
                    if settles {
                        let side = self.side();
                        self.preserve(&mut hold, charge.key, side);
                        if in_window.is_ok() {
                            self.settle(&mut hold, charge, now);
                        }
                    }
                    let read = in_window.map(|()| self.settled_fill(&hold, charge, cost, now));
                    self.end_hold(&hold, charge.key);
                    return read;
                }
                State::Unborn | State::Killed => {
                    unreachable!("a search ends at slots that have a key")
                }
            }
        }
        within_window(charge, stamp.now())?;
        Ok(charge.quota.fill_narrow(0, stamp.now()))
    }

    /// A counter in narrow form, by numbers that fit it, whatever state it is in.
    fn check_narrow<F: FnMut() -> Now>(
        &self,
        shard: &Shard,
        charge: &Charge,
        stamp: &mut Stamp<F>,
    ) -> Result<Narrow, Refusal> {
        let Charge { key, ref quota, cost, on, .. } = *charge;
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
            if payload.is_wide()
                || (!payload.is_fresh() && is_of_other_numbers(slot.meta(), charge))
            {
                return Ok(Narrow::NeedsHold);
            }
            let now = stamp.now();
            within_window(charge, now)?;
            let fill = quota.fill_narrow(payload.value(), now);
            let fits = quota.fits(fill, cost);
            let charged = match (fits, on) {
                _ if cost == 0 => fill,
                (true, _) => quota.charged(fill, cost),
                (false, ChargeOn::Always) => quota.saturated(fill, cost),
                (false, ChargeOn::Allow) => fill,
            };
            if charged == fill {
                return Ok(Narrow::Decided(Reading { fits, ..reading(charge, fill) }));
            }
            let Some(value) = quota.narrow(charged, now) else {
                return Ok(Narrow::NeedsHold);
            };
            // A vacant slot has no tag either.
            if shard.awaits(slot.meta()) {
                return Ok(Narrow::NeedsHold);
            }
            let to = Word::live(Payload::narrow(value));
            let written = match word {
                Some(word) if !payload.is_fresh() => slot.swap(word, to),
                Some(dead) => {
                    self.table.count(shard, charge.limit)?;
                    slot.swap(dead, to) || self.table.uncount(shard, charge.limit)
                }
                None => {
                    let Some(meta) = self.table.meta_narrow(charge) else {
                        return Ok(Narrow::NeedsHold);
                    };
                    self.table.count(shard, charge.limit)?;
                    path.insert(slot, meta, to) || self.table.uncount(shard, charge.limit)
                }
            };
            if written {
                return Ok(Narrow::Decided(Reading { fits, ..reading(charge, charged) }));
            }
        }
    }

    /// Decides under holds: reads all counters, charges all of them if every enforced limit lets
    /// the request pass, else those that are charged for denied requests too. There are at most `N`
    /// charges, and a reading for each to be filled in.
    fn check_held<const N: usize, F: FnMut() -> Now>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        readings: &mut [Reading],
    ) -> Result<Option<Permit>, Refusal> {
        let permit = self.with_held::<N, _, _>(charges, stamp, |held| {
            let mut allow = true;
            for (charge, reading) in charges.iter().zip(&mut *readings) {
                if charge.quota.form() == Form::None {
                    *reading = stateless(charge);
                    allow &= reading.passes();
                }
            }
            let mut seen = [(Fill::Stateless, false); N];
            let (mut limits, mut shares) = ([LimitId::INLINE; N], 0);
            for (index, seen) in seen.iter_mut().enumerate().take(held.len()) {
                let (charge, cost) = (held.charge(index), held.costs[index]);
                let fill = held.fill(index);
                let fits = charge.quota.fits(fill, cost);
                *seen = (fill, fits);
                allow &= Reading { fits, ..reading(charge, fill) }.passes();
                if held.gives(index, fits) {
                    limits[shares] = charge.limit;
                    shares += 1;
                }
            }
            // Room for the permit is taken before anything is charged.
            let mut grant = match shares {
                1.. if allow => Some(self.begin_grant(&limits[..shares])?),
                _ => None,
            };
            for (index, &(fill, fits)) in seen.iter().enumerate().take(held.len()) {
                let cost = held.costs[index];
                let fill = match (allow && fits, held.charge(index).on) {
                    _ if cost == 0 => fill,
                    (true, _) => match &mut grant {
                        Some(grant) if held.gives(index, true) => held.grant(index, grant),
                        _ => held.change(index, Change::Charge(cost)),
                    },
                    (false, ChargeOn::Always) => held.change(index, Change::Saturate(cost)),
                    (false, ChargeOn::Allow) if planted(Mutant::ChargeOnDenial) && fits => {
                        held.change(index, Change::Charge(cost))
                    }
                    (false, ChargeOn::Allow) => fill,
                };
                held.note(readings, index, fill, fits);
            }
            Ok(grant.map(|grant| grant.permit(self)))
        })?;
        if permit.is_some() {
            self.help_moves(charges);
        }
        Ok(permit)
    }

    /// Holds every counter in key order, takes the time, brings each counter to it, lets `work` do
    /// what it will, and releases all of them. There are at most `N` charges.
    fn with_held<const N: usize, F: FnMut() -> Now, R>(
        &self,
        charges: &[Charge],
        stamp: &mut Stamp<F>,
        work: impl FnOnce(&mut HeldAll<'_, '_, N>) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        within_charges(charges)?;
        let mut order = [0; N];
        let order = order_by_key(charges, &mut order);
        let twins = order.len() < charges.len();
        let mut costs = [0; N];
        for (cost, &place) in costs.iter_mut().zip(order) {
            let charge = &charges[place];
            *cost = if twins { cost_on_key(charges, charge)? } else { charge.cost };
        }
        let mut held: [Option<Held<'_>>; N] = [const { None }; N];
        let mut taken = Ok(());
        for (place, hold) in order.iter().zip(&mut held) {
            match self.hold(&charges[*place]) {
                Ok(counter) => *hold = Some(counter),
                Err(refusal) => {
                    taken = Err(refusal);
                    break;
                }
            }
        }
        let worked = taken.and_then(|()| {
            let now = stamp.renew();
            let side = self.side();
            for (hold, &place) in held.iter_mut().flatten().zip(order) {
                within_window(&charges[place], now)?;
                self.preserve(hold, charges[place].key, side);
                self.settle(hold, &charges[place], now);
            }
            let held = &mut held;
            work(&mut HeldAll { pinned: self, charges, order, twins, costs: &costs, held, now })
        });
        for (hold, &place) in held.iter().flatten().zip(order) {
            self.end_hold(hold, charges[place].key);
        }
        worked
    }
}

/// The counters of a check, all of them held, each once and in key order.
struct HeldAll<'a, 'g, const N: usize> {
    pinned: &'a Pinned<'a>,
    charges: &'a [Charge],
    /// Of each counter the place of its first charge.
    order: &'a [usize],
    /// Whether there are more charges than counters.
    twins: bool,
    /// What the check takes from each in all.
    costs: &'a [u64; N],
    held: &'a mut [Option<Held<'g>>; N],
    now: Now,
}

impl<'a, 'g, const N: usize> HeldAll<'a, 'g, N> {
    fn len(&self) -> usize {
        self.order.len()
    }

    fn charge(&self, index: usize) -> &'a Charge {
        &self.charges[self.order[index]]
    }

    fn at(&mut self, index: usize) -> &mut Held<'g> {
        self.held[index].as_mut().expect("every counter in the order is held")
    }

    fn fill(&mut self, index: usize) -> Fill {
        let (charge, cost) = (self.charge(index), self.costs[index]);
        let (pinned, now) = (self.pinned, self.now);
        pinned.fill(self.at(index), &charge.quota, cost, now)
    }

    fn change(&mut self, index: usize, change: Change) -> Fill {
        let (charge, cost) = (self.charge(index), self.costs[index]);
        let (pinned, now) = (self.pinned, self.now);
        pinned.change(self.at(index), charge, change, cost, now)
    }

    /// Whether an allowed check is given a permit of this counter.
    fn gives(&self, index: usize, fits: bool) -> bool {
        self.charge(index).quota.form() == Form::Permits && self.costs[index] > 0 && fits
    }

    fn grant(&mut self, index: usize, grant: &mut Grant) -> Fill {
        let (charge, cost) = (self.charge(index), self.costs[index]);
        let (pinned, now) = (self.pinned, self.now);
        if let Quota::Concurrent(concurrent) = &charge.quota {
            let counter = (charge.key, charge.limit);
            pinned.grant(grant, self.at(index), counter, (concurrent, cost), now);
        }
        self.fill(index)
    }

    /// Gives every charge on this counter its reading.
    fn note(&self, readings: &mut [Reading], index: usize, fill: Fill, fits: bool) {
        let (first, cost) = (self.charge(index), self.costs[index]);
        readings[self.order[index]] = Reading { cost, fits, ..reading(first, fill) };
        if !self.twins {
            return;
        }
        for (charge, noted) in self.charges.iter().zip(readings) {
            if charge.key == first.key && charge.quota.form() != Form::None {
                *noted = Reading { cost, fits, ..reading(charge, fill) };
            }
        }
    }
}

#[inline]
pub(super) fn reading(charge: &Charge, fill: Fill) -> Reading {
    let Charge { quota, cost, effect, .. } = *charge;
    Reading { quota, fill, cost, fits: true, effect }
}

/// What a limit says that keeps no counter.
pub(super) fn stateless(charge: &Charge) -> Reading {
    let fits = charge.quota.fits(Fill::Stateless, charge.cost);
    Reading { fits, ..reading(charge, Fill::Stateless) }
}

fn decision(readings: &[Reading], now: Now, permit: Option<Permit>) -> Decision {
    let passes = readings.iter().all(Reading::passes);
    let verdict = if passes { Verdict::Allow } else { Verdict::Deny };
    Decision { verdict, binding: binding(verdict, readings), now, permit }
}

/// Whether a bucket was last charged by other numbers than the charge's.
#[inline]
pub(super) fn is_of_other_numbers(meta: Meta, charge: &Charge) -> bool {
    match &charge.quota {
        Quota::Bucket(bucket) => meta.generation() != bucket.generation(),
        _ => false,
    }
}

/// What the check takes from this charge's counter in all. A charge without a counter is by itself.
fn cost_on_key(charges: &[Charge], of: &Charge) -> Result<u64, Refusal> {
    if of.quota.form() == Form::None {
        return Ok(of.cost);
    }
    let same = |charge: &&Charge| charge.key == of.key && charge.quota.form() != Form::None;
    let mut cost = 0_u64;
    for charge in charges.iter().filter(same) {
        if charge.quota != of.quota || charge.effect != of.effect || charge.on != of.on {
            return Err(Refusal::UnlikeQuotas);
        }
        if planted(Mutant::SecondCostForgotten) {
            return Ok(charge.cost);
        }
        cost = cost.saturating_add(charge.cost);
    }
    Ok(cost)
}

/// Places of the charges that have counters in key order, each key once: holds are taken in one
/// order everywhere, so two checks never wait for each other.
fn order_by_key<'a>(charges: &[Charge], order: &'a mut [usize]) -> &'a [usize] {
    let mut len = 0;
    for (place, charge) in charges.iter().enumerate() {
        if charge.quota.form() == Form::None {
            continue;
        }
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

/// A calendar charge knows two windows; past them it has to be resolved again.
#[inline]
pub(super) fn within_window(charge: &Charge, now: Now) -> Result<(), Refusal> {
    match &charge.quota {
        Quota::Calendar(calendar) if calendar.is_stale(now) => Err(Refusal::WindowPassed),
        _ => Ok(()),
    }
}
