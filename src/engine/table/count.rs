//! How many counters there are, overall and of each limit, against their caps; and the lengths of
//! the windows that slots refer to by number.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::engine::command::LimitId;
use crate::engine::decision::Refusal;
use crate::engine::sync::{AtomicBool, AtomicU64, Ordering};
use crate::engine::time::Nanos;

use super::LIMITS_MAX;

/// Live counters and their caps. A counter is counted before it comes and uncounted after it
/// went, so a cap is never passed. All relaxed: a count vouches for nothing else in memory.
pub(super) struct Counts {
    all: Count,
    limits: Box<[Count]>,
    /// Limits whose cap is lower than what a limit gets that says nothing.
    low_caps: AtomicU64,
    /// Whether somebody else keeps to the caps, so that nothing is refused here.
    is_kept_elsewhere: AtomicBool,
}

struct Count {
    keys: AtomicU64,
    keys_max: AtomicU64,
}

impl Count {
    fn new(keys_max: u64) -> Self {
        Self { keys: AtomicU64::new(0), keys_max: AtomicU64::new(keys_max) }
    }

    /// Counts one more, or says what the cap is.
    fn add(&self) -> Result<(), u64> {
        let keys_max = self.keys_max.load(Ordering::Relaxed);
        if self.keys.fetch_add(1, Ordering::Relaxed) >= keys_max {
            self.remove();
            return Err(keys_max);
        }
        Ok(())
    }

    fn remove(&self) {
        self.keys.fetch_sub(1, Ordering::Relaxed);
    }

    fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    fn keys_max(&self) -> u64 {
        self.keys_max.load(Ordering::Relaxed)
    }
}

impl Counts {
    pub(super) fn new(keys_max: u64) -> Self {
        let limits = if cfg!(table_model) { 4 } else { LIMITS_MAX };
        Self {
            all: Count::new(keys_max),
            limits: (0..limits).map(|_| Count::new(u64::MAX)).collect(),
            low_caps: AtomicU64::new(0),
            is_kept_elsewhere: AtomicBool::new(false),
        }
    }

    pub(super) fn keep_caps_elsewhere(&self) {
        self.is_kept_elsewhere.store(true, Ordering::Relaxed);
    }

    /// The cap that so many new counters of a limit would pass, counting them all.
    pub(super) fn room_for(&self, limit: LimitId, more: u64) -> Result<(), Refusal> {
        let full = |count: &Count| count.keys().saturating_add(more) > count.keys_max();
        if full(&self.all) {
            return Err(Refusal::TableFull { limit: None, keys_max: self.all.keys_max() });
        }
        let count = self.limit(limit);
        if full(count) {
            return Err(Refusal::TableFull { limit: Some(limit), keys_max: count.keys_max() });
        }
        Ok(())
    }

    /// Whether so many more counters, of whatever limits, are far from every cap.
    pub(super) fn is_roomy(&self, more: u64) -> bool {
        self.low_caps.load(Ordering::Relaxed) == 0
            && self.all.keys().saturating_add(more) < self.low_cap()
    }

    /// Four fifths of the overall cap.
    fn low_cap(&self) -> u64 {
        self.all.keys_max() / 5 * 4
    }

    pub(super) fn cap(&self, limit: LimitId, keys_max: u64) {
        // Whoever changes caps takes turns.
        let before = self.limit(limit).keys_max.swap(keys_max, Ordering::Relaxed);
        match (before < self.low_cap(), keys_max < self.low_cap()) {
            (false, true) => _ = self.low_caps.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.low_caps.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }

    pub(super) fn all(&self) -> u64 {
        self.all.keys()
    }

    pub(super) fn keys_max(&self) -> u64 {
        self.all.keys_max()
    }

    pub(super) fn of(&self, limit: LimitId) -> u64 {
        self.limit(limit).keys()
    }

    pub(super) fn add(&self, limit: LimitId) -> Result<(), Refusal> {
        if self.is_kept_elsewhere.load(Ordering::Relaxed) {
            self.restore(limit, 1);
            return Ok(());
        }
        if let Err(keys_max) = self.all.add() {
            return Err(Refusal::TableFull { limit: None, keys_max });
        }
        if let Err(keys_max) = self.limit(limit).add() {
            self.all.remove();
            return Err(Refusal::TableFull { limit: Some(limit), keys_max });
        }
        Ok(())
    }

    /// Counts counters that come back, whatever the caps.
    pub(super) fn restore(&self, limit: LimitId, keys: u64) {
        for count in [&self.all, self.limit(limit)] {
            count.keys.fetch_add(keys, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, limit: LimitId) {
        self.all.remove();
        self.limit(limit).remove();
    }

    /// Limits past the most that can be counted apart are counted with the inline ones.
    fn limit(&self, limit: LimitId) -> &Count {
        self.limits.get(usize::from(limit.0)).unwrap_or(&self.limits[0])
    }
}

/// Lengths of windows, numbered as they first occur, so that a slot can say in 16 bits when its
/// counter is over. The list only grows; a length that finds no place makes its counters wide,
/// and those say their length themselves.
pub(super) struct Windows {
    lengths: [AtomicU64; Self::MAX],
}

impl Windows {
    #[cfg(not(table_model))]
    const MAX: usize = 512;
    #[cfg(table_model)]
    const MAX: usize = 2;

    pub(super) fn new() -> Self {
        Self { lengths: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// The number of this length.
    pub(super) fn number(&self, window: Nanos) -> Option<u16> {
        let length = window.get();
        for (number, place) in self.lengths.iter().enumerate() {
            let found = match place.load(Ordering::Relaxed) {
                0 => {
                    match place.compare_exchange(0, length, Ordering::Relaxed, Ordering::Relaxed) {
                        Ok(_) => length,
                        Err(found) => found,
                    }
                }
                found => found,
            };
            if found == length {
                return Some(number as u16);
            }
        }
        None
    }

    /// The lengths that have a number, in the order of their numbers.
    pub(super) fn lengths(&self) -> Vec<Nanos> {
        let lengths = self.lengths.iter().map(|length| length.load(Ordering::Relaxed));
        lengths.take_while(|length| *length != 0).map(Nanos::new).collect()
    }

    /// The length with this number, which `number` gave out. The caller has seen a published slot
    /// with the number, whose release came after the length was written, so a relaxed look finds
    /// it.
    pub(super) fn length(&self, number: u16) -> Nanos {
        Nanos::new(self.lengths[usize::from(number)].load(Ordering::Relaxed))
    }
}
