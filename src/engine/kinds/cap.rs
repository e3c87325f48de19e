//! Cap: a bound on one request by itself. It has no counter.

/// A cap's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    units: u64,
}

impl Cap {
    /// The number is in the range that `Quota::cap` checks.
    pub(in crate::engine) const fn new(units: u64) -> Self {
        Self { units }
    }

    /// The most units of one request.
    pub const fn units(&self) -> u64 {
        self.units
    }
}
