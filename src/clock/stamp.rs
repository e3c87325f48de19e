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

/// Stamps a leader's entries, from its first one on.
///
/// Cluster time goes on where the last entry that the leader knows of left it, plus what its own
/// raw clock says has passed since it applied that entry, which was later than its stamping. So a
/// change of leaders loses a little time and never adds any.
#[derive(Clone, Copy, Debug)]
pub struct Stamper {
    scale: Scale,
    last: Now,
}

/// No two stamps are less apart.
const STAMPS_APART_NANOS: u64 = 1;

impl Stamper {
    /// Begins a term. The last entry had the moment `applied` and was applied at raw time
    /// `applied_raw`; `None` for the latter if that was in another run of the node, when nothing
    /// is known to have passed. `ahead_nanos` is by how much wall time is ahead of cluster time, as
    /// a majority agrees; without it wall time goes on as it was.
    pub fn begin(
        applied: Now,
        applied_raw: Option<u64>,
        reading: Reading,
        ahead_nanos: Option<u64>,
    ) -> Self {
        let passed = applied_raw.map_or(0, |raw| reading.raw.saturating_sub(raw));
        let time = applied.time.as_nanos() + passed;
        let went_on = applied.utc.as_nanos() + if applied.utc.as_nanos() > 0 { passed } else { 0 };
        let utc = ahead_nanos.map_or(went_on, |ahead| time.saturating_add(ahead));
        let scale = Scale { raw: reading.raw, time, utc: utc.max(applied.utc.as_nanos()), owed: 0 };
        Self { scale, last: applied }
    }

    /// The stamp of an entry that is sealed now. Each is later than the one before it.
    pub fn stamp(&mut self, raw: u64) -> Now {
        let now = self.scale.now(raw);
        let after_last = self.last.time.as_nanos() + STAMPS_APART_NANOS;
        self.last = Now {
            time: now.time.max(Timestamp::from_nanos(after_last)),
            utc: now.utc.max(self.last.utc),
        };
        self.last
    }

    /// What a stamp would say now. Nothing is stamped.
    pub fn now(&self, raw: u64) -> Now {
        let now = self.scale.now(raw);
        Now { time: now.time.max(self.last.time), utc: now.utc.max(self.last.utc) }
    }

    /// Aims wall time at where a majority has it: `ahead_nanos` before cluster time.
    pub fn steer(&mut self, raw: u64, ahead_nanos: u64) {
        let time = self.scale.now(raw).time.as_nanos();
        self.scale.steer(Reading { raw, wall: time.saturating_add(ahead_nanos) });
    }
}

/// By how much wall time is ahead of cluster time, from what each of some nodes says: the least
/// that a majority of `members` agrees on, so that no minority of clocks that run ahead moves it.
/// `None` if too few said anything.
pub fn agreed_ahead(said: &mut [u64], members: usize) -> Option<u64> {
    if said.len() <= members / 2 {
        return None;
    }
    said.sort_unstable();
    said.first().copied()
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

    proptest! {
        /// Whoever leads, and whatever wall clocks say, cluster time never runs ahead of real time
        /// from the first stamp on, never stands still from stamp to stamp, and never goes back.
        #[test]
        fn leaders_only_ever_lose_time(
            terms in prop::collection::vec(
                (0..1_000_000_000_u64, 0..50_000_000_u64, 1..20_usize, 0..3 * YEAR), 1..20,
            ),
        ) {
            // Real time, and the raw clocks of two nodes, which began at other times.
            let (mut real, origins) = (10 * YEAR, [3_u64, 7 * YEAR]);
            let raw = |node: usize, real: u64| real - origins[node];
            let mut applied = Now { time: Timestamp::from_nanos(5), utc: UtcTime::from_nanos(0) };
            let (mut applied_at, began) = (real, real);
            for (turn, (pause, delay, stamps, ahead)) in terms.into_iter().enumerate() {
                let node = turn % 2;
                // The last entry came to this node a little after it was stamped.
                let applied_raw = raw(node, applied_at + delay);
                real = real.max(applied_at + delay) + pause;
                let reading = Reading { raw: raw(node, real), wall: 0 };
                let mut stamper =
                    Stamper::begin(applied, Some(applied_raw), reading, Some(ahead));
                for _ in 0..stamps {
                    real += pause / 7 + 1;
                    let now = stamper.stamp(raw(node, real));
                    prop_assert!(now.time > applied.time && now.utc >= applied.utc);
                    prop_assert!(now.time.as_nanos() - 5 <= real - began);
                    (applied, applied_at) = (now, real);
                }
            }
        }

        #[test]
        fn a_minority_of_fast_clocks_moves_nothing(
            right in prop::collection::vec(0..1000_u64, 2..4), fast in 10_000..u64::MAX,
        ) {
            let members = right.len() + 1;
            let mut said = right.clone();
            said.push(fast);
            prop_assert!(agreed_ahead(&mut said, members).is_some_and(|agreed| agreed < 1000));
        }
    }

    #[test]
    fn a_node_that_started_anew_knows_of_no_time_that_passed() {
        let applied = Now { time: Timestamp::from_nanos(900), utc: UtcTime::from_nanos(YEAR) };
        let stamper = Stamper::begin(applied, None, Reading { raw: 50, wall: 2 * YEAR }, None);
        assert_eq!(stamper.now(50), applied);
        assert_eq!(agreed_ahead(&mut [1], 3), None);
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
