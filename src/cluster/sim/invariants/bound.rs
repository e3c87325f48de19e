//! Promise 1: in every interval no more is admitted than the limit says, by true time. An
//! admission counts in an interval that holds both its call and its reply.

use super::super::history::{Done, Known};
use super::super::limits::{Bound, Limit};

/// Parts in a million by which clocks may be off.
const OFF_PPM: u128 = 2000;

/// Checks one limit.
pub(in super::super) fn check(limit: Limit, done: &[Done]) -> Result<(), String> {
    let Some(bound) = limit.bound() else { return Ok(()) };
    let mut admitted: Vec<(u64, u64, u64)> = done
        .iter()
        .filter(|done| done.known == Known::Charged && done.asked.cost_of(limit) > 0)
        .map(|done| (done.called_at, done.replied_at, done.asked.cost_of(limit)))
        .collect();
    // By call, the last one first: what an interval from a call on holds only grows.
    admitted.sort_unstable_by(|one, other| other.cmp(one));
    let mut later: Vec<(u64, u64)> = Vec::new();
    for (at, &(from, replied_at, cost)) in admitted.iter().enumerate() {
        let place = later.partition_point(|(replied, _)| *replied <= replied_at);
        later.insert(place, (replied_at, cost));
        // The next one begins the same interval.
        if admitted.get(at + 1).is_some_and(|next| next.0 == from) {
            continue;
        }
        let mut sum = 0;
        for (to, cost) in &later {
            sum += cost;
            let most = most(bound, to - from);
            if most.is_some_and(|most| sum > most) {
                return Err(format!(
                    "{limit:?}: {sum} were admitted in {:.3} s from {:.3} s on, at most {most:?} \
                     may be",
                    (to - from) as f64 / 1e9,
                    from as f64 / 1e9
                ));
            }
        }
    }
    Ok(())
}

/// The most in an interval of this length; `None` if nothing is said of it.
fn most(bound: Bound, nanos: u64) -> Option<u64> {
    if bound.is_of_windows {
        return (nanos <= bound.window_nanos).then_some(bound.burst);
    }
    let longest = u128::from(nanos) * (1_000_000 + OFF_PPM) / 1_000_000;
    // A unit that comes back in part counts in part, so costs of whole units are rounded down.
    let refilled = longest * u128::from(bound.units) / u128::from(bound.window_nanos);
    Some(bound.burst + refilled as u64)
}
