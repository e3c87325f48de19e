//! Bytes resident for each counter of a narrow bucket, as the table grows: what the process holds
//! beyond what it held before, over the number of keys. Beside it what the table itself says.
//!
//! ```text
//! cargo bench --bench memory
//! ```
#![allow(clippy::print_stdout, reason = "a bench is read by people")]

use tollkeeper::engine::command::{Charge, LimitId};
use tollkeeper::engine::key::{KeySpace, Seed};
use tollkeeper::engine::quota::{Align, Quota};
use tollkeeper::engine::table::{Stamp, Table};
use tollkeeper::engine::time::{Nanos, Now, Timestamp, UtcTime};

fn main() {
    // Only `cargo bench` passes this; a test run has nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let bucket = Quota::bucket(1, Nanos::from_secs(86_400), 100).expect("a quota");
    let opened = Quota::fixed(100, Nanos::from_secs(86_400), Align::First).expect("a quota");
    println!("{:>8} {:>12} {:>14} {:>14}", "form", "keys", "bytes resident", "bytes by table");
    for (form, quota, sizes) in [
        ("narrow", bucket, &[1_000_000, 10_000_000, 13_000_000][..]),
        ("wide", opened, &[1_000_000][..]),
    ] {
        let table = Table::new(1 << 24, &Seed::new([1; 16]));
        let before = resident();
        let space = KeySpace::derive(&Seed::new([1; 16]), [&b"bench"[..]]);
        let mut keys = 0_u64;
        for &size in sizes {
            while keys < size {
                let key = space.key_of_one(&keys.to_le_bytes());
                let charge = Charge::new(key, quota, 1, LimitId(1));
                let passed = table.pin().check_one(&charge, &mut Stamp::new(moment));
                assert!(passed.expect("room").fits);
                keys += 1;
            }
            let usage = table.usage();
            assert_eq!(usage.keys, size);
            println!(
                "{form:>8} {size:>12} {:>14.2} {:>14.2}",
                (resident() - before) as f64 / size as f64,
                usage.bytes as f64 / size as f64,
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
