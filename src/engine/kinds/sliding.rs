//! Sliding window: at most N units in *any* window of length W, wherever it begins.
//!
//! Time is cut into sub-windows, and the counter keeps how many units were charged in each. A
//! charge counts until the last sub-window that could hold it together with a charge of now has
//! gone, so the sum over the ring is never less than what any window of length W holds. What W
//! promises in a caller's time is enforced over W · (1 + ρ) of cluster time, with ρ of 1/500: the
//! oscillator's error and our own slew together stay below it.

use crate::engine::time::{Nanos, Now};

use crate::engine::mutant::{Mutant, planted};

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

/// What a counter holds: the units charged in each sub-window that may still count.
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
    /// A fresh counter of these numbers.
    pub(crate) fn fresh(sliding: &Sliding) -> Self {
        Self { sub_ns: sliding.sub_ns, newest: 0, counts: [0; SUBS], total: 0 }
    }

    /// Lets go of sub-windows that no longer count at `now`. A moment earlier than the newest
    /// charge counts as that charge's.
    pub(crate) fn advance(&mut self, now: Now) {
        let current = now.time.as_nanos() / self.sub_ns;
        if current <= self.newest {
            return;
        }
        let gone = (current - self.newest).min(SUBS as u64);
        let early = u64::from(planted(Mutant::SlidingLapsesEarly));
        for ordinal in self.newest + 1..=self.newest + gone + early {
            let count = &mut self.counts[(ordinal % SUBS as u64) as usize];
            self.total -= *count;
            *count = 0;
        }
        self.newest = current;
    }

    /// Charges `cost` units in the current sub-window.
    pub(crate) fn charge(&mut self, cost: u64) {
        let count = &mut self.counts[(self.newest % SUBS as u64) as usize];
        *count = count.saturating_add(cost);
        self.total = self.total.saturating_add(cost);
    }

    /// Gives back up to `units`, the oldest first: what stays is never less than what a later
    /// window really holds, whichever charge was meant.
    pub(crate) fn give_back(&mut self, units: u64) {
        let mut left = units.min(self.total);
        self.total -= left;
        if planted(Mutant::SlidingGivesBackNewest) {
            for step in 0..SUBS as u64 {
                let count =
                    &mut self.counts[((self.newest + SUBS as u64 - step) % SUBS as u64) as usize];
                let given = left.min(*count);
                *count -= given;
                left -= given;
            }
        }
        for place in self.oldest_first() {
            let given = left.min(self.counts[place]);
            self.counts[place] -= given;
            left -= given;
        }
    }

    /// Places of the sub-windows, the oldest first.
    fn oldest_first(&self) -> impl Iterator<Item = usize> + use<> {
        let newest = self.newest;
        (1..=SUBS as u64).map(move |step| ((newest + step) % SUBS as u64) as usize)
    }

    /// How long from `now` until at most `left` units count. Zero if that is so already.
    fn falls_to(&self, left: u64, now: Now) -> Nanos {
        let mut total = self.total;
        if total <= left {
            return Nanos::ZERO;
        }
        for (step, place) in self.oldest_first().enumerate() {
            total -= self.counts[place];
            if total <= left {
                // The sub-window that is `step` after the oldest stops counting when the one
                // `SUBS` after it begins.
                let begins = (self.newest + 1 + step as u64).saturating_mul(self.sub_ns);
                let early = u64::from(planted(Mutant::SlidingWaitShort));
                return Nanos::new(begins.saturating_sub(now.time.as_nanos() + early));
            }
        }
        Nanos::ZERO
    }

    /// How full the counter stands at `now`, to which it was advanced, for a check of `cost`.
    pub(crate) fn fill(&self, units: u64, cost: u64, now: Now) -> Fill {
        let remaining = units.saturating_sub(self.total);
        let one_more = units.saturating_sub(remaining.saturating_add(1));
        Fill::Sliding {
            used: self.total,
            fits_after: self.falls_to(units.saturating_sub(cost), now),
            next_after: if remaining < units { self.falls_to(one_more, now) } else { Nanos::ZERO },
            full_after: self.falls_to(0, now),
        }
    }

    /// Whether nothing counts at `now`, whatever the numbers.
    pub(crate) fn is_fresh(&self, now: Now) -> bool {
        self.total == 0 || now.time.as_nanos() / self.sub_ns >= self.newest + SUBS as u64
    }
}
