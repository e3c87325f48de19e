//! TIME. Reads the operating system's clocks, in one file, and turns the readings into moments by
//! rules that are pure.

mod os;
mod stamp;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::time::{Now, Timestamp, UtcTime};

pub use os::Os;
pub use stamp::{Reading, Scale, Stamper, agreed_ahead};

/// The clock of an instance that decides by itself: cluster time is the time since it began.
pub struct Clock {
    scale: Mutex<Scale>,
    /// Counts changes of the scale, so that readers need the lock only after one.
    changes: AtomicU64,
    /// Whether a cluster says what time it is.
    follows: AtomicBool,
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
        Arc::new(Self { scale, changes: AtomicU64::new(0), follows: AtomicBool::new(false) })
    }

    /// Steers wall time towards the operating system's. To be called about once a second; returns
    /// how far, in nanoseconds, the system's wall clock is ahead of ours.
    pub fn steer(&self) -> i64 {
        let mut scale = self.scale.lock().unwrap_or_else(PoisonError::into_inner);
        if self.follows.load(Ordering::Relaxed) {
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
        self.follows.store(true, Ordering::Relaxed);
        let reading = Reading { raw: Os::raw(), wall: now.utc.as_nanos() };
        *self.scale.lock().unwrap_or_else(PoisonError::into_inner) =
            Scale::start(now.time, reading);
        self.changes.fetch_add(1, Ordering::Release);
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
