//! The bucket table: every counter of an instance, in memory, shared by all threads.
//!
//! Keys are spread over shards by their hash; a shard is an open-addressing array of 32-byte
//! slots that grows by itself. A check of one narrow counter is one compare-and-swap on the
//! slot's state word; inserts, growth and sweeping by others do not make it wait. A check of
//! several counters, or of a wide one, *holds* their words in key order, decides, and writes them
//! back; whoever meets a held word waits for it, also while helping a shard to grow.
//! ARCHITECTURE.md says why.
//!
//! What a slot's word cannot hold is beside the slots, in pools: cells of a few numbers, rings of
//! sub-windows, shares of permits. Each piece belongs to one counter and is touched by whoever
//! holds that counter's slot, by nobody else.
//!
//! Nothing is ever charged provisionally, so nothing is ever undone: undoing a charge on a word
//! that others have advanced since would admit too much.

// The one room of the engine with unsafe code: arrays that are freed behind readers, memory from
// pools, memory not yet written, and prefetch.
#![allow(unsafe_code)]
// The models build the engine alone, without those who write and load snapshots.
#![cfg_attr(table_model, allow(dead_code, unused_imports))]

mod array;
mod cells;
mod check;
mod count;
mod few;
mod grow;
mod held;
mod load;
mod overlay;
mod permits;
mod pool;
mod probe;
mod rings;
mod segment;
mod shard;
mod shares;
mod slot;
mod snapshot;
mod sweep;
mod together;

#[cfg(all(test, table_model))]
mod loom;
#[cfg(all(test, not(table_model)))]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::command::LimitId;
use super::decision::Refusal;
use super::key::{Key, Seed};
use super::permit::PermitSpaces;
use super::sync::epoch::{self, Guard};
use super::sync::{AtomicU64, Ordering};
use super::time::Now;

use cells::Cells;
use count::{Counts, Windows};
use overlay::Notes;
use rings::Rings;
use segment::Segments;
use shard::Shard;
use shares::Shares;

pub(crate) use load::Loader;
#[cfg(test)]
pub(crate) use load::Unfit;
pub(crate) use snapshot::{Counter, Found, Permitted, Ready, Snapshot, Spent, State, Walked};
pub use sweep::{SweepCursor, Swept};

/// Shards of a table of the default size; a power of two.
const SHARDS_MAX: usize = 256;

/// Counters per shard that the number of shards aims at.
const KEYS_PER_SHARD: u64 = 65_536;

/// The most limits, inline ones counting as one, that a table counts and caps apart.
pub const LIMITS_MAX: usize = 4096;

/// All counters of an instance.
pub struct Table {
    shards: Box<[Shard]>,
    cells: Cells,
    rings: Rings,
    shares: Shares,
    shape: Shape,
    counts: Counts,
    windows: Windows,
    permits: PermitSpaces,
    notes: Notes,
    /// Number of the next permit.
    next_permit: AtomicU64,
}

/// How the table is cut up.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// There are `1 << shard_bits` shards.
    shard_bits: u32,
}

/// What the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Counters that differ from fresh ones, and shares of permits, as last swept.
    pub keys: u64,
    /// The most of them.
    pub keys_max: u64,
    /// Slots in the shards' arrays, vacant ones included.
    pub slots: u64,
    /// Bytes of those slots and of what lies beside them.
    pub bytes: u64,
}

/// The moment of a decision, and how to ask for a later one: what is decided after a wait is
/// decided at the time after the wait.
pub struct Stamp<F> {
    now: Now,
    read: F,
}

impl<F: FnMut() -> Now> Stamp<F> {
    /// Stamps from `read`, beginning with its answer now.
    pub fn new(mut read: F) -> Self {
        Self { now: read(), read }
    }

    /// The moment last read.
    #[inline]
    pub fn now(&self) -> Now {
        self.now
    }

    /// Reads a new moment, on neither scale before the last one.
    fn renew(&mut self) -> Now {
        let read = (self.read)();
        self.now = Now { time: read.time.max(self.now.time), utc: read.utc.max(self.now.utc) };
        self.now
    }
}

/// A table in use by one thread. What is freed meanwhile is kept until the thread lets go, so it
/// should be held for one batch of checks, not for long.
pub struct Pinned<'t> {
    table: &'t Table,
    guard: Guard,
}

impl Table {
    /// An empty table that holds at most `keys_max` counters and shares of permits. Ids of permits
    /// derive from `seed`.
    pub fn new(keys_max: u64, seed: &Seed) -> Self {
        let shards = keys_max.div_ceil(KEYS_PER_SHARD).clamp(1, SHARDS_MAX as u64) as usize;
        Self::with_shape(keys_max, seed, shards.next_power_of_two(), probe::SLOTS_MIN)
    }

    /// A table of `shards` shards, a power of two, whose arrays have at least `slots_min` slots.
    fn with_shape(keys_max: u64, seed: &Seed, shards: usize, slots_min: u32) -> Self {
        debug_assert!(shards.is_power_of_two());
        let slots = |index| probe::slots_at_first(index, shards, slots_min);
        let pool = Arc::new(Segments::new());
        let shard = |index| Shard::new(slots(index), &pool);
        Self {
            shards: (0..shards).map(shard).collect(),
            cells: Cells::new(),
            rings: Rings::new(),
            shares: Shares::new(),
            shape: Shape { shard_bits: shards.ilog2() },
            counts: Counts::new(keys_max),
            windows: Windows::new(),
            permits: PermitSpaces::derive(seed),
            notes: Notes::new(),
            next_permit: AtomicU64::new(1),
        }
    }

    /// Numbers the permits from here on. Ids are never given twice as long as numbers only go up;
    /// replicas that number alike give the same ids.
    pub fn number_permits_from(&self, number: u64) {
        self.next_permit.store(number, Ordering::Relaxed);
    }

    /// Lets counters of `limit` number at most `keys_max`. Without it only the overall cap holds.
    pub fn limit_cap(&self, limit: LimitId, keys_max: u64) {
        self.counts.cap(limit, keys_max);
    }

    /// Refuses no new counter from now on: whoever hands requests in keeps to the caps, by
    /// [`Table::room_for`]. Replicas must not differ because their counts do.
    pub fn keep_caps_elsewhere(&self) {
        self.counts.keep_caps_elsewhere();
    }

    /// Whether so many new counters of `limit` have room.
    ///
    /// # Errors
    /// The cap that they would pass.
    pub fn room_for(&self, limit: LimitId, more: u64) -> Result<(), Refusal> {
        self.counts.room_for(limit, more)
    }

    /// Whether so many more counters, of whatever limits, are far from every cap: a look at two
    /// numbers. False says nothing; [`Table::room_for`] does.
    pub fn is_roomy(&self, more: u64) -> bool {
        self.counts.is_roomy(more)
    }

    /// Enters the table for a batch of checks.
    #[inline]
    pub fn pin(&self) -> Pinned<'_> {
        Pinned { table: self, guard: epoch::pin() }
    }

    /// Counters of `limit` that differ from fresh ones, as last swept.
    pub fn keys_of(&self, limit: LimitId) -> u64 {
        self.counts.of(limit)
    }

    /// What the table holds.
    pub fn usage(&self) -> Usage {
        let guard = epoch::pin();
        let slots = self.shards.iter().map(|shard| shard.slots(&guard)).sum();
        let beside = self.cells.bytes() + self.rings.bytes() + self.shares.bytes();
        let beside = beside + self.notes.bytes();
        let bytes = slots * size_of::<slot::Slot>() as u64 + beside;
        Usage { keys: self.counts.all(), keys_max: self.counts.keys_max(), slots, bytes }
    }

    #[inline]
    fn shard(&self, key: Key) -> &Shard {
        &self.shards[probe::shard(key.high, self.shape.shard_bits)]
    }
}

impl Pinned<'_> {
    /// Whether this key has a counter, perhaps a fresh one. False of one that others are at.
    pub fn has(&self, key: Key) -> bool {
        self.table.shard(key).find_settled(key, self.table.shape, &self.guard).is_some()
    }

    /// Begins to fetch the cache lines in which a key's counter most likely is, if it has one.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        self.table.shard(key).home(key, self.table.shape, &self.guard).fetch();
    }
}
