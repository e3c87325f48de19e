//! SOCKETS. One folder per way in. Each door turns its bytes into the same request, asks the same
//! desk, and turns the answer back; none has rules of its own.

pub mod binary;

pub mod admin;

pub mod resp;

pub mod http;

pub mod envoy;

mod threads;

mod socket;

mod desk;

mod docket;

mod steering;

mod batch;

mod json;

mod asked;

mod answer;

mod checks;

mod changes;

mod control;

mod journal;

pub mod report;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::engine::command::LimitId;
use crate::engine::key::{KeySpace, Seed};
use crate::engine::session::Sessions;
use crate::engine::table::Table;
use crate::metrics::cells::Cells;
use crate::policy::{Policy, RunOut};

use report::SnapshotReport;

pub(crate) use batch::TRIES_MAX;
pub use batch::{Batch, Outcome, PartOutcome, SharedDesk};
pub use changes::{Batch as ChangeBatch, Changes, Full, Kept, NotKept, Turn};
pub use control::{Control, Failure, InForce, Loaded, Reloads, Standing};
pub use desk::{Answered, Desk, Intent, Problem};
pub use docket::{Awaited, AwaitedChange, Consensus, ConsensusHandle, Docket};
pub use journal::{By, Cause, Denial, Due, Event, Journal};
pub use steering::{Initialize, Steered, Steering};
pub use threads::Listener;

/// The part of `--max-keys` that one limit may take if its policy says nothing, in percent: the
/// keys of one API's attacker then leave room for the other limits.
pub const LIMIT_KEYS_PERCENT: u64 = 80;

/// What all doors share: the table, the policy in force, the clock and the counts.
pub struct Instance {
    /// Every counter. Only a cluster's node, to which a snapshot comes, ever has another.
    pub table: ArcSwap<Table>,
    /// The policy in force, with overrides and identities. A door takes it once for a batch of
    /// requests, and [`Control`] puts another in its place by one swap.
    pub policy: ArcSwap<Loaded>,
    /// Changes while running.
    pub control: Control,
    /// Changes by hand that are to be kept. Its lock is taken after those of `control` and
    /// `sessions`, where several are.
    pub changes: Changes,
    /// What is to be logged.
    pub journal: Journal,
    /// Time.
    pub clock: Arc<Clock>,
    /// Requests that clients may send again. Locked for the moment of one such request.
    pub sessions: Mutex<Sessions>,
    /// Counts.
    pub cells: Arc<Cells>,
    /// Another instance has other counters.
    pub id: [u8; 16],
    /// The spaces of inline limits' keys.
    pub inline: InlineSpaces,
    /// Open connections of the binary door.
    pub connections: Arc<Connections>,
    /// Open connections of the door for Redis clients.
    pub resp_connections: Arc<Connections>,
    /// Open connections of the HTTP door.
    pub http_connections: Arc<Connections>,
    /// Open connections of the door for Envoy.
    pub envoy_connections: Arc<Connections>,
    /// Who decides, where this node does not by itself; set once, before any door opens.
    pub consensus: OnceLock<ConsensusHandle>,
    /// What operators ask of the cluster; set once, where there is one.
    pub steering: OnceLock<Arc<dyn Steering>>,
    /// Asks whoever keeps snapshots for one; set once, where there is a data directory.
    pub snapshots: OnceLock<AskSnapshot>,
    draining: AtomicBool,
}

/// Asks for a snapshot now. What comes back says what became of it.
pub type AskSnapshot =
    Box<dyn Fn() -> oneshot::Receiver<Result<SnapshotReport, String>> + Send + Sync>;

/// The spaces of inline limits' keys: apart from every policy's, so that no client can spoil a
/// policy's counter.
pub struct InlineSpaces {
    /// Counters of buckets.
    pub bucket: KeySpace,
    /// Counters of sliding windows. The length is part of the key.
    pub sliding: KeySpace,
    /// Counters of fixed windows. Length and alignment are part of the key.
    pub fixed: KeySpace,
    /// Permits.
    pub concurrent: KeySpace,
    /// Levels.
    pub level: KeySpace,
}

impl InlineSpaces {
    fn derive(seed: &Seed) -> Self {
        let space = |kind: &str| KeySpace::derive(seed, [&b"inline"[..], kind.as_bytes()]);
        Self {
            bucket: space("bucket"),
            sliding: space("sliding"),
            fixed: space("fixed"),
            concurrent: space("concurrent"),
            level: space("level"),
        }
    }
}

/// Open connections of a door, against their maximum.
pub struct Connections {
    open: AtomicU64,
    /// The most at one time.
    pub max: u64,
}

/// One open connection; closes itself in the count.
pub struct ConnectionGuard(Arc<Connections>);

impl Connections {
    /// None open of at most `max`.
    fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { open: AtomicU64::new(0), max })
    }

    /// Counts one more, unless there are too many.
    fn admit(self: &Arc<Self>) -> Option<ConnectionGuard> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(ConnectionGuard(Arc::clone(self)))
    }

    /// Those open now.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Instance {
    /// An instance with an empty table under the policy of `loaded`.
    ///
    /// # Errors
    /// If the policy has more of something than there are numbers.
    pub fn new(
        keys_max: u64,
        connections_max: u64,
        id: [u8; 16],
        seed: &Seed,
        clock: Arc<Clock>,
        loaded: Loaded,
    ) -> Result<Arc<Self>, RunOut> {
        Self::with_table(Table::new(keys_max, seed), connections_max, id, seed, clock, loaded)
    }

    /// An instance with this table, whose keys derive from `seed`, under the policy of `loaded`.
    ///
    /// # Errors
    /// As [`Instance::new`].
    pub fn with_table(
        table: Table,
        connections_max: u64,
        id: [u8; 16],
        seed: &Seed,
        clock: Arc<Clock>,
        mut loaded: Loaded,
    ) -> Result<Arc<Self>, RunOut> {
        cap_inline(&table);
        // A policy's first numbers are those that it was compiled with, by which a restored table
        // knows its limits.
        let control = Control::begin(&mut loaded)?;
        cap_limits(&table, &loaded.policy);
        Ok(Arc::new(Self {
            table: ArcSwap::from_pointee(table),
            policy: ArcSwap::from_pointee(loaded),
            control,
            changes: Changes::default(),
            journal: Journal::new(),
            clock,
            sessions: Mutex::new(Sessions::new(seed)),
            cells: Cells::new(),
            id,
            inline: InlineSpaces::derive(seed),
            connections: Connections::new(connections_max),
            resp_connections: Connections::new(connections_max),
            http_connections: Connections::new(connections_max),
            envoy_connections: Connections::new(connections_max),
            consensus: OnceLock::new(),
            steering: OnceLock::new(),
            snapshots: OnceLock::new(),
            draining: AtomicBool::new(false),
        }))
    }

    /// Counts one more connection of the binary door, unless there are too many.
    pub fn connect(self: &Arc<Self>) -> Option<ConnectionGuard> {
        self.connections.admit()
    }

    /// Open connections of the binary door.
    pub fn connections(&self) -> u64 {
        self.connections.open()
    }

    /// From now on no new work is taken.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`Instance::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// The most counters of one limit whose policy says nothing, where the table holds `keys_max`.
pub fn keys_share(keys_max: u64) -> u64 {
    (u128::from(keys_max) * u128::from(LIMIT_KEYS_PERCENT)).div_ceil(100) as u64
}

/// Gives inline limits their share of a table.
pub(crate) fn cap_inline(table: &Table) {
    table.limit_cap(LimitId::INLINE, keys_share(table.usage().keys_max));
}

fn cap_limits(table: &Table, policy: &Policy) {
    let share = keys_share(table.usage().keys_max);
    for limit in policy.limits() {
        table.limit_cap(limit.id, limit.keys_max.unwrap_or(share));
    }
}
