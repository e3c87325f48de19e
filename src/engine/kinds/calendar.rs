//! Calendar windows: at most N units in each day, week or month of some zone.
//!
//! The engine knows no calendar. The boundaries of the window that is open, and the end of the one
//! after it, come in with every charge; the counter holds when its window opened and the units
//! used in it.

use crate::engine::time::{Nanos, Now, SECOND, UtcTime};

use crate::engine::mutant::{Mutant, planted};

use super::{Cell, Fill, VALUE_BITS, Window};

/// What a calendar window is: how long one may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Period {
    /// From midnight to midnight, or wherever the anchor lies.
    Day = 1,
    /// Seven days.
    Week = 2,
    /// From a day of a month to that day of the next.
    Month = 3,
}

impl Period {
    /// Longer than any window of this period in any zone: clocks are set by at most a few hours,
    /// and no zone has skipped more than a day.
    pub const fn longest(self) -> Nanos {
        const HOUR: u64 = 3600;
        match self {
            Self::Day => Nanos::from_secs(50 * HOUR),
            Self::Week => Nanos::from_secs((7 * 24 + 26) * HOUR),
            Self::Month => Nanos::from_secs((31 * 24 + 26) * HOUR),
        }
    }
}

/// Where the window that is open lies, in seconds since the epoch (UTC), and the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Boundaries {
    /// When it opened.
    pub opens_at: u32,
    /// When it ends and the next one opens.
    pub ends_at: u32,
    /// When the next one ends.
    pub next_ends_at: u32,
}

/// A calendar window's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    units: u64,
    at: Boundaries,
    period: Period,
}

/// No two windows of a counter open so near to one another: the shortest days that zones had, by a
/// change of their laws, were longer.
const OPENINGS_APART: u64 = 20 * 3600;

/// Bits of the narrow form that count units; those above hold the minute of opening, to 2225.
const COUNT_BITS: u32 = 34;

impl Calendar {
    /// Numbers are in the ranges that `Quota::calendar` checks.
    pub(in crate::engine) fn new(units: u64, period: Period, at: Boundaries) -> Self {
        Self { units, at, period }
    }

    /// Has another window open. The boundaries must be such as `Quota::calendar` takes for the
    /// period.
    #[inline]
    pub(crate) fn move_to(&mut self, at: Boundaries) {
        self.at = at;
    }

    /// Units allowed in each window; [`super::UNLIMITED`] counts and never denies.
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// What a window is.
    pub const fn period(&self) -> Period {
        self.period
    }

    /// The window that was open when the charge was resolved, and the one after it.
    pub const fn boundaries(&self) -> Boundaries {
        self.at
    }

    /// Whether `now` lies past all windows that the charge knows: it was resolved too long ago.
    pub(in crate::engine) fn is_stale(&self, now: Now) -> bool {
        now.utc >= utc(self.at.next_ends_at)
    }

    pub(in crate::engine) fn is_narrow(&self) -> bool {
        self.units == super::UNLIMITED || self.units < 1 << COUNT_BITS
    }

    /// The window at `now`, by seconds.
    #[inline]
    fn current(&self, now: Now) -> (u64, u64) {
        let Boundaries { opens_at, ends_at, next_ends_at } = self.at;
        let (opens, ends) = if now.utc < utc(ends_at)
            || planted(Mutant::CalendarEndsLate) && now.utc == utc(ends_at)
        {
            (opens_at, ends_at)
        } else {
            (ends_at, next_ends_at)
        };
        (opens.into(), ends.into())
    }

    /// A counter whose window is later than the charge's, because the clock went back or another
    /// thread was ahead, stays in its window. So does one whose window opened a little earlier than
    /// the charge's would have: whoever resolved that charge has other zone data, and the window
    /// lies where the first charge said. (Else nodes of two versions would open it twice.)
    #[inline(always)]
    fn window(&self, opened: u64, used: u64, now: Now) -> Window {
        let (opens, ends) = self.current(now);
        let stays = (1..OPENINGS_APART).contains(&opens.saturating_sub(opened));
        let (opened, used, ends) = if stays && !planted(Mutant::CalendarOpensTwice) {
            (opened, used, self.resets_at(opened, (opens, ends), now))
        } else if opened <= opens {
            (
                opens,
                if opened == opens || planted(Mutant::CalendarKeepsUsage) { used } else { 0 },
                ends,
            )
        } else {
            (opened, used, self.resets_at(opened, (opens, ends), now))
        };
        let ends_at = UtcTime::from_nanos(ends.saturating_mul(SECOND));
        Window { used, opened, ends_after: ends_at - now.utc }
    }

    /// The first opening by the charge's windows at which a counter that stays in its own opens
    /// another.
    #[cold]
    fn resets_at(&self, opened: u64, (opens, ends): (u64, u64), now: Now) -> u64 {
        let next_ends = if now.utc < utc(self.at.ends_at) {
            u64::from(self.at.next_ends_at)
        } else {
            ends.saturating_add(ends - opens)
        };
        let may_open = |at: &u64| *at >= opened.saturating_add(OPENINGS_APART);
        let known = [ends, next_ends].into_iter().find(may_open);
        known.unwrap_or(opened.saturating_add(ends - opens))
    }

    #[inline]
    pub(super) fn window_narrow(&self, value: u64, now: Now) -> Window {
        self.window((value >> COUNT_BITS) * 60, value & ((1 << COUNT_BITS) - 1), now)
    }

    pub(super) fn fill_wide(&self, cell: Cell, now: Now) -> Fill {
        let [opened, used, ..] = cell;
        self.window(opened, used, now).fill()
    }

    #[inline]
    pub(super) fn narrow(&self, used: u64, opened: u64) -> Option<u64> {
        let fits = self.is_narrow() && used < 1 << COUNT_BITS && opened.is_multiple_of(60);
        let minute = opened / 60;
        (fits && minute < 1 << (VALUE_BITS - COUNT_BITS)).then_some((minute << COUNT_BITS) | used)
    }

    pub(super) fn wide(&self, used: u64, opened: u64) -> Cell {
        [opened, used, self.period.longest().get(), 0]
    }

    /// Whether a narrow counter's window has surely ended at `now`; none is longer than `longest`.
    pub(in crate::engine) fn narrow_is_fresh(value: u64, longest: Nanos, now: Now) -> bool {
        Self::is_over((value >> COUNT_BITS) * 60, longest.get(), now)
    }

    /// Whether a wide counter's window has surely ended at `now`.
    pub(in crate::engine) fn wide_is_fresh(cell: Cell, now: Now) -> bool {
        let [opened, _, longest_ns, _] = cell;
        Self::is_over(opened, longest_ns, now)
    }

    fn is_over(opened: u64, longest_ns: u64, now: Now) -> bool {
        opened.saturating_mul(SECOND).saturating_add(longest_ns) <= now.utc.as_nanos()
    }
}

const fn utc(seconds: u32) -> UtcTime {
    UtcTime::from_nanos(seconds as u64 * SECOND)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::mutant::plant;
    use crate::engine::quota::Quota;
    use crate::engine::time::Timestamp;

    const DAY: u32 = 86_400;

    /// Charges of one unit: after so many seconds, by a node whose days begin at midnight or by one
    /// whose days begin later by as much as any two zones differ, and more.
    fn charges() -> impl Strategy<Value = (u32, Vec<(u32, bool)>)> {
        let skew = prop_oneof![1..=3 * 60_u32, 1..24 * 60_u32].prop_map(|minutes| minutes * 60);
        (skew, prop::collection::vec((0..4 * 3600_u32, any::<bool>()), 1..120))
    }

    /// Two nodes differ in when the day begins. However their charges mix, no opening is followed by
    /// another within less than the shortest day, so none of them admits the units twice.
    fn windows_open_once((skew, charges): (u32, Vec<(u32, bool)>)) -> Result<(), TestCaseError> {
        const UNITS: u64 = 5;
        let mut second = 20_000 * DAY;
        let (mut value, mut opened_at) = (0, None);
        for (after, late) in charges {
            second += after;
            let shift = if late { skew } else { 0 };
            let find = |second: u32| {
                let opens_at = (second - shift) / DAY * DAY + shift;
                let (ends_at, next_ends_at) = (opens_at + DAY, opens_at + 2 * DAY);
                let at = Boundaries { opens_at, ends_at, next_ends_at };
                let quota = Quota::calendar(UNITS, Period::Day, at).expect("a quota");
                let utc = UtcTime::from_nanos(u64::from(second) * SECOND);
                let now = Now { time: Timestamp::from_nanos(0), utc };
                (quota, now, quota.fill_narrow(value, now))
            };
            let (quota, now, fill) = find(second);
            let Fill::Window { used, opened, ends_after } = fill else { unreachable!() };
            prop_assert!(ends_after > Nanos::ZERO);
            if used > 0 {
                // Whoever asks again is told right: till then it counts, and from then on no more.
                let resets_at = second + ends_after.as_secs_ceil() as u32;
                let used_at = |second| find(second).2.used();
                prop_assert_eq!(
                    (used_at(resets_at - 1), used_at(resets_at)),
                    (Some(used), Some(0))
                );
            }
            if opened_at != Some(opened) {
                prop_assert_eq!(used, 0);
                if let Some(before) = opened_at.replace(opened) {
                    prop_assert!(opened - before >= OPENINGS_APART, "{before}, then {opened}");
                }
            }
            if quota.fits(fill, 1) {
                value = quota.narrow(quota.charged(fill, 1), now).expect("it is narrow");
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn nodes_with_other_zone_data_share_a_window(charges in charges()) {
            windows_open_once(charges)?;
        }
    }

    #[test]
    fn a_window_that_opens_twice_is_found() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let run = |given| plant(Mutant::CalendarOpensTwice, || windows_open_once(given));
        assert!(runner.run(&charges(), run).is_err());
    }
}
