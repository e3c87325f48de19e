//! The model: each kind of limit by the book, in plain numbers. No arithmetic is shared with the
//! engine, and nothing is stored more cleverly than as a list.

use alloc::vec::Vec;

use proptest::prelude::*;

use crate::engine::command::Amend;
use crate::engine::decision::Retry;
use crate::engine::kinds::{Boundaries, Period, UNLIMITED};
use crate::engine::permit::PermitId;
use crate::engine::quota::{Align, Quota, UNITS_MAX, WINDOW_MAX};
use crate::engine::time::{Nanos, Now, SECOND, Timestamp, UtcTime};

/// Wall time at which cluster time is zero.
pub(super) const START_UTC: u64 = 1_700_000_000 * SECOND;

/// The latest moment of any test: within the horizon of narrow counters.
pub(super) const LAST: u64 = 6 * 365 * 86_400 * SECOND;

pub(super) fn moment(nanos: u64) -> Now {
    Now { time: Timestamp::from_nanos(nanos), utc: UtcTime::from_nanos(START_UTC + nanos) }
}

/// Numbers of a limit as a page would give them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Numbers {
    Bucket {
        units: u64,
        window: u64,
        burst: u64,
    },
    Sliding {
        units: u64,
        window: u64,
    },
    Fixed {
        units: u64,
        window: u64,
        align: Align,
    },
    /// Windows of so many hours, one after the other, from a day before the start.
    Calendar {
        units: u64,
        hours: u64,
    },
    Concurrent {
        units: u64,
        lease: u64,
    },
    Level {
        units: u64,
    },
    Cap {
        units: u64,
    },
    Unlimited,
}

/// One kind of [`Numbers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Bucket,
    Sliding,
    Fixed,
    Calendar,
    Concurrent,
    Level,
    Cap,
    Any,
}

impl Which {
    pub(super) fn numbers(self) -> BoxedStrategy<Numbers> {
        let units =
            || prop_oneof![1..=20_u64, 1..=1_000_000_u64, 1..=100_000_000_u64, 1..=UNITS_MAX];
        let counted = move || prop_oneof![9 => units(), 1 => Just(UNLIMITED)];
        let window = || {
            prop_oneof![
                Just(SECOND),
                Just(60 * SECOND),
                Just(3600 * SECOND),
                Just(30 * 86_400 * SECOND),
                Just(WINDOW_MAX.get()),
                1_000_000..=10 * SECOND,
            ]
        };
        match self {
            Self::Bucket => (units(), window(), prop_oneof![1..=20_u64, 1..=UNITS_MAX])
                .prop_map(|(units, window, burst)| Numbers::Bucket { units, window, burst })
                .boxed(),
            Self::Sliding => (units(), window())
                .prop_map(|(units, window)| Numbers::Sliding { units, window })
                .boxed(),
            Self::Fixed => {
                (counted(), window(), prop_oneof![Just(Align::Clock), Just(Align::First)])
                    .prop_map(|(units, window, align)| Numbers::Fixed { units, window, align })
                    .boxed()
            }
            Self::Calendar => (counted(), prop_oneof![Just(24_u64), 23..=25_u64, 20..=48_u64])
                .prop_map(|(units, hours)| Numbers::Calendar { units, hours })
                .boxed(),
            Self::Concurrent => (prop_oneof![1..=20_u64, units()], window())
                .prop_map(|(units, lease)| Numbers::Concurrent { units, lease })
                .boxed(),
            Self::Level => counted().prop_map(|units| Numbers::Level { units }).boxed(),
            Self::Cap => units().prop_map(|units| Numbers::Cap { units }).boxed(),
            Self::Any => prop_oneof![
                Self::Bucket.numbers(),
                Self::Sliding.numbers(),
                Self::Fixed.numbers(),
                Self::Calendar.numbers(),
                Self::Concurrent.numbers(),
                Self::Level.numbers(),
                Self::Cap.numbers(),
                Just(Numbers::Unlimited),
            ]
            .boxed(),
        }
    }
}

impl Numbers {
    pub(super) fn quota(self, now: Now) -> Quota {
        match self {
            Self::Bucket { units, window, burst } => {
                Quota::bucket(units, Nanos::new(window), burst)
            }
            Self::Sliding { units, window } => Quota::sliding(units, Nanos::new(window)),
            Self::Fixed { units, window, align } => Quota::fixed(units, Nanos::new(window), align),
            Self::Calendar { units, hours } => {
                let opens_at = calendar_opens(hours, now);
                let length = hours * 3600;
                let second = |seconds: u64| u32::try_from(seconds).unwrap();
                let at = Boundaries {
                    opens_at: second(opens_at),
                    ends_at: second(opens_at + length),
                    next_ends_at: second(opens_at + 2 * length),
                };
                Quota::calendar(units, Period::Day, at)
            }
            Self::Concurrent { units, lease } => Quota::concurrent(units, Nanos::new(lease)),
            Self::Level { units } => Quota::level(units),
            Self::Cap { units } => Quota::cap(units),
            Self::Unlimited => return Quota::Unlimited(crate::engine::quota::Kind::Bucket),
        }
        .unwrap()
    }

    pub(super) fn limit(self) -> u64 {
        match self {
            Self::Bucket { burst, .. } => burst,
            Self::Sliding { units, .. }
            | Self::Fixed { units, .. }
            | Self::Calendar { units, .. }
            | Self::Concurrent { units, .. }
            | Self::Level { units }
            | Self::Cap { units } => units,
            Self::Unlimited => UNLIMITED,
        }
    }

    /// The same limit with another N; what cannot change without becoming another counter stays.
    pub(super) fn with_units(self, units: u64) -> Self {
        match self {
            Self::Bucket { .. } | Self::Unlimited => self,
            Self::Sliding { window, .. } => Self::Sliding { units, window },
            Self::Fixed { window, align, .. } => Self::Fixed { units, window, align },
            Self::Calendar { hours, .. } => Self::Calendar { units, hours },
            Self::Concurrent { lease, .. } => Self::Concurrent { units, lease },
            Self::Level { .. } => Self::Level { units },
            Self::Cap { .. } => Self::Cap { units },
        }
    }

    pub(super) fn has_counter(self) -> bool {
        !matches!(self, Self::Cap { .. } | Self::Unlimited)
    }
}

/// When the calendar window at `now` opened, in seconds since the epoch.
fn calendar_opens(hours: u64, now: Now) -> u64 {
    let origin = START_UTC / SECOND - 86_400;
    let length = hours * 3600;
    let since = now.utc.as_nanos() / SECOND - origin;
    origin + since / length * length
}

/// The length of a sliding window's sub-windows: 75 of them cover W and a five-hundredth.
fn sub_window(window: u64) -> u64 {
    (window + window.div_ceil(500)).div_ceil(75)
}

/// A permit's share in the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) id: PermitId,
    pub(super) units: u64,
    pub(super) lapses_at: u64,
    pub(super) lease: u64,
}

/// A counter by the book.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    /// A bucket's theoretical arrival time in nanoseconds times units, where every number is
    /// whole.
    tat: u128,
    /// A window's ordinal, or the second or nanosecond at which it opened.
    opened: u64,
    /// Units of a window or level.
    used: u64,
    /// Ordinals of sub-windows and the units charged in each, oldest first.
    charged: Vec<(u64, u64)>,
    newest: u64,
    pub(super) leases: Vec<Lease>,
}

impl Book {
    /// The counter as it stands at `now`.
    pub(super) fn at(&self, numbers: Numbers, now: Now) -> Self {
        let mut book = self.clone();
        let nanos = now.time.as_nanos();
        match numbers {
            Numbers::Bucket { units, .. } => {
                book.tat = book.tat.max(u128::from(nanos) * u128::from(units));
            }
            Numbers::Sliding { window, .. } => {
                book.newest = book.newest.max(nanos / sub_window(window));
                book.charged.retain(|(ordinal, _)| ordinal + 76 > book.newest);
            }
            Numbers::Fixed { window, align: Align::Clock, .. } => {
                let ordinal = now.utc.as_nanos() / window;
                if ordinal > book.opened {
                    (book.opened, book.used) = (ordinal, 0);
                }
            }
            Numbers::Fixed { window, align: Align::First, .. } => {
                if book.used == 0 || nanos >= book.opened + window {
                    (book.opened, book.used) = (nanos, 0);
                }
            }
            Numbers::Calendar { hours, .. } => {
                let opens = calendar_opens(hours, now);
                if opens > book.opened {
                    (book.opened, book.used) = (opens, 0);
                }
            }
            Numbers::Concurrent { .. } => {
                book.leases.retain(|lease| lease.lapses_at > nanos);
            }
            Numbers::Level { .. } | Numbers::Cap { .. } | Numbers::Unlimited => {}
        }
        book
    }

    /// Units charged or held; of a bucket none.
    fn units(&self, numbers: Numbers) -> u128 {
        match numbers {
            Numbers::Sliding { .. } => {
                self.charged.iter().map(|(_, units)| u128::from(*units)).sum()
            }
            Numbers::Concurrent { .. } => self.leases.iter().map(|l| u128::from(l.units)).sum(),
            _ => self.used.into(),
        }
    }

    /// How far a bucket's arrival time lies ahead, and how far it may, on the bucket's own scale.
    fn backlog(&self, units: u64, window: u64, burst: u64, now: Now) -> (u128, u128) {
        let now = u128::from(now.time.as_nanos()) * u128::from(units);
        (self.tat - now, u128::from(burst) * u128::from(window))
    }

    pub(super) fn fits(&self, numbers: Numbers, cost: u64, now: Now) -> bool {
        match numbers {
            Numbers::Bucket { units, window, burst } => {
                let (backlog, span) = self.backlog(units, window, burst, now);
                backlog + u128::from(cost) * u128::from(window) <= span
            }
            Numbers::Cap { units } => cost <= units,
            Numbers::Level { .. } if cost == 0 => true,
            _ if numbers.limit() == UNLIMITED => true,
            _ => self.units(numbers) + u128::from(cost) <= u128::from(numbers.limit()),
        }
    }

    /// The counter with so many units more, at most `most` in all; it never gets fewer.
    fn with_more(mut self, numbers: Numbers, units: u64, most: u128, now: Now) -> Self {
        match numbers {
            Numbers::Bucket { units: rate, window, .. } => {
                let now = u128::from(now.time.as_nanos()) * u128::from(rate);
                let more = self.tat + u128::from(units) * u128::from(window);
                let deepest = now.saturating_add(most.saturating_mul(window.into()));
                self.tat = self.tat.max(more.min(deepest));
                return self;
            }
            Numbers::Concurrent { .. } | Numbers::Cap { .. } | Numbers::Unlimited => return self,
            _ => {}
        }
        let room = most.saturating_sub(self.units(numbers));
        let more = u64::try_from(room.min(units.into())).unwrap();
        match numbers {
            Numbers::Sliding { .. } => {
                if more > 0 {
                    self.charged.push((self.newest, more));
                }
            }
            _ => self.used += more,
        }
        self
    }

    pub(super) fn charged(self, numbers: Numbers, cost: u64, now: Now) -> Self {
        // Costs were found to fit, so nothing is cut.
        self.with_more(numbers, cost, u128::MAX, now)
    }

    pub(super) fn saturated(self, numbers: Numbers, cost: u64, now: Now) -> Self {
        self.with_more(numbers, cost, numbers.limit().into(), now)
    }

    pub(super) fn amended(self, numbers: Numbers, amend: Amend, now: Now) -> Self {
        let limit = numbers.limit();
        match (amend, numbers) {
            (Amend::Set(0), Numbers::Concurrent { .. }) => Self { leases: Vec::new(), ..self },
            (_, Numbers::Concurrent { .. }) => self,
            (Amend::Add(units), _) => self.with_more(numbers, units, 2 * u128::from(limit), now),
            (Amend::GiveBack(units), _) => self.with_fewer(numbers, units, now),
            (Amend::Set(units), Numbers::Level { .. }) => Self { used: units, ..self },
            (Amend::Set(units), Numbers::Bucket { .. }) => {
                Self::default().at(numbers, now).charged(numbers, units.min(limit), now)
            }
            (Amend::Set(units), _) => {
                let (units, held) = (u128::from(units.min(limit)), self.units(numbers));
                let narrow = |units: u128| u64::try_from(units).unwrap();
                if units >= held {
                    self.with_more(numbers, narrow(units - held), u128::MAX, now)
                } else {
                    self.with_fewer(numbers, narrow(held - units), now)
                }
            }
        }
    }

    fn with_fewer(mut self, numbers: Numbers, units: u64, now: Now) -> Self {
        match numbers {
            Numbers::Bucket { units: rate, window, .. } => {
                let now = u128::from(now.time.as_nanos()) * u128::from(rate);
                let fewer = u128::from(units) * u128::from(window);
                self.tat = self.tat.saturating_sub(fewer).max(now);
            }
            Numbers::Sliding { .. } => {
                let mut left = units;
                for (_, charged) in &mut self.charged {
                    let given = left.min(*charged);
                    *charged -= given;
                    left -= given;
                }
            }
            _ => self.used = self.used.saturating_sub(units),
        }
        self
    }

    /// A counter in which nothing is charged is as if it had never been.
    pub(super) fn or_fresh(self, numbers: Numbers, now: Now) -> Self {
        let fresh = match numbers {
            Numbers::Bucket { units, .. } => {
                self.tat <= u128::from(now.time.as_nanos()) * u128::from(units)
            }
            _ => self.units(numbers) == 0,
        };
        if fresh { Self::default() } else { self }
    }

    pub(super) fn remaining(&self, numbers: Numbers, now: Now) -> u64 {
        match numbers {
            Numbers::Bucket { units, window, burst } => {
                let (backlog, span) = self.backlog(units, window, burst, now);
                (span.saturating_sub(backlog) / u128::from(window)) as u64
            }
            _ if numbers.limit() == UNLIMITED => UNLIMITED,
            Numbers::Cap { units } => units,
            _ => u128::from(numbers.limit()).saturating_sub(self.units(numbers)) as u64,
        }
    }

    /// What a check of `cost` that does not fit is told.
    pub(super) fn retry(&self, numbers: Numbers, cost: u64, now: Now) -> Retry {
        if cost > numbers.limit() {
            return Retry::Never;
        }
        let nanos = now.time.as_nanos();
        let after = |nanos: u64| Retry::After(Nanos::new(nanos));
        match numbers {
            Numbers::Bucket { units, window, burst } => {
                let (backlog, span) = self.backlog(units, window, burst, now);
                let over = (backlog + u128::from(cost) * u128::from(window)).saturating_sub(span);
                // Longer spans are told as the longest there is, 584 years.
                after(u64::try_from(over.div_ceil(u128::from(units))).unwrap_or(u64::MAX))
            }
            Numbers::Sliding { units, window } => {
                let mut left = self.units(numbers);
                for (ordinal, charged) in &self.charged {
                    left -= u128::from(*charged);
                    if left + u128::from(cost) <= u128::from(units) {
                        return after((ordinal + 76) * sub_window(window) - nanos);
                    }
                }
                unreachable!("a cost within the limit fits once all is gone")
            }
            Numbers::Fixed { window, align: Align::Clock, .. } => {
                after((self.opened + 1) * window - now.utc.as_nanos())
            }
            Numbers::Fixed { window, align: Align::First, .. } => {
                after(self.opened + window - nanos)
            }
            Numbers::Calendar { hours, .. } => {
                after((self.opened + hours * 3600) * SECOND - now.utc.as_nanos())
            }
            Numbers::Concurrent { .. } => {
                let first = self.leases.iter().map(|lease| lease.lapses_at).min();
                Retry::OnOthers(first.map(|first| Nanos::new(first - nanos)))
            }
            Numbers::Level { .. } => Retry::OnOthers(None),
            Numbers::Cap { .. } | Numbers::Unlimited => {
                unreachable!("it either fits or never does")
            }
        }
    }
}
