//! Promise 3: no acknowledged charge is lost. A counter that only counts has all that clients were
//! told of, and no more than that and what they were told nothing of; what they were told was not
//! charged is not in it.

use super::super::history::{Done, Known};
use super::super::limits::Limit;

/// What a counter has, and what clients know of it.
pub(in super::super) fn check(limit: Limit, used: u64, done: &[Done]) -> Result<(), String> {
    let sum = |known| -> u64 {
        done.iter().filter(|done| done.known == known).map(|done| done.asked.cost_of(limit)).sum()
    };
    let (charged, unknown) = (sum(Known::Charged), sum(Known::Unknown));
    if used < charged {
        return Err(format!("{limit:?}: clients were told of {charged}, the counter has {used}"));
    }
    if used > charged + unknown {
        let most = charged + unknown;
        return Err(format!(
            "{limit:?}: the counter has {used}, clients know of {charged}, and of {unknown} they \
             know nothing: {} too many",
            used - most
        ));
    }
    Ok(())
}
