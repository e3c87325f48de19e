//! Clocks. True time is the simulation's; each node's raw clock runs a little fast or slow, from a
//! beginning of its own at each boot, and its wall clock can be stepped.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::clock::Reading;
use crate::cluster::host::Readings;

/// Nanoseconds of a step of the simulation.
pub(super) const TICK_NANOS: u64 = 1_000_000;

/// Wall time when true time begins.
const WALL_AT_FIRST: u64 = 1_800_000_000_000_000_000;

/// The most that a raw clock is off, in parts of a million; twice as much is within the promise.
pub(super) const DRIFT_PPM_MAX: u64 = 900;

/// True time in nanoseconds, which the world moves.
pub(super) type True = Arc<AtomicU64>;

/// A node's clocks from one boot to the next.
pub(super) struct Clocks {
    pub(super) now: True,
    /// By how much the wall clock is wrong; steps outlive a boot.
    pub(super) wall_off: Arc<AtomicI64>,
    pub(super) drift_ppm: i64,
    pub(super) booted_at: u64,
    /// The raw clock at boot.
    pub(super) raw_at_boot: u64,
}

impl Readings for Clocks {
    fn read(&self) -> Reading {
        let now = self.now.load(Ordering::Relaxed);
        let passed = now - self.booted_at;
        let drifted = i128::from(passed) * i128::from(self.drift_ppm) / 1_000_000;
        let raw = self.raw_at_boot + (i128::from(passed) + drifted) as u64;
        let wall =
            (WALL_AT_FIRST + now).saturating_add_signed(self.wall_off.load(Ordering::Relaxed));
        Reading { raw, wall }
    }
}
