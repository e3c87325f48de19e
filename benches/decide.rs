//! What one decision costs the engine alone: a random key hashed, its counter fetched and charged,
//! in batches of 128 as a busy connection brings them. One thread, no sockets.
//!
//! Printed are nanoseconds per decision, the least of five rounds, and the same in cycles of the
//! processor's nominal rate. What distorts it: other work on the machine, whose caches are shared,
//! and the nominal rate being below the real one.
//!
//! ```text
//! cargo bench --bench decide
//! ```
#![allow(clippy::print_stdout, reason = "a bench is read by people")]

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
            let table = Table::new(1 << 24, &Seed::new([1; 16]));
            let space = KeySpace::derive(&Seed::new([1; 16]), [&b"bench"[..]]);
            let charge = |number: u64| {
                let key = space.key_of_one(&number.to_le_bytes());
                Charge::new(key, quota, cost, LimitId(1))
            };
            for number in 0..keys {
                table.pin().check_one(&charge(number), &mut Stamp::new(moment)).expect("room");
            }
            let mut nanos = f64::MAX;
            let mut random = 0x9E37_79B9_7F4A_7C15_u64;
            let mut batch = [charge(0); BATCH];
            for _ in 0..ROUNDS {
                let began_at = Instant::now();
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
                let elapsed = began_at.elapsed().as_nanos() as f64;
                nanos = nanos.min(elapsed / DECISIONS as f64);
            }
            let cycles = nanos * nominal_megahertz() / 1000.0;
            println!("{name:>22} {keys:>10} {nanos:>8.1} {cycles:>8.0}");
        }
    }
}

fn moment() -> Now {
    Now { time: Timestamp::from_nanos(1), utc: UtcTime::from_nanos(1_700_000_000_000_000_000) }
}

/// Millions of cycles a second that the processor calls its own.
fn nominal_megahertz() -> f64 {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpus.lines().find(|line| line.starts_with("cpu MHz"));
    let number = line.and_then(|line| line.split(':').nth(1)?.trim().parse().ok());
    number.unwrap_or(f64::NAN)
}
