//! The numbers of a limit. An impossible quota cannot be built.

use core::fmt;

use super::kinds::{
    Boundaries, Bucket, Calendar, Cap, Concurrent, Fixed, Level, Period, Sliding, UNLIMITED,
};
use super::time::Nanos;

/// The most units a quota may hold, and the largest cost of one check: 2^53, the integers that
/// every JSON reader keeps exact.
pub const UNITS_MAX: u64 = 1 << 53;

/// The shortest window.
pub const WINDOW_MIN: Nanos = Nanos::new(1_000_000);

/// The longest window: a leap year.
pub const WINDOW_MAX: Nanos = Nanos::from_secs(366 * 86_400);

/// The kinds of limit. The numbers are part of keys, slots, logs and the wire
/// protocol, which numbers the kinds to come as well: they never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Token bucket, held as its GCRA theoretical arrival time.
    Bucket = 1,
    /// At most N in any window of a length, wherever it begins.
    Sliding = 2,
    /// At most N in each window; windows follow one another without overlap.
    Fixed = 3,
    /// At most N in each day, week or month of some zone.
    Calendar = 4,
    /// At most N held at once, as permits that lapse.
    Concurrent = 5,
    /// An amount that is held now, moved up and down, at most N.
    Level = 6,
    /// At most N in one request; no counter.
    Cap = 7,
}

/// Added to the code of a kind whose limit is off.
const UNLIMITED_CODE: u8 = 0x80;

impl Kind {
    /// The kind with this code.
    pub(crate) const fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Bucket,
            2 => Self::Sliding,
            3 => Self::Fixed,
            4 => Self::Calendar,
            5 => Self::Concurrent,
            6 => Self::Level,
            7 => Self::Cap,
            _ => return None,
        })
    }

    /// Whether a counter of this kind keeps sub-windows.
    pub(super) const fn has_ring(self) -> bool {
        matches!(self, Self::Sliding)
    }

    /// The word a policy uses for this kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bucket => "bucket",
            Self::Sliding => "sliding",
            Self::Fixed => "fixed",
            Self::Calendar => "calendar",
            Self::Concurrent => "concurrent",
            Self::Level => "level",
            Self::Cap => "cap",
        }
    }
}

/// Where a fixed window begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Align {
    /// At whole multiples of its length in wall time since the epoch.
    Clock = 1,
    /// At a key's first charge after its last window ended.
    First = 2,
}

/// The kind and numbers of one limit: what is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// At most `burst` at one instant, refilled at units per window.
    Bucket(Bucket),
    /// At most so many units in any window.
    Sliding(Sliding),
    /// At most so many units in each window.
    Fixed(Fixed),
    /// At most so many units in each day, week or month.
    Calendar(Calendar),
    /// At most so many units held at once.
    Concurrent(Concurrent),
    /// At most so many units held now.
    Level(Level),
    /// At most so many units in one request.
    Cap(Cap),
    /// A limit of this kind that denies nothing and keeps no counter. Of windows and levels there
    /// is another way to have no limit, which counts: their units may be [`UNLIMITED`].
    Unlimited(Kind),
}

impl Quota {
    /// A token bucket that holds `burst` units and refills `units` per `window`.
    ///
    /// # Errors
    /// A number outside its range: units and burst `1..=UNITS_MAX`, window
    /// `WINDOW_MIN..=WINDOW_MAX`.
    pub fn bucket(units: u64, window: Nanos, burst: u64) -> Result<Self, QuotaError> {
        check_range("units", units, 1, UNITS_MAX)?;
        check_range("burst", burst, 1, UNITS_MAX)?;
        check_window(window)?;
        Ok(Self::Bucket(Bucket::new(units, window, burst)))
    }

    /// At most `units` in any window of length `window`, wherever it begins.
    ///
    /// # Errors
    /// A number outside its range, as for [`Quota::bucket`].
    pub fn sliding(units: u64, window: Nanos) -> Result<Self, QuotaError> {
        check_range("units", units, 1, UNITS_MAX)?;
        check_window(window)?;
        Ok(Self::Sliding(Sliding::new(units, window)))
    }

    /// At most `units` in each window of length `window`; [`UNLIMITED`] counts and never denies.
    ///
    /// # Errors
    /// A number outside its range, as for [`Quota::bucket`].
    pub fn fixed(units: u64, window: Nanos, align: Align) -> Result<Self, QuotaError> {
        check_units_or_unlimited(units)?;
        check_window(window)?;
        Ok(Self::Fixed(Fixed::new(units, window, align)))
    }

    /// At most `units` in each `period`, of which the one at hand lies between the boundaries
    /// given; [`UNLIMITED`] counts and never denies.
    ///
    /// # Errors
    /// A number outside its range, as for [`Quota::bucket`], or boundaries that do not follow one
    /// another or lie further apart than a period can.
    pub fn calendar(units: u64, period: Period, at: Boundaries) -> Result<Self, QuotaError> {
        check_units_or_unlimited(units)?;
        let longest = (period.longest().as_secs_ceil()) as u32;
        let Boundaries { opens_at, ends_at, next_ends_at } = at;
        for (number, from, to) in
            [("ends_at", opens_at, ends_at), ("next_ends_at", ends_at, next_ends_at)]
        {
            let max = from.saturating_add(longest);
            check_range(number, to.into(), u64::from(from) + 1, max.into())?;
        }
        Ok(Self::Calendar(Calendar::new(units, period, at)))
    }

    /// At most `units` held at once, by permits that lapse after `lease` unless renewed.
    ///
    /// # Errors
    /// A number outside its range: units `1..=UNITS_MAX`, lease `WINDOW_MIN..=WINDOW_MAX`.
    pub fn concurrent(units: u64, lease: Nanos) -> Result<Self, QuotaError> {
        check_range("units", units, 1, UNITS_MAX)?;
        check_lease(lease)?;
        Ok(Self::Concurrent(Concurrent::new(units, lease)))
    }

    /// At most `units` held now; [`UNLIMITED`] counts and never denies.
    ///
    /// # Errors
    /// Units outside `1..=UNITS_MAX`.
    pub fn level(units: u64) -> Result<Self, QuotaError> {
        check_units_or_unlimited(units)?;
        Ok(Self::Level(Level::new(units)))
    }

    /// At most `units` in one request.
    ///
    /// # Errors
    /// Units outside `1..=UNITS_MAX`.
    pub fn cap(units: u64) -> Result<Self, QuotaError> {
        check_range("units", units, 1, UNITS_MAX)?;
        Ok(Self::Cap(Cap::new(units)))
    }

    /// Which kind this is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Bucket(_) => Kind::Bucket,
            Self::Sliding(_) => Kind::Sliding,
            Self::Fixed(_) => Kind::Fixed,
            Self::Calendar(_) => Kind::Calendar,
            Self::Concurrent(_) => Kind::Concurrent,
            Self::Level(_) => Kind::Level,
            Self::Cap(_) => Kind::Cap,
            Self::Unlimited(kind) => *kind,
        }
    }

    /// The most units one check can ever take: a bucket's burst, else N. It is the number that
    /// headers show as the limit; [`UNLIMITED`] if there is none.
    #[inline]
    pub const fn limit(&self) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.burst(),
            Self::Sliding(sliding) => sliding.units(),
            Self::Fixed(fixed) => fixed.units(),
            Self::Calendar(calendar) => calendar.units(),
            Self::Concurrent(concurrent) => concurrent.units(),
            Self::Level(level) => level.units(),
            Self::Cap(cap) => cap.units(),
            Self::Unlimited(_) => UNLIMITED,
        }
    }

    /// The numbers in a fixed layout, for logs: a code and three words. Equal quotas have equal
    /// words.
    pub(crate) fn words(&self) -> (u8, [u64; 3]) {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        match *self {
            Self::Bucket(bucket) => {
                let (units, window) = bucket.rate();
                (Kind::Bucket as u8, [units, window.get(), bucket.burst()])
            }
            Self::Sliding(sliding) => {
                (Kind::Sliding as u8, [sliding.units(), sliding.window().get(), 0])
            }
            Self::Fixed(fixed) => {
                (Kind::Fixed as u8, [fixed.units(), fixed.window().get(), fixed.align() as u64])
            }
            Self::Calendar(calendar) => {
                let Boundaries { opens_at, ends_at, next_ends_at } = calendar.boundaries();
                let words = [
                    calendar.units(),
                    pair(opens_at, ends_at),
                    pair(next_ends_at, calendar.period() as u32),
                ];
                (Kind::Calendar as u8, words)
            }
            Self::Concurrent(concurrent) => {
                (Kind::Concurrent as u8, [concurrent.units(), concurrent.lease().get(), 0])
            }
            Self::Level(level) => (Kind::Level as u8, [level.units(), 0, 0]),
            Self::Cap(cap) => (Kind::Cap as u8, [cap.units(), 0, 0]),
            Self::Unlimited(kind) => (kind as u8 | UNLIMITED_CODE, [0; 3]),
        }
    }

    /// What [`Quota::words`] gave. `None` for words that no quota has.
    pub(crate) fn from_words(code: u8, [first, second, third]: [u64; 3]) -> Option<Self> {
        let kind = Kind::of_code(code & !UNLIMITED_CODE)?;
        if code & UNLIMITED_CODE != 0 {
            return Some(Self::Unlimited(kind));
        }
        let low = |word: u64| word as u32;
        let high = |word: u64| (word >> 32) as u32;
        match kind {
            Kind::Bucket => Self::bucket(first, Nanos::new(second), third).ok(),
            Kind::Sliding => Self::sliding(first, Nanos::new(second)).ok(),
            Kind::Fixed => {
                let align = match third {
                    1 => Align::Clock,
                    2 => Align::First,
                    _ => return None,
                };
                Self::fixed(first, Nanos::new(second), align).ok()
            }
            Kind::Calendar => {
                let period = match high(third) {
                    1 => Period::Day,
                    2 => Period::Week,
                    3 => Period::Month,
                    _ => return None,
                };
                let at = Boundaries {
                    opens_at: low(second),
                    ends_at: high(second),
                    next_ends_at: low(third),
                };
                Self::calendar(first, period, at).ok()
            }
            Kind::Concurrent => Self::concurrent(first, Nanos::new(second)).ok(),
            Kind::Level => Self::level(first).ok(),
            Kind::Cap => Self::cap(first).ok(),
        }
    }
}

/// Tests a lease's length.
///
/// # Errors
/// One outside `WINDOW_MIN..=WINDOW_MAX`.
pub fn check_lease(lease: Nanos) -> Result<(), QuotaError> {
    check_range("lease_ns", lease.get(), WINDOW_MIN.get(), WINDOW_MAX.get())
}

fn check_units_or_unlimited(units: u64) -> Result<(), QuotaError> {
    if units == UNLIMITED { Ok(()) } else { check_range("units", units, 1, UNITS_MAX) }
}

fn check_range(number: &'static str, found: u64, min: u64, max: u64) -> Result<(), QuotaError> {
    if (min..=max).contains(&found) { Ok(()) } else { Err(QuotaError { number, found, min, max }) }
}

fn check_window(window: Nanos) -> Result<(), QuotaError> {
    check_range("window_ns", window.get(), WINDOW_MIN.get(), WINDOW_MAX.get())
}

/// A quota that cannot be: which number, what was found, what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaError {
    /// `units`, `burst`, `window_ns`, `lease_ns`, `ends_at` or `next_ends_at`.
    pub number: &'static str,
    /// What was given.
    pub found: u64,
    /// The least allowed.
    pub min: u64,
    /// The most allowed.
    pub max: u64,
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, found, min, max } = self;
        write!(f, "{number} is {found}, allowed is {min} to {max}")
    }
}

impl core::error::Error for QuotaError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_or_too_large_number_cannot_be_built() {
        let second = Nanos::from_secs(1);
        let error = Quota::bucket(0, second, 1).unwrap_err();
        assert_eq!((error.number, error.found, error.min), ("units", 0, 1));
        assert_eq!(Quota::bucket(1, second, 0).unwrap_err().number, "burst");
        assert_eq!(Quota::fixed(1, Nanos::ZERO, Align::Clock).unwrap_err().number, "window_ns");
        let error = Quota::fixed(UNITS_MAX + 1, second, Align::First).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("units is {}, allowed is 1 to {UNITS_MAX}", UNITS_MAX + 1)
        );
        assert!(Quota::bucket(1, WINDOW_MAX, UNITS_MAX).is_ok());
    }
}
