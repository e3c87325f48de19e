//! Models of the table's races, each run through every interleaving up to a bound on preemptions.
//! Memory reclamation is modelled too: the epoch library runs on loom as well.
//!
//! ```text
//! RUSTFLAGS="--cfg table_model --cfg crossbeam_loom" \
//!     cargo test --release --lib table::loom -- --nocapture --test-threads 1
//! ```

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use loom::thread;

use crate::engine::command::{Charge, LimitId};
use crate::engine::decision::Verdict;
use crate::engine::key::{Key, Seed};
use crate::engine::mutant::{Mutant, plant};
use crate::engine::permit::PermitId;
use crate::engine::quota::{Align, Quota};
use crate::engine::time::{Nanos, Now, SECOND, Timestamp, UtcTime};

use super::{Snapshot, Stamp, State, SweepCursor, Table, Walked};

const SEED: Seed = Seed::new([3; 16]);

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

/// A model that says whether its law holds, run through every interleaving.
fn holds(name: &str, model: impl Fn() -> Result<(), String> + Sync + Send + 'static) {
    explore(name, move || model().unwrap());
}

/// A bug is planted, and the model must find it. Prints in how many executions it did. (The model
/// says so instead of panicking: a panic within a model ends the process.)
fn finds(
    mutant: Mutant,
    name: &str,
    model: impl Fn() -> Result<(), String> + Sync + Send + 'static,
) {
    let found = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&found);
    // All threads of a model run on this one, so planting it here plants it in all of them.
    explore(name, move || {
        let broken = plant(mutant, &model).is_err();
        counted.fetch_add(broken.into(), Ordering::Relaxed);
    });
    let found = found.load(Ordering::Relaxed);
    assert!(found > 0, "{name} did not find {mutant:?}");
    println!("{mutant:?}: found by {name} in {found} of these");
}

fn table(keys_max: u64) -> Arc<Table> {
    Arc::new(Table::with_shape(keys_max, &SEED, 1, 4))
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
    Charge::new(key(number), quota, 1, LimitId(1))
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
        let table = Arc::new(Table::with_shape(16, &SEED, 1, 8));
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

/// A check of two limits whose counters are new takes its time after its holds: if another thread charged at a later
/// moment before, the check is decided at a moment that is no earlier.
fn hold_and_charge() {
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
}

#[test]
fn hold_and_charge_never_admit_too_much() {
    explore("hold/charge", hold_and_charge);
}

/// Both counters are there, so the check of two waits for nothing.
fn together_and_charge() -> Result<(), String> {
    let table = table(8);
    let both = [charge(1, bucket(2)), charge(2, bucket(3))];
    assert!(both.iter().all(|one| passes(&table, *one, 1)));
    let other = Arc::clone(&table);
    let thread = thread::spawn(move || passes(&other, charge(1, bucket(2)), 1));
    let mut stamp = Stamp::new(|| moment(1));
    let decision = table.pin().check(&both, &mut stamp, &mut Vec::new()).unwrap();
    let here = decision.verdict == Verdict::Allow;
    let there = thread.join().unwrap();
    if here == there {
        return Err(format!("one unit passed {here} and {there}"));
    }
    let left = [remaining(&table, both[0], 1), remaining(&table, both[1], 1)];
    if left == [0, if here { 1 } else { 2 }] { Ok(()) } else { Err(format!("{left:?} are left")) }
}

#[test]
fn together_and_charge_never_admit_too_much() {
    holds("together/charge", together_and_charge);
}

#[test]
fn a_look_that_is_trusted_is_found() {
    finds(Mutant::TogetherTrustsLook, "together/charge", together_and_charge);
}

#[test]
fn together_and_together_in_either_order_finish() {
    holds("together/together", || {
        let table = table(8);
        let both = [charge(1, bucket(2)), charge(2, bucket(2))];
        assert!(both.iter().all(|one| passes(&table, *one, 1)));
        let check = |table: &Table, charges: [Charge; 2]| {
            let mut stamp = Stamp::new(|| moment(1));
            table.pin().check(&charges, &mut stamp, &mut Vec::new()).unwrap().verdict
        };
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || check(&other, [both[1], both[0]]));
        let here = check(&table, both);
        let there = thread.join().unwrap();
        let left = [remaining(&table, both[0], 1), remaining(&table, both[1], 1)];
        if here != there && left == [0, 0] {
            return Ok(());
        }
        Err(format!("one unit passed {here:?} and {there:?}, {left:?} are left"))
    });
}

/// A bucket of one unit every other moment. The check of it and of an empty one must be refused;
/// were it charged first and uncharged by subtraction, it would take back the other thread's charge
/// once the moments have refilled the bucket in between.
#[test]
fn undoing_by_subtraction_is_found() {
    finds(Mutant::UndoBySubtraction, "denied/charge", denied_and_charge);
}

#[test]
fn a_denied_check_takes_nothing_back() {
    holds("denied/charge", denied_and_charge);
}

fn denied_and_charge() -> Result<(), String> {
    let table = table(8);
    let fast = Quota::bucket(1_000_000, Nanos::from_secs(2), 1).unwrap();
    let empty = charge(2, bucket(1));
    assert!(passes(&table, empty, 1));
    let clock = Arc::new(loom::sync::atomic::AtomicU64::new(1));
    let tick = |clock: &loom::sync::atomic::AtomicU64| 1000 * clock.fetch_add(1, Ordering::SeqCst);
    let (other, other_clock) = (Arc::clone(&table), Arc::clone(&clock));
    let thread = thread::spawn(move || {
        let nanos = tick(&other_clock);
        (nanos, passes(&other, charge(1, fast), nanos))
    });
    let mut readings = Vec::new();
    let mut stamp = Stamp::new(|| moment(tick(&clock)));
    let both = [charge(1, fast), empty];
    let decision = table.pin().check(&both, &mut stamp, &mut readings).unwrap();
    assert_eq!(decision.verdict, Verdict::Deny);
    let (charged_at, passed) = thread.join().unwrap();
    // One unit takes two ticks to come back.
    if passed && passes(&table, charge(1, fast), charged_at + 1999) {
        return Err("a charge was taken back".to_owned());
    }
    Ok(())
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

fn permits(units: u64) -> Quota {
    Quota::concurrent(units, Nanos::from_secs(1)).unwrap()
}

/// Asks for a permit at a moment, or at one that a clock tells once the counter is held.
fn acquire(table: &Table, units: u64, read: impl FnMut() -> Now) -> Option<PermitId> {
    let mut readings = Vec::new();
    let asked = [charge(1, permits(units))];
    let decision = table.pin().check(&asked, &mut Stamp::new(read), &mut readings).unwrap();
    decision.permit.map(|permit| permit.id)
}

fn held(table: &Table, nanos: u64) -> u64 {
    8_u64.wrapping_sub(remaining(table, charge(1, permits(8)), nanos))
}

#[test]
fn acquire_and_acquire_of_the_last_permit() {
    explore("acquire/acquire", || {
        let table = table(8);
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || acquire(&other, 1, || moment(1)).is_some());
        let here = acquire(&table, 1, || moment(1)).is_some();
        let there = thread.join().unwrap();
        assert!(here ^ there, "one permit was given {here} and {there}");
        assert_eq!(held(&table, 1), 1);
        assert_eq!(table.usage().keys, 2);
    });
}

fn release_and_release() -> Result<(), String> {
    let table = table(8);
    let permit = acquire(&table, 8, || moment(1)).unwrap();
    assert!(acquire(&table, 8, || moment(1)).is_some());
    let other = Arc::clone(&table);
    let thread = thread::spawn(move || other.pin().release(permit, &mut Stamp::new(|| moment(2))));
    let here = table.pin().release(permit, &mut Stamp::new(|| moment(2)));
    let (there, held) = (thread.join().unwrap(), held(&table, 2));
    if here + there == 1 && held == 1 {
        return Ok(());
    }
    Err(format!("one unit was given back {here} and {there} times, and {held} are held"))
}

#[test]
fn release_and_release_give_back_once() {
    holds("release/release", release_and_release);
}

#[test]
fn trusting_the_first_look_is_found() {
    finds(Mutant::ReleaseTrustsFirstLook, "release/release", release_and_release);
}

/// The permit has lapsed when another is asked for: the release comes before or after, and frees
/// no unit of the new one.
#[test]
fn release_and_expiry_free_a_unit_once() {
    explore("release/expiry", || {
        let table = table(8);
        let permit = acquire(&table, 1, || moment(1)).unwrap();
        let lapsed = 1 + SECOND;
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || acquire(&other, 1, || moment(lapsed)));
        let released = table.pin().release(permit, &mut Stamp::new(|| moment(lapsed)));
        assert_eq!(released, 0, "it had lapsed");
        assert!(thread.join().unwrap().is_some());
        assert_eq!(held(&table, lapsed), 1);
        assert_eq!(table.usage().keys, 2);
    });
}

/// Either the permit is kept, and there is none for another, or it has lapsed, and cannot be kept.
#[test]
fn renew_and_expiry_never_hold_one_unit_twice() {
    explore("renew/expiry", || {
        let table = table(8);
        let permit = acquire(&table, 1, || moment(1)).unwrap();
        // The first of the two to look at the clock is still in time.
        let clock = Arc::new(loom::sync::atomic::AtomicU64::new(SECOND - 2));
        let tick = |clock: &loom::sync::atomic::AtomicU64| clock.fetch_add(1, Ordering::SeqCst);
        let (other, other_clock) = (Arc::clone(&table), Arc::clone(&clock));
        let thread = thread::spawn(move || acquire(&other, 1, || moment(tick(&other_clock))));
        let mut stamp = Stamp::new(|| moment(tick(&clock)));
        let renewed = table.pin().renew(permit, None, &mut stamp).unwrap().is_some();
        let acquired = thread.join().unwrap().is_some();
        assert!(!(renewed && acquired), "one unit is held twice");
        assert!(held(&table, SECOND + 10) <= 1);
    });
}

#[test]
fn sweep_and_acquire_of_lapsed_permits_lose_none() {
    explore("sweep/acquire", || {
        let table = table(8);
        assert!(acquire(&table, 1, || moment(1)).is_some());
        let lapsed = 1 + SECOND;
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || {
            other.sweep(&mut SweepCursor::default(), moment(lapsed), 8).reclaimed
        });
        assert!(acquire(&table, 1, || moment(lapsed)).is_some());
        thread.join().unwrap();
        assert!(acquire(&table, 1, || moment(lapsed)).is_none());
        assert_eq!(table.usage().keys, 2);
    });
}

#[test]
fn charge_and_charge_of_a_sliding_window_both_count() {
    explore("charge/charge, sliding", || {
        let table = table(8);
        let sliding = || charge(1, Quota::sliding(2, Nanos::from_secs(1)).unwrap());
        assert!(passes(&table, sliding(), 1));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || passes(&other, sliding(), 2));
        let here = passes(&table, sliding(), 2);
        let there = thread.join().unwrap();
        assert!(here ^ there, "one unit passed {here} and {there}");
    });
}

/// Numbers change while a charge by the old ones goes on: the charge is not lost.
#[test]
fn convert_and_charge_keep_the_charge() {
    explore("convert/charge", || {
        let table = table(8);
        assert!(passes(&table, charge(1, bucket(3)), 1));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || passes(&other, charge(1, bucket(3)), 1));
        assert!(passes(&table, charge(1, bucket(4)), 1));
        assert!(thread.join().unwrap());
        assert_eq!(remaining(&table, charge(1, bucket(4)), 1), 1);
    });
}

/// What a snapshot of the whole table tells: the value of each key, by the high half.
fn told(snapshot: &mut Snapshot<Arc<Table>>) -> BTreeMap<u64, u64> {
    while !snapshot.is_settled() {
        thread::yield_now();
    }
    let mut told = BTreeMap::new();
    while snapshot
        .walk(64, |_, counter| {
            let State::Narrow(value) = counter.state else { unreachable!("narrow counters only") };
            let first = *told.entry(counter.key.words()[0]).or_insert(value);
            assert_eq!(first, value, "a counter told twice says the same");
        })
        .unwrap()
        != Walked::All
    {}
    told
}

/// A check of two counters goes on while a snapshot begins and is taken: it is in it, or not.
#[test]
fn snapshot_and_hold_split_no_check() {
    explore("snapshot/hold", || {
        let table = table(8);
        let level = || Quota::level(100).unwrap();
        let both = [charge(1, level()), charge(2, level())];
        assert!(passes(&table, both[0], 1) && passes(&table, both[1], 1));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || {
            let mut stamp = Stamp::new(|| moment(1));
            other.pin().check(&both, &mut stamp, &mut Vec::new()).unwrap();
        });
        let mut snapshot = Snapshot::begin(Arc::clone(&table), 8).unwrap();
        let told = told(&mut snapshot);
        thread.join().unwrap();
        assert!(told[&1] == told[&2], "half of a check: {told:?}");
        assert_eq!(remaining(&table, both[0], 1), 98);
    });
}

/// A counter changes and another comes while the snapshot is taken: the one is in it as it was or
/// as it became, the other only if the change before it is.
#[test]
fn snapshot_and_charges_keep_their_order() {
    explore("snapshot/charge", || {
        let table = table(8);
        let one = |number| charge(number, Quota::level(100).unwrap());
        assert!(passes(&table, one(1), 1));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || {
            assert!(passes(&other, one(1), 1));
            assert!(passes(&other, one(2), 1));
        });
        let mut snapshot = Snapshot::begin(Arc::clone(&table), 8).unwrap();
        let told = told(&mut snapshot);
        thread.join().unwrap();
        assert!(told[&1] == 2 || !told.contains_key(&2), "the second without the first: {told:?}");
    });
}
