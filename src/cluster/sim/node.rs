//! A node and what it stands on: disks that lose what was not synced when power is lost, clocks, and
//! a single-threaded runtime of its own whose time stands still until the world moves it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::host::Host;
use crate::cluster::peer::Local;
use crate::cluster::running::{LogKept, Parts};
use crate::cluster::types::Member;
use crate::cluster::{Plan, Running, replay};
use crate::disk::faulty::Disk;
use crate::disk::log::{self, Settings, Stored, Writer};
use crate::disk::{Home, Identity};
use crate::engine::time::UtcTime;

use super::clock::{Clocks, True};
use super::history::SharedOracle;
use super::host::SimHost;
use super::invariants::same_state::State;
use super::limits;
use super::network::{Network, address};
use super::random::Random;

/// So small that logs go through many segments.
const SEGMENT_BYTES: u64 = 64 << 10;

const CLUSTER: [u8; 16] = [9; 16];

const IDENTITY: Identity =
    Identity { id: CLUSTER, seed: limits::SEED, made_at: UtcTime::from_nanos(0) };

pub(super) struct Node {
    pub(super) number: usize,
    pub(super) home: Disk,
    pub(super) log: Disk,
    pub(super) wall_off: Arc<AtomicI64>,
    pub(super) drift_ppm: i64,
    pub(super) boot: u64,
    pub(super) up: Option<Up>,
    pub(super) paused_until: Option<u64>,
    /// Ticks that its runtime has not been given.
    pub(super) owed: u64,
    pub(super) down_until: u64,
    random: Random,
}

/// A node that runs.
pub(super) struct Up {
    pub(super) running: Arc<Running<Disk>>,
    pub(super) host: Arc<SimHost>,
    /// Its disk has failed, so it has to stop.
    pub(super) has_failed: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
}

/// Raft's number of a node.
pub(super) fn id(node: usize) -> u64 {
    node as u64 + 1
}

pub(super) fn member(node: usize) -> Member {
    Member { peer: address(node), clients: String::new() }
}

impl Node {
    pub(super) fn new(number: usize, mut random: Random, drift_ppm: i64) -> Self {
        Self {
            number,
            home: Disk::default(),
            log: Disk::default(),
            wall_off: Arc::new(AtomicI64::new(0)),
            drift_ppm,
            boot: 0,
            up: None,
            paused_until: None,
            owed: 0,
            down_until: 0,
            random: random.fork(),
        }
    }

    /// Starts it on what its disks have.
    pub(super) fn start(
        &mut self,
        network: &Network,
        now: &True,
        oracle: &SharedOracle,
    ) -> Result<(), String> {
        self.boot += 1;
        let true_now = now.load(Ordering::Relaxed);
        let failed =
            |what: &dyn std::fmt::Display| format!("node {} cannot start: {what}", id(self.number));
        let home = Home::take(self.home.clone(), "home".to_owned(), IDENTITY);
        let home = home.map_err(|error| failed(&error))?;
        let has_failed = Arc::new(AtomicBool::new(false));
        let mut settings =
            Settings::new(CLUSTER, "log".to_owned(), [self.boot as u8; 16], self.random.next());
        settings.segment_bytes = SEGMENT_BYTES;
        settings.recent_bytes = 16 << 10;
        let flag = Arc::clone(&has_failed);
        settings.on_failure = Some(Box::new(move |_| flag.store(true, Ordering::Relaxed)));
        let (log, writer, _) =
            log::begin(self.log.clone(), settings).map_err(|error| failed(&error))?;
        let mut known = oracle.lock().unwrap();
        let held = known.votes.found(self.number, log.vote());
        known.hold(held);
        known.time.restarted(self.number);
        known.asked_once.restarted(self.number);
        drop(known);
        let clocks = Clocks {
            now: Arc::clone(now),
            wall_off: Arc::clone(&self.wall_off),
            drift_ppm: self.drift_ppm,
            booted_at: true_now,
            raw_at_boot: self.random.between(1_000_000_000, 1 << 50),
        };
        let host = Arc::new(SimHost::new(self.number, Arc::clone(oracle)));
        let parts = Parts {
            local: Local::new(id(self.number), CLUSTER, "sim").map_err(|error| failed(&error))?,
            listen: address(self.number),
            member: member(self.number),
            home: Arc::new(Mutex::new(home)),
            log,
            log_kept: LogKept::default(),
            host: Arc::clone(&host) as Arc<dyn Host>,
            readings: Arc::new(clocks),
            net: network.of(self.number),
            incarnation: self.random.next(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| failed(&error))?;
        let writes = Writes {
            writer,
            random: self.random.fork(),
            node: self.number,
            has_failed: Arc::clone(&has_failed),
            oracle: Arc::clone(oracle),
        };
        runtime.spawn(writes.run());
        let running = runtime.block_on(Running::start(parts)).map_err(|error| failed(&error))?;
        self.owed = 0;
        self.paused_until = None;
        self.up = Some(Up { running, host, has_failed, runtime });
        Ok(())
    }

    /// Replays its log up to an entry, from what is on its disks: how far that came, and to what.
    pub(super) fn replay(
        &self,
        to: Option<u64>,
        oracle: &SharedOracle,
    ) -> Result<(Option<u64>, Option<State>), String> {
        let failed =
            |what: &dyn std::fmt::Display| format!("node {}'s replay: {what}", id(self.number));
        let home = Home::take(self.home.clone(), "home".to_owned(), IDENTITY);
        let home = home.map_err(|error| failed(&error))?;
        let log = Stored::read(&self.log, "log", CLUSTER, [self.boot as u8; 16]);
        let log = log.map_err(|error| failed(&error))?;
        let mut known = oracle.lock().unwrap();
        known.time.restarted(self.number);
        known.asked_once.restarted(self.number);
        drop(known);
        let host = Arc::new(SimHost::new(self.number, Arc::clone(oracle)));
        let plan = Plan {
            node: id(self.number),
            home: Arc::new(Mutex::new(home)),
            log,
            host: Arc::clone(&host) as Arc<dyn Host>,
            to,
        };
        let replayed = replay(plan).map_err(|error| failed(&error))?;
        Ok((replayed.to, host.last()))
    }

    /// Loses power: what was not synced is there or not.
    pub(super) fn crash(&mut self, network: &Network) {
        let is_silent = self.random.in_thousand(500);
        network.crash(self.number, is_silent);
        let (home, log) = (self.random.next(), self.random.next());
        self.home = self.home.after_loss_of_power(home);
        self.log = self.log.after_loss_of_power(log);
        self.up = None;
        self.boot += 1;
    }
}

impl Up {
    /// Lets it run for a tick, and first through those that it missed, in which it did nothing.
    pub(super) fn run(&self, missed: u64) {
        if missed > 0 {
            self.runtime.block_on(async {
                tokio::time::advance(Duration::from_millis(missed)).await;
            });
        }
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }
}

/// Writes a node's log, as the thread of [`log::Log::open`] does, at the pace of a disk.
struct Writes {
    writer: Writer<Disk>,
    random: Random,
    node: usize,
    has_failed: Arc<AtomicBool>,
    oracle: SharedOracle,
}

impl Writes {
    async fn run(mut self) {
        loop {
            let is_slow = self.random.in_thousand(5);
            let (least, most) = if is_slow { (20, 80) } else { (1, 3) };
            let takes = self.random.between(least, most);
            tokio::time::sleep(Duration::from_millis(takes)).await;
            self.writer.turn();
            if self.has_failed.load(Ordering::Relaxed) {
                // Nobody was told that the last ones are on disk.
                return;
            }
            self.oracle.lock().unwrap().voted(self.node, self.writer.vote());
        }
    }
}
