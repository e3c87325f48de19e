//! Entries and groups come back as they were written, and what is none is refused.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::engine::kinds::{Boundaries, Period};
use crate::engine::quota::Align;

fn quota() -> impl Strategy<Value = Quota> {
    let window = 1_000_000..10_000_000_000_000_u64;
    prop_oneof![
        (1..1_000_000_u64, window.clone(), 1..1_000_000_u64)
            .prop_map(|(units, window, burst)| Quota::bucket(units, Nanos::new(window), burst)),
        (1..1_000_000_u64, window.clone())
            .prop_map(|(units, window)| Quota::sliding(units, Nanos::new(window))),
        (1..1_000_000_u64, window.clone(), any::<bool>()).prop_map(|(units, window, first)| {
            let align = if first { Align::First } else { Align::Clock };
            Quota::fixed(units, Nanos::new(window), align)
        }),
        (1..1_000_000_u64, 0..2_000_000_000_u32).prop_map(|(units, opens_at)| {
            let (ends_at, next_ends_at) = (opens_at + 86_400, opens_at + 2 * 86_400);
            Quota::calendar(units, Period::Day, Boundaries { opens_at, ends_at, next_ends_at })
        }),
        (1..1000_u64, window)
            .prop_map(|(units, lease)| Quota::concurrent(units, Nanos::new(lease))),
        (1..1_000_000_u64).prop_map(Quota::level),
        (1..1_000_000_u64).prop_map(Quota::cap),
        Just(Ok(Quota::Unlimited(crate::engine::quota::Kind::Sliding))),
    ]
    .prop_map(Result::unwrap)
}

fn charge() -> impl Strategy<Value = Charge> {
    (0..3_u64, quota(), 0..5_u64, 0..3_u16, any::<bool>(), any::<bool>()).prop_map(
        |(key, quota, cost, limit, shadow, always)| Charge {
            key: Key::from_words([key, key + 7]),
            quota,
            cost,
            limit: LimitId(limit),
            effect: if shadow { Effect::Shadow } else { Effect::Enforce },
            on: if always { ChargeOn::Always } else { ChargeOn::Allow },
        },
    )
}

fn id() -> impl Strategy<Value = Option<RequestId>> {
    prop::option::of((any::<u64>(), any::<u64>()))
        .prop_map(|id| id.map(|(session, sequence)| RequestId { session, sequence }))
}

/// A command and its charges.
fn command() -> impl Strategy<Value = (Command, Vec<Charge>)> {
    let charges = || prop::collection::vec(charge(), 0..4);
    let amend = prop_oneof![
        any::<u64>().prop_map(Amend::Add),
        any::<u64>().prop_map(Amend::GiveBack),
        any::<u64>().prop_map(Amend::Set),
    ];
    prop_oneof![
        4 => (charges(), id()).prop_map(|(charges, id)| {
            (Command::Check { charges: charges.len() as u16, id }, charges)
        }),
        1 => (charges(), amend, id()).prop_map(|(charges, amend, id)| {
            (Command::Amend { charges: charges.len() as u16, amend, id }, charges)
        }),
        1 => any::<[u8; 16]>().prop_map(|id| (Command::Release(PermitId(id)), Vec::new())),
        1 => (any::<[u8; 16]>(), prop::option::of(1..u64::MAX)).prop_map(|(id, lease)| {
            (Command::Renew(PermitId(id), lease.map(Nanos::new)), Vec::new())
        }),
        1 => Just((Command::Open, Vec::new())),
    ]
}

/// A group in which some commands come several times in a row, as of a hot key.
fn group() -> impl Strategy<Value = Group> {
    prop::collection::vec((command(), 1..4_usize), 0..20).prop_map(|commands| {
        let mut group = Group::default();
        for ((command, charges), times) in commands {
            for _ in 0..times {
                group.commands.push(command);
                group.charges.extend_from_slice(&charges);
            }
        }
        group
    })
}

fn encoded(group: &Group) -> Bytes {
    let mut out = BytesMut::new();
    encode_group(group, &mut out);
    out.freeze()
}

fn record() -> impl Strategy<Value = Record> {
    let tag = (any::<u64>(), any::<u64>(), any::<u64>())
        .prop_map(|(origin, incarnation, sequence)| Tag { origin, incarnation, sequence });
    let refused = prop::collection::vec((any::<u32>(), prop::option::of(any::<u16>())), 0..3);
    let tagged = (tag.clone(), any::<u64>(), refused, group());
    let tagged = tagged.prop_map(|(tag, policy, refused, group)| {
        let refused = refused.into_iter().map(|(place, limit)| {
            (place, Refusal::TableFull { limit: limit.map(LimitId), keys_max: 9 })
        });
        Tagged { tag, policy, refused: refused.collect(), body: encoded(&group) }
    });
    let what = prop_oneof![
        prop::collection::vec(tagged, 0..5).prop_map(What::Groups),
        Just(What::Fence),
        Just(What::Checksum),
        (tag, prop::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(tag, change)| What::Change { tag, change: change.into() }),
    ];
    (any::<u64>(), any::<u64>(), what).prop_map(|(time, utc, what)| {
        let (time, utc) = (Timestamp::from_nanos(time), UtcTime::from_nanos(utc));
        Record { now: Now { time, utc }, what }
    })
}

proptest! {
    /// What is read is what was written, folded or not.
    #[test]
    fn a_group_comes_back(group in group()) {
        let mut read = Group::default();
        decode_group(encoded(&group), &mut read).unwrap();
        prop_assert_eq!(&read.commands, &group.commands);
        prop_assert_eq!(read.charges.len(), group.charges.len());
        for (read, wrote) in read.charges.iter().zip(&group.charges) {
            let of = |charge: &Charge| {
                let Charge { key, quota, cost, limit, effect, on } = *charge;
                (key, quota, cost, limit, effect, on)
            };
            prop_assert_eq!(of(read), of(wrote));
        }
    }

    #[test]
    fn an_entry_comes_back(record in record()) {
        let bytes = record.encode();
        let read = Record::decode(bytes.clone()).unwrap();
        prop_assert_eq!(read.now, record.now);
        prop_assert_eq!(read.encode(), bytes);
    }

    /// Nothing that a damaged log or a stranger says panics, and no entry that was cut off or goes
    /// on is taken for a whole one.
    #[test]
    fn what_is_no_entry_is_refused(
        record in record(), at in any::<prop::sample::Index>(), flip in 1..=255_u8,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let whole = record.encode();
        let cut = at.index(whole.len());
        prop_assert!(Record::decode(whole.slice(..cut)).is_err());
        let mut longer = whole.to_vec();
        longer.push(0);
        prop_assert!(Record::decode(longer.into()).is_err());
        let mut damaged = whole.to_vec();
        damaged[cut] ^= flip;
        let mut group = Group::default();
        if let Ok(Record { what: What::Groups(groups), .. }) = Record::decode(damaged.into()) {
            for tagged in groups {
                let _ = decode_group(tagged.body, &mut group);
            }
        }
        let _ = Record::decode(bytes.clone().into());
        let _ = decode_group(bytes.into(), &mut group);
    }
}

#[test]
fn a_hot_key_is_one_record_however_often_it_is_asked_for() {
    let quota = Quota::bucket(1, Nanos::from_secs(1), 10).unwrap();
    let charge = Charge::new(Key::from_words([1, 2]), quota, 1, LimitId(3));
    let of = |times: usize| Group {
        commands: vec![Command::Check { charges: 1, id: None }; times],
        charges: vec![charge; times],
    };
    assert_eq!(encoded(&of(1)).len(), encoded(&of(4000)).len());
    let mut read = Group::default();
    decode_group(encoded(&of(4000)), &mut read).unwrap();
    assert_eq!(read.commands.len(), 4000);
}

/// Entries of this format are read for ever.
#[test]
fn the_bytes_of_format_1_stay() {
    let quota = Quota::bucket(5, Nanos::from_secs(1), 10).unwrap();
    let charge = Charge::new(Key::from_words([1, 2]), quota, 3, LimitId(4));
    let group =
        Group { commands: vec![Command::Check { charges: 1, id: None }], charges: vec![charge] };
    let tag = Tag { origin: 1, incarnation: 2, sequence: 3 };
    let tagged = Tagged { tag, policy: 5, refused: Vec::new(), body: encoded(&group) };
    let now = Now { time: Timestamp::from_nanos(6), utc: UtcTime::from_nanos(7) };
    let bytes = Record { now, what: What::Groups(vec![tagged]) }.encode();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = concat!(
        "01010100",
        "01000000",
        "0600000000000000",
        "0700000000000000",
        "0000000000000000",
        // The group: tag, policy, bytes, refused.
        "0100000000000000",
        "0200000000000000",
        "0300000000000000",
        "0500000000000000",
        "46000000",
        "00000000",
        // One record, one term: a bucket of limit 4, 1 in 200 ms, 10 at most.
        "01000000",
        "01000000",
        "0100040000000000",
        "0100000000000000",
        "00c2eb0b00000000",
        "0a00000000000000",
        // A check of one charge, once: key, cost, term.
        "01010100",
        "0100000000000000",
        "0200000000000000",
        "0300000000000000",
        "0000",
    );
    assert_eq!(hex, expected);
}
