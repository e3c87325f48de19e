//! The figures of a limit that headers and bodies may show: `remaining`, `reset_epoch`, `next_s`.

use core::fmt::{self, Write};

use crate::engine::decision::Reading;
use crate::engine::kinds::NextUnit;
use crate::engine::time::{Nanos, Now};

use super::moment;

/// A figure of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// A bucket's burst, else units per window.
    Limit,
    /// Units that still fit at once.
    Remaining,
    /// Units that are charged.
    Used,
    /// When the whole quota is back.
    Reset(Form),
    /// When one more unit fits; no value if all of them do.
    Next(Form),
}

/// How a time is shown. Whole seconds are rounded up, so that none is too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Seconds from now.
    Seconds,
    /// Seconds since the epoch.
    Epoch,
    /// `2024-05-03T15:28:20Z`.
    Rfc3339,
    /// `6m0s`, as Go writes a duration, to the millisecond.
    Go,
}

const FORMS: [(&str, Form); 4] =
    [("s", Form::Seconds), ("epoch", Form::Epoch), ("rfc3339", Form::Rfc3339), ("go", Form::Go)];

impl Field {
    /// Every field by its name.
    pub(super) const NAMES: [&str; 15] = [
        "limit",
        "remaining",
        "used",
        "reset_s",
        "reset_epoch",
        "reset_rfc3339",
        "reset_go",
        "full_s",
        "full_epoch",
        "full_rfc3339",
        "full_go",
        "next_s",
        "next_epoch",
        "next_rfc3339",
        "next_go",
    ];

    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "limit" => return Some(Self::Limit),
            "remaining" => return Some(Self::Remaining),
            "used" => return Some(Self::Used),
            _ => {}
        }
        let (what, form) = name.split_once('_')?;
        let form = FORMS.iter().find(|(written, _)| *written == form)?.1;
        match what {
            // For a bucket and for a window alike, reset is the moment at which all is back.
            "reset" | "full" => Some(Self::Reset(form)),
            "next" => Some(Self::Next(form)),
            _ => None,
        }
    }

    /// Whether the value is a number, which JSON takes without quotes.
    pub(super) fn is_number(self) -> bool {
        !matches!(
            self,
            Self::Reset(Form::Rfc3339 | Form::Go) | Self::Next(Form::Rfc3339 | Form::Go)
        )
    }

    /// Writes the value; `false` if there is none.
    pub(super) fn write(
        self,
        reading: &Reading,
        now: Now,
        out: &mut impl Write,
    ) -> Result<bool, fmt::Error> {
        match self {
            Self::Limit => write!(out, "{}", reading.limit())?,
            Self::Remaining => write!(out, "{}", reading.remaining())?,
            Self::Used => write!(out, "{}", used(reading))?,
            Self::Reset(form) => match reading.full_after() {
                Some(after) => write_time(form, after, now, out)?,
                None => return Ok(false),
            },
            Self::Next(form) => match reading.next_unit() {
                NextUnit::After(after) => write_time(form, after, now, out)?,
                NextUnit::All | NextUnit::Unknown => return Ok(false),
            },
        }
        Ok(true)
    }
}

fn used(reading: &Reading) -> u64 {
    reading.fill.used().unwrap_or_else(|| reading.limit().saturating_sub(reading.remaining()))
}

fn write_time(form: Form, after: Nanos, now: Now, out: &mut impl Write) -> fmt::Result {
    match form {
        Form::Seconds => write!(out, "{}", after.as_secs_ceil()),
        Form::Epoch => write!(out, "{}", now.utc.after(after).as_secs_ceil()),
        Form::Rfc3339 => moment::write_rfc3339(now.utc.after(after).as_secs_ceil(), out),
        Form::Go => write_go(after, out),
    }
}

/// Go's `Duration.String`, rounded up to a millisecond.
fn write_go(after: Nanos, out: &mut impl Write) -> fmt::Result {
    let millis = after.get().div_ceil(1_000_000);
    let (secs, millis) = (millis / 1000, millis % 1000);
    if secs == 0 && millis > 0 {
        return write!(out, "{millis}ms");
    }
    let (hours, minutes) = (secs / 3600, secs / 60 % 60);
    if hours > 0 {
        write!(out, "{hours}h")?;
    }
    if secs >= 60 {
        write!(out, "{minutes}m")?;
    }
    write!(out, "{}", secs % 60)?;
    match (millis % 10, millis % 100) {
        _ if millis == 0 => {}
        (_, 0) => write!(out, ".{}", millis / 100)?,
        (0, _) => write!(out, ".{:02}", millis / 10)?,
        _ => write!(out, ".{millis:03}")?,
    }
    out.write_char('s')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_field() {
        for name in Field::NAMES {
            assert!(Field::named(name).is_some(), "{name}");
        }
        for name in ["", "reset", "reset_ms", "limit_s", "nextepoch"] {
            assert!(Field::named(name).is_none(), "{name}");
        }
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ms"),
            (17_000_000, "17ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (1_050_000_000, "1.05s"),
            (1_005_000_000, "1.005s"),
            (360_000_000_000, "6m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (90_061_000_000_000, "25h1m1s"),
        ] {
            let mut out = String::new();
            write_go(Nanos::new(nanos), &mut out).unwrap();
            assert_eq!(out, expected);
        }
    }
}
