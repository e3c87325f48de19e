//! Laws of the table, on generated inputs against a plain model in `u128`, and with real threads.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;

use proptest::prelude::*;

use crate::engine::command::{CHARGES_MAX, Charge, LimitId};
use crate::engine::decision::{Reading, Refusal, Retry, Verdict};
use crate::engine::key::{Key, KeySpace, Seed};
use crate::engine::quota::{Align, Quota, UNITS_MAX, WINDOW_MAX};
use crate::engine::time::{Nanos, Now, SECOND, Timestamp, UtcTime};

use super::{Stamp, SweepCursor, Table};

/// Numbers of a limit as a page would give them: what the model computes with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Numbers {
    Bucket { units: u64, window: u64, burst: u64 },
    Fixed { units: u64, window: u64, align: Align },
}

impl Numbers {
    fn quota(self) -> Quota {
        match self {
            Self::Bucket { units, window, burst } => {
                Quota::bucket(units, Nanos::new(window), burst).unwrap()
            }
            Self::Fixed { units, window, align } => {
                Quota::fixed(units, Nanos::new(window), align).unwrap()
            }
        }
    }

    fn limit(self) -> u64 {
        match self {
            Self::Bucket { burst, .. } => burst,
            Self::Fixed { units, .. } => units,
        }
    }
}

/// A counter by the book. A bucket's theoretical arrival time is kept in nanoseconds times units,
/// where every number is whole; no arithmetic is shared with the engine.
#[derive(Clone, Copy, Debug, Default)]
struct Book {
    tat: u128,
    opened: u64,
    used: u64,
}

impl Book {
    fn at(self, numbers: Numbers, now: Now) -> Self {
        match numbers {
            Numbers::Bucket { units, .. } => Self {
                tat: self.tat.max(u128::from(now.time.as_nanos()) * u128::from(units)),
                ..self
            },
            Numbers::Fixed { window, align: Align::Clock, .. } => {
                let ordinal = now.utc.as_nanos() / window;
                if ordinal > self.opened { Self { opened: ordinal, used: 0, ..self } } else { self }
            }
            Numbers::Fixed { window, align: Align::First, .. } => {
                let over = self.used == 0 || now.time.as_nanos() >= self.opened + window;
                if over { Self { opened: now.time.as_nanos(), used: 0, ..self } } else { self }
            }
        }
    }

    /// Ticks of the bucket's own scale above now, and how many it may stand above.
    fn backlog(self, units: u64, window: u64, burst: u64, now: Now) -> (u128, u128) {
        let now = u128::from(now.time.as_nanos()) * u128::from(units);
        (self.tat - now, u128::from(burst) * u128::from(window))
    }

    fn fits(self, numbers: Numbers, cost: u64, now: Now) -> bool {
        match numbers {
            Numbers::Bucket { units, window, burst } => {
                let (backlog, span) = self.backlog(units, window, burst, now);
                backlog + u128::from(cost) * u128::from(window) <= span
            }
            Numbers::Fixed { units, .. } => self.used + cost <= units,
        }
    }

    fn charged(self, numbers: Numbers, cost: u64) -> Self {
        match numbers {
            Numbers::Bucket { window, .. } => {
                Self { tat: self.tat + u128::from(cost) * u128::from(window), ..self }
            }
            Numbers::Fixed { .. } => Self { used: self.used + cost, ..self },
        }
    }

    fn remaining(self, numbers: Numbers, now: Now) -> u64 {
        match numbers {
            Numbers::Bucket { units, window, burst } => {
                let (backlog, span) = self.backlog(units, window, burst, now);
                (span.saturating_sub(backlog) / u128::from(window)) as u64
            }
            Numbers::Fixed { units, .. } => units - self.used,
        }
    }

    /// The wait until `cost` fits, by the definition: the least one after which it does.
    fn wait(self, numbers: Numbers, cost: u64, now: Now) -> u64 {
        match numbers {
            Numbers::Bucket { units, window, burst } => {
                let (backlog, span) = self.backlog(units, window, burst, now);
                let over = (backlog + u128::from(cost) * u128::from(window)).saturating_sub(span);
                // Longer spans are told as the longest there is, 584 years.
                u64::try_from(over.div_ceil(u128::from(units))).unwrap_or(u64::MAX)
            }
            Numbers::Fixed { window, align: Align::Clock, .. } => {
                (self.opened + 1) * window - now.utc.as_nanos()
            }
            Numbers::Fixed { window, align: Align::First, .. } => {
                self.opened + window - now.time.as_nanos()
            }
        }
    }
}

fn numbers() -> impl Strategy<Value = Numbers> {
    let units = prop_oneof![1..=20_u64, 1..=1_000_000_u64, 1..=100_000_000_u64, 1..=UNITS_MAX];
    let window = prop_oneof![
        Just(SECOND),
        Just(60 * SECOND),
        Just(3600 * SECOND),
        Just(30 * 86_400 * SECOND),
        Just(WINDOW_MAX.get()),
        1_000_000..=10 * SECOND,
    ];
    let burst = prop_oneof![1..=20_u64, 1..=UNITS_MAX];
    prop_oneof![
        (units.clone(), window.clone(), burst).prop_map(|(units, window, burst)| Numbers::Bucket {
            units,
            window,
            burst
        }),
        (units, window, prop_oneof![Just(Align::Clock), Just(Align::First)])
            .prop_map(|(units, window, align)| Numbers::Fixed { units, window, align }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    /// Charge these keys, each for this part in eighths of its limit.
    Check(Vec<(usize, u64)>),
    Advance(u64),
    /// Time goes back, but not before the last sweep.
    Back(u64),
    Sweep,
    Set(usize, u64),
    /// As many other keys, so that shards grow.
    Crowd(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec((0..4_usize, 0..=9_u64), 1..4).prop_map(Step::Check),
        4 => prop_oneof![0..10_u64, 0..SECOND, 0..200 * 86_400 * SECOND].prop_map(Step::Advance),
        1 => (0..2 * SECOND).prop_map(Step::Back),
        2 => Just(Step::Sweep),
        1 => (0..4_usize, 0..=8_u64).prop_map(|(key, eighths)| Step::Set(key, eighths)),
        1 => (0..40_u8).prop_map(Step::Crowd),
    ]
}

fn moment(nanos: u64) -> Now {
    const START_UTC: u64 = 1_700_000_000 * SECOND;
    Now { time: Timestamp::from_nanos(nanos), utc: UtcTime::from_nanos(START_UTC + nanos) }
}

fn key(number: u64) -> Key {
    KeySpace::derive(&Seed::new([3; 16]), []).key([&number.to_le_bytes()[..]])
}

fn cost_of(numbers: Numbers, eighths: u64) -> u64 {
    // Whole limits and single units are where mistakes hide.
    match eighths {
        0 => 0,
        1..=4 => 1,
        8 => numbers.limit(),
        9 => numbers.limit().saturating_add(1),
        part => numbers.limit() / 8 * part,
    }
}

fn sweep_all(table: &Table, now: Now) {
    let mut cursor = SweepCursor::default();
    for _ in 0..200 {
        table.sweep(&mut cursor, now, 64);
    }
}

/// Runs the steps on a table and on the model, and compares every answer.
fn table_equals_book(limits: &[Numbers], steps: &[Step]) -> Result<(), TestCaseError> {
    let table = Table::with_shape(10_000, 2, 4);
    let mut books: HashMap<usize, Book> = HashMap::new();
    let (mut nanos, mut floor, mut crowd) = (1, 1, 1000);
    let mut readings = Vec::new();
    for step in steps {
        let now = moment(nanos);
        match step {
            Step::Advance(by) => nanos = (nanos + by).min(6 * 365 * 86_400 * SECOND),
            Step::Back(by) => nanos = nanos.saturating_sub(*by).max(floor),
            Step::Sweep => {
                floor = nanos;
                sweep_all(&table, now);
            }
            Step::Crowd(keys) => {
                let quota = Quota::bucket(1, Nanos::from_secs(1), 5).unwrap();
                for _ in 0..*keys {
                    crowd += 1;
                    let charge = Charge { key: key(crowd), quota, cost: 1, limit: LimitId(1) };
                    prop_assert!(
                        table.pin().check_one(&charge, &mut Stamp::new(|| now)).unwrap().fits
                    );
                }
            }
            Step::Set(place, eighths) => {
                let numbers = limits[place % limits.len()];
                let used = numbers.limit() / 8 * eighths;
                let charge = Charge {
                    key: key((place % limits.len()) as u64),
                    quota: numbers.quota(),
                    cost: used,
                    limit: LimitId(1),
                };
                table.pin().set(&[charge], &mut Stamp::new(|| now), &mut readings).unwrap();
                let book = books.entry(place % limits.len()).or_default();
                let fresh = match numbers {
                    Numbers::Fixed { .. } => Book { used: 0, ..book.at(numbers, now) },
                    Numbers::Bucket { .. } => Book::default().at(numbers, now),
                };
                // A counter set to zero is as if it had never been.
                *book = if used == 0 { Book::default() } else { fresh.charged(numbers, used) };
            }
            Step::Check(asked) => {
                let mut costs: HashMap<usize, u64> = HashMap::new();
                let mut charges = Vec::new();
                for (place, eighths) in asked {
                    let (place, numbers) = (place % limits.len(), limits[place % limits.len()]);
                    let cost = cost_of(numbers, *eighths);
                    *costs.entry(place).or_default() += cost;
                    let quota = numbers.quota();
                    charges.push((
                        place,
                        Charge { key: key(place as u64), quota, cost, limit: LimitId(1) },
                    ));
                }
                let only: Vec<Charge> = charges.iter().map(|(_, charge)| *charge).collect();
                let decision =
                    table.pin().check(&only, &mut Stamp::new(|| now), &mut readings).unwrap();
                let at = |place: usize| {
                    books.get(&place).copied().unwrap_or_default().at(limits[place], now)
                };
                let fits = |place: usize| at(place).fits(limits[place], costs[&place], now);
                let allow = costs.keys().all(|&place| fits(place));
                let verdict = if allow { Verdict::Allow } else { Verdict::Deny };
                prop_assert_eq!(decision.verdict, verdict, "at {} of {:?}", nanos, only);
                for ((place, _), reading) in charges.iter().zip(&readings) {
                    let (book, numbers, cost) = (at(*place), limits[*place], costs[place]);
                    let after = if allow { book.charged(numbers, cost) } else { book };
                    prop_assert_eq!(reading.fits, fits(*place));
                    prop_assert_eq!(reading.remaining(), after.remaining(numbers, now));
                    let retry = match (fits(*place), cost > numbers.limit()) {
                        (true, _) => Retry::Now,
                        (_, true) => Retry::Never,
                        _ => Retry::After(Nanos::new(book.wait(numbers, cost, now))),
                    };
                    prop_assert_eq!(reading.retry(), retry);
                }
                for (&place, &cost) in costs.iter().filter(|(_, cost)| allow && **cost > 0) {
                    let book = books.entry(place).or_default();
                    *book = book.at(limits[place], now).charged(limits[place], cost);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn table_equals_a_map_of_plain_counters(
        limits in prop::collection::vec(numbers(), 1..4),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        table_equals_book(&limits, &steps)?;
    }

    /// A nanosecond before the wait that a denial names the same check is denied, after it it
    /// passes.
    #[test]
    fn retry_after_is_exact(numbers in numbers(), costs in prop::collection::vec(0..=8_u64, 1..20)) {
        let table = Table::with_shape(100, 1, 4);
        let check = |cost, now| {
            let charge = Charge { key: key(1), quota: numbers.quota(), cost, limit: LimitId(1) };
            table.pin().check_one(&charge, &mut Stamp::new(|| now)).unwrap()
        };
        let mut now = moment(SECOND);
        for eighths in costs {
            let cost = cost_of(numbers, eighths).max(1).min(numbers.limit());
            let reading = check(cost, now);
            if let Retry::After(wait) = reading.retry() {
                prop_assert!(wait > Nanos::ZERO);
                if wait.get() > 6 * 365 * 86_400 * SECOND - now.time.as_nanos() {
                    return Ok(());
                }
                let early = check(cost, now.after(Nanos::new(wait.get() - 1)));
                prop_assert_eq!(early.retry(), Retry::After(Nanos::new(1)));
                now = now.after(wait);
                prop_assert!(check(cost, now).fits);
            }
        }
    }

    /// A key keeps its usage when its numbers change: the time at which a bucket is full stays,
    /// to the tick of the new numbers, whichever form either takes.
    #[test]
    fn a_bucket_keeps_its_time_when_numbers_change(
        units in 1..=1_000_000_u64, other in 1..=1_000_000_u64, cost in 1..=100_u64,
    ) {
        let table = Table::with_shape(100, 1, 4);
        let bucket = |units| Quota::bucket(units, Nanos::from_secs(60), 1000).unwrap();
        let now = moment(5 * SECOND);
        let mut readings = Vec::new();
        let full_after = |units, cost, readings: &mut Vec<Reading>| {
            let charge = Charge { key: key(1), quota: bucket(units), cost, limit: LimitId(1) };
            table.pin().check(&[charge], &mut Stamp::new(|| now), readings).unwrap();
            readings[0].full_after().get()
        };
        let before = full_after(units, cost, &mut readings);
        let after = full_after(other, 0, &mut readings);
        prop_assert!(after == before, "{} became {}", before, after);
        // Writing under the other numbers and reading under the first again loses at most the
        // rounding up to a nanosecond's fraction.
        let one = 60 * SECOND / other;
        let charged = full_after(other, 1, &mut readings);
        let denied = before + one > 1000 * 60 * SECOND / other;
        prop_assert!(denied || (before + one..=before + one + 2).contains(&charged));
    }
}

fn bucket_charge(number: u64, quota: Quota) -> Charge {
    Charge { key: key(number), quota, cost: 1, limit: LimitId(1) }
}

#[test]
fn a_cap_refuses_new_keys_and_keeps_the_old() {
    let table = Table::with_shape(3, 1, 4);
    table.limit_cap(LimitId(2), 1);
    let quota = Quota::bucket(1, Nanos::from_secs(60), 2).unwrap();
    let check = |number, limit, nanos| {
        let charge = Charge { limit, ..bucket_charge(number, quota) };
        table
            .pin()
            .check_one(&charge, &mut Stamp::new(|| moment(nanos)))
            .map(|reading| reading.fits)
    };
    assert_eq!(check(1, LimitId(2), 1), Ok(true));
    let own = Refusal::TableFull { limit: Some(LimitId(2)), keys_max: 1 };
    assert_eq!(check(2, LimitId(2), 1), Err(own));
    assert_eq!(check(3, LimitId(1), 1), Ok(true));
    assert_eq!(check(4, LimitId(1), 1), Ok(true));
    let all = Refusal::TableFull { limit: None, keys_max: 3 };
    assert_eq!(check(5, LimitId(1), 1), Err(all));
    assert_eq!(check(1, LimitId(2), 1), Ok(true));
    assert_eq!(check(1, LimitId(2), 1), Ok(false));
    assert_eq!((table.usage().keys, table.keys_of(LimitId(2))), (3, 1));
    // Two minutes later all are full again; once swept, there is room.
    let later = 121 * SECOND;
    assert_eq!(check(5, LimitId(1), later), Err(all));
    sweep_all(&table, moment(later));
    assert_eq!(table.usage().keys, 0);
    assert_eq!(check(5, LimitId(1), later), Ok(true));
    assert_eq!(table.usage().keys, 1);
}

#[test]
fn a_denied_check_of_several_leaves_no_trace() {
    let table = Table::with_shape(2, 1, 4);
    let quota = Quota::bucket(1, Nanos::from_secs(60), 1).unwrap();
    let (mut readings, now) = (Vec::new(), moment(1));
    let mut check = |numbers: &[u64]| {
        let charges: Vec<_> = numbers.iter().map(|&number| bucket_charge(number, quota)).collect();
        let decision = table.pin().check(&charges, &mut Stamp::new(|| now), &mut readings);
        decision.map(|decision| (decision.verdict, decision.binding))
    };
    assert_eq!(check(&[1]), Ok((Verdict::Allow, Some(0))));
    assert_eq!(check(&[2, 1]), Ok((Verdict::Deny, Some(1))));
    assert_eq!(check(&[2, 3]), Err(Refusal::TableFull { limit: None, keys_max: 2 }));
    assert_eq!(table.usage().keys, 1);
    assert_eq!(check(&[2]), Ok((Verdict::Allow, Some(0))));
}

#[test]
fn a_key_twice_in_a_check_is_charged_for_both() {
    let table = Table::with_shape(10, 1, 4);
    let quota = Quota::fixed(5, Nanos::from_secs(60), Align::Clock).unwrap();
    let twice = [2, 2].map(|cost| Charge { cost, ..bucket_charge(1, quota) });
    let (mut readings, now) = (Vec::new(), moment(1));
    let mut check = |charges: &[Charge]| {
        let decision = table.pin().check(charges, &mut Stamp::new(|| now), &mut readings);
        decision.map(|decision| (decision.verdict, readings[0].remaining()))
    };
    assert_eq!(check(&twice), Ok((Verdict::Allow, 1)));
    assert_eq!(check(&twice), Ok((Verdict::Deny, 1)));
    let other = Quota::fixed(6, Nanos::from_secs(60), Align::Clock).unwrap();
    let unlike = [twice[0], Charge { quota: other, ..twice[1] }];
    assert_eq!(check(&unlike), Err(Refusal::UnlikeQuotas));
    let many = vec![twice[0]; CHARGES_MAX + 1];
    assert_eq!(check(&many), Err(Refusal::TooManyCharges { found: CHARGES_MAX + 1 }));
}

#[test]
fn growth_and_shrinking_keep_every_counter() {
    let table = Table::new(1_000_000);
    let quota = Quota::bucket(1, Nanos::from_secs(3600), 10).unwrap();
    let now = moment(1);
    for _ in 0..2 {
        for number in 0..200_000 {
            let charge = bucket_charge(number, quota);
            assert!(table.pin().check_one(&charge, &mut Stamp::new(|| now)).unwrap().fits);
        }
    }
    let grown = table.usage();
    assert_eq!(grown.keys, 200_000);
    let mut readings = Vec::new();
    for number in 0..200_000 {
        let charge = bucket_charge(number, quota);
        table.pin().peek(&[charge], &mut Stamp::new(|| now), &mut readings).unwrap();
        assert_eq!(readings[0].remaining(), 8);
    }
    // Eleven hours later all but one are full again.
    let later = now.after(Nanos::from_secs(2 * 3600));
    let charge = Charge { cost: 10, ..bucket_charge(7, quota) };
    assert!(table.pin().check_one(&charge, &mut Stamp::new(|| later)).unwrap().fits);
    let mut cursor = SweepCursor::default();
    for _ in 0..100_000 {
        table.sweep(&mut cursor, later, 256);
    }
    let shrunk = table.usage();
    assert_eq!(shrunk.keys, 1);
    assert!(shrunk.slots < grown.slots / 2, "{} of {}", shrunk.slots, grown.slots);
    table.pin().peek(&[charge], &mut Stamp::new(|| later), &mut readings).unwrap();
    assert_eq!(readings[0].remaining(), 0);
}

/// Runs `check` a million times on eight threads against a clock that ticks at every check, then
/// takes what is left at the last moment. Returns how many passed and when it ended.
fn storm(check: impl Fn(Now) -> bool + Sync) -> (u64, Now) {
    const CHECKS: u64 = 1_000_000;
    let (clock, passed) = (AtomicU64::new(1), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let nanos = clock.fetch_add(1, Ordering::Relaxed);
                    if nanos > CHECKS {
                        return;
                    }
                    if check(moment(nanos * 1000)) {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let end = moment(CHECKS * 1000);
    while check(end) {
        passed.fetch_add(1, Ordering::Relaxed);
    }
    (passed.into_inner(), end)
}

#[test]
fn eight_threads_on_one_counter_admit_what_one_would() {
    for (units, burst) in [(100_000, 500), (70_001, 500)] {
        let table = Table::new(100);
        let quota = Quota::bucket(units, Nanos::from_secs(1), burst).unwrap();
        let charge = bucket_charge(1, quota);
        let (passed, end) =
            storm(|now| table.pin().check_one(&charge, &mut Stamp::new(|| now)).unwrap().fits);
        // Demand always exceeds supply, so nothing of the rate is lost to a full bucket.
        let earned = u128::from(end.time.as_nanos()) * u128::from(units) / u128::from(SECOND);
        // The first check came at the first tick and found the bucket full.
        let first = 1000_u128 * u128::from(units) / u128::from(SECOND);
        let bound = u128::from(burst) + earned;
        let passed = u128::from(passed);
        assert!(passed <= bound && passed >= bound - first - 1, "{passed} of {bound}");
    }
}

#[test]
fn eight_threads_on_three_shared_limits_admit_what_one_would() {
    let table = Table::new(100);
    let minute = Nanos::from_secs(60);
    let charges = [
        bucket_charge(1, Quota::bucket(50_000, Nanos::from_secs(1), 300).unwrap()),
        bucket_charge(2, Quota::fixed(1_000_000, minute, Align::Clock).unwrap()),
        bucket_charge(3, Quota::fixed(40_000, minute, Align::First).unwrap()),
    ];
    let check = |now| {
        let mut readings = Vec::new();
        let mut stamp = Stamp::new(|| now);
        table.pin().check(&charges, &mut stamp, &mut readings).unwrap().verdict == Verdict::Allow
    };
    let (passed, end) = storm(check);
    // A second at 50,000 a second and 300 at once exceeds the 40,000 of the third.
    assert_eq!(passed, 40_000);
    let mut readings = Vec::new();
    table.pin().peek(&charges, &mut Stamp::new(|| end), &mut readings).unwrap();
    assert_eq!(readings[1].remaining(), 1_000_000 - passed);
    assert_eq!(readings[2].remaining(), 0);
}
