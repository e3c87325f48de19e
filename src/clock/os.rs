//! The one reader of the operating system's clocks.

use rustix::time::{ClockId, clock_gettime};

use super::stamp::Reading;

/// The operating system's clocks.
pub struct Os;

impl Os {
    /// CLOCK_MONOTONIC_RAW in nanoseconds: time since boot that nobody slews or steps.
    /// (CLOCK_MONOTONIC is slewed by NTP, by up to 8 %.)
    #[inline]
    pub fn raw() -> u64 {
        nanos(ClockId::MonotonicRaw)
    }

    /// Both clocks, one right after the other.
    pub fn read() -> Reading {
        Reading { raw: Self::raw(), wall: nanos(ClockId::Realtime) }
    }
}

#[inline]
fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Before 1970 reads as 1970.
    (time.tv_sec.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}
