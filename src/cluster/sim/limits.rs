//! The limits that simulated clients are charged on, and what is promised of each.

use crate::disk::LimitName;
use crate::engine::command::{Charge, LimitId};
use crate::engine::key::{KeySpace, Seed};
use crate::engine::quota::{Align, Kind, Quota};
use crate::engine::time::Nanos;

/// The secret of the cluster.
pub(super) const SEED: [u8; 16] = [5; 16];

/// The policy that a cluster begins with.
pub(super) const FIRST_POLICY: u64 = 1;

/// Keys of [`Limit::PerKey`].
pub(super) const KEYS: u64 = 40;

/// Permits that may be held at once.
pub(super) const PERMITS: u64 = 4;

/// For how long one is given.
pub(super) const LEASE: Nanos = Nanos::new(400_000_000);

const DAY: Nanos = Nanos::from_secs(86_400);

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Limit {
    /// A bucket that everybody wants: 20 a second, 10 at once.
    Hot,
    /// At most 30 in any two seconds.
    Sliding,
    /// A bucket of a day: next to nothing comes back in a run.
    DayBucket,
    /// At most 80 in a day.
    Day,
    /// A bucket for each of a few keys.
    PerKey(u64),
    /// Counts what several limits are charged together with, from before them.
    TwinBefore,
    /// The same from behind them.
    TwinBehind,
    /// Counts, of requests without an id.
    Kept,
    /// Counts, of requests with an id.
    Once,
    /// Permits.
    Permits,
}

/// What is promised of a limit: in any interval no more than `burst`, and `units` for each
/// `window` that passes in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) burst: u64,
    pub(super) units: u64,
    pub(super) window_nanos: u64,
    /// The bound holds for intervals of one window; else for every interval.
    pub(super) is_of_windows: bool,
}

impl Limit {
    pub(super) fn quota(self) -> Quota {
        let second = Nanos::from_secs(1);
        let counts = || Quota::fixed(1 << 40, DAY, Align::First);
        let quota = match self {
            Self::Hot => Quota::bucket(20, second, 10),
            Self::Sliding => Quota::sliding(30, Nanos::from_secs(2)),
            Self::DayBucket => Quota::bucket(1000, DAY, 60),
            Self::Day => Quota::fixed(80, DAY, Align::First),
            Self::PerKey(_) => Quota::bucket(2, second, 3),
            Self::TwinBefore | Self::TwinBehind | Self::Kept | Self::Once => counts(),
            Self::Permits => Quota::concurrent(PERMITS, LEASE),
        };
        quota.unwrap()
    }

    pub(super) fn bound(self) -> Option<Bound> {
        let bucket = |units, window: Nanos, burst| Bound {
            burst,
            units,
            window_nanos: window.get(),
            is_of_windows: false,
        };
        match self {
            Self::Hot => Some(bucket(20, Nanos::from_secs(1), 10)),
            Self::DayBucket => Some(bucket(1000, DAY, 60)),
            Self::PerKey(_) => Some(bucket(2, Nanos::from_secs(1), 3)),
            Self::Sliding => Some(Bound {
                burst: 30,
                units: 0,
                window_nanos: Nanos::from_secs(2).get(),
                is_of_windows: true,
            }),
            // A run is shorter than a day, and the window opens with the first charge.
            Self::Day => Some(bucket(0, DAY, 80)),
            Self::TwinBefore | Self::TwinBehind | Self::Kept | Self::Once | Self::Permits => None,
        }
    }

    fn number(self) -> (u16, u64) {
        match self {
            Self::Hot => (1, 0),
            Self::Sliding => (2, 0),
            Self::DayBucket => (3, 0),
            Self::Day => (4, 0),
            Self::PerKey(key) => (5, key),
            Self::TwinBefore => (6, 0),
            Self::TwinBehind => (7, 0),
            Self::Kept => (8, 0),
            Self::Once => (9, 0),
            Self::Permits => (10, 0),
        }
    }

    pub(super) fn charge(self, cost: u64) -> Charge {
        let (number, value) = self.number();
        let space = KeySpace::derive(&Seed::new(SEED), [&number.to_le_bytes()[..]]);
        let key = space.key_of_one(&value.to_le_bytes());
        Charge::new(key, self.quota(), cost, LimitId(number))
    }
}

/// What a snapshot says of the limits.
pub(super) fn names() -> Vec<LimitName> {
    let name = |number: u16, kind| LimitName {
        id: LimitId(number),
        kind,
        api: "sim".to_owned(),
        name: format!("limit-{number}"),
        window: format!("w{number}"),
    };
    let kinds = [
        Kind::Bucket,
        Kind::Sliding,
        Kind::Bucket,
        Kind::Fixed,
        Kind::Bucket,
        Kind::Fixed,
        Kind::Fixed,
        Kind::Fixed,
        Kind::Fixed,
        Kind::Concurrent,
    ];
    (1..).zip(kinds).map(|(number, kind)| name(number, kind)).collect()
}
