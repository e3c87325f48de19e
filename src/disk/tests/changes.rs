//! What must never happen to changes by hand: one that was said to be kept is gone, one comes
//! twice, damage is taken for a torn end.

use proptest::prelude::*;

use crate::disk::by_hand;
use crate::disk::changes::{ChangeFile, Place, ReadChanges, Record};
use crate::disk::faulty::{Disk, Fault};
use crate::disk::layout::verify;
use crate::disk::storage::{File, Storage};
use crate::disk::{DiskError, Verified};
use crate::engine::key::Key;
use crate::engine::kinds::{Boundaries, Period, UNLIMITED};
use crate::engine::quota::{Align, Quota, UNITS_MAX, WINDOW_MAX, WINDOW_MIN};
use crate::engine::session::RequestId;
use crate::engine::time::{Nanos, Timestamp, UtcTime};
use crate::policy::{Account, ByHand, Identity, Mode, OverrideRecord, SetCounter, SetCounters};

use super::{START_UTC, identity, moment, snapshot_of, take};

const FIXTURE: &[u8] = include_bytes!("../../../tests/fixtures/changes-1");

const NAME: &str = "changes";

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..6).prop_map(String::from_iter)
}

fn key() -> impl Strategy<Value = Option<Vec<(String, String)>>> {
    proptest::option::of(proptest::collection::vec((text(), text()), 0..4))
}

fn quota() -> impl Strategy<Value = Quota> {
    let units = prop_oneof![1..=9_u64, 1..=UNITS_MAX];
    let window = prop_oneof![
        WINDOW_MIN.get()..=WINDOW_MAX.get(),
        (1..=1000_u64).prop_map(|seconds| seconds * 1_000_000_000),
        Just(WINDOW_MIN.get()),
    ];
    (0..6, units, window.prop_map(Nanos::new), 1..=UNITS_MAX, any::<bool>()).prop_map(
        |(kind, units, window, burst, flag)| {
            let units_or_none = if flag { UNLIMITED } else { units };
            let align = if flag { Align::Clock } else { Align::First };
            let (opens_at, ends_at, next_ends_at) = (1_000, 2_000, 3_000 + (units % 1000) as u32);
            let at = Boundaries { opens_at, ends_at, next_ends_at };
            let made = match kind {
                0 => Quota::bucket(units, window, burst),
                1 => Quota::sliding(units, window),
                2 => Quota::fixed(units_or_none, window, align),
                3 => Quota::calendar(units_or_none, Period::Week, at),
                4 => Quota::concurrent(units, window),
                _ => Quota::level(units_or_none),
            };
            made.unwrap()
        },
    )
}

fn set_counters() -> impl Strategy<Value = SetCounters> {
    let counter = (any::<[u64; 2]>(), quota(), text(), text(), text()).prop_map(
        |(words, quota, api, limit, window)| SetCounter {
            key: Key::from_words(words),
            quota,
            api: api.into(),
            limit: limit.into(),
            window: window.into(),
        },
    );
    let id = proptest::option::of((any::<u64>(), 1..u64::MAX));
    (0..100_u64, 0..=UNITS_MAX, id, proptest::collection::vec(counter, 1..4)).prop_map(
        |(seconds, used, id, counters)| {
            let id = id.map(|(session, sequence)| RequestId { session, sequence });
            SetCounters { now: moment(seconds), used, id, counters }
        },
    )
}

fn change() -> impl Strategy<Value = ByHand> {
    let modes = [None, Some(Mode::Enforce), Some(Mode::Shadow), Some(Mode::Off)];
    let record = (
        (text(), text(), key(), proptest::option::of(text())),
        (
            proptest::sample::select(modes.to_vec()),
            proptest::option::of(any::<u64>()),
            any::<u64>(),
        ),
        (text(), text()),
    )
        .prop_map(|((api, limit, key, quota), (mode, until, set_at), (who, reason))| {
            let (until, set_at) = (until.map(UtcTime::from_nanos), UtcTime::from_nanos(set_at));
            OverrideRecord { api, limit, key, quota, mode, until, set_at, who, reason }
        });
    let named = || (text(), text(), proptest::collection::vec(any::<u8>(), 0..9));
    prop_oneof![
        record.prop_map(ByHand::SetOverride),
        (text(), text(), key(), text()).prop_map(|(api, limit, key, who)| ByHand::ClearOverride {
            api,
            limit,
            key,
            who
        }),
        (named(), text(), proptest::option::of(text())).prop_map(
            |((api, attribute, value), account, tier)| {
                let account = Account { account: account.into(), tier: tier.map(Into::into) };
                let (api, attribute, value) = (api.into(), attribute.into(), value.into());
                ByHand::PutIdentity(Identity { api, attribute, value, account })
            }
        ),
        named().prop_map(|(api, attribute, value)| ByHand::RemoveIdentity {
            api: api.into(),
            attribute: attribute.into(),
            value: value.into(),
        }),
        set_counters().prop_map(ByHand::SetCounters),
    ]
}

/// A change that tells its number.
fn numbered(number: u64) -> Record {
    let value = number.to_le_bytes().repeat(1 + number as usize % 200).into();
    Record {
        number,
        time: Timestamp::from_nanos(number),
        wall: UtcTime::from_nanos(START_UTC + number),
        change: ByHand::RemoveIdentity { api: "a".into(), attribute: "k".into(), value },
    }
}

fn at(number: u64) -> Place {
    let Record { number, time, wall, .. } = numbered(number);
    Place { number, time, wall }
}

fn file(disk: &Disk) -> ChangeFile<Disk> {
    ChangeFile::new(std::sync::Arc::new(disk.clone()), identity().id)
}

fn read(bytes: Vec<u8>) -> Result<Vec<Record>, String> {
    let read = ReadChanges::verify(bytes, identity().id).map_err(|spoilt| spoilt.to_string())?;
    Ok(read.records().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_change_comes_back_as_it_was(change in change()) {
        let mut bytes = Vec::new();
        let kind = by_hand::put(&mut bytes, &change);
        prop_assert_eq!(by_hand::read(kind, &bytes), Ok(change));
        for length in 0..bytes.len() {
            prop_assert!(by_hand::read(kind, &bytes[..length]).is_err(), "{} bytes", length);
        }
    }

    /// What stands in place of the fuzzer: whatever the bytes are, reading them ends, and with no
    /// panic. Most are a few changes away from a good file, so that they come past the first looks.
    #[test]
    fn no_bytes_harm_the_decoders(
        kind in 0..7_u16,
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        edits in proptest::collection::vec((any::<u32>(), any::<u8>()), 0..6),
        cut in any::<u32>(),
    ) {
        let _ = by_hand::read(kind, &bytes);
        let _ = read(bytes.clone());
        prop_assert!(Verified::verify(&bytes[..]).is_err());
        static SNAPSHOT: std::sync::LazyLock<Vec<u8>> =
            std::sync::LazyLock::new(|| snapshot_of(3));
        for good in [FIXTURE, &SNAPSHOT] {
            let mut bytes = good.to_vec();
            for (place, byte) in &edits {
                let place = *place as usize % bytes.len();
                bytes[place] = *byte;
            }
            bytes.truncate(1 + cut as usize % (2 * bytes.len()));
            let _ = read(bytes.clone());
            let _ = verify(&bytes);
        }
    }

    /// The same with checksums made right, so that what they cover is read.
    #[test]
    fn no_bytes_that_verify_harm_the_decoders(
        kind in 0..7_u16,
        edits in proptest::collection::vec((any::<u32>(), any::<u8>()), 1..6),
        change in change(),
    ) {
        let mut bytes = Vec::new();
        by_hand::put(&mut bytes, &change);
        for (place, byte) in edits {
            let place = place as usize % bytes.len();
            bytes[place] = byte;
        }
        if let Ok(found) = by_hand::read(kind, &bytes) {
            let mut again = Vec::new();
            prop_assert_eq!(by_hand::put(&mut again, &found), kind);
            prop_assert_eq!(by_hand::read(kind, &again), Ok(found));
        }
    }
}

/// A file that was begun with one change and got three batches.
fn sample() -> Vec<u8> {
    let disk = Disk::default();
    let mut file = file(&disk);
    file.rewrite(at(1), [numbered(1)].into_iter()).unwrap();
    file.add(&[numbered(2), numbered(3)]).unwrap();
    file.add(&[numbered(4)]).unwrap();
    file.add(&[numbered(5)]).unwrap();
    disk.read(NAME).unwrap()
}

#[test]
fn every_flipped_bit_is_found_and_no_change_is_taken_for_another() {
    let mut bytes = sample();
    let all: Vec<Record> = (1..=5).map(numbered).collect();
    assert_eq!(read(bytes.clone()), Ok(all.clone()));
    let mark = bytes.len() - 64;
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        match read(bytes.clone()) {
            // Behind the last mark nothing is at stake.
            Ok(found) => assert!(bit / 8 >= mark && found == all, "bit {bit}: {found:?}"),
            Err(told) => assert!(bit / 8 < mark, "bit {bit} of the end: {told}"),
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_torn_end_is_cut_and_a_file_without_its_beginning_is_refused() {
    let bytes = sample();
    let all: Vec<Record> = (1..=5).map(numbered).collect();
    let mut found_before = 0;
    for length in 0..bytes.len() {
        match read(bytes[..length].to_vec()) {
            Ok(found) => {
                assert_eq!(found[..], all[..found.len()], "{length} bytes");
                assert!(found.len() >= found_before && !found.is_empty());
                found_before = found.len();
            }
            Err(_) => assert_eq!(found_before, 0, "{length} bytes"),
        }
    }
    assert_eq!(found_before, 5);
    let mut other = identity().id;
    other[0] ^= 1;
    let told = ReadChanges::verify(bytes, other).err().unwrap();
    assert!(told.to_string().contains("another instance"), "{told}");
}

#[test]
fn damage_is_told_with_its_place_and_what_to_do() {
    let disk = Disk::default();
    let home = take(&disk).unwrap();
    assert!(home.read_changes().unwrap().is_none());
    let mut file = home.change_file();
    assert!(file.add(&[numbered(1)]).is_err(), "it was not written anew");
    file.rewrite(at(1), [numbered(1)].into_iter()).unwrap();
    file.add(&[numbered(2)]).unwrap();
    let read = home.read_changes().unwrap().unwrap();
    assert_eq!((read.records().count(), read.last(), read.torn()), (2, at(2), 0));
    disk.flip(NAME, 8 * 50);
    let error = home.read_changes().err().unwrap();
    assert!(matches!(error, DiskError::Changes { .. }));
    let error = error.to_string();
    for part in ["data/changes", "offset 40", "without overrides", "from a copy"] {
        assert!(error.contains(part), "{error}");
    }
}

/// Keeps changes in batches, and writes the file anew now and then; returns how many were said to
/// be kept, and how many there were.
fn run(disk: &Disk) -> (u64, u64) {
    let mut file = file(disk);
    let (mut kept, mut number) = (0, 0);
    for round in 0..8_u64 {
        let batch: Vec<Record> =
            (0..1 + round % 3).map(|more| numbered(number + 1 + more)).collect();
        number += batch.len() as u64;
        let added = file.is_open() && round % 4 != 3 && file.add(&batch).is_ok();
        let rewritten = |file: &mut ChangeFile<Disk>| {
            file.rewrite(at(number), (1..=number).map(numbered)).is_ok()
        };
        // The second attempt is what the recorder makes a second later.
        if added || rewritten(&mut file) || rewritten(&mut file) {
            kept = number;
        }
    }
    (kept, number)
}

/// Whatever happens at whichever operation, and whatever a loss of power then leaves: what was said
/// to be kept is there, in order and once, and the file is never taken for damaged.
#[test]
fn a_crash_at_any_operation_keeps_what_was_said_to_be_kept() {
    const SEEDS: u64 = 24;
    let whole = Disk::default();
    let (kept, all) = run(&whole);
    assert_eq!(kept, all);
    let operations = whole.operations();
    assert!(operations > 30, "{operations}");
    let (mut cases, mut more, mut torn) = (0_u64, 0_u64, 0_u64);
    for at in 0..operations {
        for fault in [Fault::Crash { at }, Fault::Fail { at }] {
            let disk = Disk::default();
            disk.set_fault(fault);
            let (kept, all) = run(&disk);
            if matches!(fault, Fault::Fail { .. }) {
                assert_eq!(kept, all, "{fault:?}: the next attempt makes up for it");
            }
            for seed in 0..SEEDS {
                let left = disk.after_loss_of_power(seed);
                let found = match left.read(NAME) {
                    Ok(bytes) => {
                        let read = ReadChanges::verify(bytes, identity().id);
                        let read =
                            read.unwrap_or_else(|spoilt| panic!("{fault:?} {seed}: {spoilt}"));
                        torn += u64::from(read.torn() > 0);
                        read.records().collect()
                    }
                    Err(_) => Vec::new(),
                };
                let count = found.len() as u64;
                assert!(count >= kept && count <= all, "{count} of {kept}: {fault:?} {seed}");
                assert_eq!(found, (1..=count).map(numbered).collect::<Vec<_>>());
                cases += 1;
                more += u64::from(count > kept);
            }
        }
    }
    // A run in which nothing was at stake proves nothing.
    assert!(more > 0 && torn > 100 && more < cases, "{more} and {torn} of {cases}");
}

#[test]
fn a_full_disk_loses_nothing_that_was_kept_and_short_writes_do_no_harm() {
    let whole = Disk::default();
    whole.write_short();
    let (kept, all) = run(&whole);
    assert_eq!(kept, all);
    assert_eq!(read(whole.after_loss_of_power(1).read(NAME).unwrap()).unwrap().len() as u64, all);
    for bytes in (0..16_000).step_by(97) {
        let disk = Disk::default();
        disk.set_fault(Fault::Full { bytes });
        let (kept, _) = run(&disk);
        disk.set_fault(Fault::None);
        let left = disk.after_loss_of_power(bytes as u64).read(NAME);
        let found = left.map_or(0, |bytes| read(bytes).unwrap().len() as u64);
        assert!(found >= kept, "{found} of {kept} with {bytes} bytes");
    }
}

#[test]
fn the_file_is_long_once_more_was_added_than_it_began_with() {
    let disk = Disk::default();
    let mut file = file(&disk);
    file.rewrite(at(0), std::iter::empty()).unwrap();
    let mut number = 0;
    while !file.is_long() {
        let batch: Vec<Record> = (1..=100).map(|more| numbered(number + more)).collect();
        number += 100;
        file.add(&batch).unwrap();
    }
    let (bytes, added) = file.bytes();
    assert!((1 << 20..2 << 20).contains(&added) && bytes == added + 40 + 64, "{bytes}, {added}");
    file.rewrite(at(number), [numbered(number)].into_iter()).unwrap();
    assert!(!file.is_long());
    assert_eq!(read(disk.read(NAME).unwrap()), Ok(vec![numbered(number)]));
}

/// One change of each kind.
fn fixture() -> Vec<u8> {
    let key = Some(vec![("team".to_owned(), "t1".to_owned())]);
    let record = OverrideRecord {
        api: "media".to_owned(),
        limit: "images.minute".to_owned(),
        key: key.clone(),
        quota: Some("600/min burst 1200".to_owned()),
        mode: Some(Mode::Shadow),
        until: Some(UtcTime::from_nanos(START_UTC)),
        set_at: UtcTime::from_nanos(START_UTC - 7),
        who: "ada".to_owned(),
        reason: "ticket 7".to_owned(),
    };
    let account = Account { account: "a1".into(), tier: Some("pro".into()) };
    let (api, attribute, value) = ("media".into(), "api_key".into(), (*b"k\xFF1").into());
    let counter = |number: u64, quota: Result<Quota, _>| SetCounter {
        key: Key::from_words([number, !number]),
        quota: quota.unwrap(),
        api: "media".into(),
        limit: "images".into(),
        window: "minute".into(),
    };
    let minute = Nanos::from_secs(60);
    let at = Boundaries { opens_at: 86_400, ends_at: 172_800, next_ends_at: 259_200 };
    let counters = vec![
        counter(1, Quota::bucket(7, Nanos::from_secs(1), 9)),
        counter(2, Quota::sliding(5, minute)),
        counter(3, Quota::fixed(UNLIMITED, minute, Align::First)),
        counter(4, Quota::calendar(5, Period::Day, at)),
        counter(5, Quota::concurrent(5, minute)),
        counter(6, Quota::level(5)),
    ];
    let id = Some(RequestId { session: 3, sequence: 4 });
    let set = SetCounters { now: moment(5), used: 0, id, counters };
    let changes = [
        ByHand::SetOverride(record),
        ByHand::PutIdentity(Identity { api, attribute, value, account }),
        ByHand::SetCounters(set),
        ByHand::ClearOverride {
            api: "media".to_owned(),
            limit: "*".to_owned(),
            key: None,
            who: String::new(),
        },
        ByHand::RemoveIdentity {
            api: "media".into(),
            attribute: "api_key".into(),
            value: (*b"k\xFF1").into(),
        },
    ];
    let record = |(place, change)| {
        let Record { number, time, wall, .. } = numbered(place as u64 + 1);
        Record { number, time, wall, change }
    };
    let records: Vec<Record> = changes.into_iter().enumerate().map(record).collect();
    let disk = Disk::default();
    let mut file = file(&disk);
    file.rewrite(self::at(2), records[..2].iter().cloned()).unwrap();
    file.add(&records[2..]).unwrap();
    disk.read(NAME).unwrap()
}

/// The file was written by the first version of the format and never again
/// (`cargo test --lib disk -- --ignored writes_the_changes_fixture` wrote it).
#[test]
fn a_file_of_changes_of_version_1_is_read_for_ever() {
    let (by_hand, found) = (fixture(), read(FIXTURE.to_vec()).unwrap());
    assert_eq!(found, read(by_hand).unwrap());
    assert_eq!(found.len(), 5);
}

#[test]
#[ignore = "writes the file that others read"]
fn writes_the_changes_fixture() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/changes-1");
    std::fs::write(path, fixture()).unwrap();
}

/// Appending by hand, as a shell would: bytes behind the end are a torn end.
#[test]
fn bytes_behind_the_end_are_cut() {
    let disk = Disk::default();
    file(&disk).rewrite(at(1), [numbered(1)].into_iter()).unwrap();
    let mut handle = disk.append(NAME).unwrap();
    std::io::Write::write_all(&mut handle, b"CHNG and more").unwrap();
    handle.sync().unwrap();
    let read = ReadChanges::verify(disk.read(NAME).unwrap(), identity().id).unwrap();
    assert_eq!((read.torn(), read.records().count()), (13, 1));
}
