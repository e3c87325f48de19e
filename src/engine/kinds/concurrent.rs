//! Concurrency: at most N units held at once, as permits. A permit is a lease: it lapses by
//! itself unless it is renewed, so that one whose holder is gone frees itself.

use crate::engine::time::Nanos;

/// A concurrency limit's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concurrent {
    units: u64,
    lease_ns: u64,
}

impl Concurrent {
    /// Numbers are in the ranges that `Quota::concurrent` checks.
    pub(in crate::engine) const fn new(units: u64, lease: Nanos) -> Self {
        Self { units, lease_ns: lease.get() }
    }

    /// The most units held at once.
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// How long a permit lasts that nobody renews.
    pub const fn lease(&self) -> Nanos {
        Nanos::new(self.lease_ns)
    }

    #[inline]
    pub(super) fn fits(&self, held: u64, cost: u64) -> bool {
        held.saturating_add(cost) <= self.units
    }
}
