//! How quotas and spans of time are written: `60/min burst 120`, `5/min, 50/day`, `1500ms`.

use core::fmt;
use core::ops::Range;

use crate::engine::quota::{Align, Quota, UNITS_MAX};
use crate::engine::time::Nanos;

/// Units of time in the order of their length: as written, in nanoseconds, as a window is called.
const UNITS: [(&str, u64, &str); 8] = [
    ("ns", 1, "ns"),
    ("us", 1_000, "us"),
    ("ms", 1_000_000, "ms"),
    ("s", 1_000_000_000, "second"),
    ("min", 60_000_000_000, "minute"),
    ("hour", 3_600_000_000_000, "hour"),
    ("day", 86_400_000_000_000, "day"),
    ("week", 604_800_000_000_000, "week"),
];

/// Why a text is no quota: where, what, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QuotaTextError {
    pub(super) at: Range<usize>,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl QuotaTextError {
    fn new(at: Range<usize>, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), help: None }
    }

    fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Units per window, as written: `60/min`, `10/5min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Units that a window holds.
    pub(super) units: u64,
    /// How often the unit of time; 1 if it is not written.
    count: u64,
    /// Index in [`UNITS`].
    unit: usize,
}

impl Rate {
    /// The window's length.
    pub(super) fn window(self) -> Nanos {
        Nanos::new(self.count.saturating_mul(UNITS[self.unit].1))
    }

    /// What a window of this length is called: `minute`, `5min`.
    pub(super) fn window_name(self) -> String {
        let (written, _, called) = UNITS[self.unit];
        if self.count == 1 { called.to_owned() } else { format!("{}{written}", self.count) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[self.unit].0;
        if self.count == 1 {
            write!(f, "{}/{unit}", self.units)
        } else {
            write!(f, "{}/{}{unit}", self.units, self.count)
        }
    }
}

/// One window of a limit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    /// What it is called; empty for a bucket.
    pub(super) name: String,
    pub(super) quota: Quota,
}

/// A bucket: `RATE [burst N]`. Without a burst, the bucket holds as many units as its rate names.
pub(super) fn bucket(text: &str) -> Result<Window, QuotaTextError> {
    let mut words = Words::new(text);
    let rate = words.rate()?;
    let burst = match words.next() {
        None => rate.units,
        Some((_, "burst")) => match words.next() {
            Some((at, word)) => number(word, at)?,
            None => {
                let end = text.len()..text.len();
                return Err(QuotaTextError::new(end, "`burst` lacks its number"));
            }
        },
        Some((at, word)) => {
            let range = at..at + word.len();
            return Err(QuotaTextError::new(
                range,
                format!("found `{word}`, allowed is `burst N`"),
            )
            .with_help("a bucket is written as \"60/min burst 120\""));
        }
    };
    words.end()?;
    let quota = Quota::bucket(rate.units, rate.window(), burst)
        .map_err(|error| QuotaTextError::new(0..text.len(), error.to_string()))?;
    Ok(Window { name: String::new(), quota })
}

/// Fixed windows: `RATE, RATE`, shortest first in the result.
pub(super) fn fixed(text: &str, align: Align) -> Result<Vec<Window>, QuotaTextError> {
    let mut rates: Vec<(Rate, Range<usize>)> = Vec::new();
    let mut start = 0;
    for part in text.split(',') {
        let mut words = Words { text, from: start, to: start + part.len() };
        let rate = words.rate()?;
        words.end()?;
        rates.push((rate, start..start + part.len()));
        start += part.len() + 1;
    }
    rates.sort_by_key(|(rate, _)| rate.window());
    for pair in rates.windows(2) {
        let ((short, _), (long, at)) = (&pair[0], &pair[1]);
        if short.window() == long.window() {
            return Err(QuotaTextError::new(
                at.clone(),
                format!("`{short}` and `{long}` are the same window"),
            ));
        }
        if long.units < short.units {
            return Err(QuotaTextError::new(
                at.clone(),
                format!("the longer window allows less: `{long}` beside `{short}`"),
            )
            .with_help(format!("`{short}` could never be used up")));
        }
    }
    rates
        .into_iter()
        .map(|(rate, at)| {
            let quota = Quota::fixed(rate.units, rate.window(), align)
                .map_err(|error| QuotaTextError::new(at, error.to_string()))?;
            Ok(Window { name: rate.window_name(), quota })
        })
        .collect()
}

/// A span of time: `1500ms`, `10s`, `2hour`.
pub(super) fn span(text: &str) -> Result<Nanos, QuotaTextError> {
    let trimmed = text.trim();
    let at = text.len() - text.trim_start().len();
    let digits = trimmed.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'_').count();
    if digits == 0 {
        let help = "a span is a number and a unit, as in \"10s\"";
        return Err(QuotaTextError::new(0..text.len(), "no span of time").with_help(help));
    }
    let count = number(&trimmed[..digits], at)?;
    let unit = unit(&trimmed[digits..], at + digits)?;
    Ok(Nanos::new(count.saturating_mul(UNITS[unit].1)))
}

/// Words between spaces, each with its place.
struct Words<'t> {
    text: &'t str,
    from: usize,
    to: usize,
}

impl<'t> Words<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, from: 0, to: text.len() }
    }

    fn next(&mut self) -> Option<(usize, &'t str)> {
        let rest = &self.text[self.from..self.to];
        let at = self.from + (rest.len() - rest.trim_start().len());
        let rest = rest.trim_start();
        let word = &rest[..rest.find(char::is_whitespace).unwrap_or(rest.len())];
        self.from = at + word.len();
        (!word.is_empty()).then_some((at, word))
    }

    fn end(&mut self) -> Result<(), QuotaTextError> {
        match self.next() {
            None => Ok(()),
            Some((at, word)) => {
                let range = at..at + word.len();
                Err(QuotaTextError::new(range, format!("`{word}` is more than expected")))
            }
        }
    }

    fn rate(&mut self) -> Result<Rate, QuotaTextError> {
        let whole = self.from..self.to;
        let help = "a rate is a number of units, a slash and a unit of time, as in \"60/min\"";
        let Some((at, word)) = self.next() else {
            return Err(QuotaTextError::new(whole, "no rate").with_help(help));
        };
        let range = at..at + word.len();
        if word.starts_with("unlimited") {
            return Err(QuotaTextError::new(range, "`unlimited` is not supported yet"));
        }
        let Some((units_text, window)) = word.split_once('/') else {
            return Err(QuotaTextError::new(range, format!("`{word}` is no rate")).with_help(help));
        };
        let units = number(units_text, at)?;
        let window_at = at + units_text.len() + 1;
        let digits =
            window.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'_').count();
        let count = if digits == 0 { 1 } else { number(&window[..digits], window_at)? };
        let unit = unit(&window[digits..], window_at + digits)?;
        Ok(Rate { units, count, unit })
    }
}

fn number(word: &str, at: usize) -> Result<u64, QuotaTextError> {
    let range = at..at + word.len();
    let digits: String = word.chars().filter(|c| *c != '_').collect();
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return match digits.parse::<u64>() {
            Ok(number) if number <= UNITS_MAX => Ok(number),
            _ => Err(QuotaTextError::new(range, format!("{word} is above {UNITS_MAX}"))),
        };
    }
    let tail = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    if tail.len() < digits.len() && tail.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        let message = format!("a unit on an amount, as in `{word}`, is not supported yet");
        return Err(QuotaTextError::new(range, message));
    }
    Err(QuotaTextError::new(range, format!("`{word}` is no whole number")))
}

fn unit(word: &str, at: usize) -> Result<usize, QuotaTextError> {
    let range = at..at + word.len();
    if let Some(unit) = UNITS.iter().position(|(written, ..)| *written == word) {
        return Ok(unit);
    }
    if word == "month" || word == "months" || word == "mo" {
        return Err(QuotaTextError::new(range, "a month has no fixed length").with_help(
            "write `30day` if 30 days are meant; counting by calendar month is not supported yet",
        ));
    }
    let help = match word {
        "" => "a unit of time is s, min, hour, day or week".to_owned(),
        "m" => "min or month?".to_owned(),
        "sec" | "secs" | "second" | "seconds" => "did you mean `s`?".to_owned(),
        "mins" | "minute" | "minutes" => "did you mean `min`?".to_owned(),
        "h" | "hr" | "hours" => "did you mean `hour`?".to_owned(),
        "d" | "days" => "did you mean `day`?".to_owned(),
        "w" | "weeks" => "did you mean `week`?".to_owned(),
        _ => "a unit of time is s, min, hour, day or week".to_owned(),
    };
    let message = match word {
        "" => "a unit of time is missing".to_owned(),
        _ => format!("`{word}` is no unit of time"),
    };
    Err(QuotaTextError::new(range, message).with_help(help))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_is_a_rate_and_a_burst() {
        let window = bucket("60/min burst 120").unwrap();
        assert_eq!(window.quota, Quota::bucket(60, Nanos::from_secs(60), 120).unwrap());
        assert_eq!(bucket("60/min").unwrap().quota.limit(), 60);
        assert_eq!(bucket("100_000_000/s burst 1").unwrap().quota.limit(), 1);
        assert_eq!(
            bucket("10/5min burst 3").unwrap().quota,
            Quota::bucket(10, Nanos::from_secs(300), 3).unwrap()
        );
    }

    #[test]
    fn fixed_windows_are_named_and_sorted() {
        let windows = fixed("50/day, 5/min", Align::Clock).unwrap();
        let names: Vec<_> = windows.iter().map(|window| window.name.as_str()).collect();
        assert_eq!(names, ["minute", "day"]);
        assert_eq!(fixed("60/60s", Align::First).unwrap()[0].name, "60s");
    }

    #[test]
    fn what_is_no_quota_says_why_and_where() {
        let cases: [(&str, &str, &str); 11] = [
            ("60/m burst 2", "m", "`m` is no unit of time"),
            ("60/month", "month", "a month has no fixed length"),
            ("x/min", "x", "`x` is no whole number"),
            ("60", "60", "`60` is no rate"),
            ("60/min bust 3", "bust", "found `bust`, allowed is `burst N`"),
            ("60/min burst", "", "`burst` lacks its number"),
            ("60/min burst 3 4", "4", "`4` is more than expected"),
            ("unlimited", "unlimited", "`unlimited` is not supported yet"),
            ("10MB/min", "10MB", "a unit on an amount, as in `10MB`, is not supported yet"),
            ("60/", "", "a unit of time is missing"),
            ("0/min", "0/min", "units is 0, allowed is 1 to 9007199254740992"),
        ];
        for (text, at, message) in cases {
            let error = bucket(text).unwrap_err();
            assert_eq!((&text[error.at.clone()], error.message.as_str()), (at, message), "{text}");
        }
        assert_eq!(bucket("60/m").unwrap_err().help.unwrap(), "min or month?");
        let error = fixed("5/day, 50/min", Align::Clock).unwrap_err();
        assert_eq!(error.message, "the longer window allows less: `5/day` beside `50/min`");
        let error = fixed("5/min, 6/60s", Align::Clock).unwrap_err();
        assert_eq!(error.message, "`5/min` and `6/60s` are the same window");
        assert!(fixed("5/min,", Align::Clock).is_err());
    }

    #[test]
    fn spans_are_numbers_with_a_unit() {
        assert_eq!(span("1500ms").unwrap(), Nanos::new(1_500_000_000));
        assert_eq!(span("999999999ns").unwrap(), Nanos::new(999_999_999));
        assert!(span("1").is_err());
        assert!(span("s").is_err());
        assert!(span("").is_err());
    }

    proptest! {
        #[test]
        fn rates_read_back_as_written(
            units in 1..=UNITS_MAX, count in 1u64..1000, unit in 3usize..8,
        ) {
            let rate = Rate { units, count, unit };
            prop_assert_eq!(Words::new(&rate.to_string()).rate().unwrap(), rate);
        }

        #[test]
        fn no_text_panics_and_errors_stand_within_it(text in "[0-9a-z/, _éburst]{0,24}") {
            let results = [
                bucket(&text).err(),
                fixed(&text, Align::Clock).err(),
                span(&text).err(),
            ];
            for error in results.into_iter().flatten() {
                prop_assert!(text.get(error.at.clone()).is_some(), "{:?}", error);
            }
        }
    }
}
