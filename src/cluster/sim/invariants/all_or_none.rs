//! Promise 2: a request that several limits apply to is charged on all of them or on none. Two
//! counters stand around every such check; whatever it came to, they count the same.

/// What the two counters have.
pub(in super::super) fn check(before: u64, behind: u64) -> Result<(), String> {
    if before == behind {
        return Ok(());
    }
    Err(format!("checks were charged in part: {before} before other limits, {behind} behind them"))
}
