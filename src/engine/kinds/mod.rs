//! The arithmetic of each kind of limit, one file each: how full a counter stands at a moment,
//! whether a cost fits, and what the counter is afterwards.
//!
//! A counter is stored in one of two forms. *Narrow*: a value of [`VALUE_BITS`] bits that shares
//! the slot's atomic word with the table's flags. *Wide*: memory beside the table, for what a
//! narrow value cannot hold exactly: a [`Cell`] of numbers, a ring of sub-windows, a heap of
//! permits. A number is never rounded or clamped to fit.
//!
//! All arithmetic is on integers. A rate is the ratio units per window, never a rounded interval.

mod bucket;
mod calendar;
mod cap;
mod concurrent;
mod fixed;
mod level;
mod sliding;

pub use bucket::Bucket;
pub(in crate::engine) use bucket::GENERATION_BITS;
pub(crate) use bucket::NARROW_HORIZON;
pub use calendar::{Boundaries, Calendar, Period};
pub use cap::Cap;
pub use concurrent::Concurrent;
pub use fixed::Fixed;
pub use level::Level;
pub use sliding::Sliding;
pub(crate) use sliding::{Packed, Ring, SUBS};

use super::command::Amend;
use super::mutant::{Mutant, planted};
use super::quota::Quota;
use super::time::{Nanos, Now};

/// Bits of a narrow value. The rest of the 64-bit word are the table's three flags.
pub const VALUE_BITS: u32 = 61;

/// Units of a limit that counts and never denies.
pub const UNLIMITED: u64 = u64::MAX;

/// The wide form of a counter that is a few numbers: four words, meaning given by the kind.
pub type Cell = [u64; 4];

/// How full a counter stands at a moment: the meaning of its state, free of how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// A bucket: how far its theoretical arrival time lies ahead of now, in ticks of its quota.
    Bucket {
        /// Ticks until the bucket is full again; zero is fresh.
        backlog: u128,
    },
    /// A fixed or calendar window.
    Window {
        /// Units charged in the window.
        used: u64,
        /// Which window: its ordinal since the epoch, or the moment at which it opened.
        opened: u64,
        /// Time until it ends. Zero for one that a first charge has yet to open.
        ends_after: Nanos,
    },
    /// A sliding window, as a check of one cost finds it.
    Sliding {
        /// Units that count now.
        used: u64,
        /// Time until the cost that was asked for fits; zero if it does, or never will.
        fits_after: Nanos,
        /// Time until one more unit fits; zero if all do.
        next_after: Nanos,
        /// Time until nothing counts any more.
        full_after: Nanos,
    },
    /// Permits of a concurrency limit.
    Permits {
        /// Units held.
        held: u64,
        /// Time until the first of them lapses if nobody renews it.
        lapses_after: Option<Nanos>,
    },
    /// A level.
    Level {
        /// Units held.
        used: u64,
    },
    /// Nothing is kept: a cap, or a limit that is off for this caller.
    Stateless,
}

/// Where the state of a counter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A narrow value or a [`Cell`]: a few numbers, all of them in a [`Fill`].
    Numbers,
    /// A [`Ring`].
    Ring,
    /// A heap of permits.
    Permits,
    /// There is no counter.
    None,
}

/// When one more unit than now fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextUnit {
    /// All units fit already.
    All,
    /// After this span, if nobody charges meanwhile.
    After(Nanos),
    /// Time alone brings none.
    Unknown,
}

/// A charge on a narrow counter, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Narrowed {
    /// What the counter holds if the charge is made; as it was if the cost is nothing or does not
    /// fit.
    pub(crate) value: u64,
    /// How full it then stands.
    pub(crate) fill: Fill,
    /// Whether the cost fits.
    pub(crate) fits: bool,
}

/// How a fixed or calendar window stands: [`Fill::Window`] by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    used: u64,
    opened: u64,
    ends_after: Nanos,
}

impl Window {
    #[inline]
    fn fill(self) -> Fill {
        let Self { used, opened, ends_after } = self;
        Fill::Window { used, opened, ends_after }
    }

    /// Decides a charge of `cost` where `units` are allowed. `value` is the window's narrow form, and
    /// `narrow` gives that of other units used in one that opened then. `None`: there is none.
    #[inline(always)]
    fn charge(
        self,
        value: u64,
        cost: u64,
        units: u64,
        narrow: impl FnOnce(u64, u64) -> Option<u64>,
    ) -> Option<Narrowed> {
        let Some(used) = within(self.used, cost, units) else {
            return Some(Narrowed { value, fill: self.fill(), fits: false });
        };
        let charged = narrow(used, self.opened)?;
        let value = if cost == 0 { value } else { charged };
        Some(Narrowed { value, fill: Self { used, ..self }.fill(), fits: true })
    }
}

const MISMATCH: &str = "a fill of another kind than its quota";

/// Units used of a window after a charge, if it fits.
#[inline]
fn within(used: u64, cost: u64, units: u64) -> Option<u64> {
    let more = used.saturating_add(cost);
    (units == UNLIMITED || more <= units).then_some(more)
}

impl Quota {
    /// Where counters of this quota keep their state.
    #[inline]
    pub(crate) const fn form(&self) -> Form {
        match self {
            Self::Bucket(_) | Self::Fixed(_) | Self::Calendar(_) | Self::Level(_) => Form::Numbers,
            Self::Sliding(_) => Form::Ring,
            Self::Concurrent(_) => Form::Permits,
            Self::Cap(_) | Self::Unlimited(_) => Form::None,
        }
    }

    /// How full a counter in narrow form stands at `now`. `value` 0 is a fresh counter.
    #[inline]
    pub(crate) fn fill_narrow(&self, value: u64, now: Now) -> Fill {
        match self {
            Self::Bucket(bucket) => bucket.fill_narrow(value, now),
            Self::Fixed(fixed) => fixed.window_narrow(value, now).fill(),
            Self::Calendar(calendar) => calendar.window_narrow(value, now).fill(),
            Self::Level(_) => Fill::Level { used: value },
            Self::Concurrent(_) => Fill::Permits { held: 0, lapses_after: None },
            Self::Sliding(_) => Fill::EMPTY_SLIDING,
            Self::Cap(_) | Self::Unlimited(_) => Fill::Stateless,
        }
    }

    /// How full a counter in wide form stands at `now`.
    pub(crate) fn fill_wide(&self, cell: Cell, now: Now) -> Fill {
        match self {
            Self::Bucket(bucket) => bucket.fill_wide(cell, now),
            Self::Fixed(fixed) => fixed.fill_wide(cell, now),
            Self::Calendar(calendar) => calendar.fill_wide(cell, now),
            Self::Level(_) => Fill::Level { used: cell[0] },
            _ => unreachable!("only numbers are kept in a cell"),
        }
    }

    /// The narrow value of `fill` at `now`; `None` where only the wide form holds it exactly.
    #[inline]
    pub(crate) fn narrow(&self, fill: Fill, now: Now) -> Option<u64> {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.narrow(backlog, now),
            (Self::Fixed(fixed), Fill::Window { used, opened, .. }) => fixed.narrow(used, opened),
            (Self::Calendar(calendar), Fill::Window { used, opened, .. }) => {
                calendar.narrow(used, opened)
            }
            (Self::Level(_), Fill::Level { used }) => (used < 1 << VALUE_BITS).then_some(used),
            _ => unreachable!("{MISMATCH}"),
        }
    }

    /// The wide form of `fill` at `now`.
    pub(crate) fn wide(&self, fill: Fill, now: Now) -> Cell {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.wide(backlog, now),
            (Self::Fixed(fixed), Fill::Window { used, opened, .. }) => fixed.wide(used, opened),
            (Self::Calendar(calendar), Fill::Window { used, opened, .. }) => {
                calendar.wide(used, opened)
            }
            (Self::Level(_), Fill::Level { used }) => [used, 0, 0, 0],
            _ => unreachable!("{MISMATCH}"),
        }
    }

    /// Whether `cost` more units fit.
    #[inline]
    pub(crate) fn fits(&self, fill: Fill, cost: u64) -> bool {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.fits(backlog, cost),
            (Self::Concurrent(concurrent), Fill::Permits { held, .. }) => {
                concurrent.fits(held, cost)
            }
            (Self::Level(level), Fill::Level { used }) => level.fits(used, cost),
            (Self::Cap(cap), _) => cost <= cap.units() + u64::from(planted(Mutant::CapPlusOne)),
            (Self::Unlimited(_), _) => true,
            (_, Fill::Window { used, .. } | Fill::Sliding { used, .. }) => {
                let units = self.limit();
                units == UNLIMITED || used.saturating_add(cost) <= units
            }
            _ => unreachable!("{MISMATCH}"),
        }
    }

    /// Decides a charge on a narrow counter: what [`Quota::fill_narrow`], [`Quota::fits`],
    /// [`Quota::charged`] and [`Quota::narrow`] say together, by one look at the kind. `None`: the
    /// narrow form does not hold what comes of it, or never holds this kind.
    #[inline(always)]
    pub(crate) fn charge_narrow(&self, value: u64, cost: u64, now: Now) -> Option<Narrowed> {
        match self {
            Self::Bucket(bucket) if !bucket.is_narrow() => None,
            Self::Bucket(bucket) if (1..=bucket.burst()).contains(&cost) => {
                let (value, fits) = match bucket.charge_narrow(value, cost, now) {
                    Some(value) => (value, true),
                    None => (value, false),
                };
                let fill = Fill::Bucket { backlog: bucket.backlog_narrow(value, now) };
                Some(Narrowed { value, fill, fits })
            }
            Self::Bucket(bucket) => {
                let backlog = bucket.backlog_narrow(value, now);
                let fits = bucket.fits(backlog, cost);
                Some(Narrowed { value, fill: Fill::Bucket { backlog }, fits })
            }
            Self::Fixed(fixed) => fixed.window_narrow(value, now).charge(
                value,
                cost,
                fixed.units(),
                |used, opened| fixed.narrow(used, opened),
            ),
            Self::Calendar(calendar) => calendar.window_narrow(value, now).charge(
                value,
                cost,
                calendar.units(),
                |used, opened| calendar.narrow(used, opened),
            ),
            Self::Level(level) => {
                let fits = level.fits(value, cost);
                let more = if fits { cost } else { 0 };
                let value = value.checked_add(more).filter(|used| *used < 1 << VALUE_BITS)?;
                Some(Narrowed { value, fill: Fill::Level { used: value }, fits })
            }
            Self::Sliding(_) | Self::Concurrent(_) | Self::Cap(_) | Self::Unlimited(_) => None,
        }
    }

    /// The fill after `cost` units were charged at `now`.
    #[inline]
    pub(crate) fn charged(&self, fill: Fill, cost: u64) -> Fill {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => {
                Fill::Bucket { backlog: backlog + bucket.ticks(cost) }
            }
            _ => self.with_more(fill, |used| used.saturating_add(cost)),
        }
    }

    /// The fill after a charge of `cost` that stops where nothing is left: what `charge = "always"`
    /// takes from a request that is denied. It never makes debt, and leaves debt that is there.
    pub(crate) fn saturated(&self, fill: Fill, cost: u64) -> Fill {
        let full = if planted(Mutant::AlwaysIntoDebt) { UNLIMITED } else { self.limit() };
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => {
                Fill::Bucket { backlog: bucket.saturated(backlog, cost) }
            }
            _ => self.with_more(fill, |used| used.max(used.saturating_add(cost).min(full))),
        }
    }

    /// The fill after an amendment at `now`. Debt goes to at most one further quota and giving
    /// back to fresh; an amendment is never refused.
    pub(crate) fn amended(&self, fill: Fill, amend: Amend) -> Fill {
        let full = self.limit();
        let deepest =
            if planted(Mutant::DebtUnbounded) { UNLIMITED } else { full.saturating_mul(2) };
        match (self, fill, amend) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }, Amend::Add(units)) => {
                Fill::Bucket { backlog: bucket.indebted(backlog, units) }
            }
            (Self::Bucket(bucket), Fill::Bucket { backlog }, Amend::GiveBack(units)) => {
                Fill::Bucket { backlog: backlog.saturating_sub(bucket.ticks(units)) }
            }
            (Self::Bucket(bucket), Fill::Bucket { .. }, Amend::Set(units)) => {
                Fill::Bucket { backlog: bucket.ticks(units.min(full)) }
            }
            (_, _, Amend::Add(units)) => {
                self.with_more(fill, |used| used.max(used.saturating_add(units).min(deepest)))
            }
            (Self::Level(_), Fill::Level { used }, Amend::GiveBack(units))
                if planted(Mutant::LevelBelowZero) && units > used =>
            {
                Fill::Level { used: 1 }
            }
            (_, _, Amend::GiveBack(units)) => {
                self.with_more(fill, |used| used.saturating_sub(units))
            }
            // A level is set to what is really held, be it too much.
            (Self::Level(_), Fill::Level { .. }, Amend::Set(units)) => Fill::Level { used: units },
            (_, _, Amend::Set(units)) => self.with_more(fill, |_| units.min(full)),
        }
    }

    /// The fill of a window or level with another number of units used. A window that nothing was
    /// charged in opens with the first unit.
    fn with_more(&self, fill: Fill, of: impl FnOnce(u64) -> u64) -> Fill {
        match fill {
            Fill::Window { used, opened, ends_after } => {
                let ends_after = match self {
                    Self::Fixed(fixed) if used == 0 => fixed.ends_after_charge(ends_after),
                    _ => ends_after,
                };
                Fill::Window { used: of(used), opened, ends_after }
            }
            Fill::Level { used } => Fill::Level { used: of(used) },
            _ => unreachable!("{MISMATCH}"),
        }
    }

    /// The fill of a counter that was last charged by other numbers.
    pub(crate) fn converted(&self, fill: Fill) -> Fill {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => {
                Fill::Bucket { backlog: bucket.converted(backlog) }
            }
            _ => fill,
        }
    }

    /// Units that still fit at once; [`UNLIMITED`] if any number does.
    pub fn remaining(&self, fill: Fill) -> u64 {
        self.share(&fill).0
    }

    /// Units that still fit at once, and of how many: [`Quota::remaining`] and [`Quota::limit`].
    #[inline]
    pub(crate) fn share(&self, fill: &Fill) -> (u64, u64) {
        let units = self.limit();
        let used = match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => {
                return (bucket.remaining(*backlog), units);
            }
            (_, Fill::Stateless) => 0,
            (
                _,
                Fill::Window { used, .. }
                | Fill::Sliding { used, .. }
                | Fill::Level { used }
                | Fill::Permits { held: used, .. },
            ) => *used,
            _ => unreachable!("{MISMATCH}"),
        };
        let remaining = if units == UNLIMITED { UNLIMITED } else { units.saturating_sub(used) };
        (remaining, units)
    }

    /// How long until `cost` fits if nobody else charges, to the nanosecond; of a sliding window
    /// the cost that was asked for when it was read. `None`: time alone does not make it fit. The
    /// cost must not exceed [`Quota::limit`].
    pub fn fits_after(&self, fill: Fill, cost: u64) -> Option<Nanos> {
        match (self, fill) {
            _ if self.fits(fill, cost) => Some(Nanos::ZERO),
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => {
                Some(bucket.fits_after(backlog, cost))
            }
            (_, Fill::Window { ends_after, .. }) => Some(ends_after),
            (_, Fill::Sliding { fits_after, .. }) => Some(fits_after),
            _ => None,
        }
    }

    /// When one more unit than now fits.
    pub fn next_unit(&self, fill: Fill) -> NextUnit {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => {
                bucket.next_after(backlog).map_or(NextUnit::All, NextUnit::After)
            }
            _ if self.limit() == UNLIMITED => NextUnit::All,
            (_, Fill::Window { used: 0, .. } | Fill::Sliding { used: 0, .. }) => NextUnit::All,
            (_, Fill::Window { ends_after, .. }) => NextUnit::After(ends_after),
            (_, Fill::Sliding { next_after, .. }) => NextUnit::After(next_after),
            (_, Fill::Permits { held: 0, .. }) => NextUnit::All,
            (_, Fill::Permits { lapses_after, .. }) => {
                lapses_after.map_or(NextUnit::Unknown, NextUnit::After)
            }
            _ => NextUnit::Unknown,
        }
    }

    /// How long until the whole quota is back: a bucket full again, a window ended, all of a
    /// sliding window gone. `None` where time brings nothing back.
    pub fn full_after(&self, fill: Fill) -> Option<Nanos> {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => Some(bucket.full_after(backlog)),
            (_, Fill::Window { ends_after, .. }) => Some(ends_after),
            (_, Fill::Sliding { full_after, .. }) => Some(full_after),
            _ => None,
        }
    }
}

impl Fill {
    /// A sliding window in which nothing counts.
    pub(crate) const EMPTY_SLIDING: Self = Self::Sliding {
        used: 0,
        fits_after: Nanos::ZERO,
        next_after: Nanos::ZERO,
        full_after: Nanos::ZERO,
    };

    /// Whether nothing is charged: such a counter may be dropped and no later decision changes.
    #[inline]
    pub(crate) fn is_fresh(self) -> bool {
        match self {
            Self::Bucket { backlog } => backlog == 0,
            Self::Window { used, .. } | Self::Sliding { used, .. } | Self::Level { used } => {
                used == 0
            }
            Self::Permits { held, .. } => held == 0,
            Self::Stateless => true,
        }
    }

    /// Units that are charged or held, of kinds that count them.
    pub fn used(self) -> Option<u64> {
        match self {
            Self::Window { used, .. } | Self::Sliding { used, .. } | Self::Level { used } => {
                Some(used)
            }
            Self::Permits { held, .. } => Some(held),
            Self::Bucket { .. } | Self::Stateless => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::quota::Align;
    use crate::engine::time::{Timestamp, UtcTime};

    const MINUTE: u64 = 60;
    const DAY: u32 = 86_400;

    fn quotas() -> impl Strategy<Value = Quota> {
        let units = || prop_oneof![1..20_u64, Just(UNLIMITED), Just(1 << 53)];
        let window = || (1..3 * MINUTE).prop_map(Nanos::from_secs);
        let day = |units| {
            let opens_at = 19_000 * DAY;
            let (ends_at, next_ends_at) = (opens_at + DAY, opens_at + 2 * DAY);
            Quota::calendar(units, Period::Day, Boundaries { opens_at, ends_at, next_ends_at })
        };
        prop_oneof![
            (1..20_u64, window(), 1..20_u64).prop_map(|(n, window, b)| Quota::bucket(n, window, b)),
            (units(), window(), prop::sample::select(vec![Align::Clock, Align::First]))
                .prop_map(|(units, window, align)| Quota::fixed(units, window, align)),
            units().prop_map(day),
            units().prop_map(Quota::level),
        ]
        .prop_map(|quota| quota.expect("a quota"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// One look at the kind says what the steps do.
        #[test]
        fn charge_narrow_is_its_steps(
            quota in quotas(),
            charges in prop::collection::vec((0..25_u64, 0..20_u64, any::<bool>()), 1..20),
        ) {
            let (mut value, mut seconds) = (0, 1_000_u64);
            for (cost, after, made) in charges {
                seconds += after;
                let utc = u64::from(19_000 * DAY + DAY - 1_100) + seconds;
                let now = Now {
                    time: Timestamp::from_nanos(seconds * 1_000_000_000 + after),
                    utc: UtcTime::from_nanos(utc * 1_000_000_000 + after),
                };
                let stands = quota.fill_narrow(value, now);
                let fits = quota.fits(stands, cost);
                let charged = quota.charged(stands, cost);
                let steps = match quota.narrow(charged, now) {
                    _ if !fits || cost == 0 => Some(Narrowed { value, fill: stands, fits }),
                    to => to.map(|value| Narrowed { value, fill: charged, fits }),
                };
                let Some(at_once) = quota.charge_narrow(value, cost, now) else {
                    let is_wide = quota.narrow(stands, now).is_none();
                    prop_assert!(is_wide || steps.is_none(), "no answer, expected {steps:?}");
                    continue;
                };
                prop_assert_eq!(Some(at_once), steps);
                if made {
                    value = at_once.value;
                }
            }
        }
    }
}
