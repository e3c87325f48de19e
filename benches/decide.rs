//! What one decision costs the engine alone, by kind of limit: a random key hashed, its counter
//! fetched and charged, in batches of 128 as a busy connection brings them. Then what a check of
//! several limits costs, requests of the example policies resolved and decided, and a permit where
//! many are held. One thread, no sockets.
//!
//! Printed are nanoseconds per decision, the least of eighty rounds, and the same in cycles of the
//! processor's nominal rate. What distorts it: other work on the machine, whose caches are shared,
//! and the nominal rate being below the real one.
//!
//! ```text
//! cargo bench --bench decide             # or a part: decide -- bucket
//! ```
#![allow(clippy::print_stdout, reason = "a bench is read by people")]

use std::hint::black_box;
use std::time::Instant;

use tollkeeper::engine::command::{Charge, LimitId};
use tollkeeper::engine::key::{KeySpace, Seed};
use tollkeeper::engine::kinds::{Boundaries, Period};
use tollkeeper::engine::quota::{Align, Quota};
use tollkeeper::engine::table::{Pinned, Stamp, Table};
use tollkeeper::engine::time::{Nanos, Now, Timestamp, UtcTime};
use tollkeeper::policy::{Context, Policy, Request, Scratch, Source};

const BATCH: usize = 128;
/// Many short rounds find a quiet moment on a machine that is not.
const DECISIONS: u64 = 100_000;
const ROUNDS: usize = 80;
const SEED: Seed = Seed::new([1; 16]);
const START_SECOND: u64 = 1_700_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // Only `cargo bench` passes this; a test run has nothing to check here.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let parts: Vec<&String> =
        arguments.iter().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(*part));
    println!("{:>26} {:>10} {:>8} {:>8}", "kind", "keys", "ns", "cycles");
    for keys in [1_000_000_u64, 10_000_000] {
        for (name, quota, cost) in kinds() {
            if wanted(name) {
                print_row(name, keys, of_kind(keys, quota, cost));
            }
        }
    }
    for limits in [1, 2, 3, 4, 8] {
        let name = format!("{limits} buckets at once");
        if wanted(&name) {
            print_row(&name, 1_000_000, of_several(1_000_000, limits));
        }
    }
    for page in PAGES {
        if wanted(page.name) {
            print_row(page.name, 1_000_000, of_page(1_000_000, &page));
        }
    }
    if wanted("permits") {
        println!(
            "\n{:>10} {:>14} {:>14} {:>14}",
            "held", "acquire ns", "newest back", "oldest back"
        );
        for held in [10, 100, 1_000, 10_000, 100_000] {
            let [acquire, newest, oldest] = of_permits(held);
            println!("{held:>10} {acquire:>14.1} {newest:>14.1} {oldest:>14.1}");
        }
    }
}

fn kinds() -> [(&'static str, Quota, u64); 9] {
    let hour = Nanos::from_secs(3600);
    let many = 1_000_000;
    let second = START_SECOND as u32;
    let day = Boundaries {
        opens_at: second - second % 86_400,
        ends_at: second - second % 86_400 + 86_400,
        next_ends_at: second - second % 86_400 + 2 * 86_400,
    };
    [
        ("bucket, allowed", Quota::bucket(many, hour, many), 1),
        ("bucket, denied", Quota::bucket(1, hour, 2), 2),
        ("bucket, odd rate (wide)", Quota::bucket(7, Nanos::from_secs(1), many), 1),
        ("sliding", Quota::sliding(30_000, hour), 1),
        ("fixed by clock", Quota::fixed(many, hour, Align::Clock), 1),
        ("fixed by first (wide)", Quota::fixed(many, hour, Align::First), 1),
        ("calendar", Quota::calendar(many, Period::Day, day), 1),
        ("level", Quota::level(1 << 50), 1),
        ("cap", Quota::cap(5), 1),
    ]
    .map(|(name, quota, cost)| (name, quota.expect("a quota"), cost))
}

fn of_kind(keys: u64, quota: Quota, cost: u64) -> f64 {
    let table = Table::new(1 << 24, &SEED);
    let space = KeySpace::derive(&SEED, [&b"bench"[..]]);
    let charge =
        |number: u64| Charge::new(space.key_of_one(&number.to_le_bytes()), quota, cost, LimitId(1));
    for number in 0..keys {
        table.pin().check_one(&charge(number), &mut Stamp::new(moment)).expect("room");
    }
    let mut batch = [charge(0); BATCH];
    rounds(keys, |numbers| {
        let pinned = table.pin();
        for (place, number) in batch.iter_mut().zip(numbers) {
            *place = charge(*number);
            pinned.prefetch(place.key);
        }
        let mut stamp = Stamp::new(moment);
        for charge in &batch {
            black_box(pinned.check_one(charge, &mut stamp).is_ok());
        }
    })
}

fn of_several(keys: u64, limits: u64) -> f64 {
    let table = Table::new(1 << 24, &SEED);
    let space = KeySpace::derive(&SEED, [&b"bench"[..]]);
    let quota = Quota::bucket(1_000_000, Nanos::from_secs(3600), 1_000_000).expect("a quota");
    let subjects = keys / limits;
    let charge = |subject: u64, limit: u64| {
        let key = space.key_of_one(&(subject * limits + limit).to_le_bytes());
        Charge::new(key, quota, 1, LimitId(limit as u16 + 1))
    };
    let mut readings = Vec::new();
    let check = |pinned: &Pinned<'_>, charges: &[Charge], readings: &mut Vec<_>| {
        black_box(pinned.check(charges, &mut Stamp::new(moment), readings).is_ok());
    };
    for subject in 0..subjects {
        let charges: Vec<Charge> = (0..limits).map(|limit| charge(subject, limit)).collect();
        check(&table.pin(), &charges, &mut readings);
    }
    let mut batch = Vec::with_capacity(BATCH * limits as usize);
    rounds(subjects, |numbers| {
        let pinned = table.pin();
        batch.clear();
        for subject in numbers {
            for limit in 0..limits {
                let charge = charge(*subject, limit);
                pinned.prefetch(charge.key);
                batch.push(charge);
            }
        }
        for charges in batch.chunks(limits as usize) {
            check(&pinned, charges, &mut readings);
        }
    })
}

/// A request of an example policy, resolved and decided: what a connection's thread does for each
/// between decoding and answering.
struct Page {
    name: &'static str,
    file: &'static str,
    api: &'static str,
    /// Limits with counters that apply to it. (Page 002 has caps too.)
    counters: u64,
    values: &'static [(&'static str, &'static str)],
    /// The attribute that says who asks.
    subject: &'static str,
    costs: &'static [u64],
}

/// One limit, two, four.
const PAGES: [Page; 3] = [
    Page {
        name: "page 000, one limit",
        file: include_str!("../examples/policies/media.toml"),
        api: "media",
        counters: 1,
        values: &[("method", "POST"), ("path", "/v1/images")],
        subject: "team",
        costs: &[],
    },
    Page {
        name: "page 002, two limits",
        file: include_str!("../examples/policies/generate.toml"),
        api: "generate",
        counters: 2,
        values: &[("method", "POST"), ("path", "/txt2img"), ("tier", "premium")],
        subject: "user",
        costs: &[],
    },
    Page {
        name: "page 003, four limits",
        file: include_str!("../examples/policies/vault.toml"),
        api: "vault",
        counters: 4,
        values: &[
            ("method", "GET"),
            ("path", "/files"),
            ("tier", "enterprise"),
            ("auth", "api_key"),
        ],
        subject: "account",
        costs: &[1; 8],
    },
];

fn of_page(keys: u64, page: &Page) -> f64 {
    let table = Table::new(1 << 24, &SEED);
    let source = Source { name: page.api, text: page.file };
    let policy = Policy::compile(&[source], &SEED).expect("an example");
    let handle = policy.handle_of(page.api, None).expect("its API");
    let mut values: Vec<Option<&[u8]>> = vec![None; handle.slots().len()];
    let slot_of = |name: &str| handle.slots().iter().position(|slot| &*slot.name == name);
    for (name, value) in page.values {
        values[slot_of(name).expect("a slot")] = Some(value.as_bytes());
    }
    let subject_at = slot_of(page.subject).expect("a slot");
    let costs = &page.costs[..page.costs.len().min(handle.meters().len())];
    let context = Context::at(moment().utc);
    let mut scratch = Scratch::default();
    let (mut charges, mut limits, mut readings) = (Vec::new(), Vec::new(), Vec::new());
    let mut asked = Vec::new();
    let mut batch = |subjects: &[u64]| {
        let pinned = table.pin();
        charges.clear();
        limits.clear();
        asked.clear();
        // The subjects' bytes live as long as the batch's values.
        let subjects: Vec<[u8; 8]> = subjects.iter().map(|subject| subject.to_le_bytes()).collect();
        let mut values = values.clone();
        for subject in &subjects {
            values[subject_at] = Some(subject);
            let request = Request { values: &values, costs };
            let resolved =
                handle.resolve(&request, &context, &mut scratch, &mut charges, &mut limits);
            let resolved = resolved.expect("it is resolved").charges();
            for charge in &charges[resolved.clone()] {
                pinned.prefetch(charge.key);
            }
            asked.push(resolved);
        }
        for asked in &asked {
            let charges = &charges[asked.clone()];
            let decision = pinned.check(charges, &mut Stamp::new(moment), &mut readings);
            black_box(decision.is_ok());
        }
    };
    let subjects = keys / page.counters;
    for subject in 0..subjects {
        batch(&[subject]);
    }
    assert_eq!(table.usage().keys, subjects * page.counters, "other counters than it says");
    rounds(subjects, |numbers| batch(numbers))
}

/// Nanoseconds of an acquire, and of giving back the newest and the oldest permit, with so many
/// held on one counter.
fn of_permits(held: u64) -> [f64; 3] {
    const TIMES: u64 = 200_000;
    let table = Table::new(1 << 24, &SEED);
    let key = KeySpace::derive(&SEED, [&b"bench"[..]]).key_of_one(b"one");
    let quota = Quota::concurrent(1 << 40, Nanos::from_secs(3600)).expect("a quota");
    let charge = [Charge::new(key, quota, 1, LimitId(1))];
    let mut readings = Vec::new();
    let mut nanos = 1;
    let mut acquire = || {
        nanos += 1;
        let mut stamp = Stamp::new(|| at(nanos));
        let decision = table.pin().check(&charge, &mut stamp, &mut readings).expect("room");
        decision.permit.expect("a permit").id
    };
    let release = |id| table.pin().release(id, &mut Stamp::new(|| at(1 << 40)));
    let mut permits: std::collections::VecDeque<_> = (0..held).map(|_| acquire()).collect();
    let mut spent = [0.0_f64; 3];
    for time in 0..TIMES {
        let began_at = Instant::now();
        let id = acquire();
        let acquired_at = Instant::now();
        permits.push_back(id);
        let newest = time % 2 == 0;
        let given = if newest { permits.pop_back() } else { permits.pop_front() };
        let releases_at = Instant::now();
        black_box(release(given.expect("one is held")));
        let done_at = Instant::now();
        spent[0] += (acquired_at - began_at).as_nanos() as f64 / TIMES as f64;
        let release = (done_at - releases_at).as_nanos() as f64 / (TIMES / 2) as f64;
        spent[if newest { 1 } else { 2 }] += release;
    }
    spent
}

/// Nanoseconds for each of a batch of random numbers below `below`, the least of all rounds.
fn rounds(below: u64, mut batch: impl FnMut(&[u64; BATCH])) -> f64 {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut numbers = [0; BATCH];
    let mut nanos = f64::MAX;
    for _ in 0..ROUNDS {
        let began_at = Instant::now();
        for _ in 0..DECISIONS / BATCH as u64 {
            for number in &mut numbers {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *number = ((u128::from(random) * u128::from(below)) >> 64) as u64;
            }
            batch(&numbers);
        }
        let elapsed = began_at.elapsed().as_nanos() as f64;
        nanos = nanos.min(elapsed / DECISIONS as f64);
    }
    nanos
}

fn print_row(name: &str, keys: u64, nanos: f64) {
    let cycles = nanos * nominal_megahertz() / 1000.0;
    println!("{name:>26} {keys:>10} {nanos:>8.1} {cycles:>8.0}");
}

fn at(nanos: u64) -> Now {
    let utc = UtcTime::from_nanos(START_SECOND * 1_000_000_000 + nanos);
    Now { time: Timestamp::from_nanos(nanos), utc }
}

fn moment() -> Now {
    at(1)
}

/// Millions of cycles a second that the processor calls its own.
fn nominal_megahertz() -> f64 {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpus.lines().find(|line| line.starts_with("cpu MHz"));
    let number = line.and_then(|line| line.split(':').nth(1)?.trim().parse().ok());
    number.unwrap_or(f64::NAN)
}
