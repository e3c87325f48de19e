//! Bytes resident for each counter, by kind of limit, as the table grows: what the process holds
//! beyond what it held before, over the number of keys. Beside it what the table itself says. Each
//! counter holds one unit; one of a concurrency limit so holds one permit.
//!
//! ```text
//! cargo bench --bench memory
//! ```
#![allow(clippy::print_stdout, reason = "a bench is read by people")]

use tollkeeper::engine::command::{Charge, LimitId};
use tollkeeper::engine::decision::Verdict;
use tollkeeper::engine::key::{KeySpace, Seed};
use tollkeeper::engine::kinds::{Boundaries, Period};
use tollkeeper::engine::quota::{Align, Quota};
use tollkeeper::engine::table::{Stamp, Table};
use tollkeeper::engine::time::{Nanos, Now, Timestamp, UtcTime};

fn main() {
    // Only `cargo bench` passes this; a test run has nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let day = Nanos::from_secs(86_400);
    let today =
        Boundaries { opens_at: 1_699_920_000, ends_at: 1_700_006_400, next_ends_at: 1_700_092_800 };
    println!("{:>18} {:>12} {:>14} {:>14}", "kind", "keys", "bytes resident", "bytes by table");
    for (kind, quota, sizes) in [
        ("bucket", Quota::bucket(1, day, 100), &[1_000_000, 10_000_000, 13_000_000][..]),
        ("bucket, wide", Quota::bucket(7, Nanos::from_secs(1), 100), &[1_000_000]),
        ("sliding, 16 bits", Quota::sliding(100, day), &[1_000_000]),
        ("sliding, 32 bits", Quota::sliding(1_000_000, day), &[1_000_000]),
        ("sliding, 64 bits", Quota::sliding(1 << 40, day), &[1_000_000]),
        ("fixed by clock", Quota::fixed(100, day, Align::Clock), &[1_000_000]),
        ("fixed by first", Quota::fixed(100, day, Align::First), &[1_000_000]),
        ("calendar", Quota::calendar(100, Period::Day, today), &[1_000_000]),
        ("concurrent", Quota::concurrent(100, day), &[1_000_000]),
        ("level", Quota::level(100), &[1_000_000]),
    ] {
        let quota = quota.expect("a quota");
        let seed = Seed::new([1; 16]);
        let table = Table::new(1 << 24, &seed);
        let before = resident();
        let space = KeySpace::derive(&seed, [&b"bench"[..]]);
        let mut keys = 0_u64;
        let mut readings = Vec::new();
        for &size in sizes {
            while keys < size {
                let key = space.key_of_one(&keys.to_le_bytes());
                let charge = [Charge::new(key, quota, 1, LimitId(1))];
                let decision = table.pin().check(&charge, &mut Stamp::new(moment), &mut readings);
                assert_eq!(decision.expect("room").verdict, Verdict::Allow);
                keys += 1;
            }
            println!(
                "{kind:>18} {size:>12} {:>14.2} {:>14.2}",
                (resident() - before) as f64 / size as f64,
                table.usage().bytes as f64 / size as f64,
            );
        }
    }
}

fn moment() -> Now {
    Now { time: Timestamp::from_nanos(1), utc: UtcTime::from_nanos(1_700_000_000_000_000_000) }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a proc file system");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident size");
    let kilobytes = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kilobytes.expect("a number") * 1024
}
