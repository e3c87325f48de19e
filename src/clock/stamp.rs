//! The stamping rules: how clock readings become moments. Pure.
//!
//! Cluster time advances by elapsed raw monotonic time; wall-clock steps cannot move it. Wall
//! time is read once at the start and then follows cluster time, slewed towards the system's wall
//! clock by at most 0.1 %, so it never jumps and never goes back.

use crate::engine::time::{Now, Timestamp, UtcTime};

/// What the operating system's clocks said at one moment, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Raw monotonic time, from an arbitrary origin.
    pub raw: u64,
    /// Wall time since the epoch.
    pub wall: u64,
}

/// The most that wall time is slewed: one part in this many.
const SLEW_PARTS: u64 = 1000;

/// How raw clock readings map to moments.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Raw time of the last change of the mapping.
    raw: u64,
    /// Cluster time then.
    time: u64,
    /// Wall time then.
    utc: u64,
    /// Nanoseconds of wall time still to be made up, forward or back.
    owed: i64,
}

impl Scale {
    /// Begins at cluster time `time`, with the wall clock as it is.
    pub fn start(time: Timestamp, reading: Reading) -> Self {
        Self { raw: reading.raw, time: time.as_nanos(), utc: reading.wall, owed: 0 }
    }

    /// The moment at a raw reading. A reading older than the mapping counts as the mapping's own.
    #[inline]
    pub fn now(&self, raw: u64) -> Now {
        let elapsed = raw.saturating_sub(self.raw);
        let slewed = self.slewed(elapsed);
        Now {
            time: Timestamp::from_nanos(self.time + elapsed),
            utc: UtcTime::from_nanos((self.utc + elapsed).saturating_add_signed(slewed)),
        }
    }

    /// How much of what is owed has been made up after `elapsed`.
    #[inline]
    fn slewed(&self, elapsed: u64) -> i64 {
        if self.owed == 0 {
            return 0;
        }
        let most = (elapsed / SLEW_PARTS) as i64;
        self.owed.clamp(-most, most)
    }

    /// Aims wall time at the reading's. Returns how far the system's wall clock is ahead.
    pub fn steer(&mut self, reading: Reading) -> i64 {
        let now = self.now(reading.raw);
        let ahead = i128::from(reading.wall) - i128::from(now.utc.as_nanos());
        let ahead = ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        *self = Self {
            raw: reading.raw.max(self.raw),
            time: now.time.as_nanos(),
            utc: now.utc.as_nanos(),
            owed: ahead,
        };
        ahead
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEAR: u64 = 365 * 86_400 * 1_000_000_000;

    proptest! {
        /// Whatever the wall clock does, cluster time is elapsed raw time exactly, and neither
        /// scale goes back or runs more than 0.1 % off.
        #[test]
        fn steps_of_the_wall_clock_move_nothing(
            steps in prop::collection::vec((0..10_000_000_000_u64, 0..20 * YEAR), 1..50),
        ) {
            let start = Reading { raw: 77, wall: 50 * YEAR };
            let mut scale = Scale::start(Timestamp::from_nanos(1), start);
            let mut raw = start.raw;
            let mut last = scale.now(raw);
            for (elapsed, wall) in steps {
                scale.steer(Reading { raw, wall });
                raw += elapsed;
                let now = scale.now(raw);
                prop_assert_eq!(now.time.as_nanos(), 1 + raw - start.raw);
                let (ran, slack) = ((now.utc - last.utc).get(), elapsed / SLEW_PARTS + 1);
                prop_assert!(now.utc >= last.utc);
                prop_assert!(ran.abs_diff(elapsed) <= slack, "{} in {}", ran, elapsed);
                last = now;
            }
        }

        #[test]
        fn a_raw_clock_that_goes_back_stands_still(back in 0..10_000_u64) {
            let mut scale = Scale::start(Timestamp::from_nanos(1), Reading { raw: 10_000, wall: YEAR });
            let before = scale.now(10_000);
            prop_assert_eq!(scale.now(10_000 - back), before);
            scale.steer(Reading { raw: 10_000 - back, wall: YEAR });
            prop_assert_eq!(scale.now(10_000), before);
        }
    }

    #[test]
    fn a_small_offset_is_made_up_and_no_more() {
        let mut scale = Scale::start(Timestamp::from_nanos(1), Reading { raw: 0, wall: YEAR });
        let second = 1_000_000_000;
        assert_eq!(scale.steer(Reading { raw: 0, wall: YEAR + 500_000 }), 500_000);
        assert_eq!(scale.now(second).utc.as_nanos(), YEAR + second + 500_000);
        assert_eq!(scale.steer(Reading { raw: second, wall: YEAR + second + 500_000 }), 0);
    }
}
