//! Level: an amount that is held now. It moves up and down and is never reset; a charge never
//! takes it above Q, giving back never below zero.

use crate::engine::mutant::{Mutant, planted};

use super::UNLIMITED;

/// A level's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    units: u64,
}

impl Level {
    /// The number is in the range that `Quota::level` checks.
    pub(in crate::engine) const fn new(units: u64) -> Self {
        Self { units }
    }

    /// The most units that charges may reach; [`UNLIMITED`] counts and never denies.
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// What adds nothing fits, however much is held: who is over may still look and delete.
    #[inline]
    pub(super) fn fits(&self, used: u64, cost: u64) -> bool {
        let more = u64::from(planted(Mutant::LevelPlusOne));
        cost == 0 || self.units == UNLIMITED || used.saturating_add(cost) <= self.units + more
    }
}
