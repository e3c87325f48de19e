//! The cookbook of the reference, run: each row does what the page that it quotes promises, and
//! does it by the numbers that it shows.

use crate::engine::key::Seed;

use super::examples::numbers;
use super::{Policy, Source};

/// Rows that nothing here can run, and why.
const NOTHING_TO_RUN: [(&str, &str); 1] = [(
    "Enterprise: talk to us",
    "a command to a daemon, and no policy; `override` has its own tests",
)];

/// Spans of the second column that are no part of a policy: words of a page, commands.
const WORDS: [&str; 1] = ["override set"];

/// A promise of a row.
struct Promise {
    /// The row, by its first column.
    row: &'static str,
    /// A policy with the row's spans in their places: `{0}`, `{1}`.
    policy: &'static str,
    /// The steps of a test of it.
    steps: &'static str,
    /// Where the test starts, and other lines of it.
    test: &'static str,
}

const fn promise(row: &'static str, policy: &'static str, steps: &'static str) -> Promise {
    Promise { row, policy, steps, test: "start = '2024-05-03T00:00:00Z'" }
}

const PROMISES: [Promise; 27] = [
    promise(
        "60 requests per minute",
        "[api.a.limit]\nl = { per = ['user'], {0} }",
        "{ at = '59s', send = 'GET / user=u', times = 60, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },
         { at = '118999ms', send = 'GET / user=u', expect = 'deny l' },
         { at = '120s', send = 'GET / user=u', times = 60, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },",
    ),
    promise(
        "60 requests per minute",
        "[api.a.limit]\nl = { per = ['user'], {1} }",
        "{ at = '59s', send = 'GET / user=u', times = 60, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l', headers = { Retry-After = '1' } },
         { at = '60s', send = 'GET / user=u', times = 60, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },",
    ),
    promise(
        "60 requests per minute",
        "[api.a.limit]\nl = { per = ['user'], {2} }",
        "{ send = 'GET / user=u', times = 60, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },
         { at = '999ms', send = 'GET / user=u', expect = 'deny l' },
         { at = '1s', send = 'GET / user=u', expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },
         { at = '61s', send = 'GET / user=u', times = 60, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },",
    ),
    promise(
        "a burst of 120, refilled at 60 a minute",
        "[api.a.limit]\nl = { per = ['user'], {0} }",
        "{ send = 'GET / user=u', times = 120, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },
         { at = '999ms', send = 'GET / user=u', expect = 'deny l' },
         { at = '1s', send = 'GET / user=u', expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },
         { at = '121s', send = 'GET / user=u', times = 120, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },",
    ),
    promise(
        "5 per hour, 20 per day",
        "[api.a.limit]\nl = { per = ['user'], {0} }",
        "{ send = 'GET / user=u', times = 5, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l.hour', headers = { Retry-After = '3600' } },
         { at = '1hour', send = 'GET / user=u', times = 5, expect = 'allow' },
         { at = '2hour', send = 'GET / user=u', times = 5, expect = 'allow' },
         { at = '3hour', send = 'GET / user=u', times = 5, expect = 'allow' },
         { at = '4hour', send = 'GET / user=u', expect = 'deny l.day' },
         { at = '24hour', send = 'GET / user=u', times = 5, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l.hour' },",
    ),
    promise(
        "the window begins with your first request",
        "[api.a.limit]\nl = { per = ['user'], {0} }",
        "{ at = '30min', send = 'GET / user=u', times = 5, expect = 'allow' },
         { at = '5399s', send = 'GET / user=u', expect = 'deny l' },
         { at = '5400s', send = 'GET / user=u', times = 5, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },",
    ),
    Promise {
        row: "500 a month, from your billing day",
        policy: "[api.a.limit]\nl = { per = ['user'], {0} }",
        test: "start = '2024-05-14T23:59:59Z'",
        steps: "{ send = 'GET / user=u billing_day=15', times = 500, expect = 'allow' },
         { send = 'GET / user=u billing_day=15', expect = 'deny l', headers = { Retry-After = '1' } },
         { at = '1s', send = 'GET / user=u billing_day=15', times = 500, expect = 'allow' },
         { send = 'GET / user=u billing_day=15', expect = 'deny l' },",
    },
    Promise {
        row: "midnight Pacific time",
        policy: "[api.a.limit]\nl = { per = ['user'], {0} }",
        test: "start = '2024-05-03T06:59:59Z'",
        steps: "{ send = 'GET / user=u', times = 1000, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l', headers = { Retry-After = '1' } },
         { at = '1s', send = 'GET / user=u', times = 1000, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l', headers = { Retry-After = '86400' } },",
    },
    promise(
        "Free 10, Pro 100",
        "[api.a]\n{0}\n[api.a.limit]\nl = { per = ['user'], {1} }",
        "{ send = 'GET / user=u tier=free', times = 10, expect = 'allow' },
         { send = 'GET / user=u tier=free', expect = 'deny l' },
         { send = 'GET / user=v tier=pro', times = 100, expect = 'allow' },
         { send = 'GET / user=v tier=pro', expect = 'deny l' },
         { at = '60s', send = 'GET / user=u tier=free', times = 10, expect = 'allow' },",
    ),
    promise(
        "Enterprise: unlimited",
        "[api.a]\ntiers = ['pro', 'enterprise']\n[api.a.limit]\n\
         l = { per = ['user'], fixed.tier = { pro = '1/min', {0} } }",
        "{ send = 'GET / user=u tier=enterprise', times = 1000, expect = 'allow' },
         { send = 'GET / user=v tier=pro', expect = 'allow' },
         { send = 'GET / user=v tier=pro', expect = 'deny l' },",
    ),
    promise(
        "each endpoint has its own limit",
        "[api.a.limit]\nl = { {0}, {1} }",
        "{ send = 'POST /a user=u', times = 5, expect = 'allow' },
         { send = 'POST /a user=u', expect = 'deny l' },
         { send = 'POST /b user=u', times = 9, expect = 'allow' },
         { send = 'POST /b user=u', expect = 'deny l' },
         { send = 'POST /a user=v', expect = 'allow' },
         { at = '60s', send = 'POST /a user=u', times = 5, expect = 'allow' },",
    ),
    promise(
        "writes count five",
        "[api.a.limit]\nl = { per = ['user'], fixed = '10/min', {0} }",
        "{ send = 'POST / user=u', expect = 'allow', remaining = { l = 5 } },
         { send = 'GET / user=u', times = 5, expect = 'allow', remaining = { l = 0 } },
         { send = 'GET / user=u', expect = 'deny l' },
         { send = 'DELETE / user=v', times = 2, expect = 'allow', remaining = { l = 0 } },
         { send = 'DELETE / user=v', expect = 'deny l' },",
    ),
    promise(
        "at most 10 at once",
        "[api.a.limit]\nl = { per = ['user'], {0} }",
        "{ send = 'GET / user=u', times = 10, permit = 'p', expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l', headers = { Retry-After = '5' } },
         { release = 'p' },
         { send = 'GET / user=u', expect = 'allow' },
         { at = '119999ms', send = 'GET / user=u', expect = 'deny l' },
         { at = '2min', send = 'GET / user=u', times = 10, expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },",
    ),
    promise(
        "files up to 10 MB",
        "[api.a.limit]\nl = { {0} }",
        "{ send = 'POST /', cost = { file_bytes = 10_000_000 }, expect = 'allow' },
         { send = 'POST /', cost = { file_bytes = 10_000_001 }, expect = 'deny l', status = 413, headers = { Retry-After = false } },",
    ),
    promise(
        "25 GB of storage",
        "[api.a.limit]\nl = { per = ['user'], {0} }",
        "{ send = 'POST / user=u', cost = { stored_bytes = 25_000_000_000 }, expect = 'allow' },
         { send = 'POST / user=u', cost = { stored_bytes = 1 }, expect = 'deny l' },
         { at = '999day', send = 'POST / user=u', cost = { stored_bytes = 1 }, expect = 'deny l' },
         { adjust = 'l', by = '-1B', send = 'POST / user=u' },
         { send = 'POST / user=u', cost = { stored_bytes = 1 }, expect = 'allow' },
         { send = 'POST / user=u', cost = { stored_bytes = 1 }, expect = 'deny l' },",
    ),
    promise(
        "150,000 tokens a minute",
        "[api.a.limit]\nl = { per = ['user'], {0} }",
        "{ send = 'POST / user=u', cost = { tokens = 150_000 }, expect = 'allow' },
         { send = 'POST / user=u', cost = { tokens = 1 }, expect = 'deny l' },
         { adjust = 'l', by = -600, send = 'POST / user=u' },
         { send = 'POST / user=u', cost = { tokens = 600 }, expect = 'allow' },
         { send = 'POST / user=u', cost = { tokens = 1 }, expect = 'deny l' },
         { at = '60s', send = 'POST / user=u', cost = { tokens = 150_000 }, expect = 'allow' },
         { at = '120s', send = 'POST / user=u', cost = { tokens = 150_001 }, expect = 'deny l' },",
    ),
    promise(
        "per IP address",
        "[api.a.limit]\nl = { {0}, fixed = '1/min' }",
        "{ send = 'GET / ip=2001:db8:0:1::1', expect = 'allow' },
         { send = 'GET / ip=2001:db8:0:1:8000::1', expect = 'deny l' },
         { send = 'GET / ip=2001:db8:0:0::1', expect = 'allow' },
         { send = 'GET / ip=192.0.2.1', expect = 'allow' },
         { send = 'GET / ip=192.0.2.2', expect = 'allow' },
         { send = 'GET / ip=::ffff:192.0.2.1', expect = 'deny l' },
         { at = '60s', send = 'GET / ip=192.0.2.1', expect = 'allow' },",
    ),
    Promise {
        row: "per account, whichever key is used",
        policy: "[api.a]\n{0}\n[api.a.limit]\nl = { {1}, fixed = '2/min' }",
        test: "start = '2024-05-03T00:00:00Z'\n\
               identities = [{ api_key = 'k', account = 'a7' }, { session = 's', account = 'a7' }]",
        steps: "{ send = 'GET / api_key=k', expect = 'allow' },
         { send = 'GET / session=s', expect = 'allow' },
         { send = 'GET / api_key=k', expect = 'deny l' },
         { send = 'GET / account=a8', expect = 'allow' },
         { at = '60s', send = 'GET / session=s', expect = 'allow' },",
    },
    promise(
        "the free plan has no API access",
        "[api.a]\ntiers = ['free', 'pro']\n{0}\n[api.a.limit]\nl = { per = ['user'], fixed = '9/min' }",
        "{ send = 'GET / user=u tier=free auth=api_key', expect = 'deny api_not_in_plan', status = 403 },
         { send = 'GET / user=u tier=free auth=session', expect = 'allow' },
         { send = 'GET / user=u tier=pro auth=api_key', expect = 'allow' },",
    ),
    promise(
        "health checks and staff are not limited",
        "[api.a]\n{0}\n[api.a.limit]\nl = { per = ['user'], fixed = '1/min' }",
        "{ send = 'GET /health user=u', times = 9, expect = 'bypass' },
         { send = 'GET / user=u role=staff', times = 9, expect = 'bypass' },
         { send = 'GET / user=u', expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l' },",
    ),
    promise(
        "browser sessions are not subject to this limit",
        "[api.a.limit]\nl = { per = ['user'], fixed = '1/min', {0} }",
        "{ send = 'GET / user=u auth=session', times = 9, expect = 'allow' },
         { send = 'GET / user=u auth=api_key', expect = 'allow' },
         { send = 'GET / user=u auth=api_key', expect = 'deny l' },",
    ),
    promise(
        "refused attempts count too",
        "[api.a.limit]\nl = { per = ['ip'], bucket = '2/min', {0} }",
        "{ send = 'POST /login ip=i', times = 2, expect = 'allow' },
         { at = '20s', send = 'POST /login ip=i', expect = 'deny l' },
         { at = '30s', send = 'POST /login ip=i', expect = 'deny l' },
         { at = '60s', send = 'POST /login ip=i', expect = 'allow' },",
    ),
    promise(
        "`X-RateLimit-Remaining-Hour: 87` on every answer",
        "[api.a]\n{0}\n[api.a.limit]\nl = { per = ['user'], fixed = '100/hour' }",
        "{ send = 'GET / user=u', times = 13, expect = 'allow', headers = { X-RateLimit-Remaining-Hour = '87' } },
         { send = 'GET / user=u', times = 87, expect = 'allow', headers = { X-RateLimit-Remaining-Hour = '0' } },
         { send = 'GET / user=u', expect = 'deny l', headers = { X-RateLimit-Remaining-Hour = '0' } },",
    ),
    promise(
        "`{\"message\": \"Too Many Attempts.\"}`",
        "[api.a]\n{0}\n[api.a.limit]\nl = { per = ['user'], fixed = '1/min' }",
        "{ send = 'GET / user=u', expect = 'allow', body = false },
         { send = 'GET / user=u', expect = 'deny l', body = '{\"message\": \"Too Many Attempts.\"}' },",
    ),
    promise(
        "`X-RateLimit-Type: minute` or `daily`",
        "[api.a]\n{0}\n{1}\n[api.a.limit]\nl = { per = ['user'], fixed = '2/min, 3/day' }",
        "{ send = 'GET / user=u', times = 2, expect = 'allow', headers = { X-RateLimit-Type = false } },
         { send = 'GET / user=u', expect = 'deny l.minute', headers = { X-RateLimit-Type = 'minute' } },
         { at = '60s', send = 'GET / user=u', expect = 'allow' },
         { send = 'GET / user=u', expect = 'deny l.day', headers = { X-RateLimit-Type = 'daily' } },",
    ),
    promise(
        "we will enforce this from June",
        "[api.a.limit]\nl = { per = ['user'], fixed = '2/min', {0} }",
        "{ send = 'GET / user=u', expect = 'allow', remaining = { l = 1 } },
         { send = 'GET / user=u', times = 9, expect = 'allow', remaining = { l = 0 } },",
    ),
    promise(
        "coming soon",
        "[api.a.limit]\nl = { per = ['user'], fixed = '2/min', {0} }",
        "{ send = 'GET / user=u', times = 9, expect = 'allow' },",
    ),
];

/// The rows: what the page says, and the spans that it is to be written as.
fn rows() -> Vec<(&'static str, Vec<&'static str>)> {
    let (_, cookbook) = include_str!("LANGUAGE.md").split_once("## Cookbook").unwrap();
    let rows = cookbook.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    rows.take_while(|line| line.starts_with('|'))
        .map(|row| {
            let (says, write) = row.trim_matches('|').split_once('|').unwrap();
            let spans = write.split('`').skip(1).step_by(2);
            (says.trim(), spans.filter(|span| !WORDS.contains(span)).collect())
        })
        .collect()
}

impl Promise {
    /// Whether the row, written by these spans, keeps it; else why not.
    fn kept(&self, spans: &[String]) -> Result<(), String> {
        let mut text = format!("schema = 1\n{}\n", self.policy);
        for (place, span) in spans.iter().enumerate() {
            let mark = format!("{{{place}}}");
            if span.is_empty() {
                // Without its comma, so that what is left is no error of form.
                text = text.replace(&format!("{mark}, "), "").replace(&format!(", {mark}"), "");
            }
            text = text.replace(&mark, span);
        }
        text.push_str(&format!("[[test]]\napi = 'a'\n{}\nsteps = [{}]\n", self.test, self.steps));
        let policy = Policy::compile(&[Source { name: "row", text: &text }], &Seed::new([7; 16]));
        let report = policy.map_err(|errors| errors.to_string())?.run_tests();
        match (report.failed(), report.passed()) {
            (0, 1..) => Ok(()),
            _ => Err(super::render_report(&report)),
        }
    }

    fn has(&self, span: usize) -> bool {
        self.policy.contains(&format!("{{{span}}}"))
    }
}

/// Each promise is kept by its row; and by nothing else: not without one of the row's spans, nor
/// with any of its numbers changed by one.
#[test]
fn every_row_of_the_cookbook_keeps_its_promise_and_by_no_other_number() {
    let (mut numbers_changed, rows) = (0, rows());
    for promise in &PROMISES {
        let row = promise.row;
        let spans = rows.iter().find(|(says, _)| *says == row);
        let (_, spans) = spans.unwrap_or_else(|| panic!("there is no row {row:?}"));
        let spans: Vec<String> = spans.iter().map(|span| (*span).to_owned()).collect();
        promise.kept(&spans).unwrap_or_else(|why| panic!("{row}: {why}"));
        for at in (0..spans.len()).filter(|at| promise.has(*at)) {
            let with = |text: String| {
                let mut spans = spans.clone();
                spans[at] = text;
                spans
            };
            let none = promise.kept(&with(String::new()));
            assert!(none.is_err(), "{row}: nobody misses {}", spans[at]);
            for range in numbers(&spans[at]) {
                let number: u64 = spans[at][range.clone()].parse().unwrap();
                for other in [number + 1, number.saturating_sub(1)] {
                    let mut changed = spans[at].clone();
                    changed.replace_range(range.clone(), &other.to_string());
                    let kept = promise.kept(&with(changed.clone()));
                    assert!(kept.is_err(), "{row}: {changed} does as well");
                    numbers_changed += 1;
                }
            }
        }
    }
    assert!(numbers_changed >= 50, "{numbers_changed}");
}

/// No row is without a promise that is run, unless it says why, and no span of one is left out.
#[test]
fn every_row_of_the_cookbook_is_run_or_says_why_not() {
    for (says, spans) in rows() {
        let mut promises = PROMISES.iter().filter(|promise| promise.row == says).peekable();
        let reason = NOTHING_TO_RUN.iter().find(|(row, _)| *row == says);
        assert_eq!(promises.peek().is_none(), reason.is_some(), "{says}");
        let promises: Vec<&Promise> = promises.collect();
        for (at, span) in spans.iter().enumerate() {
            let used = promises.iter().any(|promise| promise.has(at));
            assert!(used || reason.is_some(), "{says}: {span} is not run");
        }
    }
    for (row, _) in NOTHING_TO_RUN {
        assert!(rows().iter().any(|(says, _)| *says == row), "{row}");
    }
}

/// Every policy that the reference shows is one, and its test passes.
#[test]
fn every_sample_of_the_reference_is_as_it_says() {
    let samples = include_str!("LANGUAGE.md").split("```toml\n").skip(1);
    let samples: Vec<&str> = samples.filter_map(|rest| Some(rest.split_once("```")?.0)).collect();
    let [first, tables, test] = *samples else { panic!("{} samples", samples.len()) };
    let run = |text: &str| {
        let policy = Policy::compile(&[Source { name: "sample", text }], &Seed::new([7; 16]));
        policy.unwrap_or_else(|errors| panic!("{errors}")).run_tests()
    };
    let report = run(&format!("{first}{test}"));
    assert_eq!((report.failed(), report.passed()), (0, 126), "{}", super::render_report(&report));
    // Lines of one limit are of one kind; a cost goes with any.
    let of = |kinds: &[&str]| -> String {
        let is = |line: &&str| kinds.iter().any(|kind| line.starts_with(kind));
        tables.lines().filter(is).map(|line| format!("{line}\n")).collect()
    };
    let (fixed, cap, bucket) = (of(&["fixed"]), of(&["cap"]), of(&["bucket", "cost"]));
    run(&format!(
        "schema = 1\n[api.a]\ntiers = ['basic', 'premium']\n\
         class.image = ['/image']\nclass.text = ['/text']\n\
         [api.a.limit.f]\n{fixed}[api.a.limit.c]\nmeter = 'file_bytes'\n{cap}\
         [api.a.limit.b]\n{bucket}"
    ));
    let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).count();
    assert_eq!(lines(&fixed) + lines(&cap) + lines(&bucket), lines(tables));
}
