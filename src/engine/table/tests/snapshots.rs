//! Snapshots: equal to the model at one moment, whoever works meanwhile.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use crate::engine::command::{Charge, LimitId};
use crate::engine::decision::Verdict;
use crate::engine::key::Key;
use crate::engine::kinds::Ring;
use crate::engine::quota::{Kind, Quota};
use crate::engine::table::{
    Counter, Found, Loader, Pinned, Snapshot, Stamp, State, SweepCursor, Table, Unfit, Walked,
};
use crate::engine::time::{Nanos, SECOND};

use super::book::moment;
use super::laws::{Held, SEED, key};

/// A counter of a snapshot, by itself.
#[derive(Clone, Debug)]
pub(super) struct Told {
    found: Found,
    counter: Counter<'static>,
    ring: Option<Ring>,
}

/// A snapshot being taken, and what it has told.
pub(super) struct Taking {
    snapshot: Snapshot<Arc<Table>>,
    counters: Vec<Told>,
}

/// A snapshot, whole.
pub(super) struct Taken {
    pub(super) counters: Vec<Told>,
    windows: Vec<Nanos>,
    next_permit: u64,
}

impl Taking {
    pub(super) fn begin(table: &Arc<Table>) -> Self {
        let snapshot = Snapshot::begin(Arc::clone(table), 1 << 20).unwrap();
        while !snapshot.is_settled() {
            std::thread::yield_now();
        }
        Self { snapshot, counters: Vec::new() }
    }

    pub(super) fn walk(&mut self, slots: usize) -> Walked {
        let counters = &mut self.counters;
        let tell = |found, counter: &Counter<'_>| {
            let ring = match counter.state {
                State::Ring(ring) => Some(ring.clone()),
                _ => None,
            };
            // What stands for a ring here is replaced when it is read.
            let state = match counter.state {
                State::Ring(_) => State::Narrow(0),
                State::Narrow(value) => State::Narrow(value),
                State::Cell(cell) => State::Cell(cell),
                State::Permitted(permitted) => State::Permitted(permitted),
            };
            counters.push(Told { found, counter: Counter { state, ..*counter }, ring });
        };
        self.snapshot.walk(slots, tell).unwrap()
    }

    pub(super) fn finish(mut self) -> Taken {
        while self.walk(7) != Walked::All {}
        // The old side's windows all have their numbers by now, and those of the new do no harm.
        let (windows, next_permit) = (self.snapshot.windows(), self.snapshot.next_permit());
        Taken { counters: self.counters, windows, next_permit }
    }
}

impl Told {
    fn counter(&self) -> Counter<'_> {
        match &self.ring {
            Some(ring) => Counter { state: State::Ring(ring), ..self.counter },
            None => self.counter,
        }
    }
}

impl Taken {
    pub(super) fn load(&self, table: &Table) -> Held {
        let limits = [LimitId::INLINE, LimitId(1)];
        let mut loader = Loader::new(table, &limits, &self.windows).unwrap();
        for found in [Found::InPlace, Found::Noted] {
            for told in self.counters.iter().filter(|told| told.found == found) {
                loader.load(&told.counter()).map_err(|unfit| TestCaseError::fail(unfit.0))?;
            }
        }
        table.number_permits_from(self.next_permit + 1_000_000);
        Ok(())
    }

    /// The narrow value of each key, as it would be loaded.
    fn values(&self) -> std::collections::BTreeMap<Key, u64> {
        let mut values = std::collections::BTreeMap::new();
        for found in [Found::InPlace, Found::Noted] {
            for told in self.counters.iter().filter(|told| told.found == found) {
                let State::Narrow(value) = told.counter.state else { continue };
                let first = *values.entry(told.counter.key).or_insert(value);
                assert_eq!(first, value, "a counter told twice says the same");
            }
        }
        values
    }
}

fn level(number: u64) -> Charge {
    Charge::new(key(number), Quota::level(1 << 40).unwrap(), 1, LimitId(1))
}

/// Threads that charge two levels at a time, which grow the table as they go, while one snapshot
/// after the other is taken: in each, both of every pair are equal, and of each thread's checks
/// all up to one are there and none after it.
#[test]
fn no_check_is_split_and_none_is_there_before_the_one_before_it() {
    const THREADS: u64 = 3;
    const PAIRS: u64 = 3000;
    let table = Arc::new(Table::with_shape(1 << 20, &SEED, 4, 8));
    let is_over = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let key_of = |thread: u64, pair: u64, side: u64| 1 + (pair * THREADS + thread) * 3 + side;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (table, is_over, done) = (&table, &is_over, &done);
            scope.spawn(move || {
                let mut readings = Vec::new();
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let pair = number % PAIRS;
                    let charges = [0, 1].map(|side| level(key_of(thread, pair, side)));
                    let mut stamp = Stamp::new(|| moment(SECOND));
                    let decision = table.pin().check(&charges, &mut stamp, &mut readings).unwrap();
                    assert_eq!(decision.verdict, Verdict::Allow);
                    // And one by itself, on the common path.
                    let single = level(key_of(thread, pair, 2));
                    assert!(table.pin().check_one(&single, &mut stamp).unwrap().fits);
                    number += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut before = 0;
        for _ in 0..40 {
            while done.load(Ordering::Relaxed) < before + 500 {
                std::thread::yield_now();
            }
            before = done.load(Ordering::Relaxed);
            let mut taking = Taking::begin(&table);
            while taking.walk(64) != Walked::All {}
            let values = taking.finish().values();
            for thread in 0..THREADS {
                let of = |pair, side| {
                    values.get(&key(key_of(thread, pair, side))).copied().unwrap_or_default()
                };
                let total: u64 = (0..PAIRS).map(|pair| of(pair, 0)).sum();
                for pair in 0..PAIRS {
                    let expected = total / PAIRS + u64::from(pair < total % PAIRS);
                    assert_eq!(of(pair, 0), expected, "of {total} pair {pair}");
                    assert_eq!(of(pair, 1), expected, "the other of {total} pair {pair}");
                }
                // The single charge comes after the pair's.
                let singles: u64 = (0..PAIRS).map(|pair| of(pair, 2)).sum();
                assert!(singles == total || singles + 1 == total, "{singles} of {total}");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn tags_come_round_and_none_is_mistaken() {
    let table = Arc::new(Table::with_shape(1000, &SEED, 1, 4));
    let check = |number| {
        let mut stamp = Stamp::new(|| moment(SECOND));
        assert!(table.pin().check_one(&level(number), &mut stamp).unwrap().fits);
    };
    (0..10).for_each(check);
    for round in 0..70 {
        let mut taking = Taking::begin(&table);
        // One counter a round changes before the walk and keeps that round's tag.
        check(round % 10);
        if round % 3 == 0 {
            assert_eq!(taking.finish().values().len(), 10, "round {round}");
        } else {
            // Given up, so that tags stay.
            taking.walk(2);
        }
    }
    assert_eq!(Taking::begin(&table).finish().values().len(), 10);
}

#[test]
fn only_one_snapshot_is_taken_at_a_time_and_too_many_changes_end_it() {
    let table = Arc::new(Table::with_shape(1000, &SEED, 1, 4));
    let check = |number| {
        let mut stamp = Stamp::new(|| moment(SECOND));
        assert!(table.pin().check_one(&level(number), &mut stamp).unwrap().fits);
    };
    (0..20).for_each(check);
    let mut snapshot = Snapshot::begin(Arc::clone(&table), 5).unwrap();
    assert!(Snapshot::begin(Arc::clone(&table), 5).is_none());
    while !snapshot.is_settled() {
        std::thread::yield_now();
    }
    (0..20).for_each(check);
    assert!(snapshot.walk(1000, |_, _| ()).is_err());
    drop(snapshot);
    let values = Taking::begin(&table).finish().values();
    assert!(values.values().all(|used| *used == 2) && values.len() == 20);
    // The notes' memory is used again.
    let bytes = table.usage().bytes;
    for _ in 0..20 {
        let taking = Taking::begin(&table);
        (0..20).for_each(check);
        drop(taking.finish());
    }
    assert!(table.usage().bytes <= bytes + 64 * 40);
}

#[test]
fn what_no_counter_could_be_is_not_loaded() {
    let table = Table::with_shape(1000, &SEED, 1, 4);
    let windows = [Nanos::from_secs(60)];
    let mut loader = Loader::new(&table, &[LimitId::INLINE], &windows).unwrap();
    let mut load = |kind, detail, state| {
        loader.load(&Counter { key: key(1), kind, limit: LimitId(7), detail, state })
    };
    let ring = Ring { sub_ns: 1, newest: 5, counts: [1; _], total: 5 };
    for (kind, detail, state) in [
        (Kind::Bucket, 1, State::Narrow(0)),
        (Kind::Bucket, 1, State::Narrow(1 << 61)),
        (Kind::Bucket, 1 << 24, State::Narrow(1)),
        (Kind::Fixed, 1, State::Narrow(1)),
        (Kind::Cap, 0, State::Narrow(1)),
        (Kind::Concurrent, 0, State::Narrow(1)),
        (Kind::Concurrent, 0, State::Cell([1, 1, 0, 0])),
        (Kind::Bucket, 0, State::Cell([1, 1, 5, 5])),
        (Kind::Bucket, 0, State::Cell([u64::MAX, u64::MAX, 0, 1])),
        (Kind::Fixed, 0, State::Cell([1, 1, 60 * SECOND, 3])),
        (Kind::Fixed, 0, State::Cell([1, 1, 0, 1])),
        (Kind::Sliding, 0, State::Ring(&ring)),
        (Kind::Bucket, 0, State::Ring(&ring)),
    ] {
        assert!(matches!(load(kind, detail, state), Err(Unfit(_))), "{kind:?} {state:?}");
    }
    assert_eq!(load(Kind::Fixed, 0, State::Narrow(1)), Ok(true));
    assert_eq!(load(Kind::Fixed, 0, State::Narrow(2)), Ok(false));
    drop(loader);
    assert_eq!((table.usage().keys, table.keys_of(LimitId::INLINE)), (1, 1));
    let lengths = [Nanos::new(1)];
    assert!(Loader::new(&table, &[], &lengths).is_err());
}

/// Sweeping while a snapshot is taken takes nothing from it, and goes on afterwards.
#[test]
fn sweeping_waits_for_the_snapshot() {
    let table = Arc::new(Table::with_shape(1000, &SEED, 1, 4));
    let quota = Quota::bucket(1, Nanos::from_secs(1), 5).unwrap();
    for number in 0..20 {
        let charge = Charge::new(key(number), quota, 1, LimitId(1));
        let pinned: Pinned<'_> = table.pin();
        assert!(pinned.check_one(&charge, &mut Stamp::new(|| moment(1))).unwrap().fits);
    }
    let taking = Taking::begin(&table);
    let sweep = || {
        let mut cursor = SweepCursor::default();
        (0..10).for_each(|_| _ = table.sweep(&mut cursor, moment(60 * SECOND), 64));
    };
    sweep();
    assert_eq!(table.usage().keys, 20);
    assert_eq!(taking.finish().values().len(), 20);
    sweep();
    assert_eq!(table.usage().keys, 0);
}
