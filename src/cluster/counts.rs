//! What a node counts of its cluster, and what it heard of the other nodes' clocks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;

use crate::clock::agreed_ahead;

use super::entry::{Record, What};
use super::types::NodeId;

/// Durations up to a minute, to a hundredth.
const DURATION_MAX_NANOS: u64 = 60_000_000_000;

/// Counts, for metrics.
#[derive(Default)]
pub struct Counts {
    /// Requests handed over to another node.
    pub forwarded: AtomicU64,
    /// Entries that were not appended and proposed anew.
    pub resubmitted: AtomicU64,
    /// Denials by the applied table, without an entry.
    pub shortcut_denials: AtomicU64,
    /// Entries proposed here.
    pub entries: AtomicU64,
    /// Groups in them.
    pub groups: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
    /// Commands applied.
    pub commands: AtomicU64,
    /// From proposing to applying, in nanoseconds.
    commits: Durations,
    /// What other nodes say of wall time.
    pub ahead: Ahead,
    /// The last checksum: at which index, and what.
    checksum: Mutex<Option<(u64, u64)>>,
    checksum_due: AtomicBool,
    /// The term of a leader whose clock this node finds to run fast; 0 if it finds none.
    fast_clock: AtomicU64,
    /// Whether nodes' tables were found to differ.
    pub diverged: AtomicBool,
    /// How often this node handed leadership over because a majority found its clock to run fast.
    pub clock_handovers: AtomicU64,
}

/// A histogram of durations.
pub struct Durations(Mutex<Histogram<u64>>);

impl Default for Durations {
    fn default() -> Self {
        // Two digits over this range are within the library's own limits.
        Self(Mutex::new(
            Histogram::new_with_bounds(1000, DURATION_MAX_NANOS, 2)
                .unwrap_or_else(|_| unreachable!("the bounds are in order")),
        ))
    }
}

impl Durations {
    /// Notes one.
    pub fn note(&self, nanos: u64) {
        let nanos = nanos.clamp(1000, DURATION_MAX_NANOS);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(nanos);
    }

    /// The value at each of some quantiles, and how many were noted.
    pub fn at(&self, quantiles: &[f64]) -> (Vec<u64>, u64) {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let values = quantiles.iter().map(|quantile| histogram.value_at_quantile(*quantile));
        (values.collect(), histogram.len())
    }
}

impl Counts {
    /// An entry is proposed.
    pub(super) fn proposed(&self, record: &Record, bytes: usize) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let What::Groups(groups) = &record.what {
            self.groups.fetch_add(groups.len() as u64, Ordering::Relaxed);
        }
    }

    /// An entry proposed here was applied after so long.
    pub(super) fn committed(&self, nanos: u64) {
        self.commits.note(nanos);
    }

    /// How long entries took from being proposed to being applied, at quantiles, and how many.
    pub fn commits_at(&self, quantiles: &[f64]) -> (Vec<u64>, u64) {
        self.commits.at(quantiles)
    }

    /// So many commands were applied.
    pub(super) fn applied_commands(&self, commands: u64) {
        self.commands.fetch_add(commands, Ordering::Relaxed);
    }

    /// Notes whether this node finds the clock of the leader of a term to run fast.
    pub(super) fn note_fast_clock(&self, term: Option<u64>) {
        self.fast_clock.store(term.unwrap_or_default(), Ordering::Relaxed);
    }

    pub(super) fn fast_clock(&self) -> u64 {
        self.fast_clock.load(Ordering::Relaxed)
    }

    /// Has the next entry be a checksum, where this node leads.
    pub fn ask_checksum(&self) {
        self.checksum_due.store(true, Ordering::Release);
    }

    pub(super) fn checksum_is_due(&self) -> bool {
        self.checksum_due.swap(false, Ordering::AcqRel)
    }

    pub(super) fn note_checksum(&self, index: u64, hash: u64) {
        *self.checksum.lock().unwrap_or_else(PoisonError::into_inner) = Some((index, hash));
    }

    /// At which index the table was last hashed, and the hash.
    pub fn checksum(&self) -> Option<(u64, u64)> {
        *self.checksum.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By how much each node's wall clock is ahead of cluster time.
#[derive(Default)]
pub struct Ahead {
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    by: HashMap<NodeId, u64>,
    members: usize,
    steer_to: Option<u64>,
}

impl Ahead {
    /// What the nodes of a cluster of so many voters say now, this one included.
    pub fn note(&self, said: HashMap<NodeId, u64>, members: usize) {
        let mut values: Vec<u64> = said.values().copied().collect();
        let steer_to = agreed_ahead(&mut values, members);
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) =
            Said { by: said, members, steer_to };
    }

    /// What a majority agrees on; `own` counts for this node if nobody said anything yet and it is
    /// the only member.
    pub(super) fn agreed(&self, own: u64) -> Option<u64> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.members <= 1 {
            return Some(own);
        }
        let mut values: Vec<u64> = said.by.values().copied().collect();
        agreed_ahead(&mut values, said.members)
    }

    /// Where to steer wall time to, if that is news.
    pub(super) fn steer_to(&self) -> Option<u64> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).steer_to.take()
    }

    /// What each node said last.
    pub fn by_node(&self) -> HashMap<NodeId, u64> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).by.clone()
    }
}
