//! Sliding window: at most N units in *any* window of length W, wherever it begins.
//!
//! Time is cut into sub-windows, and the counter keeps how many units were charged in each. A
//! charge counts until the last sub-window that could hold it together with a charge of now has
//! gone, so the sum over the ring is never less than what any window of length W holds. What W
//! promises in a caller's time is enforced over W · (1 + ρ) of cluster time, with ρ of 1/500: the
//! oscillator's error and our own slew together stay below it.

use crate::engine::time::{Nanos, Now};

use crate::engine::mutant::{Mutant, planted};
use crate::engine::sync::{AtomicU64, Ordering};

use super::Fill;

/// Sub-windows that count at one moment: the current one and those behind it that may still
/// share a window with it.
pub(crate) const SUBS: usize = 76;

/// One part in so many is added to W.
const DRIFT_PARTS: u64 = 500;

/// A sliding window's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    units: u64,
    window_ns: u64,
    /// Length of a sub-window. `SUBS - 1` of them cover W · (1 + ρ), so a charge frees at most
    /// W / 64 after W has passed: `SUBS` sub-windows are below W · 65 / 64.
    sub_ns: u64,
}

impl Sliding {
    /// Numbers are in the ranges that `Quota::sliding` checks.
    pub(in crate::engine) fn new(units: u64, window: Nanos) -> Self {
        let window_ns = window.get();
        let enforced_ns = window_ns + window_ns.div_ceil(DRIFT_PARTS);
        Self { units, window_ns, sub_ns: enforced_ns.div_ceil(SUBS as u64 - 1) }
    }

    /// Units allowed in any window.
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// The window's length.
    pub const fn window(&self) -> Nanos {
        Nanos::new(self.window_ns)
    }
}

/// What a counter holds, as a copy: the units charged in each sub-window that may still count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Length of a sub-window.
    pub(crate) sub_ns: u64,
    /// Ordinal of the newest sub-window since the instance began.
    pub(crate) newest: u64,
    /// Units of the sub-window with ordinal `o`, at `o % SUBS`.
    pub(crate) counts: [u64; SUBS],
    /// Their sum.
    pub(crate) total: u64,
}

impl Ring {
    /// What still counts at `now`: the units weighted by when they were charged, and their sum.
    pub(crate) fn live(&self, now: Now) -> (u64, u64) {
        let current = now.time.as_nanos() / self.sub_ns.max(1);
        let oldest = self.newest.max(current).saturating_sub(SUBS as u64 - 1);
        let counts = (oldest..=self.newest).map(|ordinal| {
            let units = self.counts[(ordinal % SUBS as u64) as usize];
            (units.wrapping_mul(ordinal + 1), units)
        });
        counts.fold((0_u64, 0_u64), |sum, count| (sum.0.wrapping_add(count.0), sum.1 + count.1))
    }
}

/// Words before the counts: the newest sub-window, the sum, a sub-window's length, and from which
/// sub-window on there may be anything.
const HEAD: usize = 4;
const NEWEST: usize = 0;
const TOTAL: usize = 1;
const SUB_NS: usize = 2;
const FIRST: usize = 3;

/// A counter in place: words that only the holder of its slot touches, with counts of `bits` each.
/// Counts are read and written where they are, since a decision needs few of them.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'w> {
    words: &'w [AtomicU64],
    bits: u32,
}

impl<'w> Packed<'w> {
    /// Words that a counter with counts of so many bits takes: 16, 32 or 64.
    pub(crate) const fn words(bits: u32) -> usize {
        HEAD + (SUBS * bits as usize).div_ceil(64)
    }

    /// The counter in these words.
    pub(crate) fn new(words: &'w [AtomicU64], bits: u32) -> Self {
        Self { words, bits }
    }

    fn head(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Relaxed)
    }

    fn set_head(&self, word: usize, value: u64) {
        self.words[word].store(value, Ordering::Relaxed);
    }

    /// Makes it a fresh counter of these numbers.
    pub(crate) fn clear(&self, sliding: &Sliding) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.set_head(SUB_NS, sliding.sub_ns);
    }

    /// Units that count.
    pub(crate) fn total(&self) -> u64 {
        self.head(TOTAL)
    }

    /// Word and shift of the count at a place.
    fn place(&self, place: usize) -> (&AtomicU64, u32) {
        let per_word = (64 / self.bits) as usize;
        (&self.words[HEAD + place / per_word], (place % per_word) as u32 * self.bits)
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    fn count(&self, place: usize) -> u64 {
        let (word, shift) = self.place(place);
        word.load(Ordering::Relaxed) >> shift & self.mask()
    }

    fn set_count(&self, place: usize, count: u64) {
        debug_assert!(count <= self.mask());
        let (word, shift) = self.place(place);
        let others = word.load(Ordering::Relaxed) & !(self.mask() << shift);
        word.store(others | count << shift, Ordering::Relaxed);
    }

    /// A copy of what it holds.
    pub(crate) fn read(&self) -> Ring {
        Ring {
            sub_ns: self.head(SUB_NS),
            newest: self.head(NEWEST),
            counts: core::array::from_fn(|place| self.count(place)),
            total: self.total(),
        }
    }

    /// Makes it hold what a copy says, whose counts fit.
    pub(crate) fn write(&self, ring: &Ring) {
        for (word, value) in [(NEWEST, ring.newest), (TOTAL, ring.total), (SUB_NS, ring.sub_ns)] {
            self.set_head(word, value);
        }
        for (place, count) in ring.counts.iter().enumerate() {
            self.set_count(place, *count);
        }
        // Ordinals are shifted up by the ring's length, so that the oldest of a young one is none
        // below zero.
        self.set_head(FIRST, ring.newest + 1);
        self.skip_empty();
    }

    /// The step, from the oldest sub-window on, before which there is nothing.
    fn first(&self) -> usize {
        self.head(FIRST).saturating_sub(self.head(NEWEST) + 1) as usize
    }

    /// Moves the first sub-window on to one that holds something.
    fn skip_empty(&self) {
        let oldest = self.oldest();
        let first = self.first();
        let holds = |step: &usize| self.count(wrapped(oldest + step)) > 0;
        let step = (first..SUBS).find(holds).unwrap_or(SUBS);
        self.set_head(FIRST, self.head(NEWEST) + 1 + step as u64);
    }

    /// Sub-windows that no longer count at `now`, the oldest of them. A moment earlier than the
    /// newest charge counts as that charge's.
    fn gone(&self, now: Now) -> usize {
        let current = now.time.as_nanos() / self.head(SUB_NS);
        let gone = current.saturating_sub(self.head(NEWEST)).min(SUBS as u64) as usize;
        let early = usize::from(planted(Mutant::SlidingLapsesEarly) && gone > 0);
        (gone + early).min(SUBS)
    }

    /// Units that count at `now`.
    pub(crate) fn used(&self, now: Now) -> u64 {
        let (oldest, total) = (self.oldest(), self.total());
        let gone = self.gone(now);
        if gone == SUBS {
            return 0;
        }
        let counts = (self.first()..gone).map(|step| self.count(wrapped(oldest + step)));
        total - counts.sum::<u64>()
    }

    /// Lets go of what no longer counts at `now`, before a change.
    pub(crate) fn advance(&self, now: Now) {
        let used = self.used(now);
        if used < self.total() {
            let oldest = self.oldest();
            let gone = self.first()..self.gone(now);
            gone.for_each(|step| self.set_count(wrapped(oldest + step), 0));
            self.set_head(TOTAL, used);
            self.skip_empty();
        }
        let current = now.time.as_nanos() / self.head(SUB_NS);
        self.set_head(NEWEST, self.head(NEWEST).max(current));
    }

    /// Charges `cost` units in the current sub-window, whose count must have room for them.
    pub(crate) fn charge(&self, cost: u64) {
        let place = (self.head(NEWEST) % SUBS as u64) as usize;
        self.set_count(place, self.count(place).saturating_add(cost));
        if self.total() == 0 {
            self.set_head(FIRST, self.head(NEWEST) + SUBS as u64);
        }
        self.set_head(TOTAL, self.total().saturating_add(cost));
    }

    /// Gives back up to `units`, the oldest first: what stays is never less than what a later
    /// window really holds, whichever charge was meant.
    pub(crate) fn give_back(&self, units: u64) {
        let total = self.total();
        let mut left = units.min(total);
        self.set_head(TOTAL, total - left);
        let newest_first = planted(Mutant::SlidingGivesBackNewest);
        let first = if newest_first { 0 } else { self.first() };
        for step in first..SUBS {
            let step = if newest_first { SUBS - 1 - step } else { step };
            let place = wrapped(self.oldest() + step);
            let given = left.min(self.count(place));
            self.set_count(place, self.count(place) - given);
            left -= given;
            if left == 0 {
                return self.skip_empty();
            }
        }
    }

    /// The place of the oldest sub-window.
    fn oldest(&self) -> usize {
        ((self.head(NEWEST) + 1) % SUBS as u64) as usize
    }

    /// How long from `now`, when `used` units count, until at most `left` do. Zero if that is so
    /// already.
    fn falls_to(&self, left: u64, used: u64, now: Now) -> Nanos {
        let (oldest, mut used) = (self.oldest(), used);
        if used <= left {
            return Nanos::ZERO;
        }
        for step in self.gone(now).max(self.first())..SUBS {
            used -= self.count(wrapped(oldest + step));
            if used <= left {
                return self.ends_after(step, now);
            }
        }
        Nanos::ZERO
    }

    /// How long from `now` until nothing counts.
    fn empties_after(&self, now: Now) -> Nanos {
        let oldest = self.oldest();
        let newest_first = (0..SUBS).rev();
        let holds = |step: &usize| self.count(wrapped(oldest + step)) > 0;
        newest_first.into_iter().find(holds).map_or(Nanos::ZERO, |step| self.ends_after(step, now))
    }

    /// How long from `now` until the sub-window that is `step` after the oldest stops counting:
    /// when the one `SUBS` after it begins.
    fn ends_after(&self, step: usize, now: Now) -> Nanos {
        let ordinal = self.head(NEWEST) + 1 + step as u64;
        let begins = ordinal.saturating_mul(self.head(SUB_NS));
        let early = u64::from(planted(Mutant::SlidingWaitShort));
        Nanos::new(begins.saturating_sub(now.time.as_nanos() + early))
    }

    /// How full the counter stands at `now` for a check of `cost`.
    pub(crate) fn fill(&self, units: u64, cost: u64, now: Now) -> Fill {
        let used = self.used(now);
        if used == 0 {
            return Fill::EMPTY_SLIDING;
        }
        let remaining = units.saturating_sub(used);
        Fill::Sliding {
            used,
            fits_after: self.falls_to(units.saturating_sub(cost), used, now),
            next_after: self.falls_to(units.saturating_sub(remaining + 1), used, now),
            full_after: self.empties_after(now),
        }
    }

    /// Whether nothing counts at `now`, whatever the numbers.
    pub(crate) fn is_fresh(&self, now: Now) -> bool {
        let passed = || now.time.as_nanos() / self.head(SUB_NS) >= self.head(NEWEST) + SUBS as u64;
        self.total() == 0 || passed()
    }
}

/// A place below twice the number of them, as one below it.
const fn wrapped(place: usize) -> usize {
    if place >= SUBS { place - SUBS } else { place }
}
