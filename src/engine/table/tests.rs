//! What the table must do, by example and with real threads; the generated laws are beside this.

mod book;
mod laws;
mod mutants;
mod snapshots;

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::engine::command::{CHARGES_MAX, Charge, LimitId};
use crate::engine::decision::{Refusal, Verdict};
use crate::engine::quota::{Align, Quota};
use crate::engine::time::{Nanos, Now, SECOND};

use super::{Stamp, SweepCursor, Table};

use book::moment;
use laws::{SEED, key};

fn sweep_all(table: &Table, now: Now) {
    let mut cursor = SweepCursor::default();
    for _ in 0..200 {
        table.sweep(&mut cursor, now, 64);
    }
}

fn bucket_charge(number: u64, quota: Quota) -> Charge {
    Charge::new(key(number), quota, 1, LimitId(1))
}

#[test]
fn a_cap_refuses_new_keys_and_keeps_the_old() {
    let table = Table::with_shape(3, &SEED, 1, 4);
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
    let table = Table::with_shape(2, &SEED, 1, 4);
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
    let table = Table::with_shape(10, &SEED, 1, 4);
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
    // Also where nothing is asked of a counter that is not there: whether it is may differ from
    // replica to replica, as one may have been swept.
    let nothing = |units| {
        let quota = Quota::fixed(units, Nanos::from_secs(60), Align::Clock).unwrap();
        Charge { cost: 0, ..bucket_charge(7, quota) }
    };
    let one = Charge { cost: 1, ..twice[0] };
    assert_eq!(check(&[nothing(5), nothing(6), one]), Err(Refusal::UnlikeQuotas));
    assert_eq!(check(&[one]), Ok((Verdict::Allow, 0)));
    let many = vec![twice[0]; CHARGES_MAX + 1];
    assert_eq!(check(&many), Err(Refusal::TooManyCharges { found: CHARGES_MAX + 1 }));
}

/// Replicas stay equal whatever each is asked, by whatever numbers, and however late.
#[test]
fn a_peek_changes_nothing() {
    let permits = Quota::concurrent(5, Nanos::from_secs(10)).unwrap();
    let bucket = |burst| Quota::bucket(1, Nanos::from_secs(60), burst).unwrap();
    let tables = [(); 2].map(|()| Table::with_shape(10, &SEED, 1, 4));
    let mut readings = Vec::new();
    let mut check = |table: &Table, charge: Charge, now: Now| {
        let decision = table.pin().check(&[charge], &mut Stamp::new(|| now), &mut readings);
        (decision.unwrap().verdict, readings[0].remaining())
    };
    let late = moment(14 * SECOND);
    for table in &tables {
        for second in [1, 2, 3, 5] {
            check(table, bucket_charge(1, permits), moment(second * SECOND));
        }
        let drained = Charge { cost: 10, ..bucket_charge(2, bucket(10)) };
        check(table, drained, moment(5 * SECOND));
    }
    let peek = |charge| {
        let mut readings = Vec::new();
        tables[0].pin().peek(&[charge], &mut Stamp::new(|| late), &mut readings).unwrap();
        readings[0].remaining()
    };
    // Three of four have lapsed; a debt of ten units is one of a refill by the other numbers.
    assert_eq!((peek(bucket_charge(1, permits)), peek(bucket_charge(2, bucket(4)))), (4, 0));
    let now = moment(6 * SECOND);
    assert_eq!(tables[0].hash(now), tables[1].hash(now));
    for charge in [bucket_charge(1, permits), bucket_charge(2, bucket(4))] {
        assert_eq!(check(&tables[0], charge, now), check(&tables[1], charge, now));
    }
    assert_eq!(tables[0].hash(now), tables[1].hash(now));
}

#[test]
fn growth_and_shrinking_keep_every_counter() {
    let table = Table::new(1_000_000, &SEED);
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
        let table = Table::new(100, &SEED);
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
    let table = Table::new(100, &SEED);
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
