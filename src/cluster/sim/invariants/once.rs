//! Each request id is charged once, however often and wherever it was sent. In the end every
//! client has an answer for each of its ids, so the counter is known exactly.

use std::collections::BTreeMap;

/// What the counter has, and the cost of each id that a client was told is charged.
pub(in super::super) fn check(used: u64, once: &BTreeMap<(usize, u64), u64>) -> Result<(), String> {
    let known: u64 = once.values().sum();
    if used == known {
        return Ok(());
    }
    Err(format!("{} request ids cost {known}, the counter has {used}", once.len()))
}
