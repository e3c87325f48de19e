//! Restarts: what is kept, what a crash forgets, what is refused and how that is said.
#![allow(clippy::print_stdout, reason = "what kills forgot is for people")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tollkeeper_protocol::client::{CheckArgs, Client, Options};

use crate::support::{Daemon, Directory, Output, command, run};

/// Amounts that only go up, so that no time brings anything back.
const POLICY: &str = "schema = 1
[api.shop]
class.x = [\"POST /x\"]
class.y = [\"POST /y\"]
[api.shop.limit]
held = { on = \"x\", per = [\"user\"], level = \"1000000000\" }
slow = { on = \"y\", per = [\"user\"], bucket = \"5/day burst 5\" }
slots = { on = \"y\", per = [\"user\"], concurrent = 3, lease = \"1hour\" }
";

/// A directory with a policy and an empty data directory.
struct Place {
    directory: Directory,
    policy: String,
    data: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let directory = Directory::new(name);
        let policy = directory.write("policy.toml", POLICY);
        let data = directory.0.join("data");
        Self { directory, policy, data }
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let data = self.data.to_str().unwrap();
        Daemon::start_with(&[&["--policy", &self.policy, "--data", data], more].concat())
    }

    /// A start that is expected to come to nothing.
    fn fail(&self, more: &[&str]) -> Output {
        let data = self.data.to_str().unwrap();
        let serve = ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let output =
            run(command(serve).args(["--policy", &self.policy, "--data", data]).args(more));
        assert_eq!(output.code, 2, "{output:?}");
        output
    }

    fn snapshots(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.data).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "snap"));
        paths.sort();
        paths
    }
}

fn stop(daemon: Daemon) {
    daemon.terminate();
    let (status, log) = daemon.wait();
    assert!(status.success(), "{status} {log}");
}

fn admin(daemon: &Daemon) -> String {
    let (_, rest) = daemon.ready.split_once("admin http://").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

fn now(daemon: &Daemon) -> Value {
    let output = run(&mut command(["snapshot", "now", "--json", "--admin", &admin(daemon)]));
    assert_eq!(output.code, 0, "{output:?}");
    output.json().remove(0)
}

fn inspect(path: &Path) -> Output {
    run(command(["snapshot", "inspect", "--json"]).arg(path))
}

fn check(daemon: &Daemon, request: &str) -> Value {
    daemon.ask(&["check", "shop", request, "user=u", "--json"]).json().remove(0)
}

fn left(report: &Value, limit: &str) -> u64 {
    let limits = report["limits"].as_array().unwrap();
    let limit = limits.iter().find(|of| of["name"] == limit).unwrap();
    limit["remaining"].as_u64().unwrap()
}

#[test]
fn a_restart_continues_where_the_last_run_stopped() {
    let place = Place::new("restart");
    let daemon = place.start(&[]);
    let first = check(&daemon, "POST /y");
    assert_eq!((left(&first, "slow"), left(&first, "slots")), (4, 2));
    let permit = first["permit"].as_str().unwrap().to_owned();
    assert_eq!(daemon.ask(&["check", "shop", "POST /x", "user=u", "--cost", "70"]).code, 0);
    stop(daemon);
    assert_eq!(place.snapshots().len(), 1);
    let report = inspect(&place.snapshots()[0]).json().remove(0);
    assert_eq!((&report["whole"], &report["counters"]["all"]), (&true.into(), &3.into()));

    let daemon = place.start(&[]);
    let second = check(&daemon, "POST /y");
    assert_eq!((left(&second, "slow"), left(&second, "slots")), (3, 1));
    assert_ne!(second["permit"].as_str().unwrap(), permit);
    assert_eq!(left(&check(&daemon, "POST /x"), "held"), 1_000_000_000 - 71);
    // An id that was given before the restart gives its permit back after it.
    assert_eq!(daemon.ask(&["release", &permit]).code, 0);
    let third = check(&daemon, "POST /y");
    assert_eq!((left(&third, "slow"), left(&third, "slots")), (2, 1));
    stop(daemon);

    // Nothing changes in a run that nobody asks anything, so it leaves no snapshot.
    let before = place.snapshots();
    stop(place.start(&["--snapshot-interval", "100ms"]));
    assert_eq!(place.snapshots(), before);
    drop(place.directory);
}

#[test]
fn a_snapshot_is_taken_when_asked_for() {
    let place = Place::new("snapshot-now");
    let daemon = place.start(&[]);
    check(&daemon, "POST /y");
    let report = now(&daemon);
    // A permit's counter is its shares.
    assert_eq!(report["counters"], 2);
    assert_eq!(place.snapshots()[0].to_str(), report["file"].as_str());
    for _ in 0..3 {
        check(&daemon, "POST /x");
        now(&daemon);
    }
    let numbers: Vec<_> =
        place.snapshots().iter().map(|path| path.file_stem().unwrap().to_owned()).collect();
    assert_eq!(numbers, ["000000000003", "000000000004"]);
    // Without a directory there is none to be had, and that is said.
    let without = Daemon::start();
    let output = run(&mut command(["snapshot", "now", "--admin", &admin(&without)]));
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("--data DIR"), "{output:?}");
}

#[test]
fn a_damaged_snapshot_ends_the_start_and_the_previous_one_is_used_when_asked_for() {
    let place = Place::new("damaged");
    let daemon = place.start(&[]);
    for _ in 0..2 {
        check(&daemon, "POST /y");
        now(&daemon);
    }
    drop(daemon);
    let last = place.snapshots().pop().unwrap();
    let mut bytes = std::fs::read(&last).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&last, &bytes).unwrap();
    let error = place.fail(&[]).stderr;
    for part in [last.to_str().unwrap(), "section", "offset", "--restore previous"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    let inspected = inspect(&last);
    assert_eq!(inspected.code, 2);
    let report = inspected.json().remove(0);
    assert_eq!(report["whole"], false);
    assert!(report["offset"].as_u64().unwrap() as usize <= middle);
    let daemon = place.start(&["--restore", "previous"]);
    assert_eq!(left(&check(&daemon, "POST /y"), "slow"), 3);
    stop(daemon);
    // From then on all is well again.
    let daemon = place.start(&[]);
    assert_eq!(left(&check(&daemon, "POST /y"), "slow"), 2);
}

#[test]
fn a_directory_that_is_in_use_or_not_ours_is_refused() {
    let place = Place::new("refused");
    let daemon = place.start(&[]);
    assert!(place.fail(&[]).stderr.contains("another process"));
    stop(daemon);
    let other = Place::new("refused-other");
    std::fs::create_dir(&other.data).unwrap();
    std::fs::write(other.data.join("notes.txt"), "mine").unwrap();
    assert!(other.fail(&[]).stderr.contains("notes.txt"));
    // Another instance's snapshot.
    let daemon = place.start(&[]);
    check(&daemon, "POST /x");
    stop(daemon);
    std::fs::remove_file(other.data.join("notes.txt")).unwrap();
    drop(other.start(&[]));
    let snapshot = place.snapshots().pop().unwrap();
    std::fs::copy(&snapshot, other.data.join(snapshot.file_name().unwrap())).unwrap();
    assert!(other.fail(&[]).stderr.contains("is of instance"));
    assert!(place.fail(&["--restore", "previous"]).stderr.contains("no snapshot before"));
}

const BY_HAND: &str = "schema = 1
[api.shop]
class.x = [\"POST /x\"]
subject.account = [\"api_key\"]
[api.shop.limit]
held = { on = \"x\", per = [\"account\"], level = \"1000\" }
slow = { on = \"x\", per = [\"account\"], bucket = \"50/day burst 50\" }
";

/// Whatever was answered is there after a kill, wherever the last snapshot is: none yet, before the
/// change, or after it.
#[test]
fn what_was_changed_by_hand_and_answered_outlives_a_kill() {
    let mut place = Place::new("by-hand");
    place.policy = place.directory.write("by-hand.toml", BY_HAND);
    let start = || place.start(&["--snapshot-interval", "1h"]);
    let ok = |output: Output| assert_eq!(output.code, 0, "{output:?}");
    let kill = |daemon: Daemon| {
        daemon.kill();
        drop(daemon);
    };
    let left = |daemon: &Daemon, limit: &str, who: &str| {
        let report = daemon.ask(&["peek", "shop", "POST /x", who, "--json"]).json().remove(0);
        left(&report, limit)
    };
    let set = |daemon: &Daemon, limit: &str, who: &str, used: &str| {
        ok(daemon.ask(&["set", "shop", "POST /x", who, "--limit", limit, "--used", used]));
    };

    let daemon = start();
    ok(daemon.tell(&["identity", "put", "api_key=k1", "account=a1"]));
    ok(daemon.tell(&["identity", "put", "api_key=k2", "account=a2"]));
    ok(daemon.tell(&["identity", "remove", "api_key=k2"]));
    ok(daemon.tell(&[
        "override",
        "set",
        "shop.slow",
        "account=a1",
        "70/day burst 70",
        "--by",
        "ada",
        "--reason",
        "ticket 7",
        "--until",
        "2199-01-01",
    ]));
    ok(daemon.tell(&["override", "set", "shop.held", "account=a9", "3"]));
    ok(daemon.tell(&["override", "clear", "shop.held", "account=a9"]));
    set(&daemon, "slow", "account=a1", "20");
    set(&daemon, "held", "account=a1", "600");
    set(&daemon, "held", "account=a2", "700");
    kill(daemon);
    assert!(place.snapshots().is_empty());

    // There was no snapshot, so cluster time goes on by the changes.
    let daemon = start();
    let list = daemon.tell(&["override", "list", "--json"]).json().remove(0);
    let all = list["overrides"].as_array().unwrap();
    assert_eq!(all.len(), 1, "{list}");
    assert_eq!(
        (&all[0]["who"], &all[0]["reason"], &all[0]["until"], &all[0]["limit"]),
        (&"ada".into(), &"ticket 7".into(), &"2199-01-01T00:00:00Z".into(), &"slow".into()),
    );
    let list = daemon.tell(&["identity", "list", "--json"]).json().remove(0);
    assert_eq!((&list["all"], &list["identities"][0]["value"]), (&1.into(), &"k1".into()));
    assert_eq!(left(&daemon, "slow", "api_key=k1"), 50, "70 a day and 20 of them used");
    assert_eq!(left(&daemon, "held", "account=a1"), 400);

    // What is charged behind the change is in the snapshot, and not set back by the change.
    ok(daemon.ask(&["check", "shop", "POST /x", "account=a2", "--cost", "7"]));
    now(&daemon);
    set(&daemon, "held", "account=a1", "900");
    ok(daemon.ask(&["reset", "shop", "POST /x", "account=a3"]));
    ok(daemon.tell(&["override", "clear", "shop.slow", "account=a1"]));
    kill(daemon);
    let daemon = start();
    assert_eq!(left(&daemon, "held", "account=a2"), 293);
    assert_eq!(left(&daemon, "held", "account=a1"), 100);
    // By the new numbers the bucket is full at the same time as by the old ones: 20 of 70, 14.3 of 50.
    assert_eq!(left(&daemon, "slow", "account=a1"), 35);
    ok(daemon.ask(&["check", "shop", "POST /x", "account=a2", "--cost", "3"]));
    now(&daemon);
    kill(daemon);
    // The snapshot before the last has neither the charge nor the later changes of its own; these
    // are made again on it, and the charge is forgotten.
    let daemon = place.start(&["--snapshot-interval", "1h", "--restore", "previous"]);
    assert_eq!(left(&daemon, "held", "account=a2"), 293);
    assert_eq!(left(&daemon, "held", "account=a1"), 100);
    stop(daemon);
    let daemon = start();
    assert_eq!(left(&daemon, "held", "account=a1"), 100);
    kill(daemon);

    // A torn end is cut, damage before it is told.
    let path = place.data.join("changes");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(b"CHNG torn");
    std::fs::write(&path, &bytes).unwrap();
    let daemon = start();
    assert_eq!(left(&daemon, "held", "account=a1"), 100);
    kill(daemon);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = place.fail(&[]).stderr;
    for part in [path.to_str().unwrap(), "offset 40", "move it away"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

/// Counters set by hand under load, with snapshots all the time and a kill in the middle: the number
/// that was answered last is there, or the one that was being set.
#[test]
fn a_counter_that_is_set_while_snapshots_are_taken_is_neither_lost_nor_set_twice() {
    let place = Place::new("set-and-snapshot");
    let mut used = 0;
    for round in 0..4_u64 {
        let daemon = place.start(&["--snapshot-interval", "100ms"]);
        let (told, address) = (AtomicU64::new(used), daemon.address);
        std::thread::scope(|scope| {
            scope.spawn(|| set_on(&told, address));
            std::thread::sleep(Duration::from_millis(500 + 70 * round));
            daemon.kill();
        });
        drop(daemon);
        let told = told.load(Ordering::Relaxed);
        assert!(told > used, "nothing was at stake");
        let daemon = place.start(&["--snapshot-interval", "1h"]);
        let found = 1_000_000_000 - left(&check(&daemon, "POST /x"), "held") - 1;
        // Each number is followed by a charge of one, which a crash may forget.
        assert!((told..=told + 11).contains(&found), "round {round}: {told}, {found}");
        used = found + 1;
        stop(daemon);
    }
}

/// Sets a level to tens, one after the other, each followed by a charge; tells which were answered.
fn set_on(told: &AtomicU64, address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connected = Client::connect(address.to_string(), Options::default()).await;
        let Ok(client) = connected else { return };
        let Ok(handle) = client.prepare("shop", Some("x")).await else { return };
        let mut used = told.load(Ordering::Relaxed).next_multiple_of(10);
        loop {
            used += 10;
            let arguments = CheckArgs::new().value("user", "u");
            if client.set(&handle, &arguments, None, used, None).await.is_err() {
                return;
            }
            told.store(used, Ordering::Relaxed);
            if client.check(&handle, &arguments).await.is_err() {
                return;
            }
        }
    });
}

/// What load has been acknowledged when, over all runs.
#[derive(Default)]
struct Load {
    sent: AtomicU64,
    acknowledged: Mutex<Vec<SystemTime>>,
    is_over: AtomicBool,
}

/// Charges one unit after the other over a few connections until the server is gone.
fn charge_on(load: &Load, address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connected = Client::connect(address.to_string(), Options::default()).await;
        let Ok(client) = connected else { return };
        let Ok(handle) = client.prepare("shop", Some("x")).await else { return };
        while !load.is_over.load(Ordering::Relaxed) {
            load.sent.fetch_add(1, Ordering::Relaxed);
            let arguments = CheckArgs::new().value("user", "u");
            match client.check(&handle, &arguments).await {
                Ok(_) => load.acknowledged.lock().unwrap().push(SystemTime::now()),
                Err(_) => return,
            }
        }
    });
}

/// Kills the daemon at random moments under load. It always starts again, and has forgotten nothing
/// that was acknowledged before the moment of the last snapshot, which is as old as the interval
/// and the time that one snapshot takes.
fn kills(name: &str, kills: u64) {
    let place = Place::new(name);
    let (mut used, mut random) = (0_u64, 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(std::process::id()));
    let (mut forgotten, mut ages) = (0, Vec::new());
    for kill in 0..kills {
        let daemon = place.start(&["--snapshot-interval", "100ms"]);
        let (load, address) = (Load::default(), daemon.address);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let killed_at = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| charge_on(&load, address));
            }
            std::thread::sleep(Duration::from_millis(200 + random % 800));
            let killed_at = SystemTime::now();
            daemon.kill();
            load.is_over.store(true, Ordering::Relaxed);
            killed_at
        });
        drop(daemon);
        let acknowledged = load.acknowledged.into_inner().unwrap();
        // The first kill may come before the first snapshot.
        let taken_at = place.snapshots().pop().map_or(SystemTime::UNIX_EPOCH, |last| {
            let nanos = inspect(&last).json().remove(0)["wall_ns"].as_u64().unwrap();
            SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
        });
        let kept = acknowledged.iter().filter(|at| **at < taken_at).count() as u64;
        let daemon = place.start(&["--snapshot-interval", "1h"]);
        let found = 1_000_000_000 - left(&check(&daemon, "POST /x"), "held") - 1;
        let (least, most) = (used + kept, used + load.sent.load(Ordering::Relaxed));
        assert!(least <= found && found <= most, "kill {kill}: {least} <= {found} <= {most}");
        forgotten += (used + acknowledged.len() as u64).saturating_sub(found);
        ages.push(
            killed_at.duration_since(taken_at).unwrap_or_default().min(Duration::from_secs(9)),
        );
        used = found + 1;
        stop(daemon);
    }
    ages.sort();
    println!(
        "{kills} kills: {used} units kept, {forgotten} forgotten; the last snapshot was {:?} old, \
         {:?} at most",
        ages[ages.len() / 2],
        ages[ages.len() - 1],
    );
    assert!(used > kills, "nothing was at stake");
}

#[test]
fn a_kill_forgets_the_last_interval_and_no_more() {
    kills("kills", 4);
}

#[test]
#[ignore = "takes minutes: cargo test --test it -- --ignored --nocapture hundred"]
fn a_hundred_kills_forget_the_last_interval_each_and_no_more() {
    kills("hundred-kills", 100);
}
