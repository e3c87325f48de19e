//! `CL.THROTTLE`: redis-cell's arguments to a charge, and its five integers from a reading.

use crate::engine::command::{Charge, LimitId};
use crate::engine::decision::{Reading, Retry, Verdict};
use crate::engine::key::KeySpace;
use crate::engine::quota::{Quota, UNITS_MAX, WINDOW_MAX};
use crate::engine::time::{Nanos, SECOND};

use super::parse::Arguments;
use super::{KEY_BYTES_MAX, reply};

/// Numbers as they were sent: burst less one, units, seconds.
type Numbers = [i64; 3];

/// What `CL.THROTTLE` asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Throttle {
    /// To take units, or none: to look.
    Take(Charge),
    /// To give so many units back: redis-cell's negative quantity.
    GiveBack(Charge, u64),
}

/// The last numbers with their quota: a client sends the same ones again and again, and a quota
/// takes a while to make.
#[derive(Default)]
pub(super) struct LastQuota(Option<(Numbers, Quota)>);

impl LastQuota {
    fn of(&mut self, numbers: Numbers) -> Result<Quota, String> {
        if let Some((last, quota)) = self.0
            && last == numbers
        {
            return Ok(quota);
        }
        let [max_burst, count, period] = numbers;
        if count == 0 || period == 0 {
            return Err("Cell error: Zero rates are not supported".to_owned());
        }
        let burst = in_range("max_burst", max_burst, 0, UNITS_MAX - 1)? + 1;
        let units = in_range("count per period", count, 1, UNITS_MAX)?;
        let seconds = in_range("period", period, 1, WINDOW_MAX.get() / SECOND)?;
        let quota = Quota::bucket(units, Nanos::from_secs(seconds), burst);
        let quota = quota.map_err(|error| format!("ERR {error}"))?;
        self.0 = Some((numbers, quota));
        Ok(quota)
    }
}

/// Reads `CL.THROTTLE key max_burst count period [quantity]`; an error is the reply's text.
pub(super) fn read(
    arguments: Arguments<'_>,
    space: &KeySpace,
    last: &mut LastQuota,
) -> Result<Throttle, String> {
    if arguments.len() != 5 && arguments.len() != 6 {
        let usage = "Cell error: Usage: cl.throttle <key> <max_burst> <count per period> <period> \
                     [<quantity>]";
        return Err(usage.to_owned());
    }
    let key = key(arguments.get(1), space)?;
    let numbers =
        [integer(arguments.get(2))?, integer(arguments.get(3))?, integer(arguments.get(4))?];
    let quantity = if arguments.len() == 6 { integer(arguments.get(5))? } else { 1 };
    let quota = last.of(numbers)?;
    let cost = in_range("quantity", quantity.saturating_abs(), 0, UNITS_MAX)?;
    if quantity < 0 {
        return Ok(Throttle::GiveBack(Charge::new(key, quota, 0, LimitId::INLINE), cost));
    }
    Ok(Throttle::Take(Charge::new(key, quota, cost, LimitId::INLINE)))
}

/// The counter that a key names.
pub(super) fn key(key: &[u8], space: &KeySpace) -> Result<crate::engine::key::Key, String> {
    if key.len() > KEY_BYTES_MAX {
        return Err(format!("ERR the key has {} bytes, allowed are {KEY_BYTES_MAX}", key.len()));
    }
    Ok(space.key_of_one(key))
}

fn integer(text: &[u8]) -> Result<i64, String> {
    let number = core::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        let text = String::from_utf8_lossy(&text[..text.len().min(64)]);
        format!("Cell error: Couldn't parse as integer: {text}")
    })
}

fn in_range(name: &str, found: i64, min: u64, max: u64) -> Result<u64, String> {
    let number = u64::try_from(found).ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("ERR {name} is {found}, allowed is {min} to {max}"))
}

/// The five integers: limited, limit, remaining, seconds until the same request passes, seconds
/// until all units are back.
pub(super) fn reply(out: &mut Vec<u8>, verdict: Verdict, reading: &Reading) {
    let whole = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
    let retry_after = match (verdict, reading.retry()) {
        (Verdict::Deny, Retry::After(span)) => seconds(span),
        _ => -1,
    };
    reply::array(out, 5);
    reply::integer(out, (verdict == Verdict::Deny).into());
    reply::integer(out, whole(reading.limit()));
    reply::integer(out, whole(reading.remaining()));
    reply::integer(out, retry_after);
    reply::integer(out, reading.full_after().map_or(0, seconds));
}

/// As redis-cell rounds: whole milliseconds count, and make a whole second; less is dropped.
fn seconds(span: Nanos) -> i64 {
    let millis = span.get() / 1_000_000;
    i64::try_from(millis.div_ceil(1000)).unwrap_or(i64::MAX)
}
