//! A cluster under faults: its leader is killed, paused and cut off while clients ask all nodes.
//! Judged by the harness's clock alone.
//!
//! Takes minutes: `TOLLKEEPER_CHAOS=20 cargo test --test it chaos -- --ignored --nocapture` does
//! twenty of each fault.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tollkeeper_protocol::client::{CheckArgs, Client, Handle};
use tollkeeper_protocol::request::Form;

use crate::fleet::{Fleet, code, connect};
use crate::support::{command, run};

const NODES: usize = 3;
const CLIENTS: usize = 50;

/// How long a client rests after an answer.
const REST: Duration = Duration::from_millis(15);

/// Longest wait for an answer, a little longer than a node's own.
const DEADLINE: Duration = Duration::from_secs(4);

const HOT_RATE: u64 = 200;
const HOT_BURST: u64 = 100;
const TRI_RATE: u64 = 300;
const TRI_BURST: u64 = 50;
const TRI_WINDOW: u64 = 250;
const TRI_DAY: u64 = 100_000_000;

fn policy() -> String {
    format!(
        r#"
schema = 1
[api.shop]
[api.shop.limit]
hot    = {{ on = "/hot", per = ["user"], bucket = "{HOT_RATE}/s burst {HOT_BURST}", when_unavailable = "deny" }}
bucket = {{ on = "/tri", per = ["user"], bucket = "{TRI_RATE}/s burst {TRI_BURST}", when_unavailable = "deny" }}
window = {{ on = "/tri", per = ["team"], sliding = "{TRI_WINDOW}/s", when_unavailable = "deny" }}
day    = {{ on = "/tri", per = ["region"], fixed = "{TRI_DAY}/day", align = "first", when_unavailable = "deny" }}
"#
    )
}

/// What stands between two nodes, in one direction of dialling.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Wire {
    Whole,
    /// Bytes stay where they are.
    Stalled,
    /// Connections end, and none begins.
    Cut,
}

/// Proxies before the nodes' peer addresses. Who dials is read from its greeting.
struct Wires([[AtomicU8; NODES]; NODES]);

/// Where a greeting has the number of the node that dials (`cluster/wire.rs`).
const DIALLER: std::ops::Range<usize> = 40..48;
const GREETING: usize = 48;

impl Wires {
    fn set(&self, from: usize, to: usize, wire: Wire) {
        self.0[from][to].store(wire as u8, Ordering::SeqCst);
    }

    fn is(&self, from: usize, to: usize, wire: Wire) -> bool {
        self.0[from][to].load(Ordering::SeqCst) == wire as u8
    }

    /// Sets what stands between a node and all others.
    fn around(&self, node: usize, wire: Wire) {
        for other in (0..NODES).filter(|&other| other != node) {
            self.set(node, other, wire);
            self.set(other, node, wire);
        }
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, to: usize, address: SocketAddr) {
        while let Ok((stream, _)) = listener.accept().await {
            let wires = Arc::clone(&self);
            tokio::spawn(async move {
                // Whoever is cut off sees its connection end.
                let _ = wires.carry(stream, to, address).await;
            });
        }
    }

    async fn carry(
        &self,
        mut near: TcpStream,
        to: usize,
        address: SocketAddr,
    ) -> std::io::Result<()> {
        let mut greeting = [0; GREETING];
        near.read_exact(&mut greeting).await?;
        let dialler = u64::from_le_bytes(greeting[DIALLER].try_into().unwrap());
        let from = usize::try_from(dialler).unwrap() - 1;
        if self.is(from, to, Wire::Cut) {
            return Ok(());
        }
        let mut far = TcpStream::connect(address).await?;
        far.set_nodelay(true)?;
        near.set_nodelay(true)?;
        far.write_all(&greeting).await?;
        let (near_in, near_out) = near.split();
        let (far_in, far_out) = far.split();
        tokio::select! {
            ended = self.pump(near_in, far_out, from, to) => ended,
            ended = self.pump(far_in, near_out, from, to) => ended,
        }
    }

    async fn pump(
        &self,
        mut from_side: impl AsyncRead + Unpin,
        mut to_side: impl AsyncWrite + Unpin,
        from: usize,
        to: usize,
    ) -> std::io::Result<()> {
        const LOOK: Duration = Duration::from_millis(10);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = tokio::time::timeout(LOOK, from_side.read(&mut buffer)).await;
            while self.is(from, to, Wire::Stalled) {
                tokio::time::sleep(LOOK).await;
            }
            if self.is(from, to, Wire::Cut) {
                return Ok(());
            }
            match read {
                Err(_) => {}
                Ok(read) => match read? {
                    0 => return Ok(()),
                    read => to_side.write_all(&buffer[..read]).await?,
                },
            }
        }
    }
}

/// An answer that let a request pass, in nanoseconds of the harness's clock.
#[derive(Clone, Copy)]
struct Admitted {
    called: u64,
    replied: u64,
    node: usize,
    /// Its entry, and its place in it.
    place: (u64, u64),
}

/// What clients were told of one kind of request.
#[derive(Default)]
struct Told {
    admitted: Mutex<Vec<Admitted>>,
    denied: AtomicU64,
    /// May have been charged.
    unknown: AtomicU64,
    errors: Mutex<HashMap<String, u64>>,
    slowest: AtomicU64,
}

/// The most by which admissions exceed `rate` per second over some interval that holds call and
/// reply of each, in units: a bucket of that burst admits no more than it.
fn most_over(admitted: &[Admitted], rate: u64) -> i64 {
    // A unit is 10^12: nanoseconds times units per second times 1.002.
    const UNIT: i64 = 1_000_000_000_000;
    let refill = |nanos: u64| nanos as i64 * rate as i64 * 1002;
    let mut starts: Vec<u64> = admitted.iter().map(|it| it.called).collect();
    starts.sort_unstable();
    let mut by_reply = admitted.to_vec();
    by_reply.sort_unstable_by_key(|it| it.replied);
    // Over each start: how much was admitted since, less what had been refilled until then.
    let mut most = Most::new(starts.iter().map(|&start| refill(start)).collect());
    let mut worst = i64::MIN;
    for it in by_reply {
        // It lies in the intervals that begin no later than its call.
        most.add_before(starts.partition_point(|&start| start <= it.called), UNIT);
        let begun = starts.partition_point(|&start| start <= it.replied);
        worst = worst.max(most.before(begun) - refill(it.replied));
    }
    worst.div_euclid(UNIT) + i64::from(worst.rem_euclid(UNIT) > 0)
}

/// Numbers in a row: adds to the first so many, finds the largest of the first so many.
struct Most {
    size: usize,
    most: Vec<i64>,
    added: Vec<i64>,
}

impl Most {
    const NONE: i64 = i64::MIN / 2;

    fn new(values: Vec<i64>) -> Self {
        let size = values.len().next_power_of_two().max(1);
        let mut most = vec![Self::NONE; 2 * size];
        most[size..size + values.len()].copy_from_slice(&values);
        for at in (1..size).rev() {
            most[at] = most[2 * at].max(most[2 * at + 1]);
        }
        Self { size, most, added: vec![0; 2 * size] }
    }

    fn add_before(&mut self, end: usize, by: i64) {
        self.add(1, 0, self.size, end, by);
    }

    fn add(&mut self, at: usize, from: usize, to: usize, end: usize, by: i64) {
        if end <= from {
            return;
        }
        if end >= to {
            self.most[at] += by;
            self.added[at] += by;
            return;
        }
        let middle = (from + to) / 2;
        self.add(2 * at, from, middle, end, by);
        self.add(2 * at + 1, middle, to, end, by);
        self.most[at] = self.most[2 * at].max(self.most[2 * at + 1]) + self.added[at];
    }

    fn before(&self, end: usize) -> i64 {
        self.find(1, 0, self.size, end)
    }

    fn find(&self, at: usize, from: usize, to: usize, end: usize) -> i64 {
        if end <= from {
            return Self::NONE;
        }
        if end >= to {
            return self.most[at];
        }
        let middle = (from + to) / 2;
        let left = self.find(2 * at, from, middle, end);
        left.max(self.find(2 * at + 1, middle, to, end)) + self.added[at]
    }
}

/// The most admissions of which call and reply lie in one window shorter than `window`.
fn most_within(admitted: &[Admitted], window: u64) -> usize {
    let mut by_reply = admitted.to_vec();
    by_reply.sort_unstable_by_key(|it| it.replied);
    let mut starts: Vec<u64> = admitted.iter().map(|it| it.called).collect();
    starts.sort_unstable();
    let mut counts = vec![0_usize; starts.len() + 1];
    let mut all = 0;
    let mut worst = 0;
    for it in by_reply {
        // A Fenwick tree of those that have replied, by call.
        let mut at = starts.partition_point(|&start| start < it.called) + 1;
        while at < counts.len() {
            counts[at] += 1;
            at += at & at.wrapping_neg();
        }
        all += 1;
        let begin = (it.replied + 1).saturating_sub(window);
        let (mut at, mut earlier) = (starts.partition_point(|&start| start < begin), 0);
        while at > 0 {
            earlier += counts[at];
            at -= at & at.wrapping_neg();
        }
        worst = worst.max(all - earlier);
    }
    worst
}

/// The checker finds what it is to find, as the definition does.
#[test]
fn the_checker_agrees_with_the_definition() {
    let mut random = Random(7);
    for round in 0..200 {
        let count = 1 + round % 30;
        let all: Vec<Admitted> = (0..count)
            .map(|_| {
                let called = random.below(2_000_000_000);
                let replied = called + random.below(300_000_000);
                Admitted { called, replied, node: 0, place: (0, 0) }
            })
            .collect();
        let (mut over, mut within) = (i64::MIN, 0);
        for first in &all {
            for last in &all {
                let (start, end) = (first.called, last.replied);
                let inside = all.iter().filter(|it| it.called >= start && it.replied <= end);
                let count = inside.count();
                if start <= end {
                    let refill = (end - start) as f64 * 5.0 * 1.002 / 1e9;
                    over = over.max((count as f64 - refill).ceil() as i64);
                    within = within.max(if end - start < 500_000_000 { count } else { 0 });
                }
            }
        }
        assert_eq!((most_over(&all, 5), most_within(&all, 500_000_000)), (over, within));
    }
}

/// Numbers without a pattern, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

fn request(path: &'static str) -> CheckArgs {
    let args = CheckArgs::new().value("method", "POST").value("path", path);
    args.value("user", "u").value("team", "t").value("region", "r")
}

async fn prepare(client: &Client) -> Handle {
    loop {
        if let Ok(handle) = client.prepare("shop", None).await {
            return handle;
        }
        tokio::time::sleep(REST).await;
    }
}

async fn ask_on(
    node: usize,
    address: SocketAddr,
    path: &'static str,
    told: Arc<Told>,
    stop: Arc<AtomicBool>,
    began: Instant,
) {
    let client = connect(address, DEADLINE).await;
    let handle = prepare(&client).await;
    let args = request(path);
    while !stop.load(Ordering::Relaxed) {
        let called = began.elapsed().as_nanos() as u64;
        let outcome = client.check(&handle, &args).await;
        let replied = began.elapsed().as_nanos() as u64;
        told.slowest.fetch_max(replied - called, Ordering::Relaxed);
        match outcome {
            Ok(answer) if answer.failed_open => panic!("no limit fails open: {answer:?}"),
            Ok(answer) if answer.is_allowed() => {
                let place = (answer.witness.log_index, answer.witness.position.into());
                told.admitted.lock().unwrap().push(Admitted { called, replied, node, place });
            }
            Ok(_) => _ = told.denied.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                if !error.charged_nothing() {
                    told.unknown.fetch_add(1, Ordering::Relaxed);
                }
                let name = code(&error).map_or_else(
                    || format!("{error:?}").split([' ', '{', '(']).next().unwrap().to_owned(),
                    |code| format!("{code}"),
                );
                *told.errors.lock().unwrap().entry(name).or_default() += 1;
            }
        }
        tokio::time::sleep(REST).await;
    }
}

/// One line for times: how many, the middle, the ninth tenth, the longest.
fn spread(name: &str, mut millis: Vec<u64>) -> String {
    millis.sort_unstable();
    let at = |part: usize| millis.get((millis.len() * part / 100).min(millis.len().max(1) - 1));
    format!(
        "{name}: n {} · p50 {:?} ms · p90 {:?} ms · max {:?} ms",
        millis.len(),
        at(50),
        at(90),
        millis.last()
    )
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fault {
    Kill,
    Pause,
    Cut,
    Stall,
}

#[test]
#[ignore = "takes minutes; TOLLKEEPER_CHAOS is the dose"]
#[allow(clippy::print_stdout, reason = "its figures are what it is run for")]
fn faults_neither_admit_more_nor_lose_a_charge() {
    let dose: usize = std::env::var("TOLLKEEPER_CHAOS").map_or(2, |dose| dose.parse().unwrap());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.unwrap();
    let mut fleet = Fleet::plan("chaos", &policy(), NODES);
    let wires = Arc::new(Wires(Default::default()));
    for node in 0..NODES {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        fleet.seats[node].advertised = listener.local_addr().unwrap();
        runtime.spawn(Arc::clone(&wires).serve(listener, node, fleet.seats[node].peers));
    }
    fleet.flags = vec!["--keep-log".to_owned()];
    fleet.init(NODES);

    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let (hot, tri): (Arc<Told>, Arc<Told>) = Default::default();
    let asking: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let node = number % NODES;
            let (path, told) =
                if (number / NODES).is_multiple_of(2) { ("/hot", &hot) } else { ("/tri", &tri) };
            let (told, stop) = (Arc::clone(told), Arc::clone(&stop));
            runtime.spawn(ask_on(node, fleet.seats[node].clients, path, told, stop, began))
        })
        .collect();
    let mut random = Random(std::process::id().into());
    let mut faults: Vec<Fault> = [Fault::Kill, Fault::Pause, Fault::Cut, Fault::Stall].repeat(dose);
    for at in (1..faults.len()).rev() {
        faults.swap(at, random.below(at as u64 + 1) as usize);
    }
    let mut done: Vec<(Fault, usize, u64, u64)> = Vec::new();
    let mut hashes: HashMap<u64, String> = HashMap::new();
    let mut compared = 0;
    let mut note_hashes = |fleet: &Fleet| {
        for node in fleet.running() {
            let Some(status) = fleet.status(node) else { continue };
            assert_eq!(status["diverged"], false, "{status}");
            for of in status["nodes"].as_array().into_iter().flatten() {
                if let (Some(at), Some(hash)) =
                    (of["state_hash_at"].as_u64(), of["state_hash"].as_str())
                {
                    let known = hashes.entry(at).or_insert_with(|| hash.to_owned());
                    assert_eq!(known, hash, "tables differ at {at}: {status}");
                    compared += 1;
                }
            }
        }
    };
    std::thread::sleep(Duration::from_secs(1));
    for fault in faults {
        let leader = fleet.leader();
        let at = began.elapsed().as_nanos() as u64;
        let held = match fault {
            Fault::Kill => {
                fleet.kill(leader);
                random.millis(700, 1500)
            }
            Fault::Pause => {
                fleet.node(leader).signal("STOP");
                random.millis(100, 5000)
            }
            Fault::Cut | Fault::Stall => {
                let wire = if fault == Fault::Cut { Wire::Cut } else { Wire::Stalled };
                wires.around(leader, wire);
                random.millis(100, 4000)
            }
        };
        std::thread::sleep(held);
        match fault {
            Fault::Kill => fleet.restart(&[leader]),
            Fault::Pause => fleet.node(leader).signal("CONT"),
            Fault::Cut | Fault::Stall => wires.around(leader, Wire::Whole),
        }
        done.push((fault, leader, at, held.as_nanos() as u64));
        std::thread::sleep(random.millis(300, 1500));
        fleet.await_ready();
        // A node that is killed goes on from it, with the log behind it.
        fleet.tell(leader, &["cluster", "snapshot"]);
        note_hashes(&fleet);
    }
    stop.store(true, Ordering::Relaxed);
    for asked in asking {
        runtime.block_on(asked).unwrap();
    }
    fleet.await_ready();

    println!(
        "{} s, {:?}",
        began.elapsed().as_secs(),
        done.iter().map(|it| it.0).fold(HashMap::new(), |mut all: HashMap<Fault, u32>, fault| {
            *all.entry(fault).or_default() += 1;
            all
        })
    );
    for (name, told) in [("hot", &hot), ("tri", &tri)] {
        println!(
            "{name}: admitted {} · denied {} · may be charged {} · errors {:?} · slowest {} ms",
            told.admitted.lock().unwrap().len(),
            told.denied.load(Ordering::Relaxed),
            told.unknown.load(Ordering::Relaxed),
            told.errors.lock().unwrap(),
            told.slowest.load(Ordering::Relaxed) / 1_000_000,
        );
    }
    let (hot_admitted, tri_admitted) = (hot.admitted.lock().unwrap(), tri.admitted.lock().unwrap());
    for kind in [Fault::Kill, Fault::Pause, Fault::Cut, Fault::Stall] {
        // A short fault need not cost the leader its place.
        let of = done.iter().filter(|(fault, _, _, held)| *fault == kind && *held > 600_000_000);
        let times = of.filter_map(|&(_, leader, at, held)| {
            let all = hot_admitted.iter().chain(&*tri_admitted);
            let after = all.filter(|it| it.node != leader && it.called >= at).map(|it| it.replied);
            after.min().map(|first| (first - at).min(held.max(first - at)) / 1_000_000)
        });
        println!("{}", spread(&format!("{kind:?} to next answer"), times.collect()));
    }

    let hot_over = most_over(&hot_admitted, HOT_RATE);
    let tri_over = most_over(&tri_admitted, TRI_RATE);
    let tri_window = most_within(&tri_admitted, 1_000_000_000);
    println!(
        "over the rate in the worst interval: hot {hot_over} of {HOT_BURST}, tri {tri_over} of \
         {TRI_BURST}; in the worst second {tri_window} of {TRI_WINDOW}"
    );
    assert!(!hot_admitted.is_empty() && !tri_admitted.is_empty());
    assert!(hot_over <= HOT_BURST as i64, "{hot_over}");
    assert!(tri_over <= TRI_BURST as i64, "{tri_over}");
    assert!(tri_window <= TRI_WINDOW as usize, "{tri_window}");

    // Each node has the same count, of all that was acknowledged and of no more than may be.
    let (least, unknown) = (tri_admitted.len() as u64, tri.unknown.load(Ordering::Relaxed));
    fleet.until("all nodes have applied the same", |fleet| {
        let applied = |node: usize| fleet.status(node)?["applied"].as_u64();
        (applied(0) == applied(1) && applied(1) == applied(2)).then_some(())
    });
    let used: Vec<u64> = (0..NODES)
        .map(|node| {
            runtime.block_on(async {
                let client = fleet.client(node).await;
                let handle = prepare(&client).await;
                let args = request("/tri").form(Form::NUMBERS);
                let numbers = client.peek(&handle, &args).await.unwrap().numbers.unwrap();
                let day = numbers.limits.iter().find(|it| it.limit == TRI_DAY).unwrap();
                TRI_DAY - day.remaining
            })
        })
        .collect();
    println!("charged {used:?}, acknowledged {least}, may be charged besides {unknown}");
    assert!(used.iter().all(|used| (least..=least + unknown).contains(used)));
    assert_eq!((used[0], used[0]), (used[1], used[2]));
    fleet.until("tables were hashed at one index", |fleet| {
        note_hashes(fleet);
        let hashed = |node: usize| fleet.status(node)?["nodes"][node]["state_hash_at"].as_u64();
        (hashed(0).is_some() && hashed(0) == hashed(1) && hashed(1) == hashed(2)).then_some(())
    });
    println!("{} hashes at {} indexes, all equal", compared, hashes.len());

    for node in (0..NODES).rev() {
        let daemon = fleet.nodes[node].take().unwrap();
        daemon.terminate();
        let (status, log) = daemon.wait();
        assert!(status.success(), "{log}");
    }
    for (node, used) in used.iter().enumerate() {
        let replayed = Replay::of(&fleet.data(node));
        for (name, admitted) in [("shop.hot", &hot_admitted), ("shop.day.day", &tri_admitted)] {
            let lost = admitted.iter().find(|it| !replayed.admits(it.place, name));
            assert!(lost.is_none(), "{name} at node {node}: {:?} is lost", lost.map(|it| it.place));
        }
        let (hot_units, tri_units) = (replayed.units("shop.hot"), replayed.units("shop.day.day"));
        assert_eq!(tri_units, *used);
        let most = hot_admitted.len() as u64 + hot.unknown.load(Ordering::Relaxed);
        assert!((hot_admitted.len() as u64..=most).contains(&hot_units), "{hot_units}");
        let same = hashes
            .iter()
            .filter(|(at, hash)| replayed.hash_at(**at) == Some(hash.as_str()))
            .count();
        assert_eq!(same, hashes.len(), "{hashes:?}, {}", replayed.report);
        println!(
            "node {node}: its log has all that was acknowledged ({} hot, {} tri) and admits {hot_units} \
             and {tri_units}; {} entries replayed from the first one on, {same} hashes as the nodes had",
            hot_admitted.len(),
            tri_admitted.len(),
            replayed.report["replayed_to"],
        );
    }
}

/// A node's log, replayed.
struct Replay {
    /// Of each check that was allowed, by entry and place: the limits that it was charged to.
    allowed: HashMap<(u64, u64), Vec<String>>,
    report: Value,
}

impl Replay {
    fn of(data: &str) -> Self {
        let output = run(&mut command(["log", "inspect", "--data", data, "--commands"]));
        assert_eq!(output.code, 0, "{}", output.stderr);
        let mut lines = output.json();
        let report = lines.pop().unwrap();
        // Nothing was purged, and nothing was left to the next start.
        assert_eq!(report["log"]["purged"], Value::Null, "{report}");
        assert_eq!(report["from_snapshot"], Value::Null, "{report}");
        let allowed = lines.iter().filter(|line| line["outcome"] == "allow").map(|line| {
            let place = (line["index"].as_u64().unwrap(), line["position"].as_u64().unwrap());
            (place, line["limits"].as_object().unwrap().keys().cloned().collect())
        });
        Self { allowed: allowed.collect(), report }
    }

    fn admits(&self, place: (u64, u64), limit: &str) -> bool {
        self.allowed.get(&place).is_some_and(|limits| limits.iter().any(|it| it == limit))
    }

    /// Units of a limit that were admitted in all.
    fn units(&self, limit: &str) -> u64 {
        let limits = self.report["limits"].as_array().unwrap();
        limits.iter().find(|it| it["limit"] == limit).unwrap()["units"].as_u64().unwrap()
    }

    fn hash_at(&self, index: u64) -> Option<&str> {
        let hashes = self.report["hashes"].as_array().unwrap();
        hashes.iter().find(|it| it["index"] == index)?["state_hash"].as_str()
    }
}

/// Where Debian's `faketime` has its library.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The environment of a process whose clocks are faked so.
fn faked(how: &[(&str, &str)]) -> Vec<(String, String)> {
    assert!(std::path::Path::new(FAKETIME).exists(), "there is no {FAKETIME}");
    let preload = ("LD_PRELOAD", FAKETIME);
    [&[preload], how].concat().iter().map(|&(name, is)| (name.into(), is.into())).collect()
}

/// A leader whose raw clock runs 5 % fast, and with it every refill, loses the lead within
/// two minutes; cluster time goes on, and a node that runs true leads from then on.
#[test]
#[ignore = "needs Debian's package faketime, and a minute"]
#[allow(clippy::print_stdout, reason = "a figure")]
fn a_leader_whose_clock_runs_fast_loses_the_lead() {
    let mut fleet = Fleet::plan("chaos-fast", &policy(), NODES);
    fleet.environment[0] = faked(&[("FAKETIME", "+0 x1.05")]);
    fleet.init(NODES);
    fleet.until("the first leads", |fleet| {
        let leader = fleet.leader();
        if leader != 0 {
            // Who leads may have changed meanwhile.
            fleet.tell(leader, &["cluster", "transfer", "1"]);
        }
        (leader == 0).then_some(())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = Instant::now();
    let lost = runtime.block_on(async {
        let client = fleet.client(1).await;
        let handle = prepare(&client).await;
        loop {
            let answer = client.check(&handle, &request("/tri")).await;
            let status = fleet.status(1).unwrap();
            if answer.is_ok() && status["leader"].as_u64().is_some_and(|leader| leader != 1) {
                break began.elapsed();
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    println!("lost the lead after {lost:?}");
    assert!(lost > Duration::from_secs(20), "it lost the lead for another reason");
    let url = format!("http://{}/metrics", fleet.seats[0].admin);
    let page = ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(page.contains("tollkeeper_cluster_clock_handovers_total 1"), "{page}");
}

/// The leader's wall clock goes an hour ahead and then an hour back: nobody waits longer, nothing
/// more is admitted, and no window begins anew.
#[test]
#[ignore = "needs Debian's package faketime"]
fn the_wall_clock_neither_admits_nor_stalls() {
    const POLICY: &str = r#"
schema = 1
[api.shop]
[api.shop.limit]
bucket = { on = "/bucket", per = ["user"], bucket = "1/min burst 20", when_unavailable = "deny" }
fixed  = { on = "/fixed", per = ["user"], fixed = "20/day", align = "first", when_unavailable = "deny" }
window = { on = "/window", per = ["user"], sliding = "20/hour", when_unavailable = "deny" }
"#;
    let mut fleet = Fleet::plan("chaos-clock", POLICY, NODES);
    let step = |fleet: &Fleet, node: usize, by: &str| {
        fleet.directory.write(&format!("clock-{node}"), by);
    };
    for node in 0..NODES {
        step(&fleet, node, "+0");
        let file = fleet.directory.0.join(format!("clock-{node}")).display().to_string();
        fleet.environment[node] = faked(&[
            ("DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_TIMESTAMP_FILE", &file),
        ]);
    }
    fleet.init(NODES);
    let leader = fleet.leader();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut admitted = [0; 3];
    let mut ask = |fleet: &Fleet, each: usize| {
        for node in 0..NODES {
            runtime.block_on(async {
                let client = fleet.client(node).await;
                let handle = prepare(&client).await;
                for (path, admitted) in
                    ["/bucket", "/fixed", "/window"].into_iter().zip(&mut admitted)
                {
                    let args = CheckArgs::new().value("method", "POST").value("path", path);
                    let args = args.value("user", "u");
                    for _ in 0..each {
                        let asked = Instant::now();
                        let answer = client.check(&handle, &args).await.unwrap();
                        *admitted += u32::from(answer.is_allowed());
                        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
                    }
                }
            });
        }
        admitted
    };
    assert_eq!(ask(&fleet, 4), [12; 3]);
    for (by, ahead_ms) in [("+3600", 3_600_000.0), ("-3600", -3_600_000.0)] {
        step(&fleet, leader, by);
        // Once the nodes have told each other, the step has been seen, or it was none.
        fleet.until("the others see the step", |fleet| {
            let other = (leader + 1) % NODES;
            let seen = fleet.status(other)?["nodes"][leader]["clock_offset_ms"].as_f64()?;
            ((seen - ahead_ms).abs() < 60_000.0).then_some(())
        });
        assert_eq!(ask(&fleet, 4), [20; 3]);
    }
}
