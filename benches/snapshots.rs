//! Snapshots of ten million narrow counters: how long one takes, what decisions wait for while it
//! is taken, what memory it needs, and how long a restart from it takes.
//!
//! Decisions come at a fixed rate, in a batch each millisecond as a worker reads them, each with a
//! random key, whether or not the batch before is done, and each is timed from when its batch
//! should have begun, so that what waits behind a slow one counts as well. Beside that, what it took of the processor: on a machine that others use the
//! first tells of them, too, the second does not. No sockets. The same is measured without a snapshot right before and right
//! after, since times on a shared machine drift. What distorts it: other work on the machine, and
//! the file system of the build directory, to which the snapshot is written. *Cold* is after the
//! file was dropped from the page cache (`dd iflag=nocache`); it does not reach caches of the disk's own.
//!
//! ```text
//! cargo bench --bench snapshots
//! cargo bench --bench snapshots -- 1000000
//! ```
#![allow(clippy::print_stdout, reason = "a bench is read by people")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tollkeeper::disk::{Beside, Directory, Header, Home, Identity, Moment, Restore, Written, rest};
use tollkeeper::engine::command::{Charge, LimitId};
use tollkeeper::engine::key::{KeySpace, Seed};
use tollkeeper::engine::quota::Quota;
use tollkeeper::engine::table::{Stamp, Table};
use tollkeeper::engine::time::{Nanos, Now, Timestamp, UtcTime};

const SEED: [u8; 16] = [1; 16];

/// Decisions each millisecond: a few hundredths of what one thread can do.
const BATCH: u64 = 50;

/// How long is measured without a snapshot, each time.
const QUIET: Duration = Duration::from_secs(5);

const ROUNDS: usize = 3;

fn main() {
    // Only `cargo bench` passes this; a test run has nothing to check here.
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let keys = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(10_000_000);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-snapshots");
    let _ = std::fs::remove_dir_all(&path);
    let mut home = open(&path);
    let load = Load::new(keys);
    println!("{keys} counters, {} decisions a second on random keys", BATCH * 1000);

    println!(
        "{:>22} {:>17} {:>9} {:>9} {:>9} {:>9}",
        "microseconds", "", "p50", "p99", "p99.9", "max"
    );
    let (mut quiet, mut busy) = (Waits::empty(), Waits::empty());
    let mut written = None;
    let resident_before = resident();
    let mut resident_most = 0;
    for _ in 0..ROUNDS {
        let (waits, ()) = load.run(|| std::thread::sleep(QUIET));
        waits.show("without");
        quiet.add(&waits);
        let began_at = Instant::now();
        let (waits, result) = load.run(|| {
            let stands_back = || {
                // As the daemon's thread does.
                let _ = rustix::process::nice(5);
                save(&mut home, &load.table, &mut rest())
            };
            std::thread::scope(|scope| scope.spawn(stands_back).join().expect("a snapshot"))
        });
        written = Some((result, began_at.elapsed()));
        resident_most = resident_most.max(resident());
        waits.show("while it is taken");
        busy.add(&waits);
    }
    quiet.show("all without");
    busy.show("all while it is taken");
    let ratio = |of: fn(&Waits) -> &Histogram<u64>| {
        of(&busy).value_at_quantile(0.99) as f64 / of(&quiet).value_at_quantile(0.99) as f64
    };
    println!(
        "p99 while it is taken: {:.2} of that without; on the processor {:.2}",
        ratio(|waits| &waits.due),
        ratio(|waits| &waits.own)
    );

    let (result, elapsed) = written.expect("a round");
    println!(
        "written, resting between steps: {:.2} s; {} bytes, {} counters noted ({:.1} MB of notes), resident +{:.0} MB",
        elapsed.as_secs_f64(),
        result.totals.bytes,
        result.noted,
        result.noted as f64 * 40.0 / 1e6,
        (resident_most.saturating_sub(resident_before)) as f64 / 1e6,
    );
    let began_at = Instant::now();
    let result = save(&mut home, &load.table, &mut std::thread::yield_now);
    println!(
        "written as at shutdown: {:.2} s, {} bytes",
        began_at.elapsed().as_secs_f64(),
        result.totals.bytes
    );
    let file = path.join(format!("{:012}.snap", home.next_number() - 1));
    drop(home);
    drop(load);

    for (name, is_cold) in [("warm", false), ("cold", true), ("warm", false), ("cold", true)] {
        if is_cold {
            let dropped = Command::new("dd")
                .arg(format!("if={}", file.display()))
                .args(["iflag=nocache", "count=0", "status=none"])
                .status();
            assert!(dropped.is_ok_and(|status| status.success()), "dd drops the cache");
        }
        let (began_at, process_from) = (Instant::now(), of_process());
        let mut home = open(&path);
        let verified = home.restore(Restore::Latest).expect("a whole file").expect("a snapshot");
        let verified_after = began_at.elapsed();
        let mut table = Table::new(1 << 24, &Seed::new(home.identity().seed));
        let loaded = verified.load(&mut table, |limit| Some(limit.id)).expect("counters");
        println!(
            "restored {name}: {:.2} s to a table that decides ({:.2} s of processors), of which {:.2} s to verify; {} counters, {:.1} bytes each",
            began_at.elapsed().as_secs_f64(),
            (of_process() - process_from) as f64 / 1e9,
            verified_after.as_secs_f64(),
            loaded.counters,
            table.usage().bytes as f64 / loaded.counters as f64,
        );
        assert_eq!(table.usage().keys, keys);
    }
    let _ = std::fs::remove_dir_all(&path);
}

fn open(path: &Path) -> Home<Directory> {
    let identity = Identity { id: [2; 16], seed: SEED, made_at: UtcTime::from_nanos(0) };
    Home::open(path, identity).expect("a directory")
}

fn save(home: &mut Home<Directory>, table: &Arc<Table>, pace: &mut dyn FnMut()) -> Written {
    let moment = Moment::mark(Arc::clone(table), 1 << 23).expect("one at a time");
    let identity = home.identity();
    let header = Header {
        instance: identity.id,
        seed: identity.seed,
        number: home.next_number(),
        time: now().time,
        utc: now().utc,
        wall: now().utc,
        policy: 1,
        next_permit: moment.next_permit(),
        applied: (0, 0),
        sessions_opened: 0,
    };
    let beside = Beside { header, limits: Vec::new(), sessions: Vec::new(), cluster: Vec::new() };
    home.write(&beside, moment, pace).expect("a disk that works")
}

/// A table full of counters, and decisions on them.
struct Load {
    table: Arc<Table>,
    space: KeySpace,
    keys: u64,
}

impl Load {
    fn new(keys: u64) -> Self {
        let table = Arc::new(Table::new(1 << 24, &Seed::new(SEED)));
        let space = KeySpace::derive(&Seed::new(SEED), [&b"bench"[..]]);
        let load = Self { table, space, keys };
        for number in 0..keys {
            load.decide(number);
        }
        load
    }

    fn decide(&self, number: u64) {
        let quota = Quota::bucket(1_000_000, Nanos::from_secs(86_400), 1_000_000);
        let key = self.space.key_of_one(&number.to_le_bytes());
        let charge = Charge::new(key, quota.expect("a quota"), 1, LimitId(0));
        let passed = self.table.pin().check_one(&charge, &mut Stamp::new(now)).expect("room").fits;
        assert!(passed);
    }

    /// Decides at the rate as long as `work` takes. Returns how long each decision took from when
    /// it should have begun.
    fn run<R>(&self, work: impl FnOnce() -> R) -> (Waits, R) {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let decisions = scope.spawn(|| {
                let mut waits = Waits::empty();
                let mut random = 0x9E37_79B9_7F4A_7C15_u64;
                let began_at = Instant::now();
                let mut batches = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    let due = Duration::from_millis(batches);
                    std::thread::sleep(due.saturating_sub(began_at.elapsed()));
                    for _ in 0..BATCH {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let number = ((u128::from(random) * u128::from(self.keys)) >> 64) as u64;
                        let own_from = on_processor();
                        self.decide(number);
                        waits.own.saturating_record(on_processor() - own_from);
                        waits.due.saturating_record((began_at.elapsed() - due).as_nanos() as u64);
                    }
                    batches += 1;
                }
                waits
            });
            let result = work();
            is_over.store(true, Ordering::Relaxed);
            (decisions.join().expect("decisions"), result)
        })
    }
}

fn now() -> Now {
    Now { time: Timestamp::from_nanos(1), utc: UtcTime::from_nanos(1_700_000_000_000_000_000) }
}

/// How long decisions took.
struct Waits {
    /// Each from when it should have begun.
    due: Histogram<u64>,
    /// What it took of the processor, waiting for held counters included.
    own: Histogram<u64>,
}

impl Waits {
    fn empty() -> Self {
        let empty = || Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds");
        Self { due: empty(), own: empty() }
    }

    fn add(&mut self, other: &Self) {
        self.due.add(&other.due).expect("the same bounds");
        self.own.add(&other.own).expect("the same bounds");
    }

    fn show(&self, name: &str) {
        for (of, waits) in [("since due", &self.due), ("on the processor", &self.own)] {
            let micros = |quantile| waits.value_at_quantile(quantile) as f64 / 1000.0;
            println!(
                "{name:>22} {of:>17} {:>9.2} {:>9.2} {:>9.2} {:>9.1}",
                micros(0.5),
                micros(0.99),
                micros(0.999),
                waits.max() as f64 / 1000.0
            );
        }
    }
}

/// Nanoseconds that this thread has had a processor.
fn on_processor() -> u64 {
    nanos(rustix::time::ClockId::ThreadCPUTime)
}

/// Nanoseconds that all threads of the process have had processors.
fn of_process() -> u64 {
    nanos(rustix::time::ClockId::ProcessCPUTime)
}

fn nanos(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Bytes of the process that are nobody else's: pages of files do not count.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a proc file system");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("resident size");
    let kilobytes = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kilobytes.expect("a number") * 1024
}
