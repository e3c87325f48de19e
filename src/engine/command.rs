//! What the engine is asked: resolved checks, in which no policy is left to run.

use super::key::Key;
use super::quota::Quota;

/// The most charges in one check.
pub const CHARGES_MAX: usize = 64;

/// Number of a limit within the table: whose counters are counted and capped together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LimitId(pub u16);

impl LimitId {
    /// All counters whose limit a caller gave inline.
    pub const INLINE: Self = Self(0);
}

/// One limit's part in a check: which counter, by which numbers, how many units.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// Which counter.
    pub key: Key,
    /// By which numbers. They are part of the check; only usage is part of the counter.
    pub quota: Quota,
    /// Units to take, `0..=UNITS_MAX`. Zero takes nothing and fits unless there is debt.
    pub cost: u64,
    /// Whose counters this one is counted with.
    pub limit: LimitId,
}
