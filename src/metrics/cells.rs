//! Per-thread counts and histograms. A leaf: any shell may import it, it imports nothing of ours.
//!
//! Each worker thread owns its cells and is the only one to write them, so a count is a load and a
//! store, not an atomic addition; the exporter sums over the workers at each scrape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most APIs that are counted apart.
pub const APIS_MAX: usize = 256;

/// The most limits that are counted apart; limit 0 stands for all inline ones.
pub const LIMITS_MAX: usize = 4096;

/// The most rules that are counted apart.
pub const RULES_MAX: usize = 4096;

/// Upper bounds of the duration buckets, in nanoseconds. One more bucket holds what is longer.
pub const DURATION_BOUNDS: [u64; 16] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    100_000_000,
    1_000_000_000,
];

/// A count with one writer.
#[derive(Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `by`. Only the owning thread may call it.
    #[inline]
    pub fn add(&self, by: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// It passed.
    Allow,
    /// It was refused.
    Deny,
    /// It passed because no limit applied.
    Unmatched,
    /// It passed or was refused by `when_unavailable`, without a decision.
    Unavailable,
    /// It was answered with an error.
    Error,
}

impl Outcome {
    /// All outcomes, in the order of their cells.
    pub const ALL: [Self; 5] =
        [Self::Allow, Self::Deny, Self::Unmatched, Self::Unavailable, Self::Error];

    /// The value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Unmatched => "unmatched",
            Self::Unavailable => "unavailable",
            Self::Error => "error",
        }
    }
}

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The binary protocol.
    Binary,
    /// The admin door's HTTP.
    Admin,
    /// Redis' protocol.
    Resp,
    /// The HTTP door.
    Http,
    /// Envoy's rate limit service.
    Envoy,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Binary, Self::Admin, Self::Resp, Self::Http, Self::Envoy];

    /// The value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Admin => "admin",
            Self::Resp => "resp",
            Self::Http => "http",
            Self::Envoy => "envoy",
        }
    }
}

/// Cells of one limit.
#[derive(Default)]
pub struct LimitCells {
    /// Checks that fitted this limit.
    pub allow: Cell,
    /// Checks that this limit refused.
    pub deny: Cell,
    /// Checks that this limit would have refused, were it not in shadow mode.
    pub shadow_deny: Cell,
    /// Units charged.
    pub units: Cell,
}

/// The cells of one worker thread.
pub struct Worker {
    protocol: Protocol,
    checks: Box<[[Cell; Outcome::ALL.len()]]>,
    limits: Box<[LimitCells]>,
    rules: Box<[Cell]>,
    durations: [Cell; DURATION_BOUNDS.len() + 1],
    /// Sum of the durations in nanoseconds.
    pub duration_sum: Cell,
    /// Frames or requests answered.
    pub requests: Cell,
    /// Requests answered with an error.
    pub errors: Cell,
    /// Connections closed for breaking the protocol or a deadline.
    pub connections_dropped: Cell,
}

impl Worker {
    /// By which protocol all of its requests come.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            checks: (0..APIS_MAX).map(|_| Default::default()).collect(),
            limits: (0..LIMITS_MAX).map(|_| LimitCells::default()).collect(),
            rules: (0..RULES_MAX).map(|_| Cell::default()).collect(),
            durations: Default::default(),
            duration_sum: Cell::default(),
            requests: Cell::default(),
            errors: Cell::default(),
            connections_dropped: Cell::default(),
        }
    }

    /// Counts one check of an API.
    #[inline]
    pub fn check(&self, api: usize, outcome: Outcome) {
        self.checks[api.min(APIS_MAX - 1)][outcome as usize].add(1);
    }

    /// The cells of a limit, by its number.
    #[inline]
    pub fn limit(&self, limit: u16) -> &LimitCells {
        &self.limits[usize::from(limit).min(LIMITS_MAX - 1)]
    }

    /// Checks that a rule answered, by its number.
    #[inline]
    pub fn rule(&self, rule: u16) -> &Cell {
        &self.rules[usize::from(rule).min(RULES_MAX - 1)]
    }

    /// Counts `requests` that took `nanos` together, each as long as the whole batch: that is how
    /// long its caller waited.
    pub fn duration(&self, nanos: u64, requests: u64) {
        let bucket = DURATION_BOUNDS.partition_point(|&bound| bound < nanos);
        self.durations[bucket].add(requests);
        self.duration_sum.add(nanos.saturating_mul(requests));
    }
}

/// Counts of snapshots. One thread writes them; all zero as long as there was none.
#[derive(Default)]
pub struct SnapshotCells {
    /// Snapshots written.
    pub written: AtomicU64,
    /// Snapshots that came to nothing.
    pub failed: AtomicU64,
    /// The last one's moment, or that of the one restored: nanoseconds since the epoch.
    pub taken_at: AtomicU64,
    /// Nanoseconds that the last one took.
    pub duration: AtomicU64,
    /// Bytes of the last one.
    pub bytes: AtomicU64,
    /// Counters that changed while the last one was taken before it had come to them.
    pub noted: AtomicU64,
}

/// The cells of all worker threads.
#[derive(Default)]
pub struct Cells {
    workers: Mutex<Vec<Arc<Worker>>>,
    /// Of the one thread that takes snapshots.
    pub snapshots: SnapshotCells,
}

impl Cells {
    /// No workers yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Cells for one more worker thread, all of whose requests come by one protocol.
    pub fn worker(&self, protocol: Protocol) -> Arc<Worker> {
        let worker = Arc::new(Worker::new(protocol));
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&worker));
        worker
    }

    /// A sum over all workers.
    pub fn sum(&self, of: impl Fn(&Worker) -> &Cell) -> u64 {
        self.sum_where(|_| true, of)
    }

    /// A sum over the workers of one protocol.
    pub fn sum_of(&self, protocol: Protocol, of: impl Fn(&Worker) -> &Cell) -> u64 {
        self.sum_where(|worker| worker.protocol == protocol, of)
    }

    fn sum_where(&self, which: impl Fn(&Worker) -> bool, of: impl Fn(&Worker) -> &Cell) -> u64 {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = workers.iter().filter(|worker| which(worker));
        chosen.map(|worker| of(worker).count()).fold(0, u64::wrapping_add)
    }

    /// Checks of an API with this outcome.
    pub fn checks(&self, api: usize, outcome: Outcome) -> u64 {
        self.sum(|worker| &worker.checks[api.min(APIS_MAX - 1)][outcome as usize])
    }

    /// Checks of all APIs with this outcome, those that are gone included.
    pub fn checks_of_all(&self, outcome: Outcome) -> u64 {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let cells = workers.iter().flat_map(|worker| worker.checks.iter());
        cells.map(|cells| cells[outcome as usize].count()).fold(0, u64::wrapping_add)
    }

    /// A protocol's requests in each duration bucket; the last is for those above all bounds.
    pub fn durations(&self, protocol: Protocol) -> [u64; DURATION_BOUNDS.len() + 1] {
        core::array::from_fn(|bucket| self.sum_of(protocol, |worker| &worker.durations[bucket]))
    }
}

/// Counts of one node of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterFigures {
    /// Whether it leads.
    pub leads: bool,
    /// The term that it knows of.
    pub term: u64,
    /// The index of the last entry that it applied.
    pub applied: u64,
    /// Whether it is in contact with a majority.
    pub in_contact: bool,
    /// Whether nodes' tables were found to differ.
    pub diverged: bool,
    /// How often this node handed leadership over because most found its clock to run fast.
    pub clock_handovers: u64,
    /// Entries proposed, groups in them, bytes of them, commands applied.
    pub entries: [u64; 4],
    /// Requests handed to the leader, entries proposed anew, denials without an entry.
    pub requests: [u64; 3],
    /// Requests that wait.
    pub waiting: u64,
    /// Seconds from proposing to applying, at 0.5, 0.99 and 0.999, and how many entries.
    pub commit_seconds: ([f64; 3], u64),
    /// Of each other node: its number, by how many entries it is behind, and by how many seconds
    /// its clock is ahead of this node's.
    pub peers: Vec<(u64, u64, f64)>,
    /// The index of the last snapshot.
    pub snapshot_index: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_over_all_workers() {
        let cells = Cells::new();
        let (one, two) = (cells.worker(Protocol::Binary), cells.worker(Protocol::Admin));
        one.check(3, Outcome::Deny);
        two.check(3, Outcome::Deny);
        two.limit(7).units.add(5);
        assert_eq!(cells.checks(3, Outcome::Deny), 2);
        assert_eq!(cells.checks(3, Outcome::Allow), 0);
        assert_eq!(cells.sum(|worker| &worker.limit(7).units), 5);
        assert_eq!(cells.sum_of(Protocol::Admin, |worker| &worker.limit(7).units), 5);
        assert_eq!(cells.sum_of(Protocol::Binary, |worker| &worker.limit(7).units), 0);
    }

    #[test]
    fn a_duration_counts_in_the_bucket_that_holds_it() {
        let cells = Cells::new();
        let worker = cells.worker(Protocol::Binary);
        worker.duration(1_000, 2);
        worker.duration(1_001, 1);
        worker.duration(u64::MAX, 1);
        let durations = cells.durations(Protocol::Binary);
        assert_eq!((durations[0], durations[1], durations[16]), (2, 1, 1));
    }
}
