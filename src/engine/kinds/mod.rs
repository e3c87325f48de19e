//! The arithmetic of each kind of limit, one file each: how full a counter stands at a moment,
//! whether a cost fits, and what the counter is afterwards.
//!
//! A counter is stored in one of two forms. *Narrow*: a value of [`VALUE_BITS`] bits that shares
//! the slot's atomic word with the table's flags. *Wide*: a [`Cell`] beside the table, for numbers
//! that a narrow value cannot hold exactly. Both say the same thing; a number is never rounded or
//! clamped to fit.
//!
//! All arithmetic is on integers. A rate is the ratio units per window, never a rounded interval.

mod bucket;
mod fixed;

pub use bucket::Bucket;
pub(crate) use bucket::NARROW_HORIZON;
pub use fixed::Fixed;

use super::quota::Quota;
use super::time::{Nanos, Now};

/// Bits of a narrow value. The rest of the 64-bit word are the table's three flags.
pub const VALUE_BITS: u32 = 61;

/// The wide form of a counter: four words, meaning given by the kind.
pub type Cell = [u64; 4];

/// How full a counter stands at a moment: the meaning of its state, free of how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// A bucket: how far its theoretical arrival time lies ahead of now, in ticks of its quota.
    Bucket {
        /// Ticks until the bucket is full again; zero is fresh.
        backlog: u128,
    },
    /// A fixed window.
    Window {
        /// Units charged in the window.
        used: u64,
        /// Which window: its ordinal since the epoch, or the moment at which it opened.
        opened: u64,
        /// Time until it ends. Zero for one that a first charge has yet to open.
        ends_after: Nanos,
    },
}

impl Quota {
    /// How full a counter in narrow form stands at `now`. `value` 0 is a fresh counter.
    #[inline]
    pub(crate) fn fill_narrow(&self, value: u64, now: Now) -> Fill {
        match self {
            Self::Bucket(bucket) => bucket.fill_narrow(value, now),
            Self::Fixed(fixed) => fixed.fill_narrow(value, now),
        }
    }

    /// How full a counter in wide form stands at `now`.
    pub(crate) fn fill_wide(&self, cell: Cell, now: Now) -> Fill {
        match self {
            Self::Bucket(bucket) => bucket.fill_wide(cell, now),
            Self::Fixed(fixed) => fixed.fill_wide(cell, now),
        }
    }

    /// The narrow value of `fill` at `now`; `None` where only the wide form holds it exactly.
    #[inline]
    pub(crate) fn narrow(&self, fill: Fill, now: Now) -> Option<u64> {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.narrow(backlog, now),
            (Self::Fixed(fixed), Fill::Window { used, opened, .. }) => fixed.narrow(used, opened),
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }

    /// The wide form of `fill` at `now`.
    pub(crate) fn wide(&self, fill: Fill, now: Now) -> Cell {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.wide(backlog, now),
            (Self::Fixed(fixed), Fill::Window { used, opened, .. }) => fixed.wide(used, opened),
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }

    /// Whether `cost` more units fit.
    #[inline]
    pub(crate) fn fits(&self, fill: Fill, cost: u64) -> bool {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.fits(backlog, cost),
            (Self::Fixed(fixed), Fill::Window { used, .. }) => fixed.fits(used, cost),
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }

    /// The fill after `cost` units were charged at `now`.
    #[inline]
    pub(crate) fn charged(&self, fill: Fill, cost: u64) -> Fill {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => {
                Fill::Bucket { backlog: backlog + bucket.ticks(cost) }
            }
            (Self::Fixed(fixed), Fill::Window { used, opened, ends_after }) => {
                let ends_after =
                    if used == 0 { fixed.ends_after_charge(ends_after) } else { ends_after };
                Fill::Window { used: used.saturating_add(cost), opened, ends_after }
            }
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }

    /// The fill in which exactly `used` units are charged, whatever `fill` says of them.
    pub(crate) fn with_used(&self, fill: Fill, used: u64) -> Fill {
        let emptied = match fill {
            Fill::Bucket { .. } => Fill::Bucket { backlog: 0 },
            Fill::Window { opened, ends_after, .. } => Fill::Window { used: 0, opened, ends_after },
        };
        self.charged(emptied, used)
    }

    /// Units that still fit at once.
    pub fn remaining(&self, fill: Fill) -> u64 {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.remaining(backlog),
            (Self::Fixed(fixed), Fill::Window { used, .. }) => fixed.units().saturating_sub(used),
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }

    /// How long until `cost` fits if nobody else charges, to the nanosecond. The cost must not
    /// exceed [`Quota::limit`].
    pub fn fits_after(&self, fill: Fill, cost: u64) -> Nanos {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.fits_after(backlog, cost),
            (Self::Fixed(fixed), Fill::Window { used, ends_after, .. }) => {
                if fixed.fits(used, cost) { Nanos::ZERO } else { ends_after }
            }
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }

    /// How long until one more unit than now fits; `None` if all of them do.
    pub fn next_after(&self, fill: Fill) -> Option<Nanos> {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.next_after(backlog),
            (Self::Fixed(_), Fill::Window { used, ends_after, .. }) => {
                (used > 0).then_some(ends_after)
            }
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }

    /// How long until the whole quota is back: a bucket full again, a window ended.
    pub fn full_after(&self, fill: Fill) -> Nanos {
        match (self, fill) {
            (Self::Bucket(bucket), Fill::Bucket { backlog }) => bucket.full_after(backlog),
            (Self::Fixed(_), Fill::Window { ends_after, .. }) => ends_after,
            _ => unreachable!("a fill of another kind than its quota"),
        }
    }
}

impl Fill {
    /// Whether nothing is charged: such a counter may be dropped and no later decision changes.
    #[inline]
    pub(crate) fn is_fresh(self) -> bool {
        match self {
            Self::Bucket { backlog } => backlog == 0,
            Self::Window { used, .. } => used == 0,
        }
    }
}
