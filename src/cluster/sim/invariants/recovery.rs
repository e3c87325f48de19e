//! Once faults end, exact answers come back: every node decides again, and all come to the same
//! index, within a time.

/// True time within which every node decides again, in ticks.
pub(in super::super) const DECIDES_WITHIN: u64 = 10_000;

/// True time within which all requests are answered and all nodes have applied the same, in ticks.
pub(in super::super) const SETTLES_WITHIN: u64 = 15_000;

pub(in super::super) fn decides(which: &[bool]) -> Result<(), String> {
    if which.iter().all(|decides| *decides) {
        return Ok(());
    }
    Err(format!("nodes that decide {DECIDES_WITHIN} ms after all faults ended: {which:?}"))
}

pub(in super::super) fn settles(applied: &[u64], waiting: usize) -> Result<(), String> {
    if waiting == 0 && applied.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    Err(format!(
        "{SETTLES_WITHIN} ms later nodes have applied {applied:?}, and {waiting} clients wait"
    ))
}
