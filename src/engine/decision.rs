//! What the engine answers.

use core::cmp::Ordering;
use core::fmt;

use super::command::LimitId;
use super::kinds::Fill;
use super::quota::Quota;
use super::time::{Nanos, Now};

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may, and was charged on all its limits.
    Allow,
    /// It may not, and was charged on none.
    Deny,
}

/// The answer to one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may pass.
    pub verdict: Verdict,
    /// Which charge binds, by its place in the check: on denial the one that bit, on allow the
    /// one with the least remaining share. `None` if the check had no charges.
    pub binding: Option<usize>,
    /// The moment of the decision, from which all durations count.
    pub now: Now,
}

impl Decision {
    /// The answer to a check of one charge.
    #[inline]
    pub fn of_one(reading: &Reading, now: Now) -> Self {
        let verdict = if reading.fits { Verdict::Allow } else { Verdict::Deny };
        Self { verdict, binding: Some(0), now }
    }
}

/// When the same request would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It fits now.
    Now,
    /// At this span after the decision, exactly: a nanosecond earlier it is still denied.
    After(Nanos),
    /// Waiting cannot help: the cost exceeds what the limit ever holds.
    Never,
}

/// One limit's state after the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// By which numbers.
    pub quota: Quota,
    /// How full the counter stands: charged if the check was allowed, untouched if not.
    pub fill: Fill,
    /// Units that were asked for.
    pub cost: u64,
    /// Whether this limit alone would have let the request pass.
    pub fits: bool,
}

impl Reading {
    /// The number that headers show as the limit.
    pub fn limit(&self) -> u64 {
        self.quota.limit()
    }

    /// Units that still fit at once.
    pub fn remaining(&self) -> u64 {
        self.quota.remaining(self.fill)
    }

    /// When the same request passes this limit.
    pub fn retry(&self) -> Retry {
        if self.fits {
            Retry::Now
        } else if self.cost > self.quota.limit() {
            Retry::Never
        } else {
            Retry::After(self.quota.fits_after(self.fill, self.cost))
        }
    }

    /// How long until one more unit fits; `None` if all of them do.
    pub fn next_after(&self) -> Option<Nanos> {
        self.quota.next_after(self.fill)
    }

    /// How long until the whole quota is back.
    pub fn full_after(&self) -> Nanos {
        self.quota.full_after(self.fill)
    }
}

/// Which of `readings` binds. Among equals the first, so callers list limits by name.
pub fn binding(verdict: Verdict, readings: &[Reading]) -> Option<usize> {
    let harder = |a: &Reading, b: &Reading| match verdict {
        Verdict::Deny => wait(a).cmp(&wait(b)),
        Verdict::Allow => share(b, a),
    };
    let mut best: Option<usize> = None;
    for (index, reading) in readings.iter().enumerate() {
        if best.is_none_or(|best| harder(reading, &readings[best]) == Ordering::Greater) {
            best = Some(index);
        }
    }
    best
}

/// How long a limit holds a request back; `never` is longer than any time.
fn wait(reading: &Reading) -> (u8, Nanos) {
    match reading.retry() {
        Retry::Now => (0, Nanos::ZERO),
        Retry::After(span) => (1, span),
        Retry::Never => (2, Nanos::ZERO),
    }
}

/// Compares remaining shares, as fractions and without rounding.
fn share(a: &Reading, b: &Reading) -> Ordering {
    let cross = |x: &Reading, y: &Reading| u128::from(x.remaining()) * u128::from(y.limit());
    cross(a, b).cmp(&cross(b, a))
}

/// Why the engine would not decide. Nothing was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Operator: the table holds as many counters as it may, and this key is new.
    TableFull {
        /// Whose cap was met; `None` is the one overall.
        limit: Option<LimitId>,
        /// The cap.
        keys_max: u64,
    },
    /// Caller: more charges in one check than [`super::command::CHARGES_MAX`].
    TooManyCharges {
        /// How many there were.
        found: usize,
    },
    /// Caller: one counter twice in a check, by different numbers.
    UnlikeQuotas,
    /// Caller: a counter cannot be set above its limit.
    UsedAboveLimit {
        /// The units it was to be set to.
        used: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Operator: the instance has run for longer than narrow counters can tell time.
    HorizonPassed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableFull { limit: None, keys_max } => {
                write!(f, "the table holds its most counters, {keys_max}, and this key is new")
            }
            Self::TableFull { limit: Some(_), keys_max } => {
                write!(f, "the limit holds its most counters, {keys_max}, and this key is new")
            }
            Self::TooManyCharges { found } => write!(
                f,
                "the check has {found} charges, allowed are {}",
                super::command::CHARGES_MAX
            ),
            Self::UnlikeQuotas => write!(f, "one counter is charged twice by different numbers"),
            Self::UsedAboveLimit { used, limit } => {
                write!(f, "used is set to {used}, the limit allows {limit}")
            }
            Self::HorizonPassed => write!(f, "the instance ran past its time horizon; restart it"),
        }
    }
}

impl core::error::Error for Refusal {}
