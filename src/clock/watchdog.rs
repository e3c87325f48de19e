//! Watches, at a node that follows, whether the leader's clock runs fast. Pure.
//!
//! Stamps come with a delay, so one says little. But in a while of [`WINDOW`] some come fast, and
//! the least delay hardly changes from one while to the next: if the stamps gain on the own raw
//! clock in several of them in a row, the leader's clock is fast, or all of those that say so are
//! slow, which is why a majority has to.

/// How long stamps are compared, in nanoseconds.
const WINDOW: u64 = 10_000_000_000;

/// A clock is fast once its stamps gained in so many windows in a row.
const WINDOWS: u32 = 3;

/// What a good clock gains on another at most: one part in this many (500 ppm).
const DRIFT_PARTS: u64 = 2000;

/// What the least delay of a window may differ from that of the one before, in nanoseconds. With
/// the drift, a clock that is at least 2,500 ppm fast is told.
const JITTER: u64 = 20_000_000;

/// A stamp, and the own raw clock's reading when it was applied.
#[derive(Clone, Copy, Debug)]
struct Sample {
    raw: u64,
    /// The stamp less the reading.
    offset: i128,
}

/// What a follower has seen of a leader's stamps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watchdog {
    term: u64,
    /// Raw time at which the window began, and its sample of the least delay.
    window: Option<(u64, Sample)>,
    /// That of the window before.
    before: Option<Sample>,
    fast: u32,
}

impl Watchdog {
    /// An entry that the leader of `term` stamped with cluster time `stamp` was applied when the
    /// own raw clock said `raw`, both in nanoseconds. To be called about every second.
    pub fn note(&mut self, term: u64, stamp: u64, raw: u64) {
        if term != self.term {
            *self = Self { term, ..Self::default() };
        }
        let sample = Sample { raw, offset: i128::from(stamp) - i128::from(raw) };
        let Some((begun, least)) = &mut self.window else {
            self.window = Some((raw, sample));
            return;
        };
        if raw.saturating_sub(*begun) < WINDOW {
            if sample.offset > least.offset {
                *least = sample;
            }
            return;
        }
        let least = *least;
        if let Some(before) = self.before {
            let elapsed = least.raw.saturating_sub(before.raw);
            let allowed = i128::from(elapsed / DRIFT_PARTS + JITTER);
            let is_fast = least.offset - before.offset > allowed;
            self.fast = if is_fast { self.fast + 1 } else { 0 };
        }
        (self.before, self.window) = (Some(least), Some((raw, sample)));
    }

    /// The term of the leader whose clock runs fast, if it does.
    pub fn fast(&self) -> Option<u64> {
        (self.fast >= WINDOWS).then_some(self.term)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A minute and a half of stamps of a clock that gains so many parts in a million, applied
    /// after these delays in microseconds.
    fn watch(ppm: i64, delays: &[u64]) -> Watchdog {
        let mut watchdog = Watchdog::default();
        for (second, delay) in (0..).zip(delays) {
            let real = second * 1_000_000_000_u64 + 7_000_000_000;
            let stamp = real.saturating_add_signed(real as i64 / 1_000_000 * ppm);
            watchdog.note(3, stamp, real + delay * 1000);
        }
        watchdog
    }

    fn delays(max_micros: u64) -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(0..=max_micros, 90)
    }

    proptest! {
        #[test]
        fn a_good_clock_is_never_fast(ppm in -200..=200_i64, delays in delays(60_000)) {
            prop_assert_eq!(watch(ppm, &delays).fast(), None);
        }

        #[test]
        fn a_slow_clock_is_never_fast(ppm in -500_000..=0_i64, delays in delays(60_000)) {
            prop_assert_eq!(watch(ppm, &delays).fast(), None);
        }

        #[test]
        fn a_fast_clock_is_told(ppm in 5_000..=1_000_000_i64, delays in delays(20_000)) {
            prop_assert_eq!(watch(ppm, &delays).fast(), Some(3));
        }
    }

    #[test]
    fn one_backlog_that_is_worked_off_is_no_fast_clock() {
        let delays: Vec<u64> =
            (0..90).map(|second| if second < 15 { 900_000 } else { 0 }).collect();
        assert_eq!(watch(0, &delays).fast(), None);
    }

    #[test]
    fn another_leader_begins_anew() {
        let mut watchdog = watch(20_000, &[0; 90]);
        assert_eq!(watchdog.fast(), Some(3));
        watchdog.note(4, 1, 1);
        assert_eq!(watchdog.fast(), None);
    }
}
