//! How quotas, amounts and spans of time are written: `60/min burst 120`, `5/min, 50/day`, `25GB`,
//! `1500ms`.

use core::fmt;
use core::ops::Range;

use crate::engine::kinds::{Boundaries, Period, UNLIMITED};
use crate::engine::quota::{Align, Kind, Quota, QuotaError, UNITS_MAX};
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

/// Units of data, as written, in bytes.
const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Periods of the calendar, as written.
const PERIODS: [(&str, Period); 3] =
    [("day", Period::Day), ("week", Period::Week), ("month", Period::Month)];

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

/// What a meter measures, which its name says: it decides the units of its amounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Anything that is counted.
    Count,
    /// `…_bytes`.
    Bytes,
    /// `…_seconds`.
    Seconds,
    /// `…_ms`.
    Millis,
}

impl Measure {
    /// What the meter of that name measures.
    pub(super) fn of(meter: &str) -> Self {
        let ends = [("_bytes", Self::Bytes), ("_seconds", Self::Seconds), ("_ms", Self::Millis)];
        let measure = ends.into_iter().find(|(end, _)| meter.ends_with(end));
        measure.map_or(Self::Count, |(_, measure)| measure)
    }

    /// How many of the meter's units one of the written unit is; `None` if they do not go
    /// together.
    fn factor(self, unit: &str) -> Option<u64> {
        let time = |each: u64| {
            let (_, nanos, _) = UNITS.iter().find(|(written, ..)| *written == unit)?;
            nanos.is_multiple_of(each).then(|| nanos / each)
        };
        match self {
            Self::Count => None,
            Self::Bytes => SIZES.iter().find(|(written, _)| *written == unit).map(|(_, n)| *n),
            Self::Seconds => time(1_000_000_000),
            Self::Millis => time(1_000_000),
        }
    }

    fn help(self, unit: &str) -> String {
        let sizes = || SIZES.iter().map(|(written, _)| *written);
        match self {
            Self::Count => {
                "units go with meters named `…_bytes`, `…_seconds` and `…_ms`".to_owned()
            }
            Self::Bytes => match sizes().find(|size| size.eq_ignore_ascii_case(unit)) {
                Some(size) => format!("did you mean `{size}`?"),
                None => format!("units of data are {}", sizes().collect::<Vec<_>>().join(", ")),
            },
            Self::Seconds | Self::Millis if unit == "m" => "min or month?".to_owned(),
            Self::Seconds => "units of this meter are s, min, hour, day, week".to_owned(),
            Self::Millis => "units of this meter are ms, s, min, hour, day, week".to_owned(),
        }
    }
}

/// Units per window, as written: `60/min`, `10/5min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Units that a window holds; [`UNLIMITED`] if it is written so.
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
        match self.units {
            UNLIMITED => f.write_str("unlimited")?,
            units => write!(f, "{units}")?,
        }
        if self.count == 1 { write!(f, "/{unit}") } else { write!(f, "/{}{unit}", self.count) }
    }
}

/// Which window of a limit: what makes two of them the same, whatever they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WindowKind {
    /// The kind has no windows.
    None,
    /// Of this length.
    Length(Nanos),
    /// A period of the calendar, by its number.
    Period(u8),
}

/// One window of a limit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) kind: WindowKind,
    /// What it is called; empty if the kind has none.
    pub(super) name: String,
    /// Of a calendar window without its boundaries: see [`calendar_quota`].
    pub(super) quota: Quota,
}

/// What one value of a limit says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum QuotaText {
    /// No limit, in whatever windows the limit has.
    Unlimited,
    /// Windows, the shortest first. One without a name for kinds that have none.
    Windows(Vec<Window>),
}

/// What beside the text makes a quota.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuotaTerms {
    pub(super) kind: Kind,
    pub(super) measure: Measure,
    /// Of fixed windows.
    pub(super) align: Align,
    /// Of permits.
    pub(super) lease: Nanos,
}

impl QuotaTerms {
    /// Reads the value of a limit.
    pub(super) fn read(&self, text: &str) -> Result<QuotaText, QuotaTextError> {
        if text.trim() == "unlimited" {
            return Ok(QuotaText::Unlimited);
        }
        let windows = match self.kind {
            Kind::Bucket => vec![self.bucket(text)?],
            Kind::Sliding | Kind::Fixed => self.rates(text)?,
            Kind::Calendar => self.periods(text)?,
            Kind::Concurrent | Kind::Level | Kind::Cap => vec![self.amount(text)?],
        };
        Ok(QuotaText::Windows(windows))
    }

    /// The quota of an amount that was written as a number.
    pub(super) fn of_number(&self, units: u64) -> Result<QuotaText, QuotaError> {
        let quota = match self.kind {
            Kind::Level => Quota::level(units)?,
            Kind::Cap => Quota::cap(units)?,
            _ => Quota::concurrent(units, self.lease)?,
        };
        Ok(QuotaText::Windows(vec![Window { kind: WindowKind::None, name: String::new(), quota }]))
    }

    /// What `unlimited` is in a window: kinds that can do so count.
    pub(super) fn unlimited(&self, window: WindowKind) -> Quota {
        let quota = match (self.kind, window) {
            (Kind::Fixed, WindowKind::Length(length)) => {
                Quota::fixed(UNLIMITED, length, self.align).ok()
            }
            (Kind::Calendar, WindowKind::Period(period)) => PERIODS
                .iter()
                .find(|(_, of)| *of as u8 == period)
                .and_then(|(_, period)| calendar_quota(UNLIMITED, *period).ok()),
            (Kind::Level, _) => Quota::level(UNLIMITED).ok(),
            _ => None,
        };
        quota.unwrap_or(Quota::Unlimited(self.kind))
    }

    /// `RATE [burst N]`. Without a burst, the bucket holds as many units as its rate names.
    fn bucket(&self, text: &str) -> Result<Window, QuotaTextError> {
        let mut words = Words::new(text);
        let rate = words.rate(self.measure)?;
        if rate.units == UNLIMITED {
            let error = QuotaTextError::new(0..text.len(), "an unlimited bucket has no rate");
            return Err(error.with_help("write \"unlimited\""));
        }
        let burst = match words.next() {
            None => rate.units,
            Some((_, "burst")) => match words.next() {
                Some((at, word)) => amount(word, at, self.measure)?,
                None => {
                    let end = text.len()..text.len();
                    return Err(QuotaTextError::new(end, "`burst` lacks its number"));
                }
            },
            Some((at, word)) => {
                let range = at..at + word.len();
                let message = format!("found `{word}`, allowed is `burst N`");
                return Err(QuotaTextError::new(range, message)
                    .with_help("a bucket is written as \"60/min burst 120\""));
            }
        };
        words.end()?;
        let quota = Quota::bucket(rate.units, rate.window(), burst)
            .map_err(|error| QuotaTextError::new(0..text.len(), error.to_string()))?;
        Ok(Window { kind: WindowKind::None, name: String::new(), quota })
    }

    /// `RATE, RATE`, shortest first in the result.
    fn rates(&self, text: &str) -> Result<Vec<Window>, QuotaTextError> {
        let rates = parts(text, |words| words.rate(self.measure))?;
        let rates = in_order(rates, |rate| rate.window().get(), |rate| rate.units)?;
        rates
            .into_iter()
            .map(|(rate, at)| {
                let kind = WindowKind::Length(rate.window());
                let quota = match (self.kind, rate.units) {
                    (Kind::Sliding, UNLIMITED) => Ok(Quota::Unlimited(Kind::Sliding)),
                    (Kind::Sliding, units) => Quota::sliding(units, rate.window()),
                    (_, units) => Quota::fixed(units, rate.window(), self.align),
                };
                let quota = quota.map_err(|error| QuotaTextError::new(at, error.to_string()))?;
                Ok(Window { kind, name: rate.window_name(), quota })
            })
            .collect()
    }

    /// `N/month, N/day`, shortest first in the result.
    fn periods(&self, text: &str) -> Result<Vec<Window>, QuotaTextError> {
        let rates = parts(text, |words| words.period(self.measure))?;
        let rates = in_order(rates, |rate| rate.period as u64, |rate| rate.units)?;
        rates
            .into_iter()
            .map(|(rate, at)| {
                let quota = calendar_quota(rate.units, rate.period)
                    .map_err(|error| QuotaTextError::new(at, error.to_string()))?;
                let kind = WindowKind::Period(rate.period as u8);
                Ok(Window { kind, name: period_name(rate.period).to_owned(), quota })
            })
            .collect()
    }

    /// `10MB`, `20`.
    fn amount(&self, text: &str) -> Result<Window, QuotaTextError> {
        let mut words = Words::new(text);
        let Some((at, word)) = words.next() else {
            let help = "an amount is a number, as in \"10MB\"";
            return Err(QuotaTextError::new(0..text.len(), "no amount").with_help(help));
        };
        let units = amount(word, at, self.measure)?;
        words.end()?;
        match self.of_number(units) {
            Ok(QuotaText::Windows(mut windows)) if !windows.is_empty() => Ok(windows.remove(0)),
            Ok(_) => Err(QuotaTextError::new(0..text.len(), "no amount")),
            Err(error) => Err(QuotaTextError::new(0..text.len(), error.to_string())),
        }
    }
}

/// A quota as a limit's text could say it: `1/s burst 120`, a bucket's rate in lowest terms.
pub(super) fn written(quota: &Quota) -> String {
    let rate = |units, window: Nanos| {
        let unit = UNITS.iter().rposition(|(_, of, _)| window.get().is_multiple_of(*of));
        let unit = unit.unwrap_or_default();
        Rate { units, count: window.get() / UNITS[unit].1, unit }
    };
    match quota {
        Quota::Bucket(bucket) => {
            let (units, window) = bucket.rate();
            format!("{} burst {}", rate(units, window), bucket.burst())
        }
        Quota::Sliding(sliding) => rate(sliding.units(), sliding.window()).to_string(),
        Quota::Fixed(fixed) => rate(fixed.units(), fixed.window()).to_string(),
        Quota::Calendar(calendar) => {
            CalendarRate { units: calendar.units(), period: calendar.period() }.to_string()
        }
        Quota::Concurrent(_) | Quota::Level(_) | Quota::Cap(_) | Quota::Unlimited(_) => {
            match quota.limit() {
                UNLIMITED => "unlimited".to_owned(),
                units => units.to_string(),
            }
        }
    }
}

/// A calendar window's quota without its boundaries, which depend on the moment.
pub(super) fn calendar_quota(units: u64, period: Period) -> Result<Quota, QuotaError> {
    Quota::calendar(units, period, Boundaries { opens_at: 0, ends_at: 1, next_ends_at: 2 })
}

/// The word for a period.
pub(super) fn period_name(period: Period) -> &'static str {
    PERIODS.iter().find(|(_, known)| *known == period).map_or("month", |(name, _)| name)
}

/// An amount of a meter by itself: `10MB`.
pub(super) fn amount_alone(text: &str, measure: Measure) -> Result<u64, QuotaTextError> {
    let at = text.len() - text.trim_start().len();
    amount(text.trim(), at, measure)
}

/// Units per period of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CalendarRate {
    units: u64,
    period: Period,
}

impl fmt::Display for CalendarRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.units {
            UNLIMITED => write!(f, "unlimited/{}", period_name(self.period)),
            units => write!(f, "{units}/{}", period_name(self.period)),
        }
    }
}

/// Parts between commas, each with its place.
fn parts<T>(
    text: &str,
    mut read: impl FnMut(&mut Words<'_>) -> Result<T, QuotaTextError>,
) -> Result<Vec<(T, Range<usize>)>, QuotaTextError> {
    let mut found = Vec::new();
    let mut start = 0;
    for part in text.split(',') {
        let mut words = Words { text, from: start, to: start + part.len() };
        let value = read(&mut words)?;
        words.end()?;
        found.push((value, start..start + part.len()));
        start += part.len() + 1;
    }
    Ok(found)
}

/// Windows in the order of their length. None may be there twice, nor allow less than a shorter
/// one.
fn in_order<T: fmt::Display>(
    mut rates: Vec<(T, Range<usize>)>,
    length: impl Fn(&T) -> u64,
    units: impl Fn(&T) -> u64,
) -> Result<Vec<(T, Range<usize>)>, QuotaTextError> {
    rates.sort_by_key(|(rate, _)| length(rate));
    for pair in rates.windows(2) {
        let ((short, _), (long, at)) = (&pair[0], &pair[1]);
        if length(short) == length(long) {
            let message = format!("`{short}` and `{long}` are the same window");
            return Err(QuotaTextError::new(at.clone(), message));
        }
        if units(long) < units(short) && units(short) != UNLIMITED {
            let message = format!("the longer window allows less: `{long}` beside `{short}`");
            return Err(QuotaTextError::new(at.clone(), message)
                .with_help(format!("`{short}` could never be used up")));
        }
    }
    Ok(rates)
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

    /// Units, and what stands after the slash, each with its place.
    fn ratio(
        &mut self,
        measure: Measure,
        help: &str,
    ) -> Result<(u64, &'t str, usize), QuotaTextError> {
        let whole = self.from..self.to;
        let Some((at, word)) = self.next() else {
            return Err(QuotaTextError::new(whole, "no rate").with_help(help));
        };
        let range = at..at + word.len();
        let Some((units_text, window)) = word.split_once('/') else {
            return Err(QuotaTextError::new(range, format!("`{word}` is no rate")).with_help(help));
        };
        let units = match units_text {
            "unlimited" => UNLIMITED,
            _ => amount(units_text, at, measure)?,
        };
        Ok((units, window, at + units_text.len() + 1))
    }

    fn rate(&mut self, measure: Measure) -> Result<Rate, QuotaTextError> {
        let help = "a rate is a number of units, a slash and a unit of time, as in \"60/min\"";
        let (units, window, window_at) = self.ratio(measure, help)?;
        let digits =
            window.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'_').count();
        let count = if digits == 0 { 1 } else { number(&window[..digits], window_at)? };
        let unit = unit(&window[digits..], window_at + digits)?;
        Ok(Rate { units, count, unit })
    }

    fn period(&mut self, measure: Measure) -> Result<CalendarRate, QuotaTextError> {
        let help =
            "a calendar rate is a number, a slash and day, week or month, as in \"500/month\"";
        let (units, word, at) = self.ratio(measure, help)?;
        match PERIODS.iter().find(|(name, _)| *name == word) {
            Some((_, period)) => Ok(CalendarRate { units, period: *period }),
            None => {
                let message = format!("`{word}` is no period of the calendar");
                let error = QuotaTextError::new(at..at + word.len(), message);
                Err(error.with_help(match word {
                    "m" => "min or month?",
                    _ => {
                        "periods are day, week and month; `fixed` and `sliding` take other lengths"
                    }
                }))
            }
        }
    }
}

fn number(word: &str, at: usize) -> Result<u64, QuotaTextError> {
    amount(word, at, Measure::Count)
}

/// A whole number of a meter's units, at most [`UNITS_MAX`].
fn amount(word: &str, at: usize, measure: Measure) -> Result<u64, QuotaTextError> {
    let range = at..at + word.len();
    let digits = word.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'_').count();
    let (number, unit) = word.split_at(digits);
    let number: String = number.chars().filter(|c| *c != '_').collect();
    if number.is_empty() || !unit.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(QuotaTextError::new(range, format!("`{word}` is no whole number")));
    }
    let factor = match unit {
        "" => 1,
        unit => measure.factor(unit).ok_or_else(|| {
            let unit_at = at + digits..at + word.len();
            let message = match measure {
                Measure::Count => format!("`{unit}` is a unit, and what is counted has none"),
                _ => format!("`{unit}` is no unit of this meter"),
            };
            QuotaTextError::new(unit_at, message).with_help(measure.help(unit))
        })?,
    };
    let units = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match units {
        Some(units) if units <= UNITS_MAX => Ok(units),
        _ => Err(QuotaTextError::new(range, format!("{word} is above {UNITS_MAX}"))),
    }
}

fn unit(word: &str, at: usize) -> Result<usize, QuotaTextError> {
    let range = at..at + word.len();
    if let Some(unit) = UNITS.iter().position(|(written, ..)| *written == word) {
        return Ok(unit);
    }
    if word == "month" || word == "months" || word == "mo" {
        return Err(QuotaTextError::new(range, "a month has no fixed length").with_help(
            "write `30day` if 30 days are meant, or count by the calendar: `calendar = \"500/month\"`",
        ));
    }
    let help = match word {
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

    fn terms(kind: Kind, measure: Measure) -> QuotaTerms {
        QuotaTerms { kind, measure, align: Align::Clock, lease: Nanos::from_secs(60) }
    }

    fn windows(kind: Kind, text: &str) -> Result<Vec<Window>, QuotaTextError> {
        match terms(kind, Measure::Count).read(text)? {
            QuotaText::Windows(windows) => Ok(windows),
            QuotaText::Unlimited => Ok(Vec::new()),
        }
    }

    #[test]
    fn a_quota_is_written_as_it_is_read() {
        for (kind, text) in [
            (Kind::Bucket, "1/s burst 120"),
            (Kind::Bucket, "7/5min burst 10"),
            (Kind::Bucket, "1/1500ms burst 1"),
            (Kind::Sliding, "60/min"),
            (Kind::Sliding, "7/90min"),
            (Kind::Fixed, "unlimited/day"),
            (Kind::Fixed, "5/week"),
            (Kind::Calendar, "500/month"),
            (Kind::Concurrent, "10"),
            (Kind::Level, "25000"),
            (Kind::Cap, "20"),
        ] {
            assert_eq!(written(&windows(kind, text).unwrap()[0].quota), text);
        }
        assert_eq!(written(&Quota::Unlimited(Kind::Bucket)), "unlimited");
    }

    fn bucket(text: &str) -> Result<Quota, QuotaTextError> {
        windows(Kind::Bucket, text).map(|windows| windows[0].quota)
    }

    #[test]
    fn a_bucket_is_a_rate_and_a_burst() {
        let minute = Nanos::from_secs(60);
        assert_eq!(bucket("60/min burst 120").unwrap(), Quota::bucket(60, minute, 120).unwrap());
        assert_eq!(bucket("60/min").unwrap().limit(), 60);
        assert_eq!(bucket("100_000_000/s burst 1").unwrap().limit(), 1);
        assert_eq!(
            bucket("10/5min burst 3").unwrap(),
            Quota::bucket(10, Nanos::from_secs(300), 3).unwrap()
        );
    }

    #[test]
    fn windows_are_named_and_sorted() {
        let names = |kind, text| {
            let windows = windows(kind, text).unwrap();
            windows.iter().map(|window| window.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(Kind::Fixed, "50/day, 5/min"), "minute day");
        assert_eq!(names(Kind::Sliding, "60/60s, 5/s"), "second 60s");
        assert_eq!(names(Kind::Calendar, "500/month, 20/day, 100/week"), "day week month");
        assert_eq!(names(Kind::Level, "20"), "");
        assert_eq!(names(Kind::Fixed, "300/min, unlimited/day"), "minute day");
        assert_eq!(terms(Kind::Cap, Measure::Count).read(" unlimited "), Ok(QuotaText::Unlimited));
    }

    #[test]
    fn unlimited_counts_where_the_kind_can() {
        let windows = windows(Kind::Fixed, "unlimited/day").unwrap();
        assert_eq!(windows[0].quota.limit(), UNLIMITED);
        for (kind, window) in [
            (Kind::Fixed, WindowKind::Length(Nanos::from_secs(60))),
            (Kind::Calendar, WindowKind::Period(Period::Month as u8)),
            (Kind::Level, WindowKind::None),
        ] {
            let quota = terms(kind, Measure::Count).unlimited(window);
            assert_eq!((quota.kind(), quota.limit()), (kind, UNLIMITED));
            assert!(!matches!(quota, Quota::Unlimited(_)));
        }
        for kind in [Kind::Bucket, Kind::Sliding, Kind::Concurrent, Kind::Cap] {
            let quota = terms(kind, Measure::Count).unlimited(WindowKind::None);
            assert_eq!(quota, Quota::Unlimited(kind));
        }
    }

    #[test]
    fn amounts_take_the_units_of_their_meter() {
        for (meter, text, units) in [
            ("image_bytes", "10MB", 10_000_000),
            ("image_bytes", "25_000kB", 25_000_000),
            ("stored_bytes", "1GiB", 1 << 30),
            ("stored_bytes", "7", 7),
            ("media_seconds", "600min", 36_000),
            ("media_seconds", "2hour", 7_200),
            ("gpu_ms", "2s", 2_000),
            ("gpu_ms", "1500ms", 1_500),
            ("files", "20", 20),
        ] {
            assert_eq!(amount_alone(text, Measure::of(meter)), Ok(units), "{meter} {text}");
        }
        for (meter, text, message, help) in [
            ("files", "20MB", "`MB` is a unit, and what is counted has none", "units go with"),
            ("x_bytes", "20mb", "`mb` is no unit of this meter", "did you mean `MB`?"),
            ("x_seconds", "20m", "`m` is no unit of this meter", "min or month?"),
            ("x_seconds", "20ms", "`ms` is no unit of this meter", "units of this meter are s"),
            ("x_bytes", "9999999TB", "9999999TB is above 9007199254740992", ""),
            ("x_bytes", "1.5GB", "`1.5GB` is no whole number", ""),
        ] {
            let error = amount_alone(text, Measure::of(meter)).unwrap_err();
            assert_eq!(error.message, message);
            assert!(error.help.unwrap_or_default().starts_with(help));
        }
    }

    #[test]
    fn what_is_no_quota_says_why_and_where() {
        let cases: [(&str, &str, &str); 10] = [
            ("60/m burst 2", "m", "`m` is no unit of time"),
            ("60/month", "month", "a month has no fixed length"),
            ("x/min", "x", "`x` is no whole number"),
            ("60", "60", "`60` is no rate"),
            ("60/min bust 3", "bust", "found `bust`, allowed is `burst N`"),
            ("60/min burst", "", "`burst` lacks its number"),
            ("60/min burst 3 4", "4", "`4` is more than expected"),
            ("10MB/min", "MB", "`MB` is a unit, and what is counted has none"),
            ("60/", "", "a unit of time is missing"),
            ("0/min", "0/min", "units is 0, allowed is 1 to 9007199254740992"),
        ];
        for (text, at, message) in cases {
            let error = bucket(text).unwrap_err();
            assert_eq!((&text[error.at.clone()], error.message.as_str()), (at, message), "{text}");
        }
        assert_eq!(bucket("60/m").unwrap_err().help.unwrap(), "min or month?");
        let error = windows(Kind::Fixed, "5/day, 50/min").unwrap_err();
        assert_eq!(error.message, "the longer window allows less: `5/day` beside `50/min`");
        let error = windows(Kind::Sliding, "5/min, 6/60s").unwrap_err();
        assert_eq!(error.message, "`5/min` and `6/60s` are the same window");
        let error = windows(Kind::Calendar, "5/month, 6/month").unwrap_err();
        assert_eq!(error.message, "`5/month` and `6/month` are the same window");
        let error = windows(Kind::Calendar, "5/hour").unwrap_err();
        assert_eq!(error.message, "`hour` is no period of the calendar");
        assert!(windows(Kind::Fixed, "5/min,").is_err());
    }

    #[test]
    fn spans_are_numbers_with_a_unit() {
        assert_eq!(span("1500ms").unwrap(), Nanos::new(1_500_000_000));
        assert_eq!(span("999999999ns").unwrap(), Nanos::new(999_999_999));
        assert!(span("1").is_err());
        assert!(span("s").is_err());
        assert!(span("").is_err());
    }

    const KINDS: [Kind; 7] = [
        Kind::Bucket,
        Kind::Sliding,
        Kind::Fixed,
        Kind::Calendar,
        Kind::Concurrent,
        Kind::Level,
        Kind::Cap,
    ];

    proptest! {
        #[test]
        fn rates_read_back_as_written(
            units in 1..=UNITS_MAX, count in 1u64..1000, unit in 3usize..8,
        ) {
            let rate = Rate { units, count, unit };
            let text = rate.to_string();
            prop_assert_eq!(Words::new(&text).rate(Measure::Count).unwrap(), rate);
        }

        #[test]
        fn no_text_panics_and_errors_stand_within_it(text in "[0-9a-zMB/, _éburst]{0,24}") {
            for measure in [Measure::Count, Measure::Bytes, Measure::Seconds, Measure::Millis] {
                let results = KINDS.map(|kind| terms(kind, measure).read(&text).err());
                for error in results.into_iter().flatten().chain(span(&text).err()) {
                    prop_assert!(text.get(error.at.clone()).is_some(), "{:?}", error);
                }
            }
        }
    }
}
