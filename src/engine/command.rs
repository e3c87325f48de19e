//! What the engine is asked: resolved checks, in which no policy is left to run.

use super::key::Key;
use super::quota::Quota;

/// The most charges in one check. (A model's threads have small stacks.)
pub const CHARGES_MAX: usize = if cfg!(table_model) { 4 } else { 64 };

/// Number of a limit within the table: whose counters are counted and capped together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LimitId(pub u16);

impl LimitId {
    /// All counters whose limit a caller gave inline.
    pub const INLINE: Self = Self(0);
}

/// What a limit's verdict does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It decides.
    #[default]
    Enforce,
    /// It is told and decides nothing. The limit is charged where it would have let the request
    /// pass, so that its counter shows what enforcing it would be like.
    Shadow,
}

/// Which requests a limit is charged for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ChargeOn {
    /// Those that are allowed; of a shadow, those that it would have let pass.
    #[default]
    Allow,
    /// Denied ones too, down to nothing left, never into debt.
    Always,
}

/// One limit's part in a check: which counter, by which numbers, how many units.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    /// Which counter. Of no meaning where the quota keeps none.
    pub key: Key,
    /// By which numbers. They are part of the check; only usage is part of the counter.
    pub quota: Quota,
    /// Units to take, `0..=UNITS_MAX`. Zero takes nothing, and fits unless there is debt; on a level
    /// it always fits.
    pub cost: u64,
    /// Whose counters this one is counted with.
    pub limit: LimitId,
    /// What its verdict does.
    pub effect: Effect,
    /// Which requests it is charged for. Permits are only ever given to allowed ones.
    pub on: ChargeOn,
}

impl Charge {
    /// A charge of an enforced limit, made if the request is allowed.
    pub const fn new(key: Key, quota: Quota, cost: u64, limit: LimitId) -> Self {
        Self { key, quota, cost, limit, effect: Effect::Enforce, on: ChargeOn::Allow }
    }
}

/// A change of what a counter holds, after the fact or by hand. It is never refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amend {
    /// So many units more, into debt of at most one further quota.
    Add(u64),
    /// So many units less, at most until the counter is fresh.
    GiveBack(u64),
    /// So many units in all; more than the limit counts as all of it, but for a level, which is
    /// set to what is really held.
    Set(u64),
}
