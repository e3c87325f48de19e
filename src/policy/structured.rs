//! The lists and items of the IETF's drafts on rate limit headers, as structured fields (RFC 9651)
//! write them.

use core::fmt::{self, Write};

use crate::engine::decision::Reading;
use crate::engine::kinds::{Fill, NextUnit, Period, UNLIMITED};
use crate::engine::quota::Quota;

use super::handle::Limit;
use super::presets::PolicyForm;

/// `"name";r=50;t=30`: what remains of a limit, and the seconds until there is more.
pub(super) fn write_item(
    limit: &Limit,
    reading: &Reading,
    out: &mut impl Write,
) -> Result<bool, fmt::Error> {
    if reading.remaining() == UNLIMITED {
        return Ok(false);
    }
    write_name(limit, out)?;
    write!(out, ";r={}", reading.remaining())?;
    if let NextUnit::After(after) = reading.next_unit() {
        write!(out, ";t={}", after.as_secs_ceil())?;
    }
    Ok(true)
}

/// Every limit that has a quota over time, or of requests at once.
pub(super) fn write_policies<'a>(
    form: PolicyForm,
    limits: impl Iterator<Item = (&'a Limit, &'a Reading)>,
    out: &mut impl Write,
) -> Result<bool, fmt::Error> {
    let mut any = false;
    for (limit, reading) in limits {
        let quota = reading.limit();
        let window = window_secs(&reading.quota);
        let at_once = matches!(reading.quota, Quota::Concurrent(_)) && form == PolicyForm::Named;
        if quota == UNLIMITED || (window.is_none() && !at_once) {
            continue;
        }
        if any {
            out.write_str(", ")?;
        }
        any = true;
        match form {
            PolicyForm::Named => {
                write_name(limit, out)?;
                write!(out, ";q={quota}")?;
            }
            PolicyForm::Plain | PolicyForm::Envoy => write!(out, "{quota}")?,
        }
        if let Some(window) = window {
            write!(out, ";w={window}")?;
        }
        if at_once {
            out.write_str(";qu=\"concurrent-requests\"")?;
        }
        if form == PolicyForm::Envoy {
            out.write_str(";name=")?;
            write_name(limit, out)?;
        }
    }
    Ok(any)
}

/// Names hold nothing that would have to be escaped.
fn write_name(limit: &Limit, out: &mut impl Write) -> fmt::Result {
    match &*limit.window {
        "" => write!(out, "\"{}\"", limit.name),
        window => write!(out, "\"{}.{window}\"", limit.name),
    }
}

/// The seconds in which the whole quota returns, rounded up: of a bucket from empty to full, of a
/// month of the calendar those of 30 days.
pub(crate) fn window_secs(quota: &Quota) -> Option<u64> {
    match quota {
        Quota::Bucket(bucket) => {
            let empty = quota.charged(Fill::Bucket { backlog: 0 }, bucket.burst());
            quota.full_after(empty).map(|span| span.as_secs_ceil())
        }
        Quota::Sliding(sliding) => Some(sliding.window().as_secs_ceil()),
        Quota::Fixed(fixed) => Some(fixed.window().as_secs_ceil()),
        Quota::Calendar(calendar) => Some(match calendar.period() {
            Period::Day => 86_400,
            Period::Week => 7 * 86_400,
            Period::Month => 30 * 86_400,
        }),
        _ => None,
    }
}
