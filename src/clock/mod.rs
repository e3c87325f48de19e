//! TIME. Reads the operating system's clocks, in one file, and turns the readings into moments by
//! rules that are pure.

mod os;
mod stamp;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::time::{Now, Timestamp, UtcTime};

pub use os::Os;
pub use stamp::{Reading, Scale, Stamper, agreed_ahead};

/// The clock of an instance that decides by itself: cluster time is the time since it began.
pub struct Clock {
    scale: Mutex<Scale>,
    /// Counts changes of the scale, so that readers need the lock only after one.
    changes: AtomicU64,
    /// What a cluster said last of what time it is, if this clock follows one.
    followed: Mutex<Option<Now>>,
}

/// One thread's view of a [`Clock`]. Reading it takes no lock but after a change of the scale.
pub struct LocalClock {
    clock: Arc<Clock>,
    scale: Scale,
    seen: u64,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Arc<Self> {
        Self::start_at(Timestamp::from_nanos(1))
    }

    /// A clock on which it is `time` now.
    pub fn start_at(time: Timestamp) -> Arc<Self> {
        let scale = Mutex::new(Scale::start(time, Os::read()));
        Arc::new(Self { scale, changes: AtomicU64::new(0), followed: Mutex::default() })
    }

    /// Steers wall time towards the operating system's. To be called about once a second; returns
    /// how far, in nanoseconds, the system's wall clock is ahead of ours.
    pub fn steer(&self) -> i64 {
        let mut scale = self.scale.lock().unwrap_or_else(PoisonError::into_inner);
        if self.followed().is_some() {
            // The cluster's wall time is steered by its leader.
            return { *scale }.steer(Os::read());
        }
        let ahead = scale.steer(Os::read());
        self.changes.fetch_add(1, Ordering::Release);
        ahead
    }

    /// It is `now` in the cluster, as of this moment: from here on this clock says what has passed
    /// since. It never says more than the cluster's leader would, so it may go back a little.
    pub fn follow(&self, now: Now) {
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let reading = Reading { raw: Os::raw(), wall: now.utc.as_nanos() };
        *self.scale.lock().unwrap_or_else(PoisonError::into_inner) =
            Scale::start(now.time, reading);
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn followed(&self) -> Option<Now> {
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A moment before which no check will be decided any more, if none takes longer than `lag`
    /// nanoseconds from its stamp. In a cluster it is that of the last entry: a node that was away
    /// decides by stamps of long ago, and must find what the others found then.
    pub fn passed(&self, lag: u64) -> Now {
        if let Some(now) = self.followed() {
            return now;
        }
        let now = self.now();
        Now {
            time: Timestamp::from_nanos(now.time.as_nanos().saturating_sub(lag)),
            utc: UtcTime::from_nanos(now.utc.as_nanos().saturating_sub(lag)),
        }
    }

    /// The moment now.
    pub fn now(&self) -> Now {
        self.scale.lock().unwrap_or_else(PoisonError::into_inner).now(Os::raw())
    }

    /// A view for one thread.
    pub fn local(self: &Arc<Self>) -> LocalClock {
        let scale = *self.scale.lock().unwrap_or_else(PoisonError::into_inner);
        LocalClock { clock: Arc::clone(self), scale, seen: u64::MAX }
    }
}

impl LocalClock {
    /// The moment now.
    #[inline]
    pub fn now(&mut self) -> Now {
        let changes = self.clock.changes.load(Ordering::Acquire);
        if changes != self.seen {
            self.scale = *self.clock.scale.lock().unwrap_or_else(PoisonError::into_inner);
            self.seen = changes;
        }
        self.scale.now(Os::raw())
    }
}

/// Wall time as people write it, for the cases where no instance is running.
pub fn wall_now() -> UtcTime {
    UtcTime::from_nanos(Os::read().wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that was away for long applies what it missed by its stamps, so until then nothing
    /// may have been swept by the time that has passed here.
    #[test]
    fn in_a_cluster_only_the_log_says_what_has_passed() {
        let clock = Clock::start_at(Timestamp::from_nanos(5_000));
        assert!(clock.passed(1).time < clock.now().time);
        assert_eq!(clock.passed(u64::MAX).time.as_nanos(), 0);
        let now = Now { time: Timestamp::from_nanos(77), utc: UtcTime::from_nanos(99) };
        clock.follow(now);
        while clock.now().time <= now.time {}
        assert_eq!((clock.passed(0), clock.passed(u64::MAX)), (now, now));
    }
}
