//! Moments as text, to and from RFC 3339, and the days, weeks and months of time zones. This is
//! the one file that knows `jiff`. It reads no system's zone database: the one that is built in is
//! the same on every node.

use core::fmt::{self, Write};

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp};

use crate::engine::kinds::{Boundaries, Period};
use crate::engine::time::{SECOND, UtcTime};

/// A whole second, counted since the epoch, in RFC 3339: `2024-05-03T15:28:20Z`.
pub(super) fn write_rfc3339(secs: u64, out: &mut impl Write) -> fmt::Result {
    let secs = i64::try_from(secs).unwrap_or(i64::MAX);
    let moment = Timestamp::from_second(secs).unwrap_or(Timestamp::MAX);
    write!(out, "{moment}")
}

/// Reads RFC 3339; `None` if it is none, lies before the epoch or past the year 2500.
pub(super) fn parse_rfc3339(text: &str) -> Option<UtcTime> {
    let moment: Timestamp = text.parse().ok()?;
    let nanos = u64::try_from(moment.as_nanosecond()).ok()?;
    (nanos < 530 * 366 * 86_400 * SECOND).then(|| UtcTime::from_nanos(nanos))
}

/// A time zone.
#[derive(Clone, Debug)]
pub(super) struct Zone(TimeZone);

impl Zone {
    /// The zone of that name in the IANA database: `Europe/Berlin`, `UTC`.
    pub(super) fn named(name: &str) -> Option<Self> {
        TimeZoneDatabase::bundled().get(name).ok().map(Self)
    }

    /// Every zone's name, for suggestions.
    pub(super) fn names() -> Vec<String> {
        TimeZoneDatabase::bundled().available().map(|name| name.to_string()).collect()
    }
}

/// Where a calendar's windows begin within their period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// At this hour of each day, 0 to 23.
    Hour(u8),
    /// At the beginning of this day of each week, Monday being 1.
    Weekday(u8),
    /// At the beginning of this day of each month, 1 to 31, or of its last day if it is shorter.
    Day(u8),
}

const WEEKDAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

impl Anchor {
    /// Where windows begin if nothing is said: at midnight, on Mondays, on the first.
    pub(super) fn default_of(period: Period) -> Self {
        match period {
            Period::Day => Self::Hour(0),
            Period::Week => Self::Weekday(1),
            Period::Month => Self::Day(1),
        }
    }

    /// Reads the anchor of a period: an hour, the name of a weekday, a day of the month.
    pub(super) fn parse(period: Period, text: &str) -> Option<Self> {
        let number =
            || text.parse::<u8>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        match period {
            Period::Day => number().filter(|hour| *hour < 24).map(Self::Hour),
            Period::Week => {
                let place = WEEKDAYS.iter().position(|day| day.eq_ignore_ascii_case(text))?;
                Some(Self::Weekday(place as u8 + 1))
            }
            Period::Month => number().filter(|day| (1..=31).contains(day)).map(Self::Day),
        }
    }
}

/// The window that is open at `now` in `zone`, and the end of the one after it. An anchor of
/// another period counts as none. `None` past the year 2105, which no counter can hold.
pub(super) fn boundaries(
    zone: &Zone,
    period: Period,
    anchor: Anchor,
    now: UtcTime,
) -> Option<Boundaries> {
    let now_secs = i64::try_from(now.as_nanos() / SECOND).ok()?;
    let today = zone.0.to_datetime(Timestamp::from_second(now_secs).ok()?).date();
    let begins = |steps: i32| begins_at(zone, period, anchor, today, steps);
    // The window of today's date may have begun already or not, by the anchor.
    let mut step = -2;
    let mut opens = begins(step)?;
    loop {
        step += 1;
        let next = begins(step)?;
        if next > now_secs {
            // A day that a zone has skipped makes two windows begin at one moment.
            let mut after = next;
            while after <= next {
                step += 1;
                after = begins(step)?;
            }
            let secs = |secs: i64| u32::try_from(secs.max(0)).ok();
            return Some(Boundaries {
                opens_at: secs(opens)?,
                ends_at: secs(next)?,
                next_ends_at: secs(after)?,
            });
        }
        opens = next;
        if step > 3 {
            return None;
        }
    }
}

/// When the window begins that lies `steps` periods after the one of `today`, in seconds since
/// the epoch.
fn begins_at(zone: &Zone, period: Period, anchor: Anchor, today: Date, steps: i32) -> Option<i64> {
    let (date, hour) = match period {
        Period::Day => {
            let hour = if let Anchor::Hour(hour) = anchor { hour } else { 0 };
            (today.checked_add(Span::new().try_days(steps).ok()?).ok()?, hour)
        }
        Period::Week => {
            let weekday = if let Anchor::Weekday(weekday) = anchor { weekday } else { 1 };
            let weekday = Weekday::from_monday_one_offset(weekday as i8).ok()?;
            let back = i64::from(today.weekday().since(weekday));
            let days = i64::from(steps) * 7 - back;
            (today.checked_add(Span::new().try_days(days).ok()?).ok()?, 0)
        }
        Period::Month => {
            let day = if let Anchor::Day(day) = anchor { day } else { 1 };
            let first = today.first_of_month();
            let first = first.checked_add(Span::new().try_months(steps).ok()?).ok()?;
            let day = (day as i8).min(first.days_in_month());
            (Date::new(first.year(), first.month(), day).ok()?, 0)
        }
    };
    // Where clocks skip this hour, the window begins when they have.
    let begins = date.at(hour as i8, 0, 0, 0).to_zoned(zone.0.clone()).ok()?;
    Some(begins.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_back_as_written() {
        let moment = parse_rfc3339("2024-05-03T15:28:20Z").unwrap();
        assert_eq!(moment, UtcTime::from_nanos(1_714_750_100 * SECOND));
        let mut text = String::new();
        write_rfc3339(1_714_750_100, &mut text).unwrap();
        assert_eq!(text, "2024-05-03T15:28:20Z");
        assert_eq!(parse_rfc3339("2024-05-03T17:28:20+02:00"), Some(moment));
    }

    #[test]
    fn what_is_no_moment_is_refused_and_the_far_future_is_cut() {
        assert_eq!(parse_rfc3339("yesterday"), None);
        assert_eq!(parse_rfc3339("1969-12-31T23:59:59Z"), None);
        assert_eq!(parse_rfc3339("9999-01-01T00:00:00Z"), None);
        let mut text = String::new();
        write_rfc3339(u64::MAX, &mut text).unwrap();
        assert!(text.starts_with("9999-"), "{text}");
    }

    fn window(zone: &str, period: Period, anchor: &str, now: &str) -> [String; 3] {
        let anchor = Anchor::parse(period, anchor).unwrap_or(Anchor::default_of(period));
        let zone = Zone::named(zone).unwrap();
        let at = boundaries(&zone, period, anchor, parse_rfc3339(now).unwrap()).unwrap();
        [at.opens_at, at.ends_at, at.next_ends_at].map(|secs| {
            let mut out = String::new();
            write_rfc3339(secs.into(), &mut out).unwrap();
            out
        })
    }

    #[test]
    fn months_begin_on_their_day_or_on_the_last_of_a_short_one() {
        let month = |anchor, now| window("UTC", Period::Month, anchor, now);
        assert_eq!(
            month("", "2024-05-03T15:28:20Z"),
            ["2024-05-01T00:00:00Z", "2024-06-01T00:00:00Z", "2024-07-01T00:00:00Z"]
        );
        assert_eq!(
            month("31", "2024-02-28T23:59:59Z"),
            ["2024-01-31T00:00:00Z", "2024-02-29T00:00:00Z", "2024-03-31T00:00:00Z"]
        );
        assert_eq!(
            month("31", "2024-02-29T00:00:00Z"),
            ["2024-02-29T00:00:00Z", "2024-03-31T00:00:00Z", "2024-04-30T00:00:00Z"]
        );
        assert_eq!(
            month("15", "2023-12-14T23:59:59Z"),
            ["2023-11-15T00:00:00Z", "2023-12-15T00:00:00Z", "2024-01-15T00:00:00Z"]
        );
    }

    #[test]
    fn days_and_weeks_follow_the_clocks_of_their_zone() {
        // In Berlin the clocks went forward in the night to 31 March 2024.
        assert_eq!(
            window("Europe/Berlin", Period::Day, "", "2024-03-30T23:30:00Z"),
            ["2024-03-30T23:00:00Z", "2024-03-31T22:00:00Z", "2024-04-01T22:00:00Z"]
        );
        assert_eq!(
            window("Europe/Berlin", Period::Day, "6", "2024-03-31T03:59:59Z"),
            ["2024-03-30T05:00:00Z", "2024-03-31T04:00:00Z", "2024-04-01T04:00:00Z"]
        );
        assert_eq!(
            window("UTC", Period::Week, "", "2024-05-03T15:28:20Z"),
            ["2024-04-29T00:00:00Z", "2024-05-06T00:00:00Z", "2024-05-13T00:00:00Z"]
        );
        assert_eq!(
            window("UTC", Period::Week, "Saturday", "2024-05-03T15:28:20Z"),
            ["2024-04-27T00:00:00Z", "2024-05-04T00:00:00Z", "2024-05-11T00:00:00Z"]
        );
        // Samoa had no 30 December 2011.
        assert_eq!(
            window("Pacific/Apia", Period::Day, "", "2011-12-29T12:00:00Z"),
            ["2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"]
        );
    }

    #[test]
    fn the_open_window_holds_now_and_windows_follow_one_another() {
        for zone in ["UTC", "America/Sao_Paulo", "Asia/Kathmandu", "Australia/Lord_Howe"] {
            let zone = Zone::named(zone).unwrap();
            for (period, anchors) in
                [(Period::Day, 0..24), (Period::Week, 1..8), (Period::Month, 1..32)]
            {
                for anchor in anchors {
                    let anchor = match period {
                        Period::Day => Anchor::Hour(anchor),
                        Period::Week => Anchor::Weekday(anchor),
                        Period::Month => Anchor::Day(anchor),
                    };
                    for step in 0..60u64 {
                        let secs = 1_500_000_000 + step * 7 * 86_311;
                        let now = UtcTime::from_nanos(secs * SECOND);
                        let at = boundaries(&zone, period, anchor, now).unwrap();
                        assert!(u64::from(at.opens_at) <= secs && secs < u64::from(at.ends_at));
                        let last = UtcTime::from_nanos(u64::from(at.ends_at) * SECOND - 1);
                        assert_eq!(boundaries(&zone, period, anchor, last), Some(at));
                        let next = UtcTime::from_nanos(u64::from(at.ends_at) * SECOND);
                        let after = boundaries(&zone, period, anchor, next).unwrap();
                        assert_eq!((after.opens_at, after.ends_at), (at.ends_at, at.next_ends_at));
                    }
                }
            }
        }
        let far = UtcTime::from_nanos(u64::MAX);
        let zone = Zone::named("UTC").unwrap();
        assert_eq!(boundaries(&zone, Period::Day, Anchor::Hour(0), far), None);
    }
}
