//! Laws of the table, on generated inputs against the [`Book`]. Each is a plain function from a
//! case to whether it holds, so that the planted bugs of [`super::mutants`] run the same ones.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;
use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use crate::engine::command::{Amend, Charge, ChargeOn, Effect, LimitId};
use crate::engine::decision::{Reading, Retry, Verdict};
use crate::engine::key::{Key, KeySpace, Seed};
use crate::engine::kinds::{Fill, UNLIMITED};
use crate::engine::permit::PermitId;
use crate::engine::quota::{Align, Quota, UNITS_MAX};
use crate::engine::table::{Stamp, SweepCursor, Table};
use crate::engine::time::{Nanos, Now, SECOND};

use super::book::{Book, LAST, Lease, Numbers, Which, moment};
use super::snapshots::Taking;

/// Cases of each law and kind.
const CASES: u32 = 10_000;

pub(super) const SEED: Seed = Seed::new([3; 16]);

/// Whether a law holds for a case.
pub(super) type Held = Result<(), TestCaseError>;

/// Runs a law on so many cases.
pub(super) fn run<C: Debug>(
    cases: u32,
    strategy: impl Strategy<Value = C>,
    law: impl Fn(C) -> Held,
) -> Result<(), TestError<C>> {
    let config =
        Config { cases, failure_persistence: None, rng_seed: RngSeed::Random, ..Config::default() };
    TestRunner::new(config).run(&strategy, law)
}

/// Runs a law, and shows the least case for which it does not hold.
fn holds<C: Debug>(strategy: impl Strategy<Value = C>, law: impl Fn(C) -> Held) {
    if let Err(error) = run(CASES, strategy, law) {
        panic!("{error}");
    }
}

pub(super) fn key(number: u64) -> Key {
    KeySpace::derive(&SEED, []).key([&number.to_le_bytes()[..]])
}

pub(super) fn charge(number: u64, quota: Quota, cost: u64) -> Charge {
    Charge::new(key(number), quota, cost, LimitId(1))
}

fn cost_of(numbers: Numbers, eighths: u64) -> u64 {
    // Whole limits and single units are where mistakes hide.
    let limit = if numbers.limit() == UNLIMITED { UNITS_MAX } else { numbers.limit() };
    match eighths {
        0 => 0,
        1..=4 => 1,
        8 => limit,
        9 => limit.saturating_add(1).min(UNITS_MAX),
        part => limit / 8 * part,
    }
}

fn sweep_all(table: &Table, now: Now) {
    let mut cursor = SweepCursor::default();
    for _ in 0..200 {
        table.sweep(&mut cursor, now, 64);
    }
}

/// A limit of a case: its numbers, what its verdict does, when it is charged.
#[derive(Clone, Copy, Debug)]
struct Rule {
    numbers: Numbers,
    effect: Effect,
    on: ChargeOn,
}

fn rule(which: Which) -> impl Strategy<Value = Rule> {
    let effect = prop_oneof![4 => Just(Effect::Enforce), 1 => Just(Effect::Shadow)];
    let on = prop_oneof![4 => Just(ChargeOn::Allow), 1 => Just(ChargeOn::Always)];
    (which.numbers(), effect, on).prop_map(|(numbers, effect, on)| Rule { numbers, effect, on })
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Charge these limits, each for this part in eighths of its N.
    Check(Vec<(usize, u64)>),
    Advance(u64),
    /// To just before, at or just after the moment that the last denial named.
    Awaited(i8),
    /// Time goes back, but not before the last sweep.
    Back(u64),
    Sweep,
    Amend(usize, u8, u64),
    /// N becomes so many eighths of what it was.
    Renumber(usize, u64),
    /// Gives back, or renews, one of the permits that were ever given.
    Release(usize),
    Renew(usize, Option<u64>),
    /// As many other keys, so that shards grow.
    Crowd(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let advance = || prop_oneof![0..10_u64, 0..SECOND, 0..200 * 86_400 * SECOND];
    prop_oneof![
        8 => prop::collection::vec((0..4_usize, 0..=9_u64), 1..4).prop_map(Step::Check),
        3 => advance().prop_map(Step::Advance),
        3 => (-1..=1_i8).prop_map(Step::Awaited),
        1 => (0..2 * SECOND).prop_map(Step::Back),
        2 => Just(Step::Sweep),
        2 => (0..4_usize, 0..3_u8, 0..=12_u64).prop_map(|(place, amend, eighths)| {
            Step::Amend(place, amend, eighths)
        }),
        1 => (0..4_usize, 1..=16_u64).prop_map(|(place, eighths)| Step::Renumber(place, eighths)),
        2 => (0..8_usize).prop_map(Step::Release),
        1 => (0..8_usize, prop::option::of(1_000_000..100 * SECOND))
            .prop_map(|(permit, lease)| Step::Renew(permit, lease)),
        1 => (0..40_u8).prop_map(Step::Crowd),
    ]
}

/// A table and the model of it, going through the same steps.
#[derive(Clone)]
struct World {
    table: Arc<Table>,
    rules: Vec<Rule>,
    books: Vec<Book>,
    permits: Vec<PermitId>,
    nanos: u64,
    /// The moment of the last check, or now if time went back since.
    before: u64,
    /// Time does not go back before the last sweep.
    floor: u64,
    /// The moment that the last denial named.
    awaited: u64,
    crowd: u64,
    readings: Vec<Reading>,
}

impl World {
    fn new(rules: Vec<Rule>) -> Self {
        Self {
            table: Arc::new(Table::with_shape(10_000, &SEED, 2, 4)),
            books: vec![Book::default(); rules.len()],
            rules,
            permits: Vec::new(),
            nanos: 1,
            before: 1,
            floor: 1,
            awaited: 1,
            crowd: 1000,
            readings: Vec::new(),
        }
    }

    /// A charge as it was resolved: a moment ago, as long as its calendar window was open then or
    /// is the next one.
    fn charge(&self, place: usize, cost: u64, now: Now) -> Charge {
        let Rule { numbers, effect, on } = self.rules[place];
        let resolved_at = match numbers {
            Numbers::Calendar { hours, .. } if self.nanos - self.before < hours * 3600 * SECOND => {
                moment(self.before)
            }
            _ => now,
        };
        Charge { effect, on, ..charge(place as u64, numbers.quota(resolved_at), cost) }
    }

    fn step(&mut self, step: &Step) -> Held {
        let now = moment(self.nanos);
        self.before = self.before.min(self.nanos);
        match *step {
            Step::Advance(by) => self.nanos = (self.nanos + by).min(LAST),
            Step::Awaited(off) => {
                let awaited = self.awaited.saturating_add_signed(off.into());
                self.nanos = awaited.clamp(self.nanos, LAST);
            }
            Step::Back(by) => self.nanos = self.nanos.saturating_sub(by).max(self.floor),
            Step::Sweep => {
                self.floor = self.nanos;
                sweep_all(&self.table, now);
            }
            Step::Crowd(keys) => {
                let quota = Quota::bucket(1, Nanos::from_secs(1), 5).unwrap();
                for _ in 0..keys {
                    self.crowd += 1;
                    let one = charge(self.crowd, quota, 1);
                    let read = self.table.pin().check_one(&one, &mut Stamp::new(|| now)).unwrap();
                    prop_assert!(read.fits);
                }
            }
            Step::Renumber(place, eighths) => {
                let rule = place % self.rules.len();
                let numbers = &mut self.rules[rule].numbers;
                if numbers.limit() != UNLIMITED {
                    let units = (numbers.limit().div_ceil(8) * eighths).clamp(1, UNITS_MAX);
                    *numbers = numbers.with_units(units);
                }
            }
            Step::Amend(place, how, eighths) => self.amend(place, how, eighths, now)?,
            Step::Release(which) => self.release(which, now)?,
            Step::Renew(which, lease) => self.renew(which, lease, now)?,
            Step::Check(ref asked) => {
                self.check(asked, now)?;
                self.before = self.nanos;
            }
        }
        Ok(())
    }

    fn amend(&mut self, place: usize, how: u8, eighths: u64, now: Now) -> Held {
        let place = place % self.rules.len();
        let numbers = self.rules[place].numbers;
        let limit = if numbers.limit() == UNLIMITED { UNITS_MAX } else { numbers.limit() };
        let units = (limit.div_ceil(8) * eighths).min(UNITS_MAX);
        let amend = match how {
            0 => Amend::Add(units),
            1 => Amend::GiveBack(units),
            _ => Amend::Set(units),
        };
        let charges = [self.charge(place, 0, now)];
        let amended =
            self.table.pin().amend(&charges, amend, &mut Stamp::new(|| now), &mut self.readings);
        let is_permits = matches!(numbers, Numbers::Concurrent { .. });
        match (amended, amend) {
            (Err(_), Amend::Set(1..)) if is_permits => return Ok(()),
            (Ok((counters, _)), _) => {
                let amends = numbers.has_counter() && (!is_permits || amend == Amend::Set(0));
                prop_assert_eq!(counters, usize::from(amends));
            }
            (refused, _) => prop_assert!(false, "{:?}", refused),
        }
        if numbers.has_counter() && (!is_permits || amend == Amend::Set(0)) {
            let book = self.books[place].at(numbers, now).amended(numbers, amend, now);
            self.books[place] = book.or_fresh(numbers, now);
        }
        if let Some(reading) = self.readings.first() {
            let after = self.books[place].at(numbers, now);
            prop_assert_eq!(reading.remaining(), after.remaining(numbers, now));
        }
        Ok(())
    }

    fn release(&mut self, which: usize, now: Now) -> Held {
        let Some(&id) = self.permits.get(which) else { return Ok(()) };
        let released = self.table.pin().release(id, &mut Stamp::new(|| now));
        let mut units = 0;
        for (rule, book) in self.rules.iter().zip(&mut self.books) {
            if book.leases.iter().any(|lease| lease.id == id) {
                *book = book.at(rule.numbers, now);
                let is_its = |lease: &Lease| lease.id == id;
                units += book.leases.iter().filter(|l| is_its(l)).map(|l| l.units).sum::<u64>();
                book.leases.retain(|lease| !is_its(lease));
            }
        }
        prop_assert_eq!(released, units);
        Ok(())
    }

    fn renew(&mut self, which: usize, lease: Option<u64>, now: Now) -> Held {
        let Some(&id) = self.permits.get(which) else { return Ok(()) };
        let span = lease.map(Nanos::new);
        let renewed = self.table.pin().renew(id, span, &mut Stamp::new(|| now)).unwrap();
        let mut first: Option<u64> = None;
        for (rule, book) in self.rules.iter().zip(&mut self.books) {
            if book.leases.iter().any(|lease| lease.id == id) {
                *book = book.at(rule.numbers, now);
                for held in book.leases.iter_mut().filter(|held| held.id == id) {
                    let span = lease.unwrap_or(held.lease);
                    held.lapses_at = now.time.as_nanos() + span;
                    first = Some(first.map_or(span, |first| first.min(span)));
                }
            }
        }
        prop_assert_eq!(renewed.map(Nanos::get), first);
        Ok(())
    }

    fn check(&mut self, asked: &[(usize, u64)], now: Now) -> Held {
        let mut costs: HashMap<usize, u64> = HashMap::new();
        let (mut places, mut charges) = (Vec::new(), Vec::new());
        for (place, eighths) in asked {
            let place = place % self.rules.len();
            let cost = cost_of(self.rules[place].numbers, *eighths);
            *costs.entry(place).or_default() += cost;
            places.push(place);
            charges.push(self.charge(place, cost, now));
        }
        let pinned = self.table.pin();
        let decision = pinned.check(&charges, &mut Stamp::new(|| now), &mut self.readings).unwrap();
        for &place in costs.keys() {
            // Permits that have lapsed are gone once anyone has looked.
            let numbers = self.rules[place].numbers;
            if matches!(numbers, Numbers::Concurrent { .. }) {
                self.books[place] = self.books[place].at(numbers, now);
            }
        }
        let at = |place: usize| self.books[place].at(self.rules[place].numbers, now);
        // What a limit is asked for: all that the check takes from its counter, if it has one.
        let cost_at = |index: usize| match self.rules[places[index]].numbers.has_counter() {
            true => costs[&places[index]],
            false => charges[index].cost,
        };
        let fits = |index: usize| {
            let (place, numbers) = (places[index], self.rules[places[index]].numbers);
            at(place).fits(numbers, cost_at(index), now)
        };
        let allow = (0..places.len())
            .all(|index| fits(index) || self.rules[places[index]].effect == Effect::Shadow);
        let verdict = if allow { Verdict::Allow } else { Verdict::Deny };
        prop_assert_eq!(decision.verdict, verdict, "at {} of {:?}", self.nanos, charges);
        let mut after: HashMap<usize, Book> = HashMap::new();
        let mut given = Vec::new();
        for (index, &place) in places.iter().enumerate() {
            let (Rule { numbers, on, .. }, cost) = (self.rules[place], cost_at(index));
            let book = at(place);
            let charged = match (allow && fits(index), on) {
                _ if cost == 0 => None,
                (true, _) if matches!(numbers, Numbers::Concurrent { .. }) => {
                    given.push(place);
                    None
                }
                (true, _) => Some(book.clone().charged(numbers, cost, now)),
                (false, ChargeOn::Always) => Some(book.clone().saturated(numbers, cost, now)),
                (false, ChargeOn::Allow) => None,
            };
            if let Some(charged) = charged {
                after.insert(place, charged);
            }
        }
        prop_assert_eq!(decision.permit.is_some(), !given.is_empty());
        if let Some(permit) = decision.permit {
            self.permits.push(permit.id);
            let mut first = u64::MAX;
            for &place in &given {
                let Numbers::Concurrent { lease, .. } = self.rules[place].numbers else { continue };
                let (units, lapses_at) = (costs[&place], now.time.as_nanos() + lease);
                let book = after.entry(place).or_insert_with(|| at(place));
                if !book.leases.iter().any(|lease| lease.id == permit.id) {
                    book.leases.push(Lease { id: permit.id, units, lapses_at, lease });
                }
                first = first.min(lease);
            }
            prop_assert_eq!(permit.lapses_after, Nanos::new(first));
        }
        for (index, reading) in self.readings.iter().enumerate() {
            let (place, cost) = (places[index], cost_at(index));
            let numbers = self.rules[place].numbers;
            let book = after.get(&place).cloned().unwrap_or_else(|| at(place));
            prop_assert_eq!(reading.fits, fits(index));
            prop_assert_eq!(reading.remaining(), book.remaining(numbers, now));
            let retry = match fits(index) {
                true => Retry::Now,
                false => book.retry(numbers, cost, now),
            };
            prop_assert_eq!(reading.retry(), retry, "of {:?} at {}", numbers, self.nanos);
            if let Retry::After(span) = retry {
                self.awaited = self.nanos.saturating_add(span.get());
            }
            if let Fill::Permits { lapses_after: Some(span), .. } = reading.fill {
                self.awaited = self.nanos.saturating_add(span.get());
            }
        }
        for (place, book) in after {
            self.books[place] = book;
        }
        Ok(())
    }
}

/// A history of one to three limits.
pub(super) type History = (Vec<Numbers>, Vec<(Effect, ChargeOn)>, Vec<Step>);

/// Histories of limits of one kind, or of any.
pub(super) fn histories(which: Which) -> impl Strategy<Value = History> {
    let rules = prop::collection::vec(rule(which), 1..4);
    (rules, prop::collection::vec(step(), 1..40)).prop_map(|(rules, steps)| {
        let numbers = rules.iter().map(|rule| rule.numbers).collect();
        (numbers, rules.iter().map(|rule| (rule.effect, rule.on)).collect(), steps)
    })
}

/// Whatever happens, every answer is the book's: decisions, what remains, waits, permits. Denials
/// leave no trace, mixed limits are charged all or none, and growth, sweeping, other numbers and
/// time that stands still or goes back change nothing.
pub(super) fn table_equals_book((numbers, rules, steps): History) -> Held {
    let mut world = World::new(together(numbers, rules));
    steps.iter().try_for_each(|step| world.step(step))
}

fn together(numbers: Vec<Numbers>, rules: Vec<(Effect, ChargeOn)>) -> Vec<Rule> {
    let rules = numbers.into_iter().zip(rules);
    rules.map(|(numbers, (effect, on))| Rule { numbers, effect, on }).collect()
}

/// A history, steps during which a snapshot of what came before them is taken, each with so many
/// slots looked at after it, and what follows once it is restored.
pub(super) type Restart = (History, Vec<(Step, usize)>, Vec<Step>);

pub(super) fn restarts(which: Which) -> impl Strategy<Value = Restart> {
    let meanwhile = prop::collection::vec((step(), 0..30_usize), 0..20);
    (histories(which), meanwhile, prop::collection::vec(step(), 1..20))
}

/// A snapshot is the book at its moment, whatever happens while it is taken: a table restored from
/// it, of another shape, answers as the book of then. One is taken before, so that slots have tags.
pub(super) fn a_snapshot_is_the_book((before, meanwhile, after): Restart) -> Held {
    let (numbers, rules, steps) = before;
    let mut world = World::new(together(numbers, rules));
    let half = steps.len() / 2;
    steps[..half].iter().try_for_each(|step| world.step(step))?;
    let mut first = Taking::begin(&world.table);
    for step in &steps[half..] {
        world.step(step)?;
        first.walk(3);
    }
    if meanwhile.len() % 2 == 0 {
        drop(first.finish());
    } else {
        // Given up.
        drop(first);
    }
    let mut taking = Taking::begin(&world.table);
    let frozen = world.clone();
    for (step, slots) in &meanwhile {
        world.step(step)?;
        taking.walk(*slots);
    }
    let taken = taking.finish();
    let mut table = Table::with_shape(10_000, &SEED, 4, 8);
    table.reserve(taken.counters.len() as u64);
    taken.load(&table)?;
    let mut restored = World { table: Arc::new(table), ..frozen };
    // Again what happened meanwhile, or something else.
    let again = if after.len() % 2 == 0 { &meanwhile[..] } else { &[] };
    again.iter().map(|(step, _)| step).chain(&after).try_for_each(|step| restored.step(step))
}

/// A limit, and what is asked of it when: spans between checks, in thousandths of its own window.
pub(super) type Demand = (Numbers, Vec<(u64, u64)>);

pub(super) fn demands(which: Which) -> impl Strategy<Value = Demand> {
    let demand = (prop_oneof![Just(0), 0..30_u64, 0..1200_u64], 0..=9_u64);
    (which.numbers(), prop::collection::vec(demand, 1..60))
}

/// The span on whose scale a limit's demand varies.
fn scale(numbers: Numbers) -> u64 {
    match numbers {
        Numbers::Bucket { units, window, burst } => {
            let refill = u128::from(burst) * u128::from(window) / u128::from(units);
            u64::try_from(refill).unwrap_or(LAST).clamp(1000, LAST / 100)
        }
        Numbers::Sliding { window, .. } | Numbers::Fixed { window, .. } => window,
        Numbers::Calendar { hours, .. } => hours * 3600 * SECOND,
        Numbers::Concurrent { lease, .. } => lease,
        _ => SECOND,
    }
}

fn sum_of(units: impl Iterator<Item = u64>) -> u128 {
    units.map(u128::from).sum()
}

/// Never above the bound, in any interval, whatever was asked: by sums over what was admitted, with
/// nothing known of how it is counted.
pub(super) fn never_above_the_bound((numbers, demand): Demand) -> Held {
    let table = Table::with_shape(100, &SEED, 1, 4);
    let mut now = moment(SECOND);
    let mut admitted: Vec<(u64, u64, u64)> = Vec::new();
    let mut held: Vec<(u64, u64)> = Vec::new();
    let mut readings = Vec::new();
    for (thousandths, eighths) in demand {
        let span = u128::from(scale(numbers)) * u128::from(thousandths) / 1000;
        let span = u64::try_from(span).unwrap().min(LAST - now.time.as_nanos());
        now = now.after(Nanos::new(span));
        let cost = cost_of(numbers, eighths).min(UNITS_MAX);
        let one = [charge(1, numbers.quota(now), cost)];
        let decision = table.pin().check(&one, &mut Stamp::new(|| now), &mut readings).unwrap();
        if decision.verdict == Verdict::Allow {
            admitted.push((now.time.as_nanos(), now.utc.as_nanos(), cost));
            if let Some(permit) = decision.permit {
                held.push((now.time.as_nanos() + permit.lapses_after.get(), cost));
            }
        }
        let limit = u128::from(numbers.limit());
        let nanos = now.time.as_nanos();
        let within = |from: u64| sum_of(admitted.iter().filter(|a| a.0 >= from).map(|a| a.2));
        match numbers {
            Numbers::Bucket { units, window, burst } => {
                for &(from, ..) in &admitted {
                    let earned = u128::from(units) * u128::from(nanos - from);
                    let most = u128::from(burst) * u128::from(window) + earned;
                    prop_assert!(within(from) * u128::from(window) <= most);
                }
            }
            Numbers::Sliding { window, .. } => {
                prop_assert!(within((nanos + 1).saturating_sub(window)) <= limit);
            }
            Numbers::Fixed { units, .. } | Numbers::Calendar { units, .. }
                if units == UNLIMITED => {}
            Numbers::Fixed { window, align: Align::Clock, .. } => {
                let ordinal = now.utc.as_nanos() / window;
                let of = admitted.iter().filter(|a| a.1 / window == ordinal).map(|a| a.2);
                prop_assert!(sum_of(of) <= limit);
            }
            Numbers::Fixed { window, .. } => {
                // Each window begins with the first charge after the last one ended.
                let mut began = None;
                let mut used = 0;
                for &(at, _, cost) in admitted.iter().filter(|a| a.2 > 0) {
                    if began.is_none_or(|began| at >= began + window) {
                        (began, used) = (Some(at), 0);
                    }
                    used += u128::from(cost);
                    prop_assert!(used <= limit);
                }
            }
            Numbers::Calendar { hours, .. } => {
                let origin = super::book::START_UTC - 86_400 * SECOND;
                let ordinal = |utc: u64| (utc - origin) / (hours * 3600 * SECOND);
                let now = ordinal(now.utc.as_nanos());
                let of = admitted.iter().filter(|a| ordinal(a.1) == now).map(|a| a.2);
                prop_assert!(sum_of(of) <= limit);
            }
            Numbers::Concurrent { .. } => {
                let live = held.iter().filter(|(lapses_at, _)| *lapses_at > nanos).map(|h| h.1);
                prop_assert!(sum_of(live) <= limit);
            }
            Numbers::Level { .. } => {
                prop_assert!(limit == u128::from(UNLIMITED) || within(0) <= limit)
            }
            Numbers::Cap { .. } => prop_assert!(admitted.iter().all(|a| u128::from(a.2) <= limit)),
            Numbers::Unlimited => {}
        }
    }
    Ok(())
}

/// A nanosecond before the wait that a denial names the same check is denied, after it it passes.
pub(super) fn retry_is_exact((numbers, demand): Demand) -> Held {
    let table = Table::with_shape(100, &SEED, 1, 4);
    let check = |cost, now: Now| {
        let one = charge(1, numbers.quota(now), cost);
        table.pin().check_one(&one, &mut Stamp::new(|| now)).unwrap()
    };
    let mut now = moment(SECOND);
    for (thousandths, eighths) in demand {
        let span = u128::from(scale(numbers)) * u128::from(thousandths) / 1000;
        let span = u64::try_from(span).unwrap();
        if span > LAST - now.time.as_nanos() {
            return Ok(());
        }
        now = now.after(Nanos::new(span));
        let cost = cost_of(numbers, eighths).clamp(1, numbers.limit());
        if let Retry::After(wait) = check(cost, now).retry() {
            prop_assert!(wait > Nanos::ZERO);
            if wait.get() > LAST - now.time.as_nanos() {
                return Ok(());
            }
            if let Numbers::Sliding { window, .. } = numbers {
                prop_assert!(wait.get() <= window + window / 64, "later than W and a 64th");
            }
            let early = check(cost, now.after(Nanos::new(wait.get() - 1)));
            prop_assert_eq!(early.retry(), Retry::After(Nanos::new(1)));
            now = now.after(wait);
            prop_assert!(check(cost, now).fits);
        }
    }
    Ok(())
}

/// Rates and bursts before and after an edit, units used, units added as debt, and the moment.
pub(super) type Edit = ((u64, u64), (u64, u64), u64, u64, u64);

pub(super) fn edits() -> impl Strategy<Value = Edit> {
    let numbers = || (prop_oneof![1..=100_u64, 1..=1_000_000_u64], 1..=1000_u64);
    (numbers(), numbers(), 0..=1000_u64, 0..=2000_u64, 1..1000 * SECOND)
}

/// A bucket whose numbers change keeps the time at which it is full, at the first touch cut to a
/// full refill by the new ones. The same numbers never cut debt, however often they look.
pub(super) fn conversion_keeps_time((old, new, used, debt, nanos): Edit) -> Held {
    let table = Table::with_shape(100, &SEED, 1, 4);
    let bucket = |(units, burst)| Quota::bucket(units, Nanos::from_secs(60), burst).unwrap();
    let now = moment(nanos);
    let full_after = |numbers, other: Option<u64>| {
        let mut readings = Vec::new();
        // With a second limit the check holds its counters.
        let mut charges = vec![charge(1, bucket(numbers), 0)];
        charges.extend(other.map(|other| charge(other, bucket(numbers), 1)));
        table.pin().check(&charges, &mut Stamp::new(|| now), &mut readings).unwrap();
        readings[0].full_after().unwrap().get()
    };
    let refill = |(units, burst): (u64, u64)| {
        (u128::from(burst) * 60 * u128::from(SECOND)).div_ceil(u128::from(units)) as u64
    };
    let amend = |amend| {
        let one = [charge(1, bucket(old), 0)];
        table.pin().amend(&one, amend, &mut Stamp::new(|| now), &mut Vec::new()).unwrap();
    };
    amend(Amend::Set(used));
    amend(Amend::Add(debt));
    let before = full_after(old, None);
    prop_assert!(before <= 2 * refill(old));
    prop_assert_eq!(before, full_after(old, Some(2)), "the same numbers cut debt");
    amend(Amend::Add(0));
    prop_assert_eq!(before, full_after(old, None), "the same numbers, held, cut debt");
    let after = full_after(new, None);
    let expected = if old == new { before } else { before.min(refill(new)) };
    // Ticks of the one are rounded up to ticks of the other.
    prop_assert!((expected..=expected + 1).contains(&after), "{} became {}", before, after);
    prop_assert_eq!(after, full_after(new, Some(3)));
    Ok(())
}

/// Fewer cases: each takes two snapshots and waits for all other tests' threads to pass by.
#[test]
fn a_snapshot_is_the_book_of_any_kind() {
    for which in [Which::Bucket, Which::Concurrent, Which::Any] {
        if let Err(error) = run(CASES / 10, restarts(which), a_snapshot_is_the_book) {
            panic!("{error}");
        }
    }
}

macro_rules! laws {
    ($($name:ident: $law:ident($cases:ident($which:expr));)*) => {
        $(#[test]
        fn $name() {
            holds($cases($which), $law);
        })*
    };
}

laws! {
    table_equals_book_bucket: table_equals_book(histories(Which::Bucket));
    table_equals_book_sliding: table_equals_book(histories(Which::Sliding));
    table_equals_book_fixed: table_equals_book(histories(Which::Fixed));
    table_equals_book_calendar: table_equals_book(histories(Which::Calendar));
    table_equals_book_concurrent: table_equals_book(histories(Which::Concurrent));
    table_equals_book_level: table_equals_book(histories(Which::Level));
    table_equals_book_cap: table_equals_book(histories(Which::Cap));
    table_equals_book_mixed: table_equals_book(histories(Which::Any));
    never_above_the_bound_bucket: never_above_the_bound(demands(Which::Bucket));
    never_above_the_bound_sliding: never_above_the_bound(demands(Which::Sliding));
    never_above_the_bound_fixed: never_above_the_bound(demands(Which::Fixed));
    never_above_the_bound_calendar: never_above_the_bound(demands(Which::Calendar));
    never_above_the_bound_concurrent: never_above_the_bound(demands(Which::Concurrent));
    never_above_the_bound_level: never_above_the_bound(demands(Which::Level));
    never_above_the_bound_cap: never_above_the_bound(demands(Which::Cap));
    retry_is_exact_bucket: retry_is_exact(demands(Which::Bucket));
    retry_is_exact_sliding: retry_is_exact(demands(Which::Sliding));
    retry_is_exact_fixed: retry_is_exact(demands(Which::Fixed));
    retry_is_exact_calendar: retry_is_exact(demands(Which::Calendar));
}

#[test]
fn conversion_keeps_the_time_at_which_a_bucket_is_full() {
    holds(edits(), conversion_keeps_time);
}
