//! What must never happen to a snapshot: half of one, another's, a damaged one.

mod changes;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::command::{Charge, LimitId};
use crate::engine::decision::Verdict;
use crate::engine::key::{KeySpace, Seed};
use crate::engine::kinds::{Boundaries, Period};
use crate::engine::permit::PermitId;
use crate::engine::quota::{Align, Kind, Quota};
use crate::engine::session::{Done, RequestId, Sessions};
use crate::engine::table::{Stamp, Table};
use crate::engine::time::{Nanos, Now, SECOND, Timestamp, UtcTime};

use super::faulty::{Disk, Fault};
use super::home::{Home, Restore};
use super::layout::{Header, LimitName, SectionKind, verify};
use super::snapshot::{Beside, Moment, Verified, Written};
use super::storage::Storage;
use super::{DiskError, Identity, WriteError};

const SEED: [u8; 16] = *b"seed of 16 bytes";

const FIXTURE: &[u8] = include_bytes!("../../tests/fixtures/snapshot-1.snap");

/// Wall time at which cluster time is zero.
const START_UTC: u64 = 1_700_000_000 * SECOND;

fn moment(seconds: u64) -> Now {
    let nanos = seconds * SECOND;
    Now { time: Timestamp::from_nanos(nanos), utc: UtcTime::from_nanos(START_UTC + nanos) }
}

fn identity() -> Identity {
    Identity { id: [7; 16], seed: SEED, made_at: UtcTime::from_nanos(START_UTC) }
}

fn table() -> Table {
    Table::new(1 << 20, &Seed::new(SEED))
}

/// A counter of every kind, by number from 0.
const KINDS: u64 = 9;

fn charge(kind: u64, number: u64, cost: u64) -> Charge {
    let hour = Nanos::from_secs(3600);
    let opens_at = (START_UTC / SECOND) as u32;
    let (ends_at, next_ends_at) = (opens_at + 86_400, opens_at + 2 * 86_400);
    let quota = match kind {
        0 => Quota::bucket(3600, hour, 1000),
        // A rate that has no narrow form.
        1 => Quota::bucket(7, Nanos::from_secs(1), 7_000_000),
        2 => Quota::fixed(1000, hour, Align::Clock),
        3 => Quota::fixed(1000, hour, Align::First),
        4 => Quota::calendar(1000, Period::Day, Boundaries { opens_at, ends_at, next_ends_at }),
        5 => Quota::sliding(1000, hour),
        6 => Quota::sliding(1 << 40, hour),
        7 => Quota::concurrent(1000, hour),
        _ => Quota::level(1 << 40),
    };
    let space = KeySpace::derive(&Seed::new(SEED), [&b"test"[..], &kind.to_le_bytes()]);
    let key = space.key([&number.to_le_bytes()[..]]);
    Charge::new(key, quota.unwrap(), cost, LimitId(kind as u16))
}

fn limits() -> Vec<LimitName> {
    let limit = |id: u16| LimitName {
        id: LimitId(id),
        kind: Kind::Bucket,
        api: "test".to_owned(),
        name: format!("limit {id}"),
        window: String::new(),
    };
    (1..KINDS as u16).map(limit).collect()
}

/// So many units of each kind, each of `numbers` counters; returns the permits.
fn fill(table: &Table, numbers: u64, now: Now) -> Vec<PermitId> {
    let (mut permits, mut readings) = (Vec::new(), Vec::new());
    for number in 0..numbers {
        for kind in 0..KINDS {
            let cost = if kind == 6 { 1 << 30 } else { 1 + number % 7 };
            let charges = [charge(kind, number, cost)];
            let decision = table.pin().check(&charges, &mut Stamp::new(|| now), &mut readings);
            let decision = decision.unwrap();
            assert_eq!(decision.verdict, Verdict::Allow, "kind {kind}");
            permits.extend(decision.permit.map(|permit| permit.id));
        }
    }
    permits
}

/// What is left of every counter.
fn remaining(table: &Table, numbers: u64, now: Now) -> Vec<u64> {
    let mut readings = Vec::new();
    let charges = (0..numbers).flat_map(|number| (0..KINDS).map(move |kind| (kind, number)));
    charges
        .map(|(kind, number)| {
            let charge = [charge(kind, number, 1)];
            table.pin().peek(&charge, &mut Stamp::new(|| now), &mut readings).unwrap();
            readings[0].remaining()
        })
        .collect()
}

fn beside(number: u64, now: Now, moment: &Moment<Arc<Table>>) -> Beside {
    let header = Header {
        instance: [7; 16],
        seed: SEED,
        number,
        time: now.time,
        utc: now.utc,
        wall: now.utc,
        policy: 5,
        next_permit: moment.next_permit(),
        applied: (0, 0),
        sessions_opened: 0,
    };
    Beside { header, limits: limits(), sessions: Vec::new(), cluster: Vec::new() }
}

fn save<S: Storage>(
    home: &mut Home<S>,
    table: &Arc<Table>,
    now: Now,
) -> Result<Written, WriteError> {
    let moment = Moment::mark(Arc::clone(table), 1 << 20).unwrap();
    let beside = beside(home.next_number(), now, &moment);
    home.write(&beside, moment, &mut std::thread::yield_now)
}

fn take(disk: &Disk) -> Result<Home<Disk>, DiskError> {
    Home::take(disk.clone(), "data".to_owned(), identity())
}

fn load<B: core::ops::Deref<Target = [u8]> + Sync>(verified: &Verified<B>) -> Table {
    let mut table = table();
    verified.load(&mut table, |limit| Some(limit.id)).unwrap();
    table
}

/// A snapshot of about so many bytes.
fn snapshot_of(numbers: u64) -> Vec<u8> {
    let disk = Disk::default();
    let table = Arc::new(table());
    fill(&table, numbers, moment(60));
    let mut home = take(&disk).unwrap();
    save(&mut home, &table, moment(61)).unwrap();
    disk.read("000000000001.snap").unwrap()
}

#[test]
fn every_kind_comes_back_as_it_was() {
    let disk = Disk::default();
    let before = Arc::new(table());
    let permits = fill(&before, 50, moment(60));
    let mut home = take(&disk).unwrap();
    let written = save(&mut home, &before, moment(61)).unwrap();
    assert_eq!(written.totals.counters(), 50 * KINDS);
    let verified = take(&disk).unwrap().restore(Restore::Latest).unwrap().unwrap();
    let after = load(&verified);
    for seconds in [61, 200, 3000] {
        let now = moment(seconds);
        assert_eq!(remaining(&after, 50, now), remaining(&before, 50, now));
    }
    assert_eq!(after.usage().keys, before.usage().keys);
    assert_eq!(after.keys_of(LimitId(3)), 50);
    // A permit is given back by the id that was given before.
    let mut stamp = Stamp::new(|| moment(3000));
    assert_eq!(after.pin().release(permits[8], &mut stamp), 2);
    assert_eq!(after.pin().release(permits[8], &mut stamp), 0);
    // One that nobody gave back lapses when it would have.
    assert_eq!(remaining(&after, 50, moment(3661))[7], 1000);
}

#[test]
fn counters_of_limits_that_are_gone_wait_with_the_inline_ones() {
    let bytes = snapshot_of(5);
    let verified = Verified::verify(&bytes[..]).unwrap();
    let mut table = table();
    let loaded = verified.load(&mut table, |limit| (limit.id.0 == 2).then_some(LimitId(9)));
    let loaded = loaded.unwrap();
    assert_eq!((loaded.counters, loaded.of_unknown_limits), (45, 35));
    assert_eq!(table.keys_of(LimitId(9)), 5);
    assert_eq!(table.keys_of(LimitId::INLINE), 45 - 5 + 5);
    // Their debt is there for whoever comes with their keys.
    assert_eq!(remaining(&table, 5, moment(61))[8], (1 << 40) - 1);
}

#[test]
fn sessions_come_back() {
    let disk = Disk::default();
    let mut sessions = Sessions::new(&Seed::new(SEED));
    let session = sessions.open(moment(1).time).unwrap();
    let id = |sequence| RequestId { session, sequence };
    let permit = PermitId([7; 16]);
    for (sequence, permit) in [(70, None), (69, Some(permit))] {
        assert_eq!(sessions.find(id(sequence), moment(2).time), Ok(None));
        sessions.mark_done(id(sequence), permit);
    }
    let mut home = take(&disk).unwrap();
    let table = Arc::new(table());
    let moment_of = Moment::mark(Arc::clone(&table), 10).unwrap();
    let mut beside = beside(1, moment(3), &moment_of);
    (beside.header.sessions_opened, beside.sessions) = sessions.saved();
    home.write(&beside, moment_of, &mut std::thread::yield_now).unwrap();
    let verified = take(&disk).unwrap().restore(Restore::Latest).unwrap().unwrap();
    let mut restored = Sessions::new(&Seed::new(SEED));
    restored.restore(verified.outline().header.sessions_opened, verified.sessions());
    let known =
        [(70, Some(Done { permit: None })), (69, Some(Done { permit: Some(permit) })), (71, None)];
    for (sequence, done) in known {
        assert_eq!(restored.find(id(sequence), moment(4).time), Ok(done));
    }
    assert_ne!(restored.open(moment(5).time), Ok(session));
}

/// 100 % of single flipped bits and of truncations, in 64 KiB.
#[test]
fn every_flipped_bit_and_every_truncation_is_found() {
    let mut bytes = snapshot_of(100);
    assert!(bytes.len() >= 64 << 10, "{}", bytes.len());
    let outline = verify(&bytes).unwrap();
    for kind in [
        SectionKind::Limits,
        SectionKind::Windows,
        SectionKind::Narrow,
        SectionKind::Cells,
        SectionKind::Rings,
        SectionKind::Shares,
    ] {
        assert!(outline.sections.iter().any(|section| section.kind == kind), "{kind:?}");
    }
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damage = verify(&bytes).expect_err("a flipped bit");
        // What is told is no later than the end of the section that the bit is in.
        assert!(damage.offset as usize <= bit / 8, "{damage} of bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for length in 0..bytes.len() {
        assert!(verify(&bytes[..length]).is_err(), "{length} bytes");
    }
    bytes.push(0);
    assert!(verify(&bytes).is_err(), "one byte more");
}

#[test]
fn damage_is_told_with_its_place_and_what_to_do() {
    let disk = Disk::default();
    let table = Arc::new(table());
    let mut home = take(&disk).unwrap();
    fill(&table, 5, moment(60));
    save(&mut home, &table, moment(61)).unwrap();
    let before = remaining(&table, 5, moment(63));
    fill(&table, 5, moment(62));
    save(&mut home, &table, moment(63)).unwrap();
    drop(home);
    disk.flip("000000000002.snap", 8 * 600);
    let error = take(&disk).unwrap().restore(Restore::Latest).err().unwrap().to_string();
    for part in ["data/000000000002.snap", "section", "offset", "--restore previous", "0001.snap"] {
        assert!(error.contains(part), "{error}");
    }
    let mut home = take(&disk).unwrap();
    let verified = home.restore(Restore::Previous).unwrap().unwrap();
    assert_eq!(remaining(&load(&verified), 5, moment(63)), before);
    // From now on the damaged one is out of the way, and its number is not used again.
    assert_eq!(take(&disk).unwrap().next_number(), 3);
    assert!(take(&disk).unwrap().restore(Restore::Latest).unwrap().is_some());
    let error = take(&disk).unwrap().restore(Restore::Previous).err().unwrap().to_string();
    assert!(error.contains("no snapshot before"), "{error}");
}

#[test]
fn what_is_not_ours_is_refused() {
    let disk = Disk::default();
    drop(disk.create("mine.txt").unwrap());
    let error = take(&disk).err().unwrap().to_string();
    assert!(error.contains("mine.txt") && error.contains("empty directory"), "{error}");
    let disk = Disk::default();
    let mut home = take(&disk).unwrap();
    save(&mut home, &Arc::new(table()), moment(1)).unwrap();
    disk.remove("instance").unwrap();
    let error = take(&disk).err().unwrap().to_string();
    assert!(error.contains("000000000001.snap"), "{error}");
    // Another instance's snapshot.
    let other = Disk::default();
    let identity = Identity { id: [8; 16], ..identity() };
    drop(Home::take(other.clone(), "other".to_owned(), identity).unwrap());
    let mut file = other.create("000000000001.snap").unwrap();
    std::io::Write::write_all(&mut file, &disk.read("000000000001.snap").unwrap()).unwrap();
    let error = take(&other).unwrap().restore(Restore::Latest).err().unwrap().to_string();
    assert!(error.contains("of instance 07070707"), "{error}");
    other.flip("instance", 200);
    let error = take(&other).err().unwrap().to_string();
    assert!(error.contains("checksum"), "{error}");
}

/// A run that takes three snapshots; returns how many it was told were written. Level number `n`
/// holds `i` units in snapshot `i`.
fn run(disk: &Disk) -> u64 {
    let table = Arc::new(table());
    let Ok(mut home) = take(disk) else { return 0 };
    let mut written = 0;
    for _ in 1..=3 {
        for number in 0..LEVELS {
            let level = charge(8, number, 1);
            let mut stamp = Stamp::new(|| moment(1));
            assert!(table.pin().check_one(&level, &mut stamp).unwrap().fits);
        }
        if save(&mut home, &table, moment(2)).is_err() {
            break;
        }
        written += 1;
    }
    written
}

const LEVELS: u64 = 200;

/// What a start finds: how many units each level holds, if there is a snapshot.
fn found(disk: &Disk) -> Option<u64> {
    let mut home = take(disk).unwrap_or_else(|error| panic!("{error}"));
    let restored = home.restore(Restore::Latest).unwrap_or_else(|error| panic!("{error}"));
    let table = load(&restored?);
    let left = remaining(&table, LEVELS, moment(2));
    let levels = left.chunks(KINDS as usize).map(|kinds| (1 << 40) - kinds[8]);
    let counts: BTreeMap<u64, usize> = levels.fold(BTreeMap::new(), |mut counts, units| {
        *counts.entry(units).or_default() += 1;
        counts
    });
    assert_eq!(counts.len(), 1, "half of one snapshot and half of another: {counts:?}");
    counts.into_keys().next()
}

/// Whatever happens at whichever operation, and whatever a loss of power then leaves of what was
/// not synced: a start finds the last snapshot that was said to be written, or the one after it,
/// whole.
#[test]
fn a_crash_at_any_operation_leaves_the_old_snapshot_or_the_new() {
    const SEEDS: u64 = 12;
    let whole = Disk::default();
    assert_eq!(run(&whole), 3);
    let operations = whole.operations();
    assert!(operations > 30, "{operations}");
    let (mut cases, mut newer) = (0, 0);
    for at in 0..operations {
        for fault in [Fault::Crash { at }, Fault::Fail { at }] {
            let disk = Disk::default();
            disk.set_fault(fault);
            let written = run(&disk);
            for seed in 0..SEEDS {
                let found = found(&disk.after_loss_of_power(seed)).unwrap_or_default();
                assert!(found == written || found == written + 1, "{found}, {written}: {fault:?}");
                cases += 1;
                newer += u64::from(found > written);
            }
        }
    }
    // A run in which nothing was at stake proves nothing.
    assert!(newer > 0 && newer < cases, "{newer} of {cases}");
}

#[test]
fn a_full_disk_keeps_the_old_snapshot_and_short_writes_do_no_harm() {
    let whole = Disk::default();
    whole.write_short();
    assert_eq!(run(&whole), 3);
    assert_eq!(found(&whole.after_loss_of_power(1)), Some(3));
    for bytes in (0..20_000).step_by(97) {
        let disk = Disk::default();
        disk.set_fault(Fault::Full { bytes });
        let written = run(&disk);
        assert!(written < 3);
        disk.set_fault(Fault::None);
        assert_eq!(found(&disk).unwrap_or_default(), written, "{bytes} bytes");
    }
}

/// The file was written by the first version of the format and never again
/// (`cargo test --lib disk -- --ignored writes_the_fixture` wrote it).
#[test]
fn a_snapshot_of_version_1_is_read_for_ever() {
    let verified = Verified::verify(FIXTURE).unwrap();
    let header = verified.outline().header;
    assert_eq!((header.number, header.time), (1, moment(61).time));
    let limits = verified.limits().unwrap();
    assert_eq!((limits.len(), &*limits[0].name), (KINDS as usize - 1, "limit 1"));
    let restored = load(&verified);
    let by_hand = table();
    let permits = fill(&by_hand, 10, moment(60));
    for seconds in [61, 100, 3000] {
        let now = moment(seconds);
        assert_eq!(remaining(&restored, 10, now), remaining(&by_hand, 10, now));
    }
    for permit in permits {
        assert!(restored.pin().release(permit, &mut Stamp::new(|| moment(61))) > 0);
    }
}

#[test]
#[ignore = "writes the file that others read"]
fn writes_the_fixture() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/snapshot-1.snap");
    std::fs::write(path, snapshot_of(10)).unwrap();
}
