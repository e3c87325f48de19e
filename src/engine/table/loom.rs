//! Models of the table's races, each run through every interleaving up to a bound on preemptions.
//! Memory reclamation is modelled too: the epoch library runs on loom as well.
//!
//! ```text
//! RUSTFLAGS="--cfg table_model --cfg crossbeam_loom" \
//!     cargo test --release --lib table::loom -- --nocapture --test-threads 1
//! ```

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use loom::thread;

use crate::engine::command::{Charge, LimitId};
use crate::engine::decision::Verdict;
use crate::engine::key::Key;
use crate::engine::quota::{Align, Quota};
use crate::engine::time::{Nanos, Now, SECOND, Timestamp, UtcTime};

use super::{Stamp, SweepCursor, Table};

/// Preemptions that each execution may contain. Two are what the short dose uses; a longer run
/// raises it. With two, the model of an insert that began before growth found a load that was too
/// weak (a sealed slot seen without the array after it), and finds the planted bug of a search
/// that goes on without sealing.
fn preemption_bound() -> usize {
    std::env::var("LOOM_MAX_PREEMPTIONS").ok().and_then(|bound| bound.parse().ok()).unwrap_or(2)
}

/// Runs a model and prints how many executions it took.
fn explore(name: &str, model: impl Fn() + Sync + Send + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemption_bound());
    builder.max_branches = 100_000;
    let counted = Arc::clone(&executions);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let executions = executions.load(Ordering::Relaxed);
    println!("{name}: {executions} executions, preemption bound {}", preemption_bound());
}

fn table(keys_max: u64) -> Arc<Table> {
    Arc::new(Table::with_shape(keys_max, 1, 4))
}

fn moment(nanos: u64) -> Now {
    Now { time: Timestamp::from_nanos(nanos), utc: UtcTime::from_nanos(SECOND + nanos) }
}

/// Keys with one home slot and one fingerprint: they meet in every way there is.
fn key(number: u64) -> Key {
    Key { high: number, low: 1 }
}

fn bucket(burst: u64) -> Quota {
    Quota::bucket(1, Nanos::from_secs(1), burst).unwrap()
}

fn charge(number: u64, quota: Quota) -> Charge {
    Charge { key: key(number), quota, cost: 1, limit: LimitId(1) }
}

fn passes(table: &Table, charge: Charge, nanos: u64) -> bool {
    table.pin().check_one(&charge, &mut Stamp::new(|| moment(nanos))).unwrap().fits
}

fn remaining(table: &Table, charge: Charge, nanos: u64) -> u64 {
    let mut readings = Vec::new();
    table.pin().peek(&[charge], &mut Stamp::new(|| moment(nanos)), &mut readings).unwrap();
    readings[0].remaining()
}

#[test]
fn insert_and_insert_of_one_key_share_a_counter() {
    explore("insert/insert, one key", || {
        let table = table(8);
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || passes(&other, charge(1, bucket(1)), 1));
        let here = passes(&table, charge(1, bucket(1)), 1);
        let there = thread.join().unwrap();
        assert!(here ^ there, "one unit passed {here} and {there}");
        assert_eq!(table.usage().keys, 1);
    });
}

#[test]
fn insert_and_insert_of_two_keys_stay_apart() {
    explore("insert/insert, two keys", || {
        let table = table(8);
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || passes(&other, charge(1, bucket(1)), 1));
        assert!(passes(&table, charge(2, bucket(1)), 1));
        assert!(thread.join().unwrap());
        for number in [1, 2] {
            assert_eq!(remaining(&table, charge(number, bucket(1)), 1), 0);
        }
    });
}

#[test]
fn charge_and_charge_both_count() {
    explore("charge/charge", || {
        let table = table(8);
        assert!(passes(&table, charge(1, bucket(3)), 1));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || passes(&other, charge(1, bucket(3)), 2));
        assert!(passes(&table, charge(1, bucket(3)), 1));
        assert!(thread.join().unwrap());
        assert_eq!(remaining(&table, charge(1, bucket(3)), 2), 0);
    });
}

#[test]
fn sweep_and_charge_lose_no_charge() {
    explore("sweep/charge", || {
        let table = table(8);
        assert!(passes(&table, charge(1, bucket(1)), 1));
        let other = Arc::clone(&table);
        let later = 1 + SECOND;
        let thread = thread::spawn(move || {
            other.sweep(&mut SweepCursor::default(), moment(later), 8).reclaimed
        });
        assert!(passes(&table, charge(1, bucket(1)), later));
        thread.join().unwrap();
        assert!(!passes(&table, charge(1, bucket(1)), later));
        assert_eq!(table.usage().keys, 1);
    });
}

#[test]
fn sweep_and_charge_of_a_wide_counter_lose_no_charge() {
    explore("sweep/charge, wide", || {
        let table = table(8);
        let quota = Quota::fixed(1, Nanos::from_secs(1), Align::First).unwrap();
        assert!(passes(&table, charge(1, quota), 1));
        let other = Arc::clone(&table);
        let later = 1 + SECOND;
        let thread = thread::spawn(move || {
            other.sweep(&mut SweepCursor::default(), moment(later), 8).reclaimed
        });
        assert!(passes(&table, charge(1, quota), later));
        thread.join().unwrap();
        assert!(!passes(&table, charge(1, quota), later));
        assert_eq!(table.usage().keys, 1);
    });
}

#[test]
fn grow_and_charge_keep_every_counter() {
    explore("grow/charge", || {
        let table = table(16);
        for number in 1..=3 {
            assert!(passes(&table, charge(number, bucket(2)), 1));
        }
        // The next insert fills the array and begins the move.
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || {
            assert!(passes(&other, charge(4, bucket(2)), 1));
            assert!(passes(&other, charge(5, bucket(2)), 1));
        });
        assert!(passes(&table, charge(1, bucket(2)), 1));
        assert!(!passes(&table, charge(1, bucket(2)), 1));
        thread.join().unwrap();
        assert!(!passes(&table, charge(1, bucket(2)), 1));
        for number in 2..=5 {
            assert_eq!(remaining(&table, charge(number, bucket(2)), 1), 1);
        }
        assert_eq!(table.usage().keys, 5);
    });
}

#[test]
fn grow_and_insert_of_one_key_share_a_counter() {
    explore("grow/insert", || {
        let table = table(16);
        for number in 1..=4 {
            assert!(passes(&table, charge(number, bucket(2)), 1));
        }
        // The array is full: both threads move it while they insert the same key.
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || passes(&other, charge(9, bucket(1)), 1));
        let here = passes(&table, charge(9, bucket(1)), 1);
        let there = thread.join().unwrap();
        assert!(here ^ there, "one unit passed {here} and {there}");
        assert_eq!(table.usage().keys, 5);
    });
}

/// The array begins to grow while a thread is about to insert into it: the key must not go to the
/// old array and to the new one.
#[test]
fn grow_and_insert_that_began_before_share_a_counter() {
    explore("grow/insert begun before", || {
        let table = Arc::new(Table::with_shape(16, 1, 8));
        for number in 1..=6 {
            assert!(passes(&table, charge(number, bucket(2)), 1));
        }
        // The seventh key begins the move and leaves one slot vacant.
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || {
            assert!(passes(&other, charge(8, bucket(2)), 1));
            passes(&other, charge(9, bucket(1)), 1)
        });
        let here = passes(&table, charge(9, bucket(1)), 1);
        let there = thread.join().unwrap();
        assert!(here ^ there, "one unit passed {here} and {there}");
    });
}

/// A check of two limits takes its time after its holds: if another thread charged at a later
/// moment before, the check is decided at a moment that is no earlier.
#[test]
fn hold_and_charge_never_admit_too_much() {
    explore("hold/charge", || {
        let table = table(8);
        let clock = Arc::new(loom::sync::atomic::AtomicU64::new(1));
        let both = [charge(1, bucket(1)), charge(2, bucket(2))];
        let (other, other_clock) = (Arc::clone(&table), Arc::clone(&clock));
        let thread = thread::spawn(move || {
            let nanos = other_clock.fetch_add(1, Ordering::SeqCst);
            passes(&other, charge(1, bucket(1)), nanos)
        });
        let read = || moment(clock.fetch_add(1, Ordering::SeqCst));
        let mut readings = Vec::new();
        let mut stamp = Stamp::new(read);
        let decision = table.pin().check(&both, &mut stamp, &mut readings).unwrap();
        let here = decision.verdict == Verdict::Allow;
        let there = thread.join().unwrap();
        assert!(here ^ there, "one unit passed {here} and {there}");
        // Denied, the check left its other limit untouched.
        assert_eq!(remaining(&table, charge(2, bucket(2)), 9), if here { 1 } else { 2 });
    });
}

#[test]
fn hold_and_hold_in_either_order_finish() {
    explore("hold/hold", || {
        let table = table(8);
        let check = |table: &Table, numbers: [u64; 2]| {
            let charges = numbers.map(|number| charge(number, bucket(1)));
            let mut readings = Vec::new();
            let mut stamp = Stamp::new(|| moment(1));
            table.pin().check(&charges, &mut stamp, &mut readings).unwrap().verdict
        };
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || check(&other, [2, 1]));
        let here = check(&table, [1, 2]);
        let there = thread.join().unwrap();
        assert!(here != there, "one unit passed {here:?} and {there:?}");
        assert_eq!(table.usage().keys, 2);
    });
}
