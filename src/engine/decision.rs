//! What the engine answers.

use core::fmt;

use super::command::{Effect, LimitId};
use super::kinds::{Fill, NextUnit};
use super::mutant::{Mutant, planted};
use super::permit::Permit;
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
    /// What it holds of concurrency limits, if it was given anything.
    pub permit: Option<Permit>,
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
    /// When others give back what they hold. Of permits, the span until the first one lapses.
    OnOthers(Option<Nanos>),
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
    /// What that means for the decision.
    pub effect: Effect,
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

    /// Whether this limit lets the request pass: a shadow always does.
    #[inline]
    pub fn passes(&self) -> bool {
        self.fits || (self.effect == Effect::Shadow && !planted(Mutant::ShadowDecides))
    }

    /// When the same request passes this limit.
    #[inline]
    pub fn retry(&self) -> Retry {
        if self.fits { Retry::Now } else { self.wait() }
    }

    #[cold]
    fn wait(&self) -> Retry {
        if self.cost > self.quota.limit() {
            return Retry::Never;
        }
        match (self.quota.fits_after(self.fill, self.cost), self.fill) {
            (Some(span), _) => Retry::After(span),
            (None, Fill::Permits { lapses_after, .. }) => Retry::OnOthers(lapses_after),
            (None, _) => Retry::OnOthers(None),
        }
    }

    /// When one more unit fits.
    pub fn next_unit(&self) -> NextUnit {
        self.quota.next_unit(self.fill)
    }

    /// How long until the whole quota is back; `None` where time brings nothing back.
    pub fn full_after(&self) -> Option<Nanos> {
        self.quota.full_after(self.fill)
    }

    /// How a limit holds a request back, the worst greatest: first those that waiting cannot
    /// help, then by the wait.
    fn hardness(&self) -> (u8, Nanos) {
        match self.retry() {
            Retry::Now => (0, Nanos::ZERO),
            Retry::After(span) | Retry::OnOthers(Some(span)) => (1, span),
            Retry::OnOthers(None) => (2, Nanos::ZERO),
            Retry::Never => (3, Nanos::ZERO),
        }
    }
}

/// Which of `readings` binds. Among equals the first, so callers list limits by name. A shadow
/// never binds.
pub fn binding(verdict: Verdict, readings: &[Reading]) -> Option<usize> {
    match verdict {
        Verdict::Deny => first_hardest(readings),
        Verdict::Allow => {
            // Each remaining is a division, so it is made once; of one limit there is no question.
            match readings {
                [reading] => (reading.effect != Effect::Shadow).then_some(0),
                _ => first_least_share(readings),
            }
        }
    }
}

/// The first enforced one of those that hold the request back the most.
fn first_hardest(readings: &[Reading]) -> Option<usize> {
    let mut hardest: Option<(usize, (u8, Nanos))> = None;
    for (index, reading) in readings.iter().enumerate() {
        if reading.effect == Effect::Shadow {
            continue;
        }
        let hardness = reading.hardness();
        if hardest.is_none_or(|(_, known)| hardness > known) {
            hardest = Some((index, hardness));
        }
    }
    hardest.map(|(index, _)| index)
}

/// The first enforced one of those of whose limit the least share remains: as fractions, without
/// rounding.
fn first_least_share(readings: &[Reading]) -> Option<usize> {
    let mut least: Option<(usize, u64, u64)> = None;
    for (index, reading) in readings.iter().enumerate() {
        if reading.effect == Effect::Shadow {
            continue;
        }
        let (remaining, limit) = reading.quota.share(&reading.fill);
        let is_less = match least {
            None => true,
            Some((_, least, of)) => {
                u128::from(remaining) * u128::from(of) < u128::from(least) * u128::from(limit)
            }
        };
        if is_less {
            least = Some((index, remaining, limit));
        }
    }
    least.map(|(index, ..)| index)
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
    /// Caller: permits can be released and renewed, and set to none; no other number of them can
    /// be set, since each is somebody's.
    PermitsCannotBeSet {
        /// The units they were to be set to.
        used: u64,
    },
    /// Us: the check was resolved before the calendar windows that it knows had ended.
    WindowPassed,
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
            Self::PermitsCannotBeSet { used } => {
                write!(f, "permits held are set to {used}, allowed is 0, which releases them")
            }
            Self::WindowPassed => write!(f, "the check waited for longer than a calendar window"),
            Self::HorizonPassed => write!(f, "the instance ran past its time horizon; restart it"),
        }
    }
}

impl core::error::Error for Refusal {}
