//! Token bucket as GCRA: the counter holds the *theoretical arrival time* (TAT), the moment at
//! which the bucket is full again. ITU-T I.371 (virtual scheduling), with the emission interval
//! kept as an exact ratio.
//!
//! One unit takes `emission / ticks_per_ns` nanoseconds to come back. Time is counted in *ticks*
//! of `1 / ticks_per_ns` ns, so that a unit is a whole number of ticks and nothing is rounded.

use crate::engine::quota::WINDOW_MIN;
use crate::engine::time::{Nanos, Now};

use crate::engine::mutant::{Mutant, planted};

use super::{Cell, Fill, VALUE_BITS};

/// Ticks in a nanosecond for every bucket in narrow form, whatever its rate: the TAT of a key then
/// means the same under any numbers, and a change of numbers needs no conversion. Nine holds all
/// rates whose interval is a whole number of ninths of a nanosecond, which is nearly all that
/// people write: 10^9 ns times any mix of minutes, hours and days lacks only factors of 3 (60 a
/// minute, 90 a second, 450 an hour fit; 7 a second needs the wide form).
pub(super) const NARROW_TICKS: u64 = 9;

/// Latest moment at which the narrow form is used: 7 years of uptime, in nanoseconds.
pub(crate) const NARROW_HORIZON: u64 = 7 * 365 * 86_400 * 1_000_000_000;

/// Most ticks from empty to full for a narrow bucket: about 100 days. Debt may double it.
const NARROW_SPAN_MAX: u64 = 100 * 86_400 * 1_000_000_000 * NARROW_TICKS;

const _: () = {
    let latest = NARROW_HORIZON as u128 * NARROW_TICKS as u128 + 2 * NARROW_SPAN_MAX as u128;
    assert!(latest < (1 << VALUE_BITS));
};

/// A token bucket's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Ticks until one unit is back.
    emission: u64,
    /// Ticks in a nanosecond: [`NARROW_TICKS`] where that is exact, else the ratio's own
    /// denominator.
    ticks_per_ns: u64,
    /// Units that the full bucket holds.
    burst: u64,
    /// Ticks from empty to full if the narrow form holds them, else zero.
    narrow_span: u64,
    /// What tells these numbers from others, see [`Bucket::generation`].
    generation: u32,
}

impl Bucket {
    /// Numbers are in the ranges that `Quota::bucket` checks.
    pub(in crate::engine) fn new(units: u64, window: Nanos, burst: u64) -> Self {
        let divisor = gcd(units, window.get());
        let (emission, ticks_per_ns) = (window.get() / divisor, units / divisor);
        let generation = generation(emission, ticks_per_ns, burst);
        if NARROW_TICKS.is_multiple_of(ticks_per_ns) {
            // Times nine at most: a window is below 2^55 ns.
            let emission = emission * (NARROW_TICKS / ticks_per_ns);
            let span = u128::from(emission) * u128::from(burst);
            let narrow_span = if span <= u128::from(NARROW_SPAN_MAX) { span as u64 } else { 0 };
            return Self { emission, ticks_per_ns: NARROW_TICKS, burst, narrow_span, generation };
        }
        Self { emission, ticks_per_ns, burst, narrow_span: 0, generation }
    }

    /// Which numbers a counter was last charged by: [`GENERATION_BITS`] of a hash of rate and
    /// burst. A counter met under another generation is converted first.
    pub(in crate::engine) const fn generation(&self) -> u32 {
        self.generation
    }

    /// The backlog under new numbers: the time at which the bucket is full stays, but no longer
    /// than a full refill ahead. (Rescaling to this bucket's ticks has been done.)
    pub(super) fn converted(&self, backlog: u128) -> u128 {
        backlog.min(self.ticks(self.burst))
    }

    /// Units that the full bucket holds.
    pub const fn burst(&self) -> u64 {
        self.burst
    }

    /// Units and the window in which they come back: the same rate as that given, in the smallest
    /// numbers that a quota may have.
    pub fn rate(&self) -> (u64, Nanos) {
        let divisor = gcd(self.ticks_per_ns, self.emission);
        let (units, window) = (self.ticks_per_ns / divisor, self.emission / divisor);
        // What was given is a multiple of this, so this multiple has no larger numbers.
        let times = WINDOW_MIN.get().div_ceil(window);
        (units * times, Nanos::new(window * times))
    }

    /// Decides one charge on a narrow counter: the fast path of [`Fill`]'s general one, and equal
    /// to it. `None`: the cost does not fit now. The bucket must be narrow and `cost <= burst`.
    #[inline]
    pub(crate) fn charge_narrow(&self, value: u64, cost: u64, now: Now) -> Option<u64> {
        let now_ticks = now.time.as_nanos() * NARROW_TICKS;
        let charged = value.max(now_ticks) + cost * self.emission;
        let span =
            self.narrow_span + u64::from(planted(Mutant::BucketBurstPlusOne)) * self.emission;
        (charged - now_ticks <= span).then_some(charged)
    }

    /// Whether every state of this bucket fits the narrow form.
    #[inline]
    pub(crate) const fn is_narrow(&self) -> bool {
        self.narrow_span != 0
    }

    /// How far a narrow counter's theoretical arrival time lies ahead. The bucket must be narrow.
    #[inline]
    pub(crate) fn backlog_narrow(&self, value: u64, now: Now) -> u128 {
        u128::from(value.saturating_sub(now.time.as_nanos() * NARROW_TICKS))
    }

    #[inline]
    pub(super) fn fill_narrow(&self, value: u64, now: Now) -> Fill {
        let backlog = value.saturating_sub(now.time.as_nanos() * NARROW_TICKS);
        if self.ticks_per_ns == NARROW_TICKS {
            return Fill::Bucket { backlog: u128::from(backlog) };
        }
        self.rescaled(backlog.into(), NARROW_TICKS)
    }

    pub(super) fn fill_wide(&self, cell: Cell, now: Now) -> Fill {
        let [tat_ns, tat_ns_high, tat_ticks, ticks_per_ns] = cell;
        let tat_ns = (u128::from(tat_ns_high) << 64) | u128::from(tat_ns);
        let ahead_ns = tat_ns.saturating_sub(u128::from(now.time.as_nanos()));
        if ahead_ns == 0 {
            // Full but for a part of the nanosecond that is now, or full.
            let ticks = if tat_ns < u128::from(now.time.as_nanos()) { 0 } else { tat_ticks };
            return self.rescaled(u128::from(ticks), ticks_per_ns);
        }
        self.rescaled(ahead_ns * u128::from(ticks_per_ns) + u128::from(tat_ticks), ticks_per_ns)
    }

    /// A backlog counted in other ticks, as it is after a change of numbers: the time at which
    /// the bucket is full stays, rounded up to a tick of this one.
    fn rescaled(&self, backlog: u128, ticks_per_ns: u64) -> Fill {
        if ticks_per_ns == self.ticks_per_ns {
            return Fill::Bucket { backlog };
        }
        let (from, to) = (u128::from(ticks_per_ns), u128::from(self.ticks_per_ns));
        let (whole, part) = (backlog / from, backlog % from);
        // What does not fit here is 10^14 years or more: full later than any moment to come.
        let backlog = whole.saturating_mul(to).saturating_add((part * to).div_ceil(from));
        Fill::Bucket { backlog: backlog.min(1 << 120) }
    }

    #[inline]
    pub(super) fn narrow(&self, backlog: u128, now: Now) -> Option<u64> {
        if !self.is_narrow() {
            return None;
        }
        let tat = u128::from(now.time.as_nanos() * NARROW_TICKS) + backlog;
        u64::try_from(tat).ok().filter(|tat| *tat < 1 << VALUE_BITS)
    }

    pub(super) fn wide(&self, backlog: u128, now: Now) -> Cell {
        let ticks_per_ns = u128::from(self.ticks_per_ns);
        let tat_ns = u128::from(now.time.as_nanos()) + backlog / ticks_per_ns;
        let tat_ticks = (backlog % ticks_per_ns) as u64;
        [tat_ns as u64, (tat_ns >> 64) as u64, tat_ticks, self.ticks_per_ns]
    }

    /// Ticks that `cost` units take to come back.
    #[inline]
    pub(super) fn ticks(&self, cost: u64) -> u128 {
        u128::from(self.emission) * u128::from(cost)
    }

    #[inline]
    pub(super) fn fits(&self, backlog: u128, cost: u64) -> bool {
        let burst = self.burst + u64::from(planted(Mutant::BucketBurstPlusOne));
        cost <= burst && backlog <= self.ticks(burst - cost)
    }

    pub(super) fn remaining(&self, backlog: u128) -> u64 {
        let free = self.ticks(self.burst).saturating_sub(backlog);
        // At most `burst`, so the narrowing keeps every bit.
        match u64::try_from(free) {
            Ok(free) => free / self.emission,
            Err(_) => (free / u128::from(self.emission)) as u64,
        }
    }

    /// The backlog after a charge that stops where the bucket is empty.
    pub(super) fn saturated(&self, backlog: u128, cost: u64) -> u128 {
        let mut empty = self.ticks(self.burst);
        if planted(Mutant::AlwaysIntoDebt) {
            empty = u128::MAX;
        }
        backlog.max(backlog.saturating_add(self.ticks(cost)).min(empty))
    }

    /// The backlog after units were added that nobody could refuse: debt, at most a burst of it.
    pub(super) fn indebted(&self, backlog: u128, units: u64) -> u128 {
        let mut deepest = self.ticks(self.burst) * 2;
        if planted(Mutant::DebtUnbounded) {
            deepest = u128::MAX;
        }
        backlog.max(backlog.saturating_add(self.ticks(units)).min(deepest))
    }

    pub(super) fn fits_after(&self, backlog: u128, cost: u64) -> Nanos {
        let allowed = self.ticks(self.burst.saturating_sub(cost));
        self.nanos_ceil(backlog.saturating_sub(allowed))
    }

    pub(super) fn next_after(&self, backlog: u128) -> Option<Nanos> {
        let remaining = self.remaining(backlog);
        (remaining < self.burst).then(|| self.fits_after(backlog, remaining + 1))
    }

    pub(super) fn full_after(&self, backlog: u128) -> Nanos {
        self.nanos_ceil(backlog)
    }

    fn nanos_ceil(&self, ticks: u128) -> Nanos {
        if planted(Mutant::BucketWaitRoundedDown) {
            return Nanos::new((ticks / u128::from(self.ticks_per_ns)) as u64);
        }
        let nanos = match u64::try_from(ticks) {
            Ok(ticks) => ticks.div_ceil(self.ticks_per_ns),
            Err(_) => {
                let nanos = ticks.div_ceil(u128::from(self.ticks_per_ns));
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
        };
        Nanos::new(nanos)
    }

    /// Whether a narrow counter is full again at `now`, whatever its numbers.
    #[inline]
    pub(in crate::engine) fn narrow_is_fresh(value: u64, now: Now) -> bool {
        value <= now.time.as_nanos().saturating_mul(NARROW_TICKS)
    }

    /// Whether a wide counter is full again at `now`, whatever its numbers.
    pub(in crate::engine) fn wide_is_fresh(cell: Cell, now: Now) -> bool {
        let [tat_ns, tat_ns_high, tat_ticks, _] = cell;
        (tat_ns_high, tat_ns, tat_ticks) <= (0, now.time.as_nanos(), 0)
    }
}

/// Bits of a generation. Two edits of a limit that happen to share one leave a debt standing that
/// would have been cut to a refill; they admit nothing more.
pub(in crate::engine) const GENERATION_BITS: u32 = 24;

/// Multiplies and keeps the top bits (Knuth, The Art of Computer Programming 6.4).
const fn generation(emission: u64, ticks_per_ns: u64, burst: u64) -> u32 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let mixed = emission.wrapping_mul(GOLDEN) ^ ticks_per_ns.rotate_left(32);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(GOLDEN) ^ burst;
    ((mixed ^ mixed >> 31).wrapping_mul(GOLDEN) >> (64 - GENERATION_BITS)) as u32
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
