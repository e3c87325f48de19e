//! What the node notes now and then for the admin door: samples for rates, the wall clock's offset.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::doors::Instance;
use crate::engine::command::LimitId;
use crate::engine::time::{Nanos, Timestamp};
use crate::metrics::cells::Outcome;

use super::RATE_WINDOW;
use super::status::Rate;

/// The most samples: one a second, with room for ticks that come early.
const SAMPLES_MAX: usize = 2 * RATE_WINDOW.as_secs() as usize;

/// What the node notes now and then.
pub struct Vitals {
    started_at: Timestamp,
    wall_offset_nanos: AtomicI64,
    /// Connections of the admin door.
    pub(super) connections: AtomicU64,
    samples: Mutex<VecDeque<Sample>>,
}

/// Totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) at: Timestamp,
    pub(super) checks: u64,
    pub(super) denials: u64,
}

impl Vitals {
    /// Notes of an instance that starts now.
    pub fn start(instance: &Instance) -> Self {
        let sample = Sample::take(instance);
        Self {
            started_at: sample.at,
            wall_offset_nanos: AtomicI64::new(0),
            connections: AtomicU64::new(0),
            samples: Mutex::new(VecDeque::from([sample])),
        }
    }

    /// Notes the totals, and how far the system's wall clock is ahead of ours. To be called about
    /// once a second.
    pub fn observe(&self, instance: &Instance, wall_offset_nanos: i64) {
        self.wall_offset_nanos.store(wall_offset_nanos, Ordering::Relaxed);
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut samples, Sample::take(instance));
    }

    /// How far the system's wall clock is ahead of ours.
    pub(super) fn wall_offset_nanos(&self) -> i64 {
        self.wall_offset_nanos.load(Ordering::Relaxed)
    }

    /// How long the instance has run.
    pub(super) fn uptime(&self, now: Timestamp) -> Nanos {
        now.since(self.started_at)
    }

    /// Checks and denials so far, with their rates over the last [`RATE_WINDOW`].
    pub(super) fn rates(&self, now: Sample) -> [Rate; 2] {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        rates(&samples, now)
    }
}

impl Sample {
    /// The totals now. The checks of inline limits are counted with their limits, all others with
    /// their APIs.
    pub(super) fn take(instance: &Instance) -> Self {
        let cells = &instance.cells;
        let of_all = |outcome| cells.checks_of_all(outcome);
        let inline = LimitId::INLINE.0;
        let inline_allow = cells.sum(|worker| &worker.limit(inline).allow);
        let inline_deny = cells.sum(|worker| &worker.limit(inline).deny);
        let checks: u64 = Outcome::ALL.into_iter().map(of_all).sum();
        Self {
            at: instance.clock.now().time,
            checks: checks + inline_allow + inline_deny,
            denials: of_all(Outcome::Deny) + inline_deny,
        }
    }
}

fn window() -> Nanos {
    Nanos::new(RATE_WINDOW.as_nanos() as u64)
}

/// Adds a sample and forgets what no rate will be taken from.
fn note(samples: &mut VecDeque<Sample>, sample: Sample) {
    samples.push_back(sample);
    // The first one may be older than the window: it is what the window begins with.
    while samples.len() > SAMPLES_MAX
        || samples.get(1).is_some_and(|second| sample.at.since(second.at) >= window())
    {
        samples.pop_front();
    }
}

fn rates(samples: &VecDeque<Sample>, now: Sample) -> [Rate; 2] {
    let first = samples.front().copied().unwrap_or(now);
    let seconds = now.at.since(first.at).get() as f64 / 1e9;
    let rate = |now: u64, then: u64| Rate {
        total: now,
        per_second: if seconds > 0.0 { now.saturating_sub(then) as f64 / seconds } else { 0.0 },
    };
    [rate(now.checks, first.checks), rate(now.denials, first.denials)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64, checks: u64) -> Sample {
        Sample { at: Timestamp::from_nanos(1 + millis * 1_000_000), checks, denials: checks / 10 }
    }

    #[test]
    fn a_rate_is_that_of_the_last_ten_seconds() {
        let mut samples = VecDeque::from([at(0, 0)]);
        assert_eq!(rates(&samples, at(0, 0))[0], Rate { total: 0, per_second: 0.0 });
        assert_eq!(rates(&samples, at(500, 50))[0], Rate { total: 50, per_second: 100.0 });
        // 100 a second for 20 s, then 1,000 a second for 10 s.
        for second in 1..=20 {
            note(&mut samples, at(second * 1000, second * 100));
        }
        for second in 1..=10 {
            note(&mut samples, at(20_000 + second * 1000, 2000 + second * 1000));
        }
        assert_eq!(
            rates(&samples, at(30_000, 12_000)),
            [Rate { total: 12_000, per_second: 1000.0 }, Rate { total: 1200, per_second: 100.0 }]
        );
    }

    #[test]
    fn samples_are_bounded_however_often_they_come() {
        let mut samples = VecDeque::new();
        for tick in 0..10_000 {
            note(&mut samples, at(tick, tick));
        }
        assert_eq!(samples.len(), SAMPLES_MAX);
    }
}
