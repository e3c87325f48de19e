//! Answers in words. Pure: values to text.

use std::fmt::Write;

use crate::doors::report::{LimitReport, Report};

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000 * MICROSECOND;
const SECOND: u64 = 1_000 * MILLISECOND;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A duration for people: `12 µs`, `350 ms`, `1 s`, `120 s`, `3 h`. Rounded up, so that who waits
/// so long has waited long enough, to two digits, or to a whole number of the unit if that says
/// more. Two minutes are still told in seconds, as windows of a minute mostly are.
pub(super) fn duration(nanos: u64) -> String {
    /// From how many nanoseconds on which unit is used.
    const UNITS: [(u64, u64, &str); 6] = [
        (2 * DAY, DAY, "d"),
        (2 * HOUR, HOUR, "h"),
        (2 * MINUTE + 1, MINUTE, "min"),
        (SECOND, SECOND, "s"),
        (MILLISECOND, MILLISECOND, "ms"),
        (MICROSECOND, MICROSECOND, "µs"),
    ];
    let unit_of = |nanos| UNITS.into_iter().find(|(from, ..)| nanos >= *from);
    let Some((_, unit, _)) = unit_of(nanos) else { return format!("{nanos} ns") };
    let step = if unit <= MILLISECOND && nanos >= 100 * unit {
        10 * unit
    } else if nanos >= 10 * unit {
        unit
    } else {
        unit / 10
    };
    let rounded = nanos.div_ceil(step).saturating_mul(step);
    // 995 ms become 1000 ms, which are told as a second.
    let (_, unit, name) = unit_of(rounded).unwrap_or(UNITS[5]);
    let (whole, tenths) = (rounded / unit, rounded % unit * 10 / unit);
    match tenths {
        0 => format!("{whole} {name}"),
        _ => format!("{whole}.{tenths} {name}"),
    }
}

/// An answer in one line: `deny images_post · 0 of 120 left · retry in 1 s · full in 120 s`.
pub(super) fn answer(report: &Report) -> String {
    let mut line = report.decision.to_owned();
    if let Some(error) = &report.error {
        // A `String` takes all that is written.
        let _ = write!(line, " · no decision · {}: {}", error.code, error.message);
        return line;
    }
    let Some(binding) = &report.binding else {
        line.push_str(" · no limit applies");
        return line;
    };
    line.push(' ');
    line.push_str(&binding.name);
    if let Some(window) = &binding.window {
        line.push('.');
        line.push_str(window);
    }
    let binds = |limit: &&LimitReport| limit.name == binding.name && limit.window == binding.window;
    if let Some(limit) = report.limits.iter().find(binds) {
        push_numbers(limit, report.decision == "deny", &mut line);
    }
    if let Some(permit) = &report.permit {
        let _ = write!(line, " · permit {permit}");
    }
    line
}

fn push_numbers(limit: &LimitReport, denied: bool, line: &mut String) {
    let _ = match (limit.remaining, limit.limit) {
        (Some(remaining), Some(all)) => write!(line, " · {remaining} of {all} left"),
        _ => write!(line, " · unlimited"),
    };
    let _ = match (limit.retry, limit.retry_after_ns) {
        _ if !denied => Ok(()),
        ("on_others", Some(nanos)) => {
            write!(line, " · when others give back, the first at the latest in {}", duration(nanos))
        }
        ("on_others", None) => write!(line, " · when others give back"),
        (_, Some(nanos)) => write!(line, " · retry in {}", duration(nanos)),
        (_, None) => write!(line, " · never passes at this cost"),
    };
    // A window ends whether or not anything was used of it.
    if let Some(nanos @ 1..) = limit.full_ns
        && limit.remaining < limit.limit
    {
        let _ = write!(line, " · full in {}", duration(nanos));
    }
}

/// What came of many checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Checks that passed.
    pub(super) allowed: u64,
    /// Checks that were denied.
    pub(super) denied: u64,
    /// Checks without a decision.
    pub(super) undecided: u64,
    /// Which check was the first to be denied, from 1.
    pub(super) first_denied: Option<u64>,
}

impl Tally {
    /// Adds one answer.
    pub(super) fn add(&mut self, report: &Report) {
        let count = match (&report.error, report.decision) {
            (Some(_), _) => &mut self.undecided,
            (None, "deny") => &mut self.denied,
            (None, _) => &mut self.allowed,
        };
        *count += 1;
        if self.denied == 1 && self.first_denied.is_none() {
            self.first_denied = Some(self.answers());
        }
    }

    /// Answers in all.
    pub(super) fn answers(&self) -> u64 {
        self.allowed + self.denied + self.undecided
    }

    /// `121 checks · 120 allowed · 1 denied, the first was number 121`.
    pub(super) fn line(&self) -> String {
        let Self { allowed, denied, undecided, first_denied } = self;
        let mut line =
            format!("{} · {allowed} allowed · {denied} denied", count(self.answers(), "check"));
        if let Some(number) = first_denied {
            let _ = write!(line, ", the first was number {number}");
        }
        if *undecided > 0 {
            let _ = write!(line, " · {undecided} without a decision");
        }
        line
    }
}

/// Rows in columns, those of numbers flush right.
pub(super) fn table<const N: usize>(rows: &[[String; N]], numbers: &[usize]) -> String {
    let chars = |cell: &String| cell.chars().count();
    let width = |column: usize| rows.iter().map(|row| chars(&row[column])).max().unwrap_or(0);
    let widths: [usize; N] = core::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let _ = match numbers.contains(&column) {
                false => write!(line, "{gap}{cell:<width$}"),
                true => write!(line, "{gap}{cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1 counter`, `2 counters`.
pub(super) fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use crate::doors::report::{Binding, ErrorReport};

    use super::*;

    #[test]
    fn durations_are_told_in_the_unit_that_people_would_use() {
        for (nanos, told) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (12_000, "12 µs"),
            (12_001, "13 µs"),
            (1_500_000, "1.5 ms"),
            (350 * MILLISECOND, "350 ms"),
            (351 * MILLISECOND, "360 ms"),
            (990 * MILLISECOND + 1, "1 s"),
            (SECOND, "1 s"),
            (SECOND + 1, "1.1 s"),
            (59 * SECOND + 1, "60 s"),
            (119 * SECOND + 1, "120 s"),
            (120 * SECOND, "120 s"),
            (121 * SECOND, "2.1 min"),
            (3 * MINUTE, "3 min"),
            (90 * MINUTE, "90 min"),
            (3 * HOUR, "3 h"),
            (47 * HOUR + 1, "2 d"),
            (31 * DAY, "31 d"),
        ] {
            assert_eq!(duration(nanos), told, "{nanos}");
        }
    }

    proptest! {
        #[test]
        fn who_waits_as_long_as_told_has_waited_long_enough(bits in 0u32..63, low in any::<u64>()) {
            let nanos = (low >> (63 - bits)).max(1);
            let told = duration(nanos);
            let (number, unit) = told.split_once(' ').unwrap();
            let unit = match unit {
                "ns" => 1, "µs" => MICROSECOND, "ms" => MILLISECOND, "s" => SECOND,
                "min" => MINUTE, "h" => HOUR, "d" => DAY, _ => unreachable!(),
            };
            let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
            let waited = whole.parse::<u128>().unwrap() * u128::from(unit)
                + tenths.parse::<u128>().unwrap() * u128::from(unit) / 10;
            prop_assert!(waited >= u128::from(nanos), "{nanos}: {told}");
            prop_assert!(waited * 10 <= u128::from(nanos) * 11 + 10, "{nanos}: {told}");
        }
    }

    fn report(decision: &'static str, remaining: u64, retry: Option<u64>, full: u64) -> Report {
        let (name, window) = ("images_post".to_owned(), None);
        Report {
            decision,
            status: 429,
            binding: Some(Binding { name: name.clone(), window: window.clone() }),
            limits: vec![LimitReport {
                name,
                window,
                kind: "bucket",
                limit: Some(120),
                remaining: Some(remaining),
                retry: if retry.is_some() { "after" } else { "never" },
                retry_after_ns: retry,
                next_ns: Some(1),
                full_ns: Some(full),
                mode: "enforce",
            }],
            permit: None,
            headers: BTreeMap::new(),
            content_type: None,
            body: None,
            policy_version: String::new(),
            error: None,
        }
    }

    #[test]
    fn an_answer_is_one_line() {
        let denied = report("deny", 0, Some(SECOND), 120 * SECOND);
        assert_eq!(
            answer(&denied),
            "deny images_post · 0 of 120 left · retry in 1 s · full in 120 s"
        );
        let unused = report("allow", 120, None, 120 * SECOND);
        assert_eq!(answer(&unused), "allow images_post · 120 of 120 left");
        let never = report("deny", 120, None, 0);
        assert_eq!(
            answer(&never),
            "deny images_post · 120 of 120 left · never passes at this cost"
        );
        let mut allowed = report("allow", 119, None, SECOND);
        assert_eq!(answer(&allowed), "allow images_post · 119 of 120 left · full in 1 s");
        let window = Some("day".to_owned());
        allowed.limits[0].window.clone_from(&window);
        allowed.binding.as_mut().unwrap().window = window;
        assert_eq!(answer(&allowed), "allow images_post.day · 119 of 120 left · full in 1 s");
        let unmatched = Report { binding: None, limits: Vec::new(), ..allowed.clone() };
        assert_eq!(answer(&unmatched), "allow · no limit applies");
        let error = Some(ErrorReport { code: "TABLE_FULL".into(), message: "m".into() });
        assert_eq!(answer(&Report { error, ..unmatched }), "allow · no decision · TABLE_FULL: m");
    }

    #[test]
    fn many_answers_are_summed_up() {
        let (allow, deny) = (report("allow", 1, None, 1), report("deny", 0, Some(1), 1));
        let mut tally = Tally::default();
        tally.add(&allow);
        assert_eq!(tally.line(), "1 check · 1 allowed · 0 denied");
        for report in [&allow, &deny, &allow, &deny] {
            tally.add(report);
        }
        assert_eq!(tally.line(), "5 checks · 3 allowed · 2 denied, the first was number 3");
        let error = Some(ErrorReport { code: "TABLE_FULL".into(), message: "m".into() });
        tally.add(&Report { error, ..allow });
        assert!(tally.line().ends_with(" · 1 without a decision"));
    }
}
