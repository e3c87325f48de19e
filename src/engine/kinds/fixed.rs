//! Fixed windows: at most N units in each, one window after the other.
//!
//! Aligned to the clock, the counter holds the window's ordinal since the epoch and the units
//! used in it. Opened by a first charge, it holds the moment of opening instead; that takes more
//! bits than a narrow value has, so such counters are always wide.

use crate::engine::quota::Align;
use crate::engine::time::{Nanos, Now};

use crate::engine::mutant::{Mutant, planted};

use super::{Cell, Fill, UNLIMITED, VALUE_BITS, Window};

/// Bits of the latest wall time that a narrow ordinal can name: the year 2116.
const UTC_BITS: u32 = 62;

/// A fixed window's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    units: u64,
    window_ns: u64,
    align: Align,
}

impl Fixed {
    /// Numbers are in the ranges that `Quota::fixed` checks.
    pub(in crate::engine) fn new(units: u64, window: Nanos, align: Align) -> Self {
        Self { units, window_ns: window.get(), align }
    }

    /// Units allowed in each window; [`UNLIMITED`] counts and never denies.
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// The window's length.
    pub const fn window(&self) -> Nanos {
        Nanos::new(self.window_ns)
    }

    /// Where windows begin.
    pub const fn align(&self) -> Align {
        self.align
    }

    /// Bits that hold the units used. They depend on the window's length alone, never on N, so
    /// that a change of N needs no conversion.
    const fn count_bits(window_ns: u64) -> u32 {
        let ordinal_bits = UTC_BITS - window_ns.ilog2();
        VALUE_BITS - ordinal_bits
    }

    /// Whether every state of this window fits the narrow form.
    pub(in crate::engine) fn is_narrow(&self) -> bool {
        matches!(self.align, Align::Clock)
            && (self.units == UNLIMITED || self.units < 1 << Self::count_bits(self.window_ns))
    }

    #[inline]
    pub(super) fn window_narrow(&self, value: u64, now: Now) -> Window {
        if matches!(self.align, Align::First) {
            // Always wide: a narrow value can only be a fresh one.
            return self.unopened(now);
        }
        let count_bits = Self::count_bits(self.window_ns);
        self.window_by_clock(value >> count_bits, value & ((1 << count_bits) - 1), now)
    }

    pub(super) fn fill_wide(&self, cell: Cell, now: Now) -> Fill {
        let [opened, used, ..] = cell;
        if matches!(self.align, Align::Clock) {
            return self.window_by_clock(opened, used, now).fill();
        }
        let ends_at = opened.saturating_add(self.window_ns);
        let now_ns = now.time.as_nanos();
        let early = u64::from(planted(Mutant::FixedEndsEarly));
        if now_ns + early >= ends_at || used == 0 {
            return self.unopened(now).fill();
        }
        Fill::Window { used, opened, ends_after: Nanos::new(ends_at - now_ns) }
    }

    /// A clock that went back leaves the latest window open, so no window is charged twice over.
    #[inline]
    fn window_by_clock(&self, ordinal: u64, used: u64, now: Now) -> Window {
        let utc_ns = now.utc.as_nanos();
        let current = (utc_ns + u64::from(planted(Mutant::FixedEndsEarly))) / self.window_ns;
        let forgets = planted(Mutant::FixedForgetsOnClockBack) && ordinal != current;
        let over = ordinal < current || forgets;
        let (opened, used) = if over { (current, 0) } else { (ordinal, used) };
        let ends_at = (opened + 1).saturating_mul(self.window_ns);
        Window { used, opened, ends_after: Nanos::new(ends_at - utc_ns) }
    }

    fn unopened(&self, now: Now) -> Window {
        Window { used: 0, opened: now.time.as_nanos(), ends_after: Nanos::ZERO }
    }

    /// Time until the window ends once a first charge was made in it.
    pub(super) fn ends_after_charge(&self, ends_after: Nanos) -> Nanos {
        match self.align {
            Align::Clock => ends_after,
            Align::First => self.window(),
        }
    }

    #[inline]
    pub(super) fn narrow(&self, used: u64, opened: u64) -> Option<u64> {
        let count_bits = Self::count_bits(self.window_ns);
        let fits = self.is_narrow() && used < 1 << count_bits;
        (fits && opened < 1 << (VALUE_BITS - count_bits)).then_some((opened << count_bits) | used)
    }

    pub(super) fn wide(&self, used: u64, opened: u64) -> Cell {
        [opened, used, self.window_ns, self.align as u64]
    }

    /// Whether a narrow counter of a window of this length has ended at `now`.
    pub(in crate::engine) fn narrow_is_fresh(value: u64, window: Nanos, now: Now) -> bool {
        let ordinal = value >> Self::count_bits(window.get());
        ordinal < now.utc.as_nanos() / window.get()
    }

    /// Whether a wide counter's window has ended at `now`.
    pub(in crate::engine) fn wide_is_fresh(cell: Cell, now: Now) -> bool {
        let [opened, _, window_ns, align] = cell;
        if align == Align::Clock as u64 {
            opened < now.utc.as_nanos() / window_ns.max(1)
        } else {
            opened.saturating_add(window_ns) <= now.time.as_nanos()
        }
    }
}
