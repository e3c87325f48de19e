//! Points in time and spans of it, as the engine sees them: plain integers that come in.

use core::fmt;
use core::ops::Sub;

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// A point in cluster time T: nanoseconds since the instance began. T never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A point `nanos` after the instance began.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the instance began.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The span from `earlier` to here; zero if `earlier` is in fact later.
    pub const fn since(self, earlier: Self) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// The point `span` later, at most the end of the number line.
    pub const fn after(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

/// A span of time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(u64);

impl Nanos {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A span of `nanos` nanoseconds.
    pub const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    /// A span of `seconds` seconds, at most the longest span there is.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(SECOND))
    }

    /// The span as a number of nanoseconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whole seconds, rounded up: a caller who waits this long has waited long enough.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(SECOND)
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ns", self.0)
    }
}

/// A point in wall time: nanoseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcTime(u64);

impl UtcTime {
    /// A point `nanos` after the epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `span` later.
    pub const fn after(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.get()))
    }

    /// The first whole second at or after this point, in seconds since the epoch.
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(SECOND)
    }
}

impl Sub for UtcTime {
    type Output = Nanos;

    /// The span between two points; zero if they are in the other order.
    fn sub(self, earlier: Self) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The one moment at which a check is decided, on both scales.
///
/// Only the shell's stamping rules make one (`clock::stamp`); the engine takes it as given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Cluster time, by which buckets refill and windows opened by a first charge end.
    pub time: Timestamp,
    /// Wall time, by which windows aligned to the clock end.
    pub utc: UtcTime,
}

impl Now {
    /// The moment `span` later on both scales.
    pub const fn after(self, span: Nanos) -> Self {
        Self { time: self.time.after(span), utc: self.utc.after(span) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_never_go_below_zero() {
        let (early, late) = (Timestamp::from_nanos(5), Timestamp::from_nanos(9));
        assert_eq!(late.since(early), Nanos::new(4));
        assert_eq!(early.since(late), Nanos::ZERO);
        assert_eq!(UtcTime::from_nanos(5) - UtcTime::from_nanos(9), Nanos::ZERO);
    }

    #[test]
    fn whole_seconds_round_up() {
        assert_eq!(Nanos::new(1).as_secs_ceil(), 1);
        assert_eq!(Nanos::from_secs(3).as_secs_ceil(), 3);
        assert_eq!(UtcTime::from_nanos(SECOND + 1).as_secs_ceil(), 2);
    }
}
