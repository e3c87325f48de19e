//! Moments as text, to and from RFC 3339. This is the one file that knows `jiff`.

use core::fmt::{self, Write};

use crate::engine::time::{SECOND, UtcTime};

/// A whole second, counted since the epoch, in RFC 3339: `2024-05-03T15:28:20Z`.
pub(super) fn write_rfc3339(secs: u64, out: &mut impl Write) -> fmt::Result {
    let secs = i64::try_from(secs).unwrap_or(i64::MAX);
    let moment = jiff::Timestamp::from_second(secs).unwrap_or(jiff::Timestamp::MAX);
    write!(out, "{moment}")
}

/// Reads RFC 3339; `None` if it is none, lies before the epoch or past the year 2500.
pub(super) fn parse_rfc3339(text: &str) -> Option<UtcTime> {
    let moment: jiff::Timestamp = text.parse().ok()?;
    let nanos = u64::try_from(moment.as_nanosecond()).ok()?;
    (nanos < 530 * 366 * 86_400 * SECOND).then(|| UtcTime::from_nanos(nanos))
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
}
