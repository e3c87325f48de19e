//! What one decision costs the engine alone: a random key hashed, its counter fetched and charged,
//! in batches of 128 as a busy connection brings them. One thread, no sockets.
//!
//! Printed are nanoseconds and cycles of the time-stamp counter (which runs at the processor's
//! nominal rate) per decision, the least of five rounds. What distorts it: other work on the
//! machine, whose caches are shared, and the nominal rate being below the real one.
//!
//! ```text
//! cargo bench --bench decide
//! ```
#![allow(clippy::print_stdout, reason = "a bench is read by people")]
#![allow(unsafe_code, reason = "the time-stamp counter")]

use std::time::Instant;

use tollkeeper::engine::command::{Charge, LimitId};
use tollkeeper::engine::key::{KeySpace, Seed};
use tollkeeper::engine::quota::{Align, Quota};
use tollkeeper::engine::table::{Stamp, Table};
use tollkeeper::engine::time::{Nanos, Now, Timestamp, UtcTime};

const BATCH: usize = 128;
const DECISIONS: u64 = 4_000_000;
const ROUNDS: usize = 5;

fn main() {
    // Only `cargo bench` passes this; a test run has nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let hour = Nanos::from_secs(3600);
    let quotas = [
        ("bucket, allowed", Quota::bucket(1_000_000, hour, 1_000_000).expect("a quota"), 1),
        ("bucket, denied", Quota::bucket(1, hour, 2).expect("a quota"), 2),
        ("fixed by clock", Quota::fixed(1_000_000, hour, Align::Clock).expect("a quota"), 1),
        ("fixed by first (wide)", Quota::fixed(1_000_000, hour, Align::First).expect("a quota"), 1),
    ];
    println!("{:>22} {:>10} {:>8} {:>8}", "kind", "keys", "ns", "cycles");
    for keys in [1_000_000_u64, 10_000_000] {
        for (name, quota, cost) in quotas {
            let table = Table::new(1 << 24);
            let space = KeySpace::derive(&Seed::new([1; 16]), [&b"bench"[..]]);
            let charge = |number: u64| {
                let key = space.key_of_one(&number.to_le_bytes());
                Charge { key, quota, cost, limit: LimitId(1) }
            };
            for number in 0..keys {
                table.pin().check_one(&charge(number), &mut Stamp::new(moment)).expect("room");
            }
            let (mut nanos, mut cycles) = (f64::MAX, f64::MAX);
            let mut random = 0x9E37_79B9_7F4A_7C15_u64;
            let mut batch = [charge(0); BATCH];
            for _ in 0..ROUNDS {
                let (began_at, began_tick) = (Instant::now(), tick());
                for _ in 0..DECISIONS / BATCH as u64 {
                    let pinned = table.pin();
                    for place in &mut batch {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let number = ((u128::from(random) * u128::from(keys)) >> 64) as u64;
                        *place = charge(number);
                        pinned.prefetch(place.key);
                    }
                    let mut stamp = Stamp::new(moment);
                    for charge in &batch {
                        std::hint::black_box(pinned.check_one(charge, &mut stamp).is_ok());
                    }
                }
                let each = |whole: f64| whole / DECISIONS as f64;
                cycles = cycles.min(each((tick() - began_tick) as f64));
                nanos = nanos.min(each(began_at.elapsed().as_nanos() as f64));
            }
            println!("{name:>22} {keys:>10} {nanos:>8.1} {cycles:>8.0}");
        }
    }
}

fn moment() -> Now {
    Now { time: Timestamp::from_nanos(1), utc: UtcTime::from_nanos(1_700_000_000_000_000_000) }
}

#[cfg(target_arch = "x86_64")]
fn tick() -> u64 {
    // Safety: every x86-64 processor has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn tick() -> u64 {
    0
}
